"""The warm parent: a process that has imported the training stack and forks our jobs.

Importing it takes seconds, forking a process that has takes milliseconds.  The
server holds a `Parent`; the other end of its channel is this module run as
`python -m finery.engines.warm MODULES SECONDS`, which imports and then waits: no
tensor, no thread, no accelerator, so that its children start from a clean slate.
For each request it forks a keeper (`keeper.py`, the same code as ever), which
forks the job.  It ends when its server does, or after a time without work; the
keepers it forked go on.  A request that it does not carry out is carried out
cold by the engine, and the keeper's lock sees to it that only one of them runs.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import logging
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from finery.engines import keeper, proc

# What the recipes use, and by the names they use, since transformers imports by name.
STACK = (
    "numpy,torch,datasets,safetensors.torch"
    ",transformers:AutoModelForCausalLM:AutoTokenizer:AutoProcessor:Trainer:TrainingArguments"
    ":Phi3ForCausalLM:GenerationConfig:TrainerCallback"
    ",peft:LoraConfig:PeftModel:get_peft_model,trl:SFTTrainer:SFTConfig,mlflow,rouge_score.rouge_scorer"
    ",tabulate"  # torch imports it when a program ends, for a table that nobody asked for
)
# Read once, when the stack is imported: where these differ the parent cannot stand in.
FIXED = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TORCH", "PYTORCH_", "DATASETS_", "PYTHON",
         "LD_", "OMP_", "KMP_", "MKL_", "GOMP_", "OPENBLAS_", "XDG_", "HOME")  # fmt: skip
FLUID = {"OMP_NUM_THREADS", "HF_TOKEN"}  # these we set again, or are read anew each time
# Pools of threads that libraries would otherwise start when they are imported.
THREADLESS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
CHANNEL = 3  # the file descriptor of the channel in the warm parent

logger = logging.getLogger(__name__)


def can_run(command: list[str]) -> bool:
    """Say whether a command is `python -m MODULE ...` of our own environment."""
    ours = command[:1] in (["python"], [sys.executable])
    return ours and len(command) > 2 and command[1] == "-m"


class Parent:
    """The server's end: wakes the warm parent, hands it work, and knows when it is gone."""

    def __init__(self, log: Path, env: Mapping[str, str], *, idle: float, stack: str) -> None:
        self.env = {name: value for name, value in env.items() if name != "OMP_NUM_THREADS"}
        self._log = log
        self._idle = idle
        self._stack = stack
        self._pid: int | None = None
        self._channel: socket.socket | None = None
        self._ready = False
        self._lock = threading.Lock()

    def wake(self) -> None:
        """Start it if it does not run.  Returns at once; it is ready seconds later."""
        with self._lock:
            self._look()
            if self._channel is None:
                self._start()

    def ready(self) -> bool:
        with self._lock:
            self._look()
            return self._ready

    def take(self, directory: Path, env: Mapping[str, str]) -> bool:
        """Hand over a process; False where it has to start cold (and the parent wakes up)."""
        if fixed(env) != fixed(self.env):
            return False
        with self._lock:
            self._look()
            if self._channel is None:
                self._start()
            if not self._ready or self._channel is None:
                return False
            try:
                self._channel.send(os.fsencode(directory))
                return True
            except OSError:
                return False  # it ended just now, or its queue is full

    def close(self) -> None:
        with self._lock:
            self._drop()

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        log = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        actions: list[Any] = [
            (os.POSIX_SPAWN_DUP2, theirs.fileno(), CHANNEL),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(self._log), log, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        # -P: the directory we stand in is no place to import from.
        words = [sys.executable, "-P", "-m", __name__, self._stack, str(self._idle)]
        with theirs:
            self._pid = os.posix_spawn(
                sys.executable,
                words,
                self.env | THREADLESS,
                file_actions=actions,
                setsid=True,
                setsigmask=[],
                setsigdef=keeper.DEFAULTS,
            )
        self._channel = ours

    def _look(self) -> None:
        """Hear whether it became ready, or ended."""
        if self._channel is None:
            return
        try:
            if self._channel.recv(16):
                self._ready = True
            else:
                self._drop()
        except BlockingIOError:
            pass
        except OSError:
            self._drop()

    def _drop(self) -> None:
        if self._channel is not None:
            self._channel.close()
        if self._pid is not None:
            proc.kill(self._pid, signal.SIGKILL)  # not waited for yet, so the number is its own
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
        self._channel, self._pid, self._ready = None, None, False


def fixed(env: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that a process cannot change any more once it is warm."""
    return {k: v for k, v in env.items() if k.startswith(FIXED) and k not in FLUID}


def main(argv: list[str]) -> None:
    stack, idle = argv
    os.closerange(CHANNEL + 1, keeper.FILES)  # what the server left open is none of ours
    channel = socket.socket(fileno=CHANNEL)
    for words in stack.split(","):
        load(*words.split(":"))
    for name in THREADLESS:
        os.environ.pop(name, None)
    threads = os.listdir("/proc/self/task")
    if len(threads) > 1:
        print(f"warm: {len(threads) - 1} threads run after the imports", flush=True)
    gc.collect()
    gc.freeze()  # a collection in a child must not touch, and so copy, every page
    try:
        channel.send(b"ready")
        serve(channel, float(idle))
    except ConnectionError:
        pass  # the server is gone
    os._exit(0)  # there is nothing to put away


def load(module: str, *names: str) -> None:
    """Import a module and some names of it; what is not installed is left out."""
    try:
        found = importlib.import_module(module)
        for name in names:
            getattr(found, name)
    except Exception as error:
        print(f"warm: without {module}: {error}", flush=True)


def serve(channel: socket.socket, idle: float) -> None:
    """Keep one keeper ready, until the server is gone or nothing came for `idle` seconds.

    The keeper takes its request from the channel itself: forking it is not on the
    path of the job that it keeps.
    """
    patience: float | None = idle
    while True:
        reap()
        taken, take = os.pipe()
        if os.fork() == 0:
            os.close(taken)
            stand_by(channel, take)
        os.close(take)
        if not select.select([taken], [], [], patience)[0]:
            channel.shutdown(socket.SHUT_RD)  # no more; what has come already is carried out
            patience = None
        if not os.read(taken, 1):
            return  # it ended without a request: the channel is closed
        os.close(taken)


def reap() -> None:
    """Take leave of keepers that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def stand_by(channel: socket.socket, take: int) -> NoReturn:
    """In the fork: wait for a request, then be the keeper that it asks for."""
    try:
        proc.control(proc.DEATH_SIGNAL, signal.SIGKILL)  # with its parent, until it has work
        request = channel.recv(65536)
        if request:
            proc.control(proc.DEATH_SIGNAL, 0)
            channel.close()
            os.write(take, b"t")
            os.close(take)
            os.setsid()
            keeper.keep(os.fsdecode(request), become)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def become(asked: dict[str, Any], env: dict[str, str]) -> NoReturn:
    """In the job's own process: be `python -m MODULE ARGUMENTS`."""
    _, _, module, *arguments = asked["command"]
    proc.control(proc.NAME, asked["name"].encode())
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [module, *arguments]
    sys.path.insert(0, asked["cwd"])
    seed(env)
    code = run(module)
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for the job's own threads
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def seed(env: Mapping[str, str]) -> None:
    """Give the child what an interpreter of its own would have had."""
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # or all children would draw the same numbers
    if "torch" in sys.modules and env.get("OMP_NUM_THREADS", "").isdigit():
        sys.modules["torch"].set_num_threads(int(env["OMP_NUM_THREADS"]))


def run(module: str) -> int:
    """Run a module as the main program; give the exit code that the interpreter would."""
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is None:
            return 0
        if isinstance(end.code, int):
            return end.code & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return 128 + signal.SIGINT
    except BaseException as error:
        trace = error.__traceback__
        error.__traceback__ = trace.tb_next if trace else None  # without this function
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
