"""The MLflow model answers as the weights do, with nothing of ours imported."""

from __future__ import annotations

import ast
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from finery import checkpoint
from finery.recipes import convert
from finery.recipes.generate import generate, stops

from .conftest import PEFT, conversation, finetune, flags

with warnings.catch_warnings():
    # MLflow warns of its own type hints when it is imported.
    warnings.simplefilter("ignore")
    from finery.recipes import chat_model

STAND_IN = Path(checkpoint.__file__).parent / "catalog/standins/phi3"
ASKED = [conversation(n)[:1] for n in (0, 3, 6)]
# All that the model's code may import: what its requirements name, and the standard library.
ALLOWED = {
    "__future__",
    "json",
    "pathlib",
    "typing",
    "mlflow",
    "torch",
    "transformers",
    "peft",
    "pandas",
}


@pytest.fixture(scope="session")
def converted(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tuned model as an MLflow model."""
    folder = tmp_path_factory.mktemp("mlflow")
    assert convert.main(flags(model_path=tuned, mlflow_model_folder=folder)) == 0
    return folder


@pytest.fixture(scope="session")
def answers(tuned: Path) -> list[str]:
    """What the weights themselves say."""
    model, tokenizer = checkpoint.load(tuned), checkpoint.tokenizer(tuned)
    return generate(model, tokenizer, ASKED, max_new_tokens=12)


def test_mlflow_loads_it_and_it_answers_as_the_weights_do(
    converted: Path, answers: list[str]
) -> None:
    import mlflow.pyfunc
    import pandas

    model = mlflow.pyfunc.load_model(str(converted))
    settings = {"max_new_tokens": 12}
    frame = pandas.DataFrame({"input_string": ASKED, "parameters": [settings] * 3})
    for asked, said in (
        ({"input_string": ASKED}, answers),
        ({"input_string": ASKED[0]}, answers[:1]),
        ([{"input_string": one} for one in ASKED], answers),
        (frame, answers),
    ):
        found = model.predict(asked, params=None if asked is frame else settings)
        assert list(found["output"]) == said
    assert len(set(answers)) > 1


def test_the_models_code_imports_nothing_of_ours(converted: Path) -> None:
    tree = ast.parse((converted / "chat_model.py").read_text())
    nodes = list(ast.walk(tree))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= ALLOWED


@pytest.mark.filterwarnings(PEFT)
def test_an_adapter_brings_its_base(imported: Path, encoded: Path, tmp_path: Path) -> None:
    adapter, folder = tmp_path / "adapter", tmp_path / "mlflow"
    words = {"apply_lora": "true", "merge_lora_weights": "false", "max_steps": 12}
    assert finetune(imported, encoded, adapter, **words) == 0
    assert convert.main(flags(model_path=adapter, mlflow_model_folder=folder)) == 0
    assert checkpoint.is_adapter(folder)
    assert "peft==" in (folder / "requirements.txt").read_text()
    import mlflow.pyfunc

    found = list(mlflow.pyfunc.load_model(str(folder)).predict({"input_string": ASKED})["output"])
    model, tokenizer = checkpoint.load(adapter), checkpoint.tokenizer(adapter)
    assert found == generate(model, tokenizer, ASKED, max_new_tokens=chat_model.MAX_NEW_TOKENS)


def test_the_manifest_knows_nothing_of_this_machine(converted: Path) -> None:
    text = (converted / "MLmodel").read_text()
    document = yaml.safe_load(text)
    assert document["flavors"]["python_function"]["model_code_path"] == "chat_model.py"
    assert document["metadata"]["base_model_task"] == "chat-completion"
    assert document["model_size_bytes"] > 400_000
    assert "/tmp" not in text
    assert str(Path(convert.__file__).parent) not in text
    pins = (converted / "requirements.txt").read_text()
    assert "transformers==" in pins
    assert "+" not in pins


def test_weights_come_along_and_checkpoints_are_left_behind(converted: Path, tuned: Path) -> None:
    inside = converted / "artifacts" / "model"
    weights = [folder / "model.safetensors" for folder in (inside, tuned)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not list(inside.glob("checkpoint-*"))


def test_a_folder_without_weights_is_refused_and_nothing_is_left(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert convert.main(flags(model_path=tmp_path / "nowhere", mlflow_model_folder=out)) == 1
    assert "there is no such folder" in capsys.readouterr().err
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (bare / name).write_bytes((base / name).read_bytes())
    assert convert.main(flags(model_path=bare, mlflow_model_folder=out)) == 1
    assert "there are no weights" in capsys.readouterr().err
    assert not out.exists()


ONE = conversation(0)[:1]


@pytest.mark.parametrize(
    ("shape", "conversations", "settings"),
    [
        (ONE, [ONE], {}),
        ([ONE, ONE], [ONE, ONE], {}),
        ({"input_string": ONE}, [ONE], {}),
        ({"input_string": [ONE], "parameters": {"temperature": 0.5}}, [ONE], {"temperature": 0.5}),
        ({"input_data": {"input_string": [ONE], "parameters": {"a": 1}}}, [ONE], {"a": 1}),
        ({"messages": ONE}, [ONE], {}),
        ("hello", [[{"role": "user", "content": "hello"}]], {}),
    ],
)
def test_every_shape_of_a_request_is_read(shape: Any, conversations: Any, settings: Any) -> None:
    assert chat_model.read(shape) == (conversations, settings)


def test_a_frame_is_read_and_nothing_is_refused() -> None:
    import pandas

    frame = pandas.DataFrame({"input_string": [ONE, [ONE]], "parameters": [{"top_p": 0.9}, None]})
    assert chat_model.read(frame) == ([ONE, ONE], {"top_p": 0.9})
    with pytest.raises(ValueError, match="input_string"):
        chat_model.read({"input_string": []})


def test_an_answer_ends_at_the_end_of_its_turn(tuned: Path) -> None:
    model, tokenizer = checkpoint.load(tuned), checkpoint.tokenizer(tuned)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    assert stops(model, tokenizer) == [tokenizer.eos_token_id, end]


def test_answers_do_not_depend_on_who_shares_the_batch(tuned: Path) -> None:
    model, tokenizer = checkpoint.load(tuned), checkpoint.tokenizer(tuned)
    asked = [conversation(n)[:1] for n in range(9)]
    alone = generate(model, tokenizer, asked, max_new_tokens=10, batch_size=1)
    assert generate(model, tokenizer, asked, max_new_tokens=10, batch_size=4) == alone


def test_what_was_tuned_from_a_stand_in_still_says_so(converted: Path, tmp_path: Path) -> None:
    words = flags(model_path=STAND_IN, mlflow_model_folder=tmp_path)
    assert convert.main(words) == 0
    assert checkpoint.stand_in_for(tmp_path) == "microsoft/Phi-3-mini-4k-instruct"
    assert checkpoint.stand_in_for(converted) == ""
