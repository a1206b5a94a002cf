"""The no-code contract over fake models; one real MLflow model at the end, loaded by mlflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from finery.serving import pyfunc
from finery.serving.spec import BadSpec, Spec
from finery.serving.wire import Refusal


@pytest.mark.parametrize(
    "given",
    [
        {"columns": ["a", "b"], "index": [0, 1], "data": [[1, 2], [3, 4]]},
        {"columns": ["a", "b"], "data": [[1, 2], [3, 4]]},
        [{"a": 1, "b": 2}, {"a": 3, "b": 4}],
        [[1, 2], [3, 4]],
        {"a": [1, 3], "b": [2, 4]},
    ],
)
def test_a_table_may_be_said_in_many_ways(given: Any) -> None:
    found = pyfunc.data_in(given, columns=["a", "b"])
    pd.testing.assert_frame_equal(found, pd.DataFrame({"a": [1, 3], "b": [2, 4]}))


def test_the_tables_own_index_is_kept() -> None:
    found = pyfunc.data_in({"columns": ["a"], "index": [7], "data": [[1]]}, columns=[])
    assert list(found.index) == [7]


def test_a_list_of_plain_values_is_a_column() -> None:
    found = pyfunc.data_in(["x", "y"], columns=["text"])
    assert found.to_dict("list") == {"text": ["x", "y"]}


def test_columns_at_the_end_may_be_left_out_of_a_list() -> None:
    found = pyfunc.data_in([["x", 1], ["y", 2]], columns=["image", "question", "text"])
    assert list(found.columns) == ["image", "question"]


def test_without_names_a_list_is_an_array_and_an_object_named_tensors() -> None:
    np.testing.assert_array_equal(pyfunc.data_in([[1, 2]], columns=[]), np.array([[1, 2]]))
    found = pyfunc.data_in({"x": [[1, 2]]}, columns=[])
    np.testing.assert_array_equal(found["x"], np.array([[1, 2]]))


@pytest.mark.parametrize("given", ["text", 3, [[1], [2, 3]], {"columns": ["a"], "data": [[1, 2]]}])
def test_what_is_no_table_is_refused(given: Any) -> None:
    with pytest.raises(Refusal, match="input_data: "):
        pyfunc.data_in(given, columns=[])


def test_whatever_a_model_gives_becomes_plain_json() -> None:
    frame = pd.DataFrame({"a": np.array([1, 2]), "t": ["x", "y"]})
    assert pyfunc.jsonable(frame) == [{"a": 1, "t": "x"}, {"a": 2, "t": "y"}]
    assert pyfunc.jsonable(pd.Series([1.5, 2.5])) == [1.5, 2.5]
    assert pyfunc.jsonable({"x": np.float32(2), "y": np.eye(2)}) == {
        "x": 2.0,
        "y": [[1.0, 0.0], [0.0, 1.0]],
    }
    json.dumps(pyfunc.jsonable([np.int64(3), (np.bool_(True),)]))


SOURCE = """
import mlflow
class Twice(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        if model_input["x"].max() > 100:
            raise ValueError("too much")
        return model_input * (params or {}).get("factor", 2)
mlflow.models.set_model(Twice())
"""


@pytest.mark.filterwarnings("ignore")  # mlflow's own, of several libraries
def test_a_real_mlflow_model_is_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import mlflow.pyfunc
    from mlflow.models import infer_signature

    (tmp_path / "twice.py").write_text(SOURCE)
    table = pd.DataFrame({"x": [1.0]})
    signature = infer_signature(table, table, params={"factor": 2})
    mlflow.pyfunc.save_model(
        tmp_path / "model",
        python_model=str(tmp_path / "twice.py"),
        signature=signature,
        pip_requirements=[],
    )
    scorer = pyfunc.load(Spec(kind="pyfunc", model=str(tmp_path / "model")))

    def ask(document: Any) -> Any:
        return json.loads(scorer(json.dumps(document).encode()))

    assert ask({"input_data": {"columns": ["x"], "data": [[1.5]]}}) == [{"x": 3.0}]
    assert ask({"input_data": [{"x": 1.0}], "params": {"factor": 5}}) == [{"x": 5.0}]
    for document, status, message in (
        ({"data": []}, 400, "'data' is not supported here"),
        ({}, 400, "input_data: missing"),
        ({"input_data": [{"x": 1.0}], "params": {"k": 1}}, 400, "'k' is not supported"),
        ({"input_data": [{"y": 1.0}]}, 400, "x"),
        ({"input_data": [{"x": 101.0}]}, 500, "ValueError: too much"),
    ):
        with pytest.raises(Refusal) as refused:
            ask(document)
        assert (refused.value.status, message in refused.value.message) == (status, True)
    assert "too much" in capsys.readouterr().err


def test_a_folder_without_an_mlflow_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="there is no MLmodel"):
        pyfunc.load(Spec(kind="pyfunc", model=str(tmp_path)))
