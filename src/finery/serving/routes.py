"""Which path of a serving process means what, who may call it, and what is written down.

POST /score; GET / and /health (/health/live, /health/ready); GET /swagger.json and
/metrics; for a chat model POST /v1/chat/completions (and /chat/completions) and GET
/v1/models (`talk.py`).  Who may call from outside, traffic between deployments and
keys are the server's affair: this process listens on loopback and knows one secret.

A script is served as Azure's inference server does it (`contract.py`): where it fails
the answer is 500 with `x-ms-run-function-failed: True`.  The way in to the deployment
calls 424 what a script, or a model without one, answers outside 2xx; what is ours and
stays what it is (408, 413, 429, and all that the chat engine refuses) is marked for it.
"""

from __future__ import annotations

import hmac
import os
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from finery import checkpoint
from finery.serving import contract, swagger, wire
from finery.serving.contract import Told
from finery.serving.journal import Journal
from finery.serving.limits import Gate
from finery.serving.script import Script
from finery.serving.spec import Spec
from finery.serving.wire import Answer, Exchange, Refusal, Scorer
from finery.serving.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from finery.serving.chat import Chat

COMPLETIONS = ("/v1/chat/completions", "/chat/completions")
SCORED = frozenset(("/score", *COMPLETIONS))
HEALTH = frozenset(("/health", "/health/live", "/health/ready"))
_LIMITS = frozenset((401, 408, 413, 429))  # refused by us, never by the model
_MINE = (b"x-finery-refused", b"True")
_SMALL = 2**20  # bytes that a request may have where its body means nothing


