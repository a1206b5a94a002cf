"""The third step: rows become token ids and labels (`chat_completion_datapreprocess`).

Splits where files are missing (in file order, nothing shuffled), drops rows that
teach nothing and says why, applies the chat template, and writes what training
maps into memory: `train.arrow` and `validation.arrow` with `input_ids` and
`labels`.  `raw_data/` keeps the rows (the test rows as they came),
`chat_templated_raw_data/` what the model will read.  Judging rows is
`conversations`' affair, ids and labels `encoding`'s.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from finery import checkpoint
from finery.recipes import conversations, folders, spec, splits, validate
from finery.recipes.spec import Failed, flag

if TYPE_CHECKING:
    from finery.recipes.encoding import Encoder

TRAINED = ("train", "validation")
INFERENCE = {"top_p": 1.0, "temperature": 0.8, "max_new_tokens": 50, "do_sample": True}


@dataclass(frozen=True, kw_only=True)
class Spec(splits.Files):
    """The rows, the model whose tokenizer and template are used, and where to write."""

    model_selector_output: Path = flag(help="the folder of the imported base model")
    output_dir: Path = flag(help="the folder to fill")
    task_name: str = flag("ChatCompletion", help="the task", choices=validate.TASKS)
    batch_size: int = flag(1000, help="rows encoded at a time", low=1)
    pad_to_max_length: bool = flag(False, help="accepted; rows are never padded here")
    max_seq_length: int = flag(-1, help="tokens of a row kept; -1 is the model's own", low=-1)
    trust_remote_code: bool = flag(False, help="run code that comes with the model")


@dataclass(kw_only=True)
class Tally(splits.Tally):
    """What became of the rows of one split, and their tokens."""

    truncated: int = 0
    tokens: int = 0
    learned: int = 0
    longest: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the recipe; the exit status."""
    return spec.run(Spec, work, argv)


def work(given: Spec) -> None:
    """Writes the whole output folder, or nothing that looks like one."""
    from finery.recipes.encoding import Encoder, set_pad

    settings = folders.read_json(given.model_selector_output / "finetune_config.json")
    try:
        tokenizer = checkpoint.tokenizer(
            given.model_selector_output, trust_remote_code=given.trust_remote_code
        )
        model = checkpoint.find(given.model_selector_output)
    except checkpoint.NoModel as error:
        raise Failed(str(error)) from error
    set_pad(tokenizer)
    encoder = Encoder(tokenizer, max_seq_length=_length(given, model))
    merge = str(settings.get("system_role_supported", "true")).lower() == "false"
    sources = plan(given)
    with folders.filled(given.output_dir) as part:
        tallies = {
            split: _encode(part, split, sources[split], encoder, given, merge_system=merge)
            for split in TRAINED
            if split in sources
        }
        if "test" in sources:
            _keep_test(part, sources["test"])
        tokenizer.save_pretrained(str(part))
        folders.link(model / "config.json", part / "config.json")
        _describe(part, given, encoder, tallies)
    _say(given, encoder, tallies)


@dataclass(frozen=True)
class Slice:
    """Rows `start` to `stop` (from 0; None is the end) of a file or table."""

    path: Path
    start: int = 0
    stop: int | None = None

    @property
    def whole(self) -> bool:
        """All of it, so a file can be kept as it came."""
        return self.start == 0 and self.stop is None


def plan(given: splits.Files) -> dict[str, Slice]:
    """Where the rows of each split come from: 80/10/10, or 80/20 where one file is missing."""
    found = {split: given.source(split) for split in splits.SPLITS}
    train = found["train"]
    if train is None:
        raise Failed("--train_file_path: training rows are required (or --train_mltable_path)")
    plans = {split: Slice(path) for split, path in found.items() if path is not None}
    missing = [split for split in ("validation", "test") if found[split] is None]
    if not missing:
        return plans
    rows = sum(1 for _ in conversations.read(train))
    first = round(rows * 0.8)
    if len(missing) == 1:
        cuts = {"train": (0, first), missing[0]: (first, None)}
    else:
        second = round(rows * 0.9)
        cuts = {"train": (0, first), "validation": (first, second), "test": (second, None)}
    for split, (start, stop) in cuts.items():
        if start >= (rows if stop is None else stop):
            raise Failed(
                f"{train}: {rows} rows are too few to split into"
                f" {', '.join(cuts)}: give a file for each, or at least 10 rows"
            )
        plans[split] = Slice(train, start, stop)
    return plans


def _rows(part: Slice) -> Iterator[tuple[int, conversations.Row]]:
    for number, (line, row) in enumerate(conversations.checked(part.path)):
        if part.stop is not None and number >= part.stop:
            return
        if number >= part.start:
            yield line, row


