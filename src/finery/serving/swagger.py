"""The description of a serving process for programs, at /swagger.json.

For a script, what Azure's inference server answers: versions 2, 3 and 3.1, with the
schemas of the package inference-schema where `run` is decorated, or the script's own
swagger.json, swagger2.json, swagger3.json, swagger3.1.json.  For the other kinds,
OpenAPI 3 of what `routes.py` routes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finery.serving.contract import Told
from finery.serving.spec import BadSpec, Spec

Document = dict[str, Any]

VERSIONS = {"2": ("2", "2.0"), "3": ("3", "3.0"), "3.1": ("3.1",)}
_OPEN = {"type": "object", "example": {}}
_ANSWERS = {
    "200": {"description": "the answer", "content": {"application/json": {"schema": {}}}},
    "408": {"description": "the request took longer than allowed"},
    "413": {"description": "the body is too large"},
    "429": {"description": "too many requests at once"},
}
_REFUSED: Document = {
    "chat": {"400": {"description": "the request makes no sense"}},
    "pyfunc": {"424": {"description": "the model refused it, or failed: a header says its status"}},
}
_INPUT: Document = {
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
}


def document(spec: Spec, name: str) -> Document:
    """The description of a process that serves a chat or an MLflow model."""
    paths: Document = {
        "/": {"get": {"responses": {"200": {"description": "it is up"}}}},
        "/score": _post("RunMLService", _INPUT[spec.kind], spec.kind),
    }
    if spec.kind == "chat":
        messages = {"type": "object", "required": ["messages"]}
        paths["/v1/chat/completions"] = _post("ChatCompletions", messages, spec.kind)
        paths["/v1/models"] = {"get": {"responses": {"200": {"description": "one model"}}}}
    return {
        "openapi": "3.0.3",
        "info": {"title": name, "version": spec.model_version or "1"},
        "paths": paths,
    }


class Descriptions:
    """The descriptions of a script, by version."""

    def __init__(self, root: Path, run: Callable[..., Any] | None) -> None:
        """Read from `root`, the script's folder, or made from what `run` is decorated with."""
        self._found: dict[str, Document] = {}
        known, given, taken = _schemas(run)
        for version in VERSIONS:
            own = _own(root, version)
            if own is None and (known is None or set(VERSIONS[version]) & set(known)):
                own = _made(version, given, taken)
            if own is not None:
                self._found[version] = own

    def get(self, version: str) -> Document:
        """The description of that version; a refusal, 404, where there is none."""
        supported = ", ".join(sorted(self._found))
        for name, aliases in VERSIONS.items():
            if version in aliases:
                found = self._found.get(name)
                if found:
                    return found
                raise Told(
                    404,
                    f"Swagger version [{version}] is not supported for the scoring script. "
                    f"Supported swagger versions: [{supported}].",
                )
        raise Told(
            404, f"Swagger version [{version}] is not valid. Supported versions: [{supported}]."
        )


def _schemas(run: Callable[..., Any] | None) -> tuple[list[str] | None, Document, Document]:
    """The versions that `run`'s schemas can be told in (None: all), and its input and output."""
    package = sys.modules.get("inference_schema.schema_util")
    if package is None or run is None:
        return None, _OPEN, _OPEN
    versions = list(package.get_supported_versions(run))
    if not package.is_schema_decorated(run):
        return versions, _OPEN, _OPEN
    return versions, package.get_input_schema(run), package.get_output_schema(run)


