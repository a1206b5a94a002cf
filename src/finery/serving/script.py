"""A user's score.py: `init()` once, then `run(…)` for every request.

What Azure's inference server does with them: `run` is given the body as text; with
`@input_schema`, the entries of the body's object; with `@rawhttp`, the request.
What comes back is encoded as JSON, a response goes out as it is, and a generator
piece by piece.  Threads and limits are in `workers.py`, routes in `routes.py`, the
words of HTTP in `contract.py`.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import logging
import logging.config
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import GeneratorType, ModuleType
from typing import Any

from finery.serving import contract, journal, rawhttp, wire
from finery.serving.contract import Told
from finery.serving.spec import BadSpec, Spec
from finery.serving.swagger import Descriptions
from finery.serving.wire import Answer, Exchange, Headers, Refusal

FAILED = "An unexpected error occurred in scoring script. Check the logs for more info."

# What Azure's server reads from the environment and this one does not.
_IGNORED = (
    "AML_APP_INSIGHTS_ENABLED", "AZUREML_CONFIG_FILE", "AZUREML_DEBUG_PORT", "SCORING_TIMEOUT_MS",
    "SEPERATE_HEALTH_ENDPOINT", "WORKER_COUNT",
)  # fmt: skip


class Script:
    """A script that has been loaded.  Called on a thread, it answers one request."""

    def __init__(self, run: Callable[..., Any], parameters: list[inspect.Parameter]) -> None:
        """`parameters` are those of `run`."""
        self.run = run
        self._headers = any(one.name == "request_headers" for one in parameters)
        self.parameters = [one for one in parameters if one.name != "request_headers"]
        self._first = self.parameters[0].name
        self.raw = rawhttp.asked()
        self.schema = _schemas(run)
        self.descriptions = Descriptions(Path(os.environ.get("AML_APP_ROOT", ".")), run)

    def takes(self, method: str) -> bool:
        """Say whether `run` is called for it at all."""
        return self.raw or method in ("GET", "POST")

    def __call__(self, exchange: Exchange) -> Answer:
        """Score."""
        given = self._input(exchange)
        if self._headers:
            given["request_headers"] = contract.request_headers(exchange)
        began = time.perf_counter()
        try:
            result = self.run(**given)
        except BaseException as error:  # a script may even call sys.exit()
            traceback.print_exc()
            raise Told(500, FAILED, failed=True, why=said(error)) from error
        took = b"%.3f" % ((time.perf_counter() - began) * 1000)
        answer = _encoded(result, exchange)
        answer.headers.append((b"x-ms-run-fn-exec-ms", took))
        return answer

    def _input(self, exchange: Exchange) -> dict[str, Any]:
        if self.raw:
            return {self._first: rawhttp.request(exchange)}
        if self.schema:
            return self._entries(exchange)
        if exchange.method == "GET":
            return {self._first: json.dumps(contract.parameters(exchange.query))}
        try:
            return {self._first: str(exchange.body, "utf-8")}
        except UnicodeDecodeError as error:
            raise Told(400, f"Input cannot be decoded as UTF-8: {error}") from None

    def _entries(self, exchange: Exchange) -> dict[str, Any]:
        document = _object(exchange)
        given = {one.name: document.get(one.name, one.default) for one in self.parameters}
        for name, value in given.items():
            if value is inspect.Parameter.empty:
                raise Told(400, f"A value is not provided for the {name!r} parameter.")
        return given


def load(spec: Spec) -> Script:
    """Import the script and call its `init`; BadSpec says what keeps it from serving."""
    code = Path(spec.code).resolve()
    script = code / spec.script
    if not script.is_file():
        raise BadSpec(f"script: there is no file {spec.script!r} in {code}")
    if spec.model:
        os.environ.setdefault("AZUREML_MODEL_DIR", str(_model_dir(Path(spec.model).resolve())))
    os.environ["AZUREML_ENTRY_SCRIPT"] = spec.script
    os.environ.setdefault("AML_APP_ROOT", str(code))
    for folder in (str(script.parent), str(code)):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    os.chdir(code)
    _logs(code)
    ignored = sorted(name for name in _IGNORED if os.environ.get(name, "false").lower() != "false")
    if ignored:
        journal.say("not honoured", names=ignored)
    rawhttp.install()
    module = _imported(script)
    loaded = _checked(module, spec.script)
    try:
        module.init()
    except BaseException as error:
        traceback.print_exc()
        raise BadSpec(f"script: init() in {spec.script} failed: {said(error)}") from error
    return loaded


def failed(error: BaseException, what: str) -> Refusal:
    """What the caller of a model without a script is told when it fails; the log has the rest."""
    return Refusal(500, "ModelError", f"{what} failed: {type(error).__name__}: {error}")


def said(error: BaseException) -> str:
    """What went wrong, and at which line of the user's own code."""
    root = os.environ.get("AML_APP_ROOT", "")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if root and frame.filename.startswith(root + os.sep):
            name = os.path.relpath(frame.filename, root)
            return f"{type(error).__name__}: {error} ({name}, line {frame.lineno})"
    return f"{type(error).__name__}: {error}"


