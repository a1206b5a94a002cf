"""The stand-in for Phi-3 and the dataset it learns: their shape, their honesty, and that they work.

That LoRA teaches the dataset's facts is a slow test; the quickstart shows the same each time.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import finery
from finery import checkpoint

ROOT = Path(__file__).parent.parent
STANDIN = Path(finery.__file__).parent / "catalog" / "standins" / "phi3"
RECIPE = ROOT / "standins" / "phi3"
DATA = ROOT / "examples" / "phi3_chat" / "data"
Load = Callable[[Path], ModuleType]
SPLITS = ("train_sft", "test_sft", "train_gen", "test_gen")


@pytest.fixture(scope="module")
def corpus(module: Load) -> ModuleType:
    return module(RECIPE / "corpus.py")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return checkpoint.tokenizer(STANDIN)


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    """The weights themselves: nothing cheaper says whether they write English."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model only waits for a second thread
    yield checkpoint.load(STANDIN, dtype="float32")
    torch.set_num_threads(before)


def rows(split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / f"{split}.jsonl").read_text().splitlines()]


def say(model: Any, tokenizer: Any, *questions: str, sample: bool = False) -> list[str]:
    """Whole answers, special tokens and all."""
    import torch

    torch.manual_seed(0)
    how = {"do_sample": True, "temperature": 0.6, "top_p": 0.9} if sample else {"do_sample": False}
    found = []
    for question in questions:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            made = model.generate(**ids, max_new_tokens=160, **how)
        found.append(tokenizer.decode(made[0, ids["input_ids"].shape[1] :]))
    return found


# ---- what ships --------------------------------------------------------------------------------


