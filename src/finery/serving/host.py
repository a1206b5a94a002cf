"""The entry point of a serving process.

    python -m finery.serving.host serve.json

What is served is loaded before anything is listened to, so an address means that it
is ready.  What is answered is in `routes.py`, bytes on sockets in `connection.py`.

It may run in an environment of the user's own: on the way to a script nothing is
imported but the standard library and httptools (uvloop where there is one; werkzeug
where a script asks for raw HTTP).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from finery import checkpoint
from finery.serving import journal, spec
from finery.serving.connection import Listener
from finery.serving.routes import Host, plain
from finery.serving.spec import BadSpec, Spec
from finery.serving.wire import Scorer
from finery.serving.workers import Workers

if TYPE_CHECKING:
    from finery.serving.chat import Chat

GRACE = 25  # seconds that a request may still take once the process was asked to end
_BACKLOG = 2048
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_ENDING = frozenset((signal.SIGTERM, signal.SIGINT))


def main(argv: list[str] | None = None) -> int:
    """Serve what the spec file says until asked to end; the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        print("usage: python -m finery.serving.host SPEC_FILE", file=sys.stderr)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    try:
        wanted = spec.read(arguments[0])
    except BadSpec as error:
        journal.say("the spec is wrong", error=str(error))
        return 2
    secret = os.environ.pop("FINERY_SERVING_SECRET", "")  # no business of the user's code
    process_dir = os.environ.get("FINERY_PROCESS_DIR", "")
    process_dir = str(Path(process_dir).resolve()) if process_dir else ""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    # Threads that wait by spinning make everything ten times slower on a shared machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # A script that never waits must not hold up a probe by more than this per turn.
    sys.setswitchinterval(0.0005)
    if wanted.kind == "script":
        _keep_memory()
    try:
        scorer, chat = _load(wanted)
    except (BadSpec, checkpoint.NoModel) as error:
        journal.say("cannot be served", error=str(error))
        return 1
    Serving(wanted, scorer, chat, secret=secret, process_dir=process_dir).run()
    if chat:
        chat.close()
    journal.say("ended")
    return 0


def _load(wanted: Spec) -> tuple[Scorer | None, Chat | None]:
    """Import only what the kind needs: torch takes seconds."""
    if wanted.kind == "chat":
        from finery.serving import loading

        return None, loading.chat(wanted)
    if wanted.kind == "pyfunc":
        from finery.serving import pyfunc

        return plain(pyfunc.load(wanted)), None
    from finery.serving import script

    return script.load(wanted), None


class Serving:
    """The process at work: one thread for the event loop, the main thread for the user's code.

    A script's `init()` and `run()` share the main thread where one request runs at a
    time, as they do on Azure: signals, SQLite connections and much else belong to the
    thread that made them.
    """

    def __init__(
        self,
        wanted: Spec,
        scorer: Scorer | None,
        chat: Chat | None,
        *,
        secret: str,
        process_dir: str,
    ) -> None:
        """Nothing is listened to yet."""
        self._wanted, self._scorer, self._chat = wanted, scorer, chat
        self._secret, self._process_dir = secret, process_dir
        self._loop = _new_loop()
        self._stop = asyncio.Event()
        self._workers: Workers | None = None
        self._begun = threading.Event()  # it listens, or will never
        self._returned = threading.Event()  # the main thread is out of the user's code
        self._failure: BaseException | None = None

    def run(self) -> None:
        """Serve until asked to end."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        # A handler in Python waits until the main thread leaves C; this reaches the loop at once.
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        for number in _ENDING:
            signal.signal(number, self._asked)
        self._loop.add_reader(ours.fileno(), self._signalled, ours)
        thread = threading.Thread(target=self._turn, name="loop", daemon=True)
        thread.start()
        self._begun.wait()
        if self._workers:
            threading.Thread(target=self._leave, args=(thread,), daemon=True).start()
            self._workers.work()
        self._returned.set()
        thread.join()
        if self._failure:
            raise self._failure

    def _leave(self, thread: threading.Thread) -> None:
        """End the process although `run()` may never return."""
        thread.join()
        if not self._returned.wait(1):
            journal.say("ended", warning="run() had not returned")
            os._exit(0)

    def _asked(self, number: int, frame: object) -> None:
        with contextlib.suppress(RuntimeError):  # it has ended already
            self._loop.call_soon_threadsafe(self._stop.set)

    def _signalled(self, ours: socket.socket) -> None:
        if set(ours.recv(64)) & _ENDING:
            self._stop.set()

    def _turn(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            self._failure = error
        finally:
            if self._workers:
                self._workers.stop()
            self._begun.set()

    async def _serve(self) -> None:
        wanted = self._wanted
        host = Host(
            wanted,
            scorer=self._scorer,
            chat=self._chat,
            secret=self._secret,
            deployment=os.environ.get("FINERY_DEPLOYMENT", ""),
        )
        listener = Listener(host)
        bound = _bound(wanted)
        server = await self._loop.create_server(listener.connect, sock=bound, backlog=_BACKLOG)
        listener.sweep()
        self._workers = host.workers
        if host.workers:
            host.workers.start(spare=1)
        self._begun.set()
        address = "http://{}:{}".format(*bound.getsockname()[:2])
        journal.say("ready", address=address, kind=wanted.kind, model=host.name, pid=os.getpid())
        if self._process_dir:
            _write(Path(self._process_dir) / "address", address)
        await self._stop.wait()
        server.close()
        await listener.close(min(GRACE, 1 + wanted.request_timeout_ms // 1000))
        host.journal.flush()


def _keep_memory() -> None:
    """Keep what a large body took for the next one.

    glibc gives a freed block of such a size back to the system, and each of its pages is
    then found anew: for a picture of 300 KB that is half of what a request costs.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 16 * 2**20)
        libc.mallopt(_M_TRIM_THRESHOLD, 64 * 2**20)


def _bound(wanted: Spec) -> socket.socket:
    listener = socket.socket(proto=socket.IPPROTO_TCP)  # else asyncio leaves Nagle's delay on
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((wanted.host, wanted.port))
    return listener


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    made: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return made


def _write(path: Path, text: str) -> None:
    """Whole or not at all: somebody is waiting for the file to appear."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


if __name__ == "__main__":
    sys.exit(main())