class Host:
    """What a serving process answers.  Made on the event loop that it runs on."""

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
        self._secret = secret.encode()
        self._headers = [(b"azureml-model-deployment", deployment.encode())] if deployment else []
        version = os.environ.get("HTTP_X_MS_SERVER_VERSION", "finery")
        self._headers.append((b"x-ms-server-version", version.encode()))
        self._cross_origin = contract.origins()
        self._script = scorer if isinstance(scorer, Script) else None
        places = spec.max_concurrent_requests or (chat.limits.batch if chat else 1)
        queue, wait = spec.max_queued_requests, spec.max_queue_wait_ms / 1000
        patience = spec.request_timeout_ms / 1000
        self.workers: Workers | None = None
        if scorer:
            self.workers = Workers(
                scorer, self._scored, places=places, queue=queue, wait=wait, time=patience
            )
        self._talk = None
        if chat:
            from finery.serving.talk import Talk

            gate = Gate(places, queue=queue, wait=wait)
            stand_in = checkpoint.stand_in_for(spec.model)
            self._talk = Talk(chat, spec, self.name, gate, stand_in_for=stand_in, done=self._ended)

    def admit(self, exchange: Exchange, length: int) -> int:
        """Look at a head: who may send how much."""
        if exchange.path in HEALTH:
            return _SMALL
        given = exchange.header(b"x-finery-secret")
        if self._secret and not hmac.compare_digest(given, self._secret):
            raise Refusal(401, "Unauthorized", "the header x-finery-secret is missing or wrong")
        return self.spec.max_body_bytes if exchange.path in SCORED else _SMALL

    def handle(self, exchange: Exchange) -> None:
        """Answer a request, now or later."""
        if exchange.path in HEALTH:
            return exchange.answer(200, b"Healthy", b"text/plain")
        try:
            self._route(exchange)
        except Refusal as refusal:
            self.refuse(exchange, refusal)
        except Exception as error:
            self.broken(exchange, error)

    def refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        """Answer with an error, in the words that the caller of that path reads."""
        if exchange.status:  # the answer has begun, and shall not be taken for the whole
            exchange.status = refusal.status
            exchange.line.abort()
        elif isinstance(refusal, Told):
            exchange.send(*contract.told(refusal)[:3])
        else:
            if self._talk or refusal.status in _LIMITS:
                exchange.extra.append(_MINE)
            else:
                exchange.extra.append(contract.reason(refusal.message))
            if refusal.status == 429:
                exchange.extra.append((b"retry-after", b"1"))
            document = {"error": {"code": refusal.code, "message": refusal.message}}
            if refusal.target:
                document["error"]["target"] = refusal.target
            if self._talk and (exchange.path in COMPLETIONS or exchange.path == "/v1/models"):
                document = self._talk.error(refusal)
            exchange.answer(refusal.status, wire.json_out(document))
        self._ended(exchange)

    def _route(self, exchange: Exchange) -> None:
        path = exchange.path
        known = path in ("/score", "/", "/swagger.json")
        if self._script and known and exchange.method not in _ALLOWED[path]:
            raise Told(405, contract.NOT_ALLOWED)
        if known or not self._script:
            self._name(exchange)
        if path == "/score":
            return self._score(exchange)
        if self._talk and path in COMPLETIONS:
            _only(exchange, "POST")
            return self._talk.complete(exchange, self)
        if known or path == "/metrics" or (self._talk and path == "/v1/models"):
            if not (self._script and known):
                _only(exchange, "GET")
            self._tell(exchange)
            return self._ended(exchange)
        if self._script:
            raise Told(404, contract.UNKNOWN)
        raise Refusal(404, "NotFound", f"there is nothing at {path}")

    def _name(self, exchange: Exchange) -> None:
        """The headers that go out with every answer."""
        exchange.extra.extend(self._headers)
        if self._cross_origin:
            exchange.extra.extend(self._cross_origin(exchange))
        contract.identified(exchange)

    def _score(self, exchange: Exchange) -> None:
        if self._talk:
            _only(exchange, "POST")
            return self._talk.score(exchange, self)
        if self._script and not self._script.takes(exchange.method):
            if exchange.method != "OPTIONS":
                raise Told(405, "Method not allowed")
            said: wire.Headers = [(b"content-type", wire.TEXT), (contract.FAILED, b"False")]
            exchange.send(200, said, b"")
            return self._ended(exchange)
        if not self._script:
            _only(exchange, "POST")
            wire.unpacked(exchange)
        assert self.workers is not None
        return self.workers.submit(exchange)

    def _scored(self, exchange: Exchange, result: Answer | BaseException) -> None:
        """What became of a call of the scorer."""
        if isinstance(result, Answer):
            if result.parts is None:
                exchange.send(result.status, result.headers, result.body)
            else:
                exchange.end()
            self._ended(exchange)
        elif isinstance(result, Refusal):
            self.refuse(exchange, result)
        else:
            self.broken(exchange, result)

    def broken(self, exchange: Exchange, error: BaseException) -> None:
        """Something of ours went wrong, or the machine's memory is not enough."""
        traceback.print_exception(type(error), error, error.__traceback__)
        said = f"{type(error).__name__}: {error}"
        if self._script:
            return self.refuse(exchange, Told(500, contract.INTERNAL, why=said))
        return self.refuse(exchange, Refusal(500, "InternalError", said))

    def _tell(self, exchange: Exchange) -> None:
        if exchange.method == "OPTIONS":
            exchange.extra.append((b"allow", b"GET, HEAD, OPTIONS"))
            return exchange.send(200, [(b"content-type", wire.TEXT)], b"")
        match exchange.path:
            case "/":
                exchange.answer(200, b"Healthy", wire.TEXT)
            case "/metrics":
                text = self.journal.metrics(self._gauges())
                exchange.answer(200, text, b"text/plain; version=0.0.4")
            case "/swagger.json":
                self._describe(exchange)
            case _:
                assert self._talk is not None
                exchange.answer(200, wire.json_out(self._talk.models()))
        return None

    def _describe(self, exchange: Exchange) -> None:
        if self._script:
            version = str(_first(exchange.query, "version") or "2")
            found = self._script.descriptions.get(version)
            exchange.extra.append((contract.FAILED, b"False"))
            return exchange.answer(200, wire.json_out(found))
        if b"version=2" in exchange.query:
            raise Refusal(404, "NotFound", "there is only version 3 of the description")
        return exchange.answer(200, wire.json_out(swagger.document(self.spec, self.name)))

    def _ended(self, exchange: Exchange) -> None:
        if exchange.path == "/metrics" and exchange.status == 200:
            return  # asked every few seconds: the log is for what callers do
        self.journal.answered(exchange, scored=exchange.path in SCORED)

    def _gauges(self) -> dict[str, float]:
        at = self._talk.gate if self._talk else self.workers
        assert at is not None
        gauges: dict[str, float] = {"running": at.running, "queue": at.waiting}
        return gauges | (self._talk.gauges() if self._talk else {})


def plain(score: Callable[[bytes], bytes]) -> Scorer:
    """A scorer of bodies that gives JSON."""

    def scored(exchange: Exchange) -> Answer:
        return Answer(200, [(b"content-type", wire.JSON)], score(bytes(exchange.body)))

    return scored


_ALLOWED = {
    "/score": ("GET", "HEAD", "POST", "OPTIONS"),
    "/": ("GET", "HEAD", "OPTIONS"),
    "/swagger.json": ("GET", "HEAD", "OPTIONS"),
}


def _only(exchange: Exchange, method: str) -> None:
    if exchange.method != method:
        raise Refusal(405, "MethodNotAllowed", f"only {method} is possible here")


def _first(query: bytes, name: str) -> str:
    from urllib.parse import parse_qs

    found = parse_qs(query.decode("latin-1"), keep_blank_values=True).get(name, [""])
    return found[0]
