"""A user's score.py: `init()` once, then `run(data)` for every request.

What Azure's inference server does with them: the body goes in as text, what
comes back is encoded as JSON.  A script that takes the request itself
(`@rawhttp`) or declares its schema (`@input_schema`) is refused at the start.
The threads, the limits and HTTP are in `host.py`.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from finery.serving import wire
from finery.serving.spec import BadSpec, Spec
from finery.serving.wire import Refusal

Scorer = Callable[[bytes], bytes]


def load(spec: Spec) -> Scorer:
    """Import the script and call its `init`; the result answers one body at a time."""
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
    module = _imported(script)
    run = _run_of(module, spec.script)
    try:
        module.init()
    except BaseException as error:
        traceback.print_exc()
        raise BadSpec(f"script: init() in {spec.script} failed: {_said(error)}") from error
    return lambda body: _scored(run, body)


def failed(error: BaseException, what: str) -> Refusal:
    """What the caller is told when the model's own code fails; the log has the rest."""
    return Refusal(424, "ModelError", f"{what} failed: {_said(error)}")


def _scored(run: Callable[[str], Any], body: bytes) -> bytes:
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise wire.invalid(f"the body is not UTF-8: {error}") from None
    try:
        result = run(text)
    except BaseException as error:
        traceback.print_exc()
        raise failed(error, "run()") from error
    try:
        return wire.json_out(result)
    except (TypeError, ValueError) as error:
        traceback.print_exc()
        raise failed(error, "encoding the result of run() as JSON") from error


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
        raise BadSpec(f"script: {script.name} cannot be imported: {_said(error)}") from error
    return module


def _run_of(module: ModuleType, name: str) -> Callable[[str], Any]:
    for needed in ("init", "run"):
        if not callable(getattr(module, needed, None)):
            raise BadSpec(f"script: {name} has no function {needed}()")
    run: Callable[[str], Any] = module.run
    if hasattr(run, "__wrapped__") and "inference_schema" in sys.modules:
        raise BadSpec(f"script: {name}: @input_schema on run() is not supported yet")
    if inspect.iscoroutinefunction(run):
        raise BadSpec(f"script: {name}: run() is async, which is not supported")
    try:
        inspect.signature(run).bind("")
    except TypeError:
        raise BadSpec(f"script: {name}: run() must take one argument, the body") from None
    return run


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
