"""A model's folder: found in every layout, loaded, or refused with a reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from finery import checkpoint


@pytest.mark.parametrize("place", checkpoint.MODEL_PLACES)
@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "one level down"])
def test_the_folder_is_found_in_every_layout(tmp_path: Path, place: str, wrapped: bool) -> None:
    top = tmp_path / "outer"
    inner = (top / "name" if wrapped else top) / place
    inner.mkdir(parents=True)
    (inner / "config.json").write_text("{}")
    assert checkpoint.find(top).resolve() == inner.resolve()
    assert checkpoint.weights(top) == []
    (inner / "model-00001-of-00002.safetensors").touch()
    assert [path.name for path in checkpoint.weights(top)] == ["model-00001-of-00002.safetensors"]


def test_a_folder_without_a_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(checkpoint.NoModel, match="no config.json or adapter_config.json"):
        checkpoint.find(tmp_path)
    with pytest.raises(checkpoint.NoModel, match="there is no such folder"):
        checkpoint.find(tmp_path / "nowhere")


def test_a_folder_with_weights_is_not_fetched(base: Path) -> None:
    assert checkpoint.fetch(base) == base


def test_a_model_without_weights_and_without_a_name_says_so(base: Path, tmp_path: Path) -> None:
    shutil.copy(base / "config.json", tmp_path)
    with pytest.raises(checkpoint.NoModel, match="there are no weights"):
        checkpoint.fetch(tmp_path)


def test_a_catalog_folder_whose_hub_does_not_answer_says_what_to_do(tmp_path: Path) -> None:
    manifest = "metadata:\n  huggingface_model_id: nobody/no-such-model\n"
    (tmp_path / "MLmodel").write_text(manifest)
    with pytest.raises(checkpoint.NoModel, match="nobody/no-such-model .* import it from a folder"):
        checkpoint.fetch(tmp_path)


def test_only_weights_and_words_are_fetched_and_code_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    (tmp_path / "MLmodel").write_text("metadata:\n  huggingface_model_id: some/model\n")
    assert checkpoint.fetch(tmp_path) == tmp_path / "cache"
    checkpoint.fetch(tmp_path, trust_remote_code=True)
    assert [name for name, _ in asked] == ["some/model"] * 2
    assert "*.py" not in asked[0][1]
    assert "*.bin" not in asked[0][1]
    assert "*.py" in asked[1][1]


def test_code_in_the_folder_is_not_run(base: Path, tmp_path: Path) -> None:
    # A real load: only transformers itself knows whether it would have run the file.
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Config"}
    (folder / "config.json").write_text(json.dumps(config))
    assert type(checkpoint.load(folder)).__name__ == "Phi3ForCausalLM"
    assert not (tmp_path / "ran").exists()


def test_the_tokenizer_is_found_where_the_layout_keeps_it(base: Path, tmp_path: Path) -> None:
    for model, words in (("model", "components/tokenizer"), ("data/model", "data/tokenizer")):
        top = tmp_path / words.partition("/")[0]
        (top / model).mkdir(parents=True)
        (top / words).mkdir(parents=True)
        shutil.copy(base / "config.json", top / model)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(base / name, top / words)
        assert checkpoint.tokenizer(top).chat_template
    shutil.rmtree(tmp_path / "components")
    with pytest.raises(checkpoint.NoModel):
        checkpoint.tokenizer(tmp_path / "components")