def _length(given: Spec, model: Path) -> int:
    """What was asked, but never more than the positions the model has."""
    positions = folders.read_json(model / "config.json").get("max_position_embeddings")
    asked = given.max_seq_length
    if not isinstance(positions, int):
        return asked
    return min(asked, positions) if asked > 0 else positions


def _encode(
    folder: Path, split: str, part: Slice, encoder: Encoder, given: Spec, *, merge_system: bool
) -> Tally:
    """Writes one split: raw rows, templated rows, ids and labels."""
    tally = Tally()
    for name in ("raw_data", "chat_templated_raw_data"):
        (folder / name).mkdir(exist_ok=True)
    with (
        (folder / "raw_data" / f"{split}.jsonl").open("w", encoding="utf-8") as raw,
        (folder / "chat_templated_raw_data" / f"{split}.jsonl").open("w", encoding="utf-8") as text,
        Arrow(folder / f"{split}.arrow") as arrow,
    ):
        batch: list[Any] = []
        for _, row in _rows(part):
            tally.rows += 1
            raw.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
            reason = conversations.excuse(row)
            if reason:
                tally.dropped[reason] += 1
                continue
            messages = row[conversations.COLUMN]
            batch.append(conversations.merge_system(messages) if merge_system else messages)
            if len(batch) == given.batch_size:
                _flush(batch, encoder, tally, arrow, text)
                batch = []
        _flush(batch, encoder, tally, arrow, text)
    if not tally.learned:
        why = ", ".join(f"{reason}: {n}" for reason, n in tally.dropped.items()) or "no rows"
        raise Failed(f"{part.path}: {split} has no token of an assistant to learn from ({why})")
    return tally


def _flush(batch: list[Any], encoder: Encoder, tally: Tally, arrow: Arrow, text: IO[str]) -> None:
    kept = []
    for messages, row in zip(batch, encoder.encode(batch), strict=True):
        if not row.learned:
            tally.dropped["no assistant token within max_seq_length"] += 1
            continue
        kept.append(row)
        tally.kept += 1
        tally.truncated += row.truncated
        tally.tokens += len(row.input_ids)
        tally.learned += row.learned
        tally.longest = max(tally.longest, len(row.input_ids))
        text.write(json.dumps({"text": encoder.text(messages)}, ensure_ascii=False) + "\n")
    arrow.write([row.input_ids for row in kept], [row.labels for row in kept])


class Arrow:
    """A file of `input_ids` and `labels` that is mapped into memory when read."""

    def __init__(self, path: Path) -> None:
        """The file at `path`, replaced."""
        import pyarrow

        self.arrow: Any = pyarrow
        kind = pyarrow.list_(pyarrow.int32())
        self.schema = pyarrow.schema([("input_ids", kind), ("labels", kind)])
        self.sink = pyarrow.OSFile(str(path), "wb")
        self.writer = pyarrow.ipc.new_stream(self.sink, self.schema)

    def __enter__(self) -> Arrow:
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()
        self.sink.close()

    def write(self, input_ids: list[list[int]], labels: list[list[int]]) -> None:
        """One batch of rows."""
        if input_ids:
            self.writer.write_batch(
                self.arrow.record_batch([input_ids, labels], schema=self.schema)
            )


def _keep_test(folder: Path, part: Slice) -> None:
    """The test rows as they came: the file itself, or the lines of the split."""
    (folder / "raw_data").mkdir(exist_ok=True)
    if part.whole and part.path.is_file() and part.path.name != "MLTable":
        shutil.copyfile(part.path, folder / "raw_data" / f"test{part.path.suffix.lower()}")
        return
    with (folder / "raw_data" / "test.jsonl").open("w", encoding="utf-8") as stream:
        for _, row in _rows(part):
            stream.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def _describe(folder: Path, given: Spec, encoder: Encoder, tallies: dict[str, Tally]) -> None:
    counts = {split: tally.account() for split, tally in tallies.items()}
    words = {**spec.words(given), "max_seq_length": encoder.limit, "splits": counts}
    folders.write_json(folder / "preprocess_args.json", words)
    folders.write_json(folder / "azureml_mlflow_inference_params.json", INFERENCE)


def _say(given: Spec, encoder: Encoder, tallies: dict[str, Tally]) -> None:
    if given.pad_to_max_length:
        print("pad_to_max_length: rows are trained without padding; the result is the same")
    for split, tally in tallies.items():
        print(
            f"{split}: {tally.kept} of {tally.rows} rows, {tally.tokens} tokens,"
            f" {tally.learned} learned, longest {tally.longest};"
            f" cut to {encoder.limit}: {tally.truncated}; dropped: {tally.reasons() or 'none'}"
        )
    print(f"written to {given.output_dir}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
