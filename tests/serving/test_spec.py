from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from finery.serving import spec
from finery.serving.spec import BadSpec, Spec


def test_a_spec_that_is_written_is_the_spec_that_is_read(tmp_path: Path) -> None:
    wanted = Spec(kind="chat", model="m", max_concurrent_requests=3, request_timeout_ms=90000)
    path = tmp_path / "serve.json"
    path.write_text(json.dumps(dataclasses.asdict(wanted)))
    assert spec.read(path) == wanted


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"kind": "chat", "model": "m", "colour": 1}, "colour: unknown field"),
        ({"kind": "chart", "model": "m"}, "kind: 'chart' is not one of 'chat', 'pyfunc', 'script'"),
        ({"model": "m"}, "kind: missing"),
        ({"kind": "chat"}, "model: kind 'chat' needs one"),
        ({"kind": "script", "code": "c"}, "code, script: a script needs both"),
        (
            {"kind": "chat", "model": "m", "request_timeout_ms": "5"},
            "request_timeout_ms: '5' is not a whole number",
        ),
        (
            {"kind": "chat", "model": "m", "max_concurrent_requests": 0},
            "max_concurrent_requests: must be 1 or more",
        ),
        (
            {"kind": "chat", "model": "m", "max_queue_wait_ms": -1},
            "max_queue_wait_ms: must not be negative",
        ),
    ],
)
def test_a_wrong_spec_is_refused_with_the_fields_name(
    document: dict[str, object], message: str
) -> None:
    with pytest.raises(BadSpec, match=re.escape(message)):
        spec.spec_in(document)


def test_a_spec_that_is_no_json_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "serve.json"
    path.write_text("{")
    with pytest.raises(BadSpec, match=r"serve\.json"):
        spec.read(path)


def hugging_face(folder: Path, *, template: bool) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    settings = {"chat_template": "{{ messages }}"} if template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    "place", ["", "model", "data/model", "artifacts/model", "tuned/data/model"]
)
def test_a_checkpoint_with_a_chat_template_is_a_chat_model_in_any_layout(
    tmp_path: Path, place: str
) -> None:
    hugging_face(tmp_path / "m" / place, template=True)
    (tmp_path / "m" / place.split("/")[0]).joinpath("MLmodel").write_text("{}")
    assert spec.detect(tmp_path / "m") == "chat"


def test_a_template_beside_the_model_or_in_a_file_of_its_own_counts(tmp_path: Path) -> None:
    hugging_face(tmp_path / "data" / "model", template=False)
    assert not spec.mlflow_folder(tmp_path)
    tokenizer = hugging_face(tmp_path / "components" / "tokenizer", template=False)
    with pytest.raises(BadSpec, match="neither a chat model"):
        spec.detect(tmp_path)
    (tokenizer / "chat_template.jinja").write_text("{{ messages }}")
    assert spec.detect(tmp_path) == "chat"


def test_a_stranger_s_settings_of_a_gigabyte_are_not_read(tmp_path: Path) -> None:
    folder = hugging_face(tmp_path / "model", template=True)
    with (folder / "tokenizer_config.json").open("ab") as settings:
        settings.truncate(1 << 30)
    with pytest.raises(BadSpec, match="larger than 64 MiB"):
        spec.detect(tmp_path)


def test_an_mlflow_model_without_a_chat_template_is_a_pyfunc(tmp_path: Path) -> None:
    hugging_face(tmp_path / "model", template=False)
    (tmp_path / "MLmodel").write_text("{}")
    assert spec.detect(tmp_path) == "pyfunc"
