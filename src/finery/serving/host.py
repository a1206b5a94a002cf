"""The HTTP shell of a serving process, and its entry point.

    python -m finery.serving.host serve.json

Routes: POST /score; GET / and /health (/health/live, /health/ready); GET
/swagger.json and /metrics; for a chat model POST /v1/chat/completions (and
/chat/completions) and GET /v1/models.  Who may call, traffic between
deployments and keys are the server's affair (`doors/scoring.py`): this process
listens on loopback and knows one secret.  What is served is loaded before
anything is listened to, so an address means that it is ready.

Raw ASGI on uvicorn, because for a small model the framework is the cost.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import signal
import socket
import sys
import time
import traceback
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finery import checkpoint
from finery.serving import journal, spec, swagger, wire
from finery.serving.journal import Journal
from finery.serving.limits import Gate
from finery.serving.spec import BadSpec, Spec
from finery.serving.wire import Exchange, Receive, Refusal, Scope, Send
from finery.serving.workers import Workers

if TYPE_CHECKING:
    from finery.serving.chat import Answer, Chat
    from finery.serving.script import Scorer

COMPLETIONS = ("/v1/chat/completions", "/chat/completions")
GRACE = 25  # seconds that a request may still take once the process was asked to end


class Host:
    """The ASGI application.  Made on the event loop that it runs on."""

    def __init__(
        self,
        spec: Spec,
        *,
        scorer: Scorer | None = None,
        chat: Chat | None = None,
        secret: str = "",
        deployment: str = "",
    ) -> None:
        """One of `scorer` (blocking code, called on threads) or `chat` is what is served."""
        self.spec = spec
        self.name = spec.model_name or Path(spec.model or spec.script).name
        self.journal = Journal()
        self.created = int(time.time())
        self._stands_for = checkpoint.stand_in_for(spec.model) if chat else ""
        self._chat = chat
        self._secret = secret.encode()
        self._headers = [(b"azureml-model-deployment", deployment.encode())] if deployment else []
        places = spec.max_concurrent_requests or (chat.limits.batch if chat else 1)
        self._timeout = spec.request_timeout_ms / 1000
        self.gate = Gate(places, queue=spec.max_queued_requests, wait=spec.max_queue_wait_ms / 1000)
        self._workers = (
            Workers(
                scorer,
                places=places,
                queue=spec.max_queued_requests,
                wait=spec.max_queue_wait_ms / 1000,
                time=self._timeout,
            )
            if scorer
            else None
        )
        if chat:
            chat.open()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        began = time.perf_counter()
        id = _request_id(scope)
        exchange = Exchange(
            scope, receive, send, headers=[(b"x-ms-request-id", id.encode()), *self._headers]
        )
        try:
            await self._route(exchange)
        except Refusal as refusal:
            await self._refuse(exchange, refusal)
        except Exception as error:
            traceback.print_exc()
            said = Refusal(500, "InternalError", f"{type(error).__name__}: {error}")
            await self._refuse(exchange, said)
        if not exchange.path.startswith("/health"):
            self.journal.answered(
                id,
                exchange.method,
                exchange.path,
                status=exchange.status,
                seconds=time.perf_counter() - began,
                sent=exchange.sent,
            )

    async def _route(self, exchange: Exchange) -> None:
        path, method = exchange.path, exchange.method
        if path in ("/health", "/health/live", "/health/ready"):
            return await exchange.answer(200, b"Healthy", b"text/plain")
        given = wire.header(exchange.scope, b"x-finery-secret")
        if self._secret and not hmac.compare_digest(given, self._secret):
            raise Refusal(401, "Unauthorized", "the header x-finery-secret is missing or wrong")
        if path == "/score":
            _only("POST", method)
            return await (self._score_chat(exchange) if self._chat else self._score(exchange))
        if self._chat and path in COMPLETIONS:
            _only("POST", method)
            return await self._complete(exchange, self._chat)
        if path in ("/", "/swagger.json", "/metrics") or (path == "/v1/models" and self._chat):
            _only("GET", method)
            return await self._tell(exchange)
        raise Refusal(404, "NotFound", f"there is nothing at {path}")

    async def _tell(self, exchange: Exchange) -> None:
        match exchange.path:
            case "/":
                await exchange.answer(200, b"Healthy", b"text/plain")
            case "/metrics":
                text = self.journal.metrics(self._gauges())
                await exchange.answer(200, text, b"text/plain; version=0.0.4")
            case "/swagger.json":
                if b"version=2" in exchange.scope["query_string"]:
                    raise Refusal(404, "NotFound", "there is only version 3 of the description")
                described = swagger.document(self.spec, self.name)
                await exchange.answer(200, wire.json_out(described))
            case _:
                from finery.serving import openai_chat

                listed = openai_chat.models_out(
                    self.name, self.created, stand_in_for=self._stands_for
                )
                await exchange.answer(200, wire.json_out(listed))

    async def _score(self, exchange: Exchange) -> None:
        """Blocking code, on a thread."""
        assert self._workers is not None
        body = await self._body(exchange)
        await exchange.answer(200, await self._workers.call(body))

    async def _score_chat(self, exchange: Exchange) -> None:
        from finery.serving import chat as scoring

        assert self._chat is not None
        body = wire.json_in(await self._body(exchange))
        wanted = scoring.scoring_in(body, self._chat.settings, up_to=self.spec.max_new_tokens)
        async with self._place():
            answers = self._chat.start_all(
                wanted.conversations, wanted.wish, target="input_data.input_string"
            )
            async with self._watched(exchange, answers):
                document = await scoring.score(self._chat, wanted, answers)
            await exchange.answer(200, wire.json_out(document))

    async def _complete(self, exchange: Exchange, chat: Chat) -> None:
        from finery.serving import openai_chat

        body = wire.json_in(await self._body(exchange))
        wanted = openai_chat.completion_in(body, chat.settings)
        dialect = openai_chat.Dialect(self.name, stand_in_for=self._stands_for)
        async with self._place():
            answer = chat.start(wanted.messages, wanted.wish, target="messages")
            async with self._watched(exchange, [answer]):
                if wanted.stream:
                    parts = openai_chat.stream(dialect, answer, usage=wanted.usage)
                    await exchange.begin(200, b"text/event-stream; charset=utf-8")
                    async for part in parts:
                        await exchange.write(part)
                    return await exchange.write(b"", more=False)
                text, finish = await answer.whole()
            document = dialect.whole(text, finish, answer)
            await exchange.answer(200, wire.json_out(document))

    async def _body(self, exchange: Exchange) -> bytes:
        if wire.header(exchange.scope, b"content-encoding") not in (b"", b"identity"):
            raise Refusal(415, "UnsupportedMediaType", "content-encoding is not supported")
        limit = self.spec.max_body_bytes
        length = wire.header(exchange.scope, b"content-length")
        if length.isdigit() and int(length) > limit:
            raise wire.too_large(limit)
        return await exchange.body(limit)

    @contextlib.asynccontextmanager
    async def _place(self) -> Any:
        await self.gate.enter()
        try:
            yield
        finally:
            self.gate.leave()

    @contextlib.asynccontextmanager
    async def _watched(self, exchange: Exchange, answers: list[Answer]) -> Any:
        """Stop the answers when their time is over, their reader leaves or something fails."""
        loop = asyncio.get_running_loop()

        def stop(why: Refusal) -> None:
            for answer in answers:
                answer.cancel(why)

        late = wire.late(self._timeout)
        gone = Refusal(499, "ClientClosedRequest", "the client went away")
        timer = loop.call_later(self._timeout, stop, late)
        watch = loop.create_task(wire.until_gone(exchange, lambda: stop(gone)))
        try:
            yield
        finally:
            timer.cancel()
            watch.cancel()
            stop(gone)  # nothing, for answers that are complete

    async def _refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        if exchange.path in COMPLETIONS or exchange.path == "/v1/models":
            from finery.serving import openai_chat

            document = openai_chat.error_out(refusal)
        else:
            document = {"error": {"code": refusal.code, "message": refusal.message}}
            if refusal.target:
                document["error"]["target"] = refusal.target
        with contextlib.suppress(OSError):
            if exchange.status:  # the answer has begun: a stream says it in its own way
                exchange.status = refusal.status
                return await exchange.write(
                    b"data: " + wire.json_out(document) + b"\n\n", more=False
                )
            if refusal.status == 424:
                exchange.extra.append((b"ms-azureml-model-error-statuscode", b"500"))
            if refusal.status == 429:
                exchange.extra.append((b"retry-after", b"1"))
            await exchange.answer(refusal.status, wire.json_out(document))

    def _gauges(self) -> dict[str, float]:
        gauges: dict[str, float] = {
            "requests_running": (self._workers or self.gate).running,
            "requests_waiting": (self._workers or self.gate).waiting,
        }
        if self._chat:
            counts = self._chat.engine.counts
            gauges |= {
                "prompt_tokens_total": counts.prompt_tokens,
                "generated_tokens_total": counts.tokens,
                "engine_steps_total": counts.steps,
                "engine_row_steps_total": counts.row_steps,
                "engine_busy_seconds_total": counts.busy,
                "answers_running": self._chat.engine.running,
                "answers_waiting": self._chat.engine.waiting,
            }
        return gauges


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
    try:
        scorer, chat = _load(wanted)
    except (BadSpec, checkpoint.NoModel) as error:
        journal.say("cannot be served", error=str(error))
        return 1
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again once it has ended
    _run(wanted, scorer, chat, secret=secret, process_dir=process_dir)
    if chat:
        chat.close()
    journal.say("ended")
    return 0


def _load(wanted: Spec) -> tuple[Scorer | None, Chat | None]:
    """Import only what the kind needs: torch takes seconds."""
    match wanted.kind:
        case "chat":
            from finery.serving import loading

            return None, loading.chat(wanted)
        case "pyfunc":
            from finery.serving import pyfunc

            return pyfunc.load(wanted), None
        case "script":
            from finery.serving import script

            return script.load(wanted), None


def _run(
    wanted: Spec, scorer: Scorer | None, chat: Chat | None, *, secret: str, process_dir: str
) -> None:
    import uvicorn

    listener = socket.socket(proto=socket.IPPROTO_TCP)  # else asyncio leaves Nagle's delay on
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((wanted.host, wanted.port))
    listener.listen(2048)

    async def serve() -> None:
        host = Host(
            wanted,
            scorer=scorer,
            chat=chat,
            secret=secret,
            deployment=os.environ.get("FINERY_DEPLOYMENT", ""),
        )
        config = uvicorn.Config(
            host,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            ws="none",
            timeout_keep_alive=75,
            timeout_graceful_shutdown=min(GRACE, 1 + wanted.request_timeout_ms // 1000),
        )
        address = "http://{}:{}".format(*listener.getsockname()[:2])
        journal.say("ready", address=address, kind=wanted.kind, model=host.name, pid=os.getpid())
        if process_dir:
            _write(Path(process_dir) / "address", address)
        await uvicorn.Server(config).serve(sockets=[listener])
        host.journal.flush()

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve())


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _write(path: Path, text: str) -> None:
    """Whole or not at all: somebody is waiting for the file to appear."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def _only(wanted: str, method: str) -> None:
    if method != wanted:
        raise Refusal(405, "MethodNotAllowed", f"only {wanted} is possible here")


def _request_id(scope: Scope) -> str:
    given = wire.header(scope, b"x-ms-request-id").decode("latin-1")
    if 0 < len(given) <= 100 and given.isascii() and given.isprintable():
        return given
    return str(uuid.uuid4())


if __name__ == "__main__":
    sys.exit(main())