def _own(root: Path, version: str) -> Document | None:
    names = [f"swagger{version}.json"]
    for name in ["swagger.json", *names] if version == "2" else names:
        try:
            text = (root / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
        try:
            found: Document = json.loads(text)
        except ValueError as error:
            raise BadSpec(f"{name}: not JSON: {error}") from error
        if found:
            return found
    return None


def _made(version: str, given: Document, taken: Document) -> Document:
    name = os.environ.get("SERVICE_NAME", "ML service")
    info = {
        "title": name,
        "description": f"What the service {name} answers to",
        "version": os.environ.get("SERVICE_VERSION", "1.0"),
    }
    prefix = os.environ.get("SERVICE_PATH_PREFIX", "").strip("/")
    prefix = f"/{prefix}" if prefix else ""
    return (_swagger_2 if version == "2" else _openapi_3)(version, info, prefix, given, taken)


def _swagger_2(
    version: str, info: Document, prefix: str, given: Document, taken: Document
) -> Document:
    def answers(schema: Document, **more: Any) -> Document:
        error = {"description": _ERROR, "schema": {"$ref": "#/definitions/ErrorResponse"}}
        return {"200": {"description": "The answer", "schema": schema, **more}, "default": error}

    body = {
        "name": "serviceInputPayload",
        "in": "body",
        "description": "What run() is given",
        "schema": {"$ref": "#/definitions/ServiceInput"},
    }
    which = {"name": "version", "in": "query", "required": False, "type": "integer", "enum": [2, 3]}
    output = {"$ref": "#/definitions/ServiceOutput"}
    text = {"type": "string"}
    return {
        "swagger": "2.0",
        "info": info,
        "schemes": ["https"],
        "consumes": ["application/json"],
        "produces": ["application/json"],
        "securityDefinitions": {"Bearer": _BEARER},
        "paths": _paths(
            prefix,
            health={"responses": answers(text, examples={"application/json": "Healthy"})},
            score={
                "security": [{"Bearer": []}],
                "parameters": [body],
                "responses": answers(output),
            },
            description={"parameters": [which], "responses": answers(text)},
        ),
        "definitions": {
            "ServiceInput": given,
            "ServiceOutput": taken,
            "ErrorResponse": {"type": "object", "properties": {"message": text}},
        },
    }


def _openapi_3(
    version: str, info: Document, prefix: str, given: Document, taken: Document
) -> Document:
    def answers(kind: str, schema: Document) -> Document:
        error = {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}
        return {
            "200": {"description": "The answer", "content": {kind: {"schema": schema}}},
            "default": {"description": _ERROR, "content": {"application/json": error}},
        }

    body = {
        "description": "What run() is given",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ServiceInput"}}},
    }
    number = {"type": "integer", "enum": [2, 3]}
    which = {"name": "version", "in": "query", "required": False, "schema": number}
    output = {"$ref": "#/components/schemas/ServiceOutput"}
    text = {"type": "string"}
    scored = answers("application/json", output)
    return {
        "openapi": "3.1.0" if version == "3.1" else "3.0.3",
        "info": info,
        "security": [{"Bearer": []}],
        "paths": _paths(
            prefix,
            health={"responses": answers("text/plain", {**text, "example": "Healthy"})},
            score={"security": [{"Bearer": []}], "requestBody": body, "responses": scored},
            description={"parameters": [which], "responses": answers("text/plain", text)},
        ),
        "components": {
            "schemas": {
                "ServiceInput": given,
                "ServiceOutput": taken,
                "ErrorResponse": {"type": "object", "properties": {"message": text}},
            },
            "securitySchemes": {"Bearer": _BEARER},
        },
    }


_ERROR = "What went wrong"
_BEARER = {
    "type": "apiKey",
    "name": "Authorization",
    "in": "header",
    "description": "Bearer and a key of the endpoint",
}


def _paths(prefix: str, *, health: Document, score: Document, description: Document) -> Document:
    def named(operation: str, text: str, rest: Document) -> Document:
        return {"operationId": operation, "description": text, **rest}

    return {
        f"{prefix}/": {"get": named("ServiceHealthCheck", "Says whether it is up", health)},
        f"{prefix}/score": {"post": named("RunMLService", "Calls run()", score)},
        f"{prefix}/swagger.json": {"get": named("GetSwaggerSpec", "This description", description)},
    }


def _post(operation: str, schema: Document, kind: str) -> Document:
    body = {"content": {"application/json": {"schema": schema}}}
    answers = _ANSWERS | _REFUSED[kind]
    return {"post": {"operationId": operation, "requestBody": body, "responses": answers}}
