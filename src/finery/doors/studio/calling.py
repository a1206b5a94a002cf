"""How an endpoint is called: commands to copy, for a terminal and for Python.

What goes in depends on what is served: a chat, a table or tensors for an MLflow
model (its signature says which columns), or whatever a script reads.
"""

from __future__ import annotations

import json
import shlex
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml

from finery.core import references
from finery.core.endpoints import Deployment, Endpoint
from finery.core.errors import Failure
from finery.doors.http import House

NO_KEY = "THE-KEY"  # stands for it until it is asked for
_LARGEST = 100_000  # bytes of a model's or a script's description that are read
_LONGEST = 2000  # characters of a body that a script gives as an example
_PATIENCE = 0.5  # seconds that an instance has to describe itself
_UNKNOWN = {"data": "…"}  # what goes in to a script that does not say
_EXAMPLES = {"string": "text", "boolean": True, "integer": 1, "long": 1, "datetime": "2026-01-31"}

Kind = Literal["chat", "table", "script", ""]


@dataclass(frozen=True, kw_only=True)
class Ways:
    kind: Kind
    curl: str
    python: str
    sample: bool = False  # whether the body is an example that the script itself gives


def kind(house: House, deployment: Deployment) -> Kind:
    """Return what a deployment is asked; empty where its model is not there."""
    if deployment.spec.script:
        return "script"
    try:
        return "chat" if house.kind(_folder(house, deployment)) == "chat" else "table"
    except (Failure, OSError):
        return ""


def ways(house: House, endpoint: Endpoint, deployment: Deployment, *, key: str) -> Ways:
    """Return how to call an endpoint that this deployment answers for."""
    what = kind(house, deployment)
    address = f"{house.http}/endpoints/{endpoint.name}"
    key = key or NO_KEY
    if what == "chat":
        question = [{"role": "user", "content": "Hello!"}]
        body: Any = {"model": endpoint.name, "messages": question}
        return Ways(
            kind=what,
            curl=_curl(f"{address}/v1/chat/completions", key, body),
            python=_chat(f"{address}/v1", key, endpoint.name),
        )
    sample = _sample(house, deployment) if what == "script" else None
    body = {"input_data": _row(house, deployment)} if what == "table" else sample or _UNKNOWN
    return Ways(
        kind=what,
        sample=bool(sample),
        curl=_curl(f"{address}/score", key, body),
        python=_score(f"{address}/score", key, body),
    )


def _curl(address: str, key: str, body: Any) -> str:
    text = json.dumps(body, ensure_ascii=False)
    return (
        f"curl {address} \\\n"
        f"  -H {shlex.quote(f'Authorization: Bearer {key}')} \\\n"
        "  -H 'Content-Type: application/json' \\\n"
        f"  -d {shlex.quote(text)}"
    )


def _score(address: str, key: str, body: Any) -> str:
    return (
        "import requests\n\n"
        "answer = requests.post(\n"
        f'    "{address}",\n'
        f'    headers={{"Authorization": {_literal("Bearer " + key)}}},\n'
        f"    json={_literal(body)},\n"
        ")\n"
        "answer.raise_for_status()\n"
        "print(answer.json())"
    )


def _chat(address: str, key: str, name: str) -> str:
    return (
        "from openai import OpenAI\n\n"
        f'client = OpenAI(base_url="{address}", api_key={_literal(key)})\n'
        "answer = client.chat.completions.create(\n"
        f'    model="{name}", messages=[{{"role": "user", "content": "Hello!"}}]\n'
        ")\n"
        "print(answer.choices[0].message.content)"
    )


def _literal(body: Any) -> str:
    """Return a value in Python's words, with the quotes that most people write."""
    text = repr(body)
    return text if '"' in text or "\\" in text else text.replace("'", '"')


def _row(house: House, deployment: Deployment) -> Any:
    """Return an example of what an MLflow model takes, as its signature says; else a stand-in."""
    try:
        columns = _columns(_folder(house, deployment))
    except (Failure, OSError, ValueError, LookupError, TypeError, AttributeError):
        columns = {}
    except (yaml.YAMLError, RecursionError):
        columns = {}
    if not columns:
        return [[1.0, 2.0]]
    return {"columns": [*columns], "index": [0], "data": [[*columns.values()]]}


def _columns(folder: Path) -> dict[str, Any]:
    """Return the columns that a model's description names, each with an example."""
    found = [folder / "MLmodel", *folder.glob("*/MLmodel")]
    file = next((path for path in found if path.is_file()), None)
    if file is None or file.stat().st_size > _LARGEST:
        return {}
    # All as text: a few lines of merged mappings could take for ever.
    manifest = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    signature = manifest["signature"]
    asked = json.loads(signature["inputs"])[:50]
    return {one["name"]: _EXAMPLES.get(one["type"], 1.0) for one in asked}


def _sample(house: House, deployment: Deployment) -> Any:
    """Return the body that a script gives as an example in its own description; None for none.

    Asked of an instance, as whoever calls may: the script itself is not ours to read or run.
    """
    process, address = next(iter(deployment.addresses.items()), ("", ""))
    try:
        text = _described(address, house.keys.derived("serving", process)) if address else b""
        found = json.loads(text)["definitions"]["ServiceInput"]["example"]
        return found if len(json.dumps(found)) <= _LONGEST else None
    except (OSError, HTTPException, ValueError, LookupError, TypeError, RecursionError):
        return None  # it does not say, or not now


@lru_cache(maxsize=100)  # each question is a line in the log of the instance
def _described(address: str, secret: str) -> bytes:
    """Return what an instance says of itself; it never says anything else."""
    where = urlsplit(address)
    with closing(HTTPConnection(where.hostname or "", where.port, timeout=_PATIENCE)) as line:
        line.request("GET", "/swagger.json", headers={"x-finery-secret": secret})
        answer = line.getresponse()
        text = answer.read(_LARGEST)  # of a longer one, too little to make sense of
        return text if answer.status == 200 else b""


def _folder(house: House, deployment: Deployment) -> Path:
    return references.path(house.store, house.files, deployment.workspace, deployment.spec.model)