def _object(exchange: Exchange) -> dict[str, Any]:
    """The object that the entries are taken from."""
    if exchange.method == "GET":
        return contract.parameters(exchange.query)
    if not contract.is_json(exchange.header(b"content-type")):
        raise Told(415, "Expects Content-Type to be application/json")
    try:
        document = json.loads(exchange.body)
    except json.JSONDecodeError as error:
        if not exchange.body:
            raise Told(400, "POST body is empty. Expecting a JSON dictionary.") from None
        raise Told(400, f"POST body could not be decoded as JSON: {error}") from None
    except (ValueError, RecursionError) as error:
        traceback.print_exc()
        raise Told(500, contract.INTERNAL) from error
    if not isinstance(document, dict):
        raise Told(400, "POST body should be a JSON dictionary.")
    return document


def _encoded(result: Any, exchange: Exchange) -> Answer:
    if isinstance(result, GeneratorType):
        headers = [(b"content-type", wire.TEXT), (contract.FAILED, b"False")]
        return Answer(200, headers, b"", _parts(result))
    if rawhttp.is_response(result):
        answer = rawhttp.answer(result, exchange)
        if answer.status < 500:
            return answer
        kept: Headers = [field for field in answer.headers if field[0] != contract.FAILED]
        return answer._replace(headers=[*kept, (contract.FAILED, b"True")])
    try:
        body = wire.json_out({} if result is None else result)
    except (TypeError, ValueError, RecursionError) as error:
        traceback.print_exc()
        why = f"what run() returned cannot be written as JSON: {error}"
        raise Told(500, contract.INTERNAL, failed=True, why=why) from error
    return Answer(200, [(b"content-type", wire.JSON), (contract.FAILED, b"False")], body)


def _parts(result: GeneratorType[Any, Any, Any]) -> Iterator[bytes]:
    try:
        for part in result:
            if not isinstance(part, (str, bytes)):
                raise TypeError(f"run() gave a piece of type {type(part).__name__}, not text")
            yield part.encode() if isinstance(part, str) else part
    except Exception as error:
        traceback.print_exc()
        raise Told(500, FAILED, failed=True, why=said(error)) from error
    finally:
        result.close()


def _model_dir(model: Path) -> Path:
    """A folder that holds the model under its own name, as AZUREML_MODEL_DIR does."""
    if not model.exists():
        raise BadSpec(f"model: there is no file or folder {model}")
    home = os.environ.get("FINERY_PROCESS_DIR")
    if home:
        folder = Path(home) / "model"
        folder.mkdir(exist_ok=True)
    else:
        folder = Path(tempfile.mkdtemp(prefix="finery-model-"))
    link = folder / model.name
    link.unlink(missing_ok=True)
    link.symlink_to(model)
    return folder


def _logs(code: Path) -> None:
    """What the script logs reaches the log, whether or not it sets logging up."""
    given = code / "logging.json"
    if given.is_file():
        try:
            return logging.config.dictConfig(json.loads(given.read_text(encoding="utf-8")))
        except (ValueError, OSError, TypeError, AttributeError, ImportError) as error:
            raise BadSpec(f"logging.json: {error}") from error
    # A handler of ours on the root would make the script's own basicConfig() do nothing.
    last = logging.lastResort
    if last is not None:
        last.setLevel(logging.INFO)
        last.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(name)s - %(message)s"))
        logging.getLogger().setLevel(logging.INFO)


def _imported(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("entry_module", script)
    if spec is None or spec.loader is None:
        raise BadSpec(f"script: {script.name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["entry_module"] = module  # dataclasses and pickle look a module up by its name
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        traceback.print_exc()
        raise BadSpec(f"script: {script.name} cannot be imported: {said(error)}") from error
    return module


def _checked(module: ModuleType, name: str) -> Script:
    for needed in ("init", "run"):
        if not callable(getattr(module, needed, None)):
            raise BadSpec(f"script: {name} has no function {needed}()")
    behind = getattr(module, "driver_module", None)  # made by Azure's designer around a script
    run = getattr(behind, "run", None) if isinstance(behind, ModuleType) else None
    run = run or module.run
    if inspect.iscoroutinefunction(run):
        raise BadSpec(f"script: {name}: run() is async, which is not supported")
    parameters = list(inspect.signature(run).parameters.values())
    plain = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if any(one.kind not in plain for one in parameters):
        raise BadSpec(
            f"script: {name}: run() must not take positional-only arguments, *args or **kwargs"
        )
    if not [one for one in parameters if one.name != "request_headers"]:
        raise BadSpec(f"script: {name}: run() must take one argument, the body")
    script = Script(run, parameters)
    if script.raw and script.schema:
        raise BadSpec(f"script: {name}: run() has both @rawhttp and @input_schema")
    more = [one.name for one in script.parameters[1:] if one.default is inspect.Parameter.empty]
    if more and not script.schema:
        raise BadSpec(f"script: {name}: run() must take one argument, the body, and needs {more}")
    return script


def _schemas(run: Callable[..., Any]) -> bool:
    """Say whether `run` is decorated with a schema of the package inference-schema."""
    if "inference_schema.schema_util" not in sys.modules:
        return False
    return bool(sys.modules["inference_schema.schema_util"].is_schema_decorated(run))
