"""The base model comes into one folder, from whichever source goes first."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from finery import checkpoint
from finery.recipes import model_import

from .conftest import flags


@pytest.fixture
def catalog(base: Path, tmp_path: Path) -> Path:
    """An MLflow model as a catalog keeps it: settings beside, weights inside."""
    top = tmp_path / "catalog"
    shutil.copytree(base, top / "model")
    (top / "MLmodel").write_text("metadata:\n  huggingface_model_id: some/model\n")
    (top / "LICENSE").write_text("free")
    (top / "ml_configs").mkdir()
    (top / "ml_configs" / "finetune_config.json").write_text('{"a": 1, "b": 1}')
    (top / "model" / "evil.py").write_text("boom")
    (top / "model" / "checkpoint-5").mkdir()
    (top / "model" / "checkpoint-5" / "optimizer.pt").touch()
    return top


def test_an_mlflow_model_brings_its_weights_words_and_licence(
    catalog: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "settings.json"
    settings.write_text('{"b": 2}')
    out = tmp_path / "out"
    words = flags(mlflow_model_path=catalog, finetune_config_path=settings, output_dir=out)
    assert model_import.main(words) == 0
    names = {path.name for path in out.iterdir()}
    assert {"MLmodel", "LICENSE", "config.json", "model.safetensors", "tokenizer.json"} <= names
    assert json.loads((out / "finetune_config.json").read_text()) == {"a": 1, "b": 2}
    chosen = json.loads((out / "model_selector_args.json").read_text())
    assert (chosen["source"], chosen["model_name"]) == ("mlflow", "some/model")
    assert not names & {"evil.py", "checkpoint-5", ".part"}


def test_code_comes_along_only_when_asked_for(catalog: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = flags(mlflow_model_path=catalog, trust_remote_code="true", output_dir=out)
    assert model_import.main(words) == 0
    assert (out / "evil.py").is_file()


def test_whoever_writes_into_an_imported_model_leaves_the_catalogs_alone(
    imported: Path, base: Path
) -> None:
    for name in ("model.safetensors", "config.json"):
        assert (imported / name).read_bytes() == (base / name).read_bytes()
        assert not (imported / name).samefile(base / name)


def test_a_pytorch_folder_goes_before_an_mlflow_model(
    base: Path, catalog: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = flags(mlflow_model_path=catalog, pytorch_model_path=base, output_dir=out)
    assert model_import.main(words) == 0
    assert json.loads((out / "model_selector_args.json").read_text())["source"] == "pytorch"


def test_a_model_kept_one_level_down_is_found(catalog: Path, tmp_path: Path) -> None:
    outer = tmp_path / "downloaded"
    outer.mkdir()
    catalog.rename(outer / "Phi-3")
    out = tmp_path / "out"
    assert model_import.main(flags(mlflow_model_path=outer, output_dir=out)) == 0
    assert checkpoint.weights(out)


def test_what_is_missing_is_named_and_nothing_half_made_stays(
    base: Path, catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def refused(**words: object) -> str:
        assert model_import.main(flags(output_dir=out, **words)) == 1
        assert not out.exists() or list(out.iterdir()) == []
        return capsys.readouterr().err

    assert "no model" in refused()
    assert "is an MLflow model" in refused(pytorch_model_path=catalog)
    assert "there is no MLmodel file" in refused(mlflow_model_path=base)
    assert "there is no such folder" in refused(pytorch_model_path=tmp_path / "nowhere")
    shutil.rmtree(catalog / "model")
    assert "some/model has no weights on this machine" in refused(mlflow_model_path=catalog)
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(base / "config.json", bare)
    assert "there are no weights" in refused(pytorch_model_path=bare)
    shutil.copy(base / "model.safetensors", bare)
    assert "there is no tokenizer" in refused(pytorch_model_path=bare)


def test_microsoft_s_florence_becomes_transformers_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of 0.2 million parameters is loaded: only that shows that nothing foreign is run."""
    from finery.recipes import florence2

    from . import small_florence

    model, _ = florence2.load(small_florence.native(tmp_path / "native"))
    for pickle in (False, True):
        given = small_florence.original(model, tmp_path / f"original{pickle}", pickle=pickle)
        out = tmp_path / f"imported{pickle}"
        words = {"pytorch_model_path": given, "output_dir": out}
        assert model_import.main(flags(**words, task_name="VisualQuestionAnswering")) == 0
        assert "translated from Microsoft's original format" in capsys.readouterr().out
        assert not florence2.is_original(out) and not list(out.glob("*.py"))
        assert checkpoint.load(out).config.text_config.vocab_size % 64 == 0
        assert checkpoint.processor(out).num_image_tokens == small_florence.TOKENS


def test_a_language_model_is_no_model_of_pictures(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = flags(pytorch_model_path=base, output_dir=tmp_path, task_name="VisualQuestionAnswering")
    assert model_import.main(words) == 1
    assert "is a phi3; questions about pictures are answered by Florence-2" in (
        capsys.readouterr().err
    )