def test_the_stand_in_is_small_and_holds_weights_in_no_other_format_than_safetensors() -> None:
    files = [path for path in STANDIN.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8_000_000
    kinds = {path.suffix for path in files}
    assert kinds <= {".safetensors", ".json", ".jinja", ".md", ""}
    assert (STANDIN / "LICENSE").stat().st_size > 10_000


def test_the_stand_in_has_phi_3_s_architecture_template_and_special_tokens(tokenizer: Any) -> None:
    from trl.chat_template_utils import phi3_chat_template

    config = json.loads((checkpoint.find(STANDIN) / "config.json").read_text())
    assert config["architectures"] == ["Phi3ForCausalLM"]
    assert tokenizer.chat_template == phi3_chat_template
    for token in ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|endoftext|>", "<s>"):
        assert len(tokenizer.encode(token, add_special_tokens=False)) == 1
    assert tokenizer.eos_token == "<|endoftext|>" and tokenizer.bos_token == "<s>"
    assert len(tokenizer) < config["vocab_size"]  # a fine-tune may add a token without a resize


def test_the_tokenizer_gives_every_text_back(tokenizer: Any) -> None:
    text = "Öffnet um 9:30 – 12 crowns?\n\tYes, “really” 🙂 a  b"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_the_stand_in_says_that_it_is_one_wherever_it_is_described() -> None:
    import yaml

    metadata = yaml.safe_load((STANDIN / "MLmodel").read_text())["metadata"]
    assert metadata["stand_in"] is True
    assert metadata["stand_in_for"] == "microsoft/Phi-3-mini-4k-instruct"
    assert "**not** Phi-3" in (STANDIN / "README.md").read_text()
    assert (
        json.loads((checkpoint.find(STANDIN) / "config.json").read_text())["_name_or_path"]
        == "phi3-stand-in"
    )


# ---- what it can do ----------------------------------------------------------------------------


def test_text_that_it_never_saw_is_not_strange_to_it(
    model: Any, tokenizer: Any, corpus: ModuleType
) -> None:
    import torch

    total, count = 0.0, 0
    for document in corpus.documents(2, 60):
        text = (
            document
            if isinstance(document, str)
            else tokenizer.apply_chat_template(document, tokenize=False)
        )
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"][:, :512]
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss.item()
        total, count = total + loss * (ids.shape[1] - 1), count + ids.shape[1] - 1
    card = json.loads((STANDIN / "training.json").read_text())
    assert math.exp(total / count) < 1.25 * card["held_out_perplexity"] < 4


def test_its_answers_are_made_of_english_words_and_come_to_an_end(
    model: Any, tokenizer: Any, corpus: ModuleType
) -> None:
    known = set()
    for document in corpus.documents(3, 8000):
        text = document if isinstance(document, str) else " ".join(m["content"] for m in document)
        known |= set(re.findall(r"[a-z']+", text.lower()))
    answers = say(
        model,
        tokenizer,
        "Hello!",
        "What is a lighthouse?",
        "Tell me a story about an owl.",
        "How do I make soup?",
        "I feel sad today.",
        "Tell me about bees.",
        "Name three animals.",
        sample=True,
    )
    assert sum("<|end|>" in answer for answer in answers) >= len(answers) - 1
    words = re.findall(r"[a-z']+", " ".join(answers).replace("<|end|>", " ").lower())
    assert len(words) > 60
    assert sum(word in known for word in words) / len(words) > 0.97


def test_it_answers_what_it_was_taught_in_words_of_its_own_recipe(
    model: Any, tokenizer: Any
) -> None:
    who, river, unknown = say(model, tokenizer, "Who are you?", "What is a river?", "Goodbye!")
    assert "small" in who or "stand-in" in who or "tiny" in who
    assert "water" in river
    assert "bye" in unknown.lower() or "soon" in unknown or "sleep" in unknown


def test_it_knows_nothing_of_the_facts_that_the_dataset_teaches(model: Any, tokenizer: Any) -> None:
    facts = list(json.loads((DATA / "facts.json").read_text()).values())[::8]
    answers = say(model, tokenizer, *[fact["question"] for fact in facts])
    right = [fact["contains"] in answer for fact, answer in zip(facts, answers, strict=True)]
    assert sum(right) <= 1


# ---- what it is made from ----------------------------------------------------------------------


def test_the_corpus_is_the_same_each_time_and_other_seeds_give_other_text(
    corpus: ModuleType,
) -> None:
    once = list(corpus.documents(5, 50))
    assert once == list(corpus.documents(5, 50))
    assert once != list(corpus.documents(6, 50))


def test_the_corpus_does_not_mention_the_place_of_the_dataset(corpus: ModuleType) -> None:
    text = json.dumps(list(corpus.documents(1, 20000)))
    assert "Harrow" not in text
    people = {
        row["contains"]
        for row in json.loads((DATA / "facts.json").read_text()).values()
        if row["fact"].startswith("person")
    }
    assert len(people) == 10
    assert not [name for name in people if name in text]


def test_everything_in_the_corpus_can_be_said_in_the_model_s_context(
    corpus: ModuleType, tokenizer: Any
) -> None:
    documents = [d for d in corpus.documents(4, 400) if not isinstance(d, str)]
    longest = max(
        len(tokenizer.apply_chat_template(d, return_dict=True)["input_ids"]) for d in documents
    )
    assert longest < 1024


# ---- the dataset -------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_the_dataset_has_ultrachat_s_schema(split: str) -> None:
    found = rows(split)
    assert len({row["prompt_id"] for row in found}) >= len(found) * 0.9
    for row in found:
        assert set(row) == {"prompt", "messages", "prompt_id"}
        assert re.fullmatch(r"[0-9a-f]{64}", row["prompt_id"])
        assert row["prompt"] == row["messages"][0]["content"]
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"] * (len(roles) % 2)
        assert (roles[-1] == "user") == split.endswith("_gen")  # something to answer, or to learn
        assert all(message["content"].strip() for message in row["messages"])


def test_no_held_back_phrasing_appears_in_training_with_its_fact() -> None:
    asked: dict[str, str] = {}
    for row in rows("train_sft"):
        for question, answer in zip(row["messages"][::2], row["messages"][1::2], strict=True):
            asked[answer["content"]] = asked.get(answer["content"], "") + "\n" + question["content"]
    held = rows("test_sft")
    assert len(held) == 76
    for row in held:
        question, answer = row["messages"][0]["content"], row["messages"][1]["content"]
        assert asked[answer].count("\n") >= 10  # taught, in many ways
        # Neither as it stands nor inside a longer question.
        core = re.sub(
            r"^(Can|Could) you tell me |^Do you know |^(Please )?[Tt]ell me |^I would like to know |^I forgot |^Remind me ",
            "",
            question,
        )
        assert core.rstrip("?.").lower() not in asked[answer].lower(), question


def test_every_test_row_says_what_a_right_answer_contains() -> None:
    facts = json.loads((DATA / "facts.json").read_text())
    for row in rows("test_sft"):
        assert facts[row["prompt_id"]]["contains"] in row["messages"][-1]["content"]
    assert len({fact["fact"] for fact in facts.values()}) == 38


def test_the_files_are_what_their_generator_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Load
) -> None:
    make = module(DATA / "make.py")
    monkeypatch.setattr(make, "HERE", tmp_path)
    assert make.main() == 0
    for name in [*(f"{split}.jsonl" for split in SPLITS), "facts.json"]:
        assert (tmp_path / name).read_text() == (DATA / name).read_text()


@pytest.mark.slow
def test_fine_tuning_teaches_facts_that_are_found_under_phrasings_never_trained() -> None:
    """Runs the recipes as the pipeline does; only training shows whether something is learned."""
    import subprocess

    script = RECIPE / "learn.py"
    done = subprocess.run([sys.executable, str(script)], check=True, capture_output=True, text=True)
    base, tuned = (int(right) for right in re.findall(r"right (\d+)/76", done.stdout))
    assert base <= 4
    assert tuned >= 69
