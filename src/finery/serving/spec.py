"""The spec file of a serving process: what to serve, and within which limits.

One JSON object, written by whoever starts the process and read once by
`host.py`.  A field that is not known here is refused by name.  `detect` says
which kind a model folder is, for whoever writes the spec.
"""

from __future__ import annotations

import json
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finery import checkpoint

Kind = Literal["chat", "pyfunc", "script"]
_LARGEST = 64 << 20  # bytes of a tokenizer's settings: the server itself looks into them


class BadSpec(Exception):
    """The spec, the model or the script cannot be served; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A serving process.  Times are in milliseconds because Azure's request settings are."""

    kind: Kind
    model: str = ""  # a folder, or a single file for a script
    model_name: str = ""  # what /v1/models and answers call it; "": the folder's name
    model_version: str = ""
    code: str = ""  # folder of the user's code
    script: str = ""  # entry file, within `code`
    host: str = "127.0.0.1"
    port: int = 0
    max_concurrent_requests: int | None = None  # None: 1, or for chat as many as a batch holds
    max_queued_requests: int = 256
    max_queue_wait_ms: int = 500
    request_timeout_ms: int = 5000
    max_body_bytes: int = 100 * 2**20  # as much as the way in lets through
    # chat only
    device: str = ""  # "": cuda where there is one, else cpu
    dtype: str = ""  # "": float32 for small models on a CPU, otherwise bfloat16 or the model's own
    max_batch: int = 0  # conversations answered together; 0: 16 on a CPU, 64 on a GPU
    max_context: int = 0  # tokens of prompt and answer; 0: what the model allows
    max_cache_bytes: int = 0  # of keys and values; 0: 4 GiB on a CPU, 40 % of a GPU
    max_new_tokens: int = 256  # at most, where a call of /score does not say
    self_check: bool = True
    checks: str = ""  # a file of JSON lines with `messages`, used for the self-check


def read(path: str | Path) -> Spec:
    """The spec in the file; BadSpec names the field that is unknown, missing or of a wrong type."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadSpec(f"{path}: {error}") from error
    if not isinstance(document, dict):
        raise BadSpec(f"{path}: not a JSON object")
    return spec_in(document)


def spec_in(document: dict[str, Any]) -> Spec:
    """The spec that the object describes."""
    types = typing.get_type_hints(Spec)
    for name, value in document.items():
        if name not in types:
            raise BadSpec(f"{name}: unknown field")
        if not _fits(value, types[name]):
            raise BadSpec(f"{name}: {value!r} is not {_spelled(types[name])}")
    if "kind" not in document:
        raise BadSpec("kind: missing")
    spec = Spec(**document)
    _consider(spec)
    return spec


def detect(folder: str | Path) -> Kind:
    """The kind of a model that comes without code: "chat" or "pyfunc"; BadSpec for neither."""
    top = Path(folder)
    if _has_chat_template(top):
        return "chat"
    if mlflow_folder(top) is not None:
        return "pyfunc"
    raise BadSpec(
        f"{top}: neither a chat model (a checkpoint whose tokenizer has a chat template) nor an"
        " MLflow model (a folder with MLmodel); a model of another kind needs a scoring script"
    )


def mlflow_folder(folder: str | Path) -> Path | None:
    """The folder with the file MLmodel: `folder` or the only one directly inside it."""
    top = Path(folder)
    if (top / "MLmodel").is_file():
        return top
    inside = [path.parent for path in top.glob("*/MLmodel")]
    return inside[0] if len(inside) == 1 else None


def _consider(spec: Spec) -> None:
    for name in ("request_timeout_ms", "max_body_bytes", "max_new_tokens"):
        if getattr(spec, name) < 1:
            raise BadSpec(f"{name}: must be 1 or more")
    for name in ("max_queue_wait_ms", "max_queued_requests", "port", "max_batch", "max_context"):
        if getattr(spec, name) < 0:
            raise BadSpec(f"{name}: must not be negative")
    if spec.max_concurrent_requests is not None and spec.max_concurrent_requests < 1:
        raise BadSpec("max_concurrent_requests: must be 1 or more")
    if spec.kind == "script" and not (spec.code and spec.script):
        raise BadSpec("code, script: a script needs both")
    if spec.kind != "script" and not spec.model:
        raise BadSpec(f"model: kind {spec.kind!r} needs one")


def _has_chat_template(top: Path) -> bool:
    """True when a tokenizer of this model has a chat template; no heavy import for the answer."""
    try:
        here = checkpoint.find(top)
    except checkpoint.NoModel:
        return False
    roots = {top, here, here.parent, here.parent.parent}
    places = {r / p for r in roots for p in (".", *checkpoint.TOKENIZER_PLACES)} & _within(top)
    return any(_template_in(place) for place in places)


def _within(top: Path) -> set[Path]:
    return {top, *(path.parent for path in top.rglob("tokenizer_config.json"))}


def _template_in(place: Path) -> bool:
    if (place / "chat_template.jinja").is_file():
        return True
    settings = place / "tokenizer_config.json"
    if not settings.is_file():
        return False
    try:
        if settings.stat().st_size > _LARGEST:
            raise BadSpec(f"{settings}: it is larger than {_LARGEST >> 20} MiB")
        found = json.loads(settings.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadSpec(f"{settings}: cannot be read as JSON: {error}") from error
    return isinstance(found, dict) and bool(found.get("chat_template"))


def _fits(value: Any, wanted: Any) -> bool:
    if typing.get_origin(wanted) is Literal:
        return value in typing.get_args(wanted)
    if wanted == int | None:
        return value is None or (isinstance(value, int) and not isinstance(value, bool))
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, wanted)


def _spelled(wanted: Any) -> str:
    if typing.get_origin(wanted) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(wanted)))
    return {int: "a whole number", str: "a string", bool: "true or false"}.get(wanted, str(wanted))
