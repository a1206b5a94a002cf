"""The gate at the start, with a real tiny model: a fake would only agree with itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from finery.serving import check, loading
from finery.serving.engine import Engine
from finery.serving.spec import BadSpec, Spec


def spec(phi3: Path, **fields: Any) -> Spec:
    return Spec(kind="chat", model=str(phi3), **fields)


def test_a_sound_deployment_says_how_much_was_identical(
    phi3: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = loading.chat(spec(phi3))
    made.close()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    loaded, checked = lines
    assert (loaded["event"], loaded["dtype"], loaded["context"]) == ("model loaded", "float32", 256)
    assert checked["event"].startswith("checked 3 prompts, ")
    assert checked["event"].endswith(" tokens: identical")
    assert made.engine.counts.tokens == 0, "the check is no traffic"


class Skewed(Engine):
    """An engine with a mistake: it is one position off from the second token on."""

    def _forward(self, rows: Any, tokens: Any, positions: Any) -> Any:
        return super()._forward(rows, tokens, positions + int(tokens.shape[1] == 1))


def test_an_engine_that_answers_differently_is_found_out(model: Any) -> None:
    engine = Skewed(model, eos=frozenset([5, 2]), max_batch=4, max_cells=1024)
    try:
        with pytest.raises(check.Differs, match="generate gives"):
            check.run(model, engine, [[9, 10, 11, 12], [30, 31]], tokens=20)
    finally:
        engine.close()


def test_a_deployment_that_fails_its_check_does_not_start(
    phi3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finery.serving.chat.Engine", Skewed)
    with pytest.raises(BadSpec, match="the self-check failed: a prompt of .* tokens"):
        loading.chat(spec(phi3))


def test_two_equally_likely_tokens_may_differ(model: Any) -> None:
    class Tied(torch.nn.Module):
        dtype, device = torch.float32, torch.device("cpu")

        def forward(self, **_: Any) -> Any:
            scores = torch.zeros(1, 1, 10)
            scores[..., 4], scores[..., 7] = 2.0, 2.0 - 1e-6
            return type("Answer", (), {"logits": scores})

    check._must_tie(Tied(), [1], [3, 4], [3, 7])
    with pytest.raises(check.Differs, match=r"gives \[4\] at token 1, the engine \[5\]"):
        check._must_tie(Tied(), [1], [3, 4], [3, 5])
    with pytest.raises(check.Differs):
        check._must_tie(Tied(), [1], [3, 4], [3])


def test_rows_of_the_test_file_are_checked_up_to_the_last_question(
    tmp_path: Path,
) -> None:
    user, assistant = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    path = tmp_path / "rows.jsonl"
    rows = [{"messages": [user, assistant, user, assistant], "prompt": "q"}, {"messages": [user]}]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert check.rows(str(path)) == [[user, assistant, user], [user]]
    path.write_text('{"messages": [{"role": "usr"}]}')
    with pytest.raises(BadSpec, match=r"rows\.jsonl line 1: messages\[0\]\.role"):
        check.rows(str(path))


def test_a_model_that_would_be_answered_wrongly_is_refused(model: Any, build: Any) -> None:
    other = build()
    other.generation_config.no_repeat_ngram_size = 3
    with pytest.raises(BadSpec, match="asks for no_repeat_ngram_size"):
        loading._consider(other)
    other = build()
    other.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(BadSpec, match="layers of type linear_attention"):
        loading._consider(other)
    loading._consider(model)


def test_the_context_follows_the_memory_and_the_spec(model: Any, phi3: Path) -> None:
    cell = 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, width, bytes
    assert loading._limits(spec(phi3, max_cache_bytes=100 * cell), model, "cpu").context == 100
    assert loading._limits(spec(phi3, max_context=64), model, "cpu").context == 64
    assert loading._limits(spec(phi3, max_context=1000), model, "cpu").context == 256


def test_positions_that_change_with_length_end_the_context_before_they_do() -> None:
    class Config:
        max_position_embeddings = 131072
        original_max_position_embeddings = 4096
        rope_parameters = {"rope_type": "longrope"}

    assert loading._context(Config()) == 4096


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # of peft
def test_an_adapter_is_served_on_its_base(phi3: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from finery import checkpoint

    base = checkpoint.load(phi3, dtype="float32")
    tuned = get_peft_model(
        base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )
    tuned.save_pretrained(tmp_path / "adapter")
    made = loading.chat(spec(tmp_path / "adapter"))
    made.close()
    merged = made.engine.model
    prompt = torch.tensor([made.prompt([{"role": "user", "content": "hello"}], target="")])
    with torch.inference_mode():
        assert torch.allclose(merged(prompt).logits, tuned.eval()(prompt).logits, atol=1e-4)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    from finery import checkpoint

    with pytest.raises(checkpoint.NoModel, match=str(tmp_path)):
        loading.chat(spec(tmp_path))
