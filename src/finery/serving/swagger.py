"""The description of a serving process for programs, at /swagger.json (OpenAPI 3).

What is described is what `host.py` routes for that kind.  Schemas stay open: the
body of a script is its own affair.
"""

from __future__ import annotations

from typing import Any

from finery.serving.spec import Spec

_ANSWERS = {
    "200": {"description": "the answer", "content": {"application/json": {"schema": {}}}},
    "400": {"description": "the request makes no sense"},
    "408": {"description": "the request took longer than allowed"},
    "413": {"description": "the body is too large"},
    "424": {"description": "the model's own code failed"},
    "429": {"description": "too many requests at once"},
}
_INPUT: dict[str, Any] = {
    "chat": {
        "type": "object",
        "required": ["input_data"],
        "properties": {
            "input_data": {
                "type": "object",
                "required": ["input_string"],
                "properties": {
                    "input_string": {"type": "array"},
                    "parameters": {"type": "object"},
                },
            },
            "params": {"type": "object"},
        },
    },
    "pyfunc": {
        "type": "object",
        "required": ["input_data"],
        "properties": {"input_data": {}, "params": {"type": "object"}},
    },
    "script": {},
}


def document(spec: Spec, name: str) -> dict[str, Any]:
    """The description of a process that serves `spec`."""
    paths: dict[str, Any] = {
        "/": {"get": {"responses": {"200": {"description": "it is up"}}}},
        "/score": _post("RunMLService", _INPUT[spec.kind]),
    }
    if spec.kind == "chat":
        messages = {"type": "object", "required": ["messages"]}
        paths["/v1/chat/completions"] = _post("ChatCompletions", messages)
        paths["/v1/models"] = {"get": {"responses": {"200": {"description": "one model"}}}}
    return {
        "openapi": "3.0.3",
        "info": {"title": name, "version": spec.model_version or "1"},
        "paths": paths,
    }


def _post(operation: str, schema: dict[str, Any]) -> dict[str, Any]:
    body = {"content": {"application/json": {"schema": schema}}}
    return {"post": {"operationId": operation, "requestBody": body, "responses": _ANSWERS}}
