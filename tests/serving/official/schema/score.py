"""A script that declares what it takes and gives."""

import numpy as np
import pandas as pd
from inference_schema.parameter_types.numpy_parameter_type import NumpyParameterType
from inference_schema.parameter_types.pandas_parameter_type import PandasParameterType
from inference_schema.parameter_types.standard_py_parameter_type import StandardPythonParameterType
from inference_schema.schema_decorators import input_schema, output_schema


def init():
    pass


@input_schema("data", NumpyParameterType(np.array([[1.0, 2.0]])))
@input_schema("table", PandasParameterType(pd.DataFrame({"a": [1], "b": ["x"]})), optional=True)
@input_schema("factor", StandardPythonParameterType(1.5), optional=True)
@output_schema(StandardPythonParameterType({"sum": 3.0, "table": [1]}))
def run(data, table=None, factor=2.0):
    assert isinstance(data, np.ndarray)
    columns = None if table is None else sorted(table.columns)
    return {"sum": float(data.sum()) * factor, "table": columns, "shape": list(data.shape)}
