"""The sixth step: the base model and the tuned one, side by side on the test rows.

Loss and token accuracy on what the assistant should have said, and, of answers
that both models really generate, ROUGE, BLEU and exact match; then loss and
accuracy on a small general text (`general.txt`), so that forgetting shows.
Upstream has this step and switched it off.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finery import checkpoint
from finery.recipes import conversations, folders, scores, spec
from finery.recipes.metrics import Reporter
from finery.recipes.spec import Failed, flag

TABLE = (
    "loss",
    "token_accuracy",
    "exact_match",
    *scores.ROUGES,
    *scores.BLEUS,
    "general_loss",
    "general_token_accuracy",
)
LOSS_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `evaluation_config` may say."""

    max_new_tokens: int = flag(64, help="tokens of an answer at most", low=1)
    max_rows: int = flag(100, help="test rows used at most; -1 is all", low=-1)
    batch_size: int = flag(16, help="answers generated at a time", low=1)


@dataclass(frozen=True, kw_only=True)
class Spec(Settings):
    """Two models, the rows, and where the scores go."""

    base_model: Path = flag(help="the folder of the imported base model")
    tuned_model: Path = flag(help="the tuned model: a checkpoint, an adapter or an MLflow model")
    evaluation_result: Path = flag(help="the folder to fill")
    test_data: Path | None = flag(None, help="test rows: a file or an MLTable folder")
    preprocess_output: Path | None = flag(None, help="else the test rows that preprocess kept")
    evaluation_config: Path | None = flag(None, help="settings (JSON)")
    evaluation_config_params: str | None = flag(None, help="the same, as JSON text")
    trust_remote_code: bool = flag(False, help="run code that comes with the model")


@dataclass(frozen=True)
class Case:
    """A test row: what comes before the last answer, and that answer."""

    messages: list[dict[str, Any]]
    prompt: list[dict[str, Any]]
    reference: str


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the recipe; the exit status."""
    return spec.run(Spec, work, argv)


def work(given: Spec) -> None:
    """Scores both models, writes and prints the table, and logs it."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    given = configured(given)
    merge = _merges_system(given.base_model)
    cases = read_cases(test_rows(given), limit=given.max_rows, merge_system=merge)
    found: dict[str, dict[str, float]] = {}
    answers: dict[str, list[str]] = {}
    for name, folder in (("base", given.base_model), ("tuned", given.tuned_model)):
        try:
            found[name], answers[name] = _score(given, folder, cases)
        except checkpoint.NoModel as error:
            raise Failed(str(error)) from error
    _write(given, cases, found, answers)
    print(scores.table(found, TABLE, rows=len(cases)), flush=True)
    reporter = Reporter()
    for name, values in found.items():
        reporter.log({f"{name}_{key}": value for key, value in values.items()}, step=0)
    reporter.close()


def configured(given: Spec) -> Spec:
    """The spec with what `evaluation_config` and its parameters say of it."""
    known, ignored = settings(given.evaluation_config, given.evaluation_config_params)
    if ignored:
        print(f"evaluation_config: not used here: {', '.join(ignored)}")
    return dataclasses.replace(given, **known)


def settings(file: Path | None, text: str | None) -> tuple[dict[str, Any], list[str]]:
    """(what is set, the names of what is not used here); Failed names what is wrong."""
    extra: dict[str, Any] = {}
    try:
        if file is not None:
            name = f"--evaluation_config: {file}"
            extra.update(_object(file.read_text(encoding="utf-8-sig")))
        if text:
            name = "--evaluation_config_params"
            extra.update(_object(text))
    except OSError as error:
        raise Failed(f"{name}: {error.strerror}") from error
    except ValueError as error:
        raise Failed(f"{name}: is not a JSON object ({error})") from error
    extra = {name: value for name, value in extra.items() if value is not None}
    known = {field.name for field in dataclasses.fields(Settings)} & set(extra)
    try:
        made = spec.build(Settings, {name: extra[name] for name in known})
    except spec.WrongWords as error:
        raise Failed(f"evaluation_config: {str(error).removeprefix('--')}") from error
    return {name: getattr(made, name) for name in known}, sorted(set(extra) - known)


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"it is a {type(value).__name__}")
    return value


def test_rows(given: Spec) -> Path:
    """The test file given, else the one that preprocess kept."""
    if given.test_data is not None:
        return given.test_data
    if given.preprocess_output is not None:
        kept = sorted((given.preprocess_output / "raw_data").glob("test.*"))
        if kept:
            return kept[0]
    raise Failed("no test rows: give test_data, or preprocess_output with a test split")


