"""An MLflow model with no code: Azure's no-code scoring contract.

`{"input_data": …, "params": {…}}` in, where `input_data` is a table
(`columns`, `index`, `data`), a list, or an object of named tensors; JSON out,
tables as records.  The model's signature decides what a list means.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finery.serving import fields, wire
from finery.serving.script import failed
from finery.serving.spec import BadSpec, Spec, mlflow_folder
from finery.serving.wire import invalid

TABLE = ("columns", "index", "data")


def load(spec: Spec) -> Callable[[bytes], bytes]:
    """Load the model; the result answers one body at a time."""
    folder = mlflow_folder(Path(spec.model))
    if folder is None:
        raise BadSpec(f"model: there is no MLmodel in {spec.model}")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when it is imported
    try:
        import mlflow.pyfunc

        model = mlflow.pyfunc.load_model(str(folder))
    except Exception as error:
        traceback.print_exc()
        raise BadSpec(
            f"model: mlflow cannot load {folder}: {type(error).__name__}: {error}"
        ) from error
    return lambda body: _scored(model, body)


def _scored(model: Any, body: bytes) -> bytes:
    from mlflow.exceptions import MlflowException

    document = fields.of(wire.json_in(body), "the body", known=("input_data", "params"))
    if "input_data" not in document:
        raise invalid("missing", target="input_data")
    params = fields.of(document.get("params") or {}, "params", known=_param_names(model))
    data = data_in(document["input_data"], columns=_columns(model))
    try:
        result = model.predict(data, params=params) if params else model.predict(data)
    except MlflowException as error:
        if error.error_code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
            raise invalid(str(error), target="input_data") from error
        traceback.print_exc()
        raise failed(error, "predict()") from error
    except Exception as error:
        traceback.print_exc()
        raise failed(error, "predict()") from error
    try:
        return wire.json_out(jsonable(result))
    except (TypeError, ValueError) as error:
        traceback.print_exc()
        raise failed(error, "encoding what predict() gave as JSON") from error


def data_in(given: Any, *, columns: list[str]) -> Any:
    """What the model is given; `columns` are the names in its signature, if it has names."""
    import numpy as np
    import pandas as pd

    if isinstance(given, dict) and "data" in given and set(given) <= set(TABLE):
        try:
            return pd.DataFrame(**given)
        except (ValueError, TypeError) as error:
            raise invalid(f"not a table: {error}", target="input_data") from error
    if isinstance(given, dict):
        if columns:
            return _frame({k: v if isinstance(v, list) else [v] for k, v in given.items()})
        return {name: np.asarray(value) for name, value in given.items()}
    if isinstance(given, list):
        if given and all(isinstance(row, dict) for row in given):
            return _frame(given)
        if columns:
            rows = given if given and isinstance(given[0], list) else [[one] for one in given]
            # Columns at the end may be left out; MLflow says which of them may not.
            width = max((len(row) for row in rows if isinstance(row, list)), default=0)
            return _frame(rows, columns=columns[:width] if rows else columns)
        return _array(given)
    raise invalid("must be a table, a list or an object", target="input_data")


def jsonable(result: Any) -> Any:
    """The result as plain lists and objects; tables as records."""
    import numpy as np
    import pandas as pd

    if isinstance(result, pd.DataFrame):
        return [jsonable(row) for row in result.to_dict(orient="records")]
    if isinstance(result, pd.Series):
        return jsonable(result.tolist())
    if isinstance(result, (np.ndarray, np.generic)):
        return jsonable(result.tolist())
    if isinstance(result, dict):
        return {str(name): jsonable(value) for name, value in result.items()}
    if isinstance(result, (list, tuple)):
        return [jsonable(value) for value in result]
    if isinstance(result, (pd.Timestamp,)):
        return result.isoformat()
    return result.item() if hasattr(result, "item") else result


def _frame(given: Any, *, columns: list[str] | None = None) -> Any:
    import pandas as pd

    try:
        return pd.DataFrame(given, columns=columns)
    except (ValueError, TypeError) as error:
        raise invalid(f"does not fit the model's columns: {error}", target="input_data") from error


def _array(given: list[Any]) -> Any:
    import numpy as np

    try:
        return np.asarray(given)
    except ValueError as error:
        raise invalid(f"not an array: {error}", target="input_data") from error


def _columns(model: Any) -> list[str]:
    schema = model.metadata.get_input_schema()
    if schema is None or schema.is_tensor_spec() or not schema.has_input_names():
        return []
    return [str(name) for name in schema.input_names()]


def _param_names(model: Any) -> tuple[str, ...]:
    asked = getattr(model.metadata, "get_params_schema", None)  # from MLflow 2.6 on
    schema = asked() if asked else None
    return tuple(param.name for param in schema.params) if schema else ()