def read_cases(path: Path, *, limit: int, merge_system: bool = False) -> list[Case]:
    """The first `limit` usable rows (-1 is all), each cut before its last answer."""
    cases: list[Case] = []
    for _, row in conversations.checked(path):
        if len(cases) == limit:
            break
        if conversations.excuse(row):
            continue
        messages = row[conversations.COLUMN]
        if merge_system:
            messages = conversations.merge_system(messages)
        last = max(n for n, message in enumerate(messages) if message["role"] == "assistant")
        if last:
            cases.append(Case(messages[: last + 1], messages[:last], messages[last]["content"]))
    if not cases:
        raise Failed(f"{path}: no usable test rows")
    return cases


def general_text() -> list[str]:
    """The lines that ship with this module."""
    text = Path(__file__).with_name("general.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]


def _score(given: Spec, folder: Path, cases: list[Case]) -> tuple[dict[str, float], list[str]]:
    import torch

    from finery.recipes import generate
    from finery.recipes.encoding import Encoder, set_pad

    device = "cuda" if torch.cuda.is_available() else "cpu"
    trust = given.trust_remote_code
    # Both in the same precision; a processor has no arithmetic of its own for 16-bit floats.
    dtype = "auto" if device == "cuda" else "float32"
    model = checkpoint.load(folder, dtype=dtype, device=device, trust_remote_code=trust)
    tokenizer = checkpoint.tokenizer(folder, trust_remote_code=trust)
    set_pad(tokenizer)
    rows = Encoder(tokenizer).encode([case.messages for case in cases])
    found = _losses(model, tokenizer, [(row.input_ids, row.labels) for row in rows])
    texts = tokenizer(general_text(), add_special_tokens=False)["input_ids"]
    plain = _losses(model, tokenizer, [(ids, [-100, *ids[1:]]) for ids in texts if len(ids) > 1])
    answers = generate.generate(
        model,
        tokenizer,
        [case.prompt for case in cases],
        max_new_tokens=given.max_new_tokens,
        batch_size=given.batch_size,
    )
    values = {**found, **{f"general_{name}": value for name, value in plain.items()}}
    return {**values, **scores.texts(answers, [case.reference for case in cases])}, answers


def _losses(
    model: Any, tokenizer: Any, rows: list[tuple[list[int], list[int]]]
) -> dict[str, float]:
    """Mean loss and accuracy over all labelled tokens of the rows."""
    import torch

    from finery.recipes import head, packing

    base = model.get_base_model() if hasattr(model, "peft_config") else model
    own = head.plain(base)
    total = tokens = correct = 0.0
    ordered = sorted(rows, key=lambda row: len(row[0]))
    for start in range(0, len(ordered), LOSS_BATCH):
        batch = packing.collate_padded(
            [
                {"input_ids": ids, "labels": labels}
                for ids, labels in ordered[start : start + LOSS_BATCH]
            ],
            pad=tokenizer.pad_token_id,
        )
        labels = batch.pop("labels").to(model.device)
        batch = {name: value.to(model.device) for name, value in batch.items()}
        with torch.inference_mode():
            if own:
                hidden = base.base_model(**batch, use_cache=False).last_hidden_state
                weight = base.get_output_embeddings().weight
            else:
                # A head that does more than one product: its logits, and nothing to multiply by.
                hidden = model(**batch, use_cache=False).logits
                weight = torch.eye(hidden.shape[-1], dtype=hidden.dtype, device=hidden.device)
            part = head.losses(hidden, labels, weight, count_correct=True)
        total += float(part["loss"])
        tokens += float(part["tokens"])
        correct += float(part["correct"])
    return {"loss": total / max(1.0, tokens), "token_accuracy": correct / max(1.0, tokens)}


def _merges_system(folder: Path) -> bool:
    settings = folders.read_json(folder / "finetune_config.json")
    return str(settings.get("system_role_supported", "true")).lower() == "false"


def _write(
    given: Spec,
    cases: list[Case],
    found: dict[str, dict[str, float]],
    answers: dict[str, list[str]],
) -> None:
    given.evaluation_result.mkdir(parents=True, exist_ok=True)
    path = given.evaluation_result / "predictions.jsonl"
    with path.open("w", encoding="utf-8") as stream:
        for number, case in enumerate(cases):
            line = {
                "prompt": case.prompt,
                "reference": case.reference,
                "base": answers["base"][number],
                "tuned": answers["tuned"][number],
            }
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
    folders.write_json(given.evaluation_result / "metrics.json", {"rows": len(cases), **found})


if __name__ == "__main__":
    raise SystemExit(main())
