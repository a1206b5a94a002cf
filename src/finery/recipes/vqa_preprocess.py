"""The second step: rows are checked, pictures decoded once (`…_datapreprocess`).

All that can be wrong with a row is found here, before anything is trained: each
picture is decoded, each question and answer tokenized.  Writes
`train.jsonl`, `validation.jsonl` and `test.jsonl` (picture number, texts, token
ids) and the pictures at the model's size beside them.  Without files of their
own, validation and test get a tenth of the pictures each, with all of their
questions: no picture is on two sides.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finery import checkpoint
from finery.recipes import folders, pictures, spec, splits, vqa_rows
from finery.recipes.conversations import BadRow
from finery.recipes.spec import Failed, flag
from finery.recipes.vqa_rows import Columns, Row

if TYPE_CHECKING:
    from finery.recipes.vqa_encoding import Encoder

PROBLEMS_SAID = 20
WAITING = 4  # pictures in decoding for each thread; bounds the memory


@dataclass(frozen=True, kw_only=True)
class Spec(splits.Files):
    """The rows, the model that will look at them, and where to write."""

    model_selector_output: Path = flag(help="the folder of the imported base model")
    output_dir: Path = flag(help="the folder to fill")
    data_folder_path: Path | None = flag(None, help="a folder of rows and pictures")
    image_key: str = flag("image", help="the column of pictures")
    question_key: str = flag("question", help="the column of questions")
    answers_key: str = flag("answers", help="the column of answers")
    task_prompt: str = flag("<DocVQA>", help="what is put before each question")
    max_answer_length: int = flag(64, help="tokens of an answer at most", low=1, high=1024)
    batch_size: int = flag(1000, help="rows tokenized at a time", low=1)


@dataclass(kw_only=True)
class Tally(splits.Tally):
    """What became of the rows of one split, and the most tokens among them."""

    longest_question: int = 0
    longest_answer: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the recipe; the exit status."""
    return spec.run(Spec, work, argv)


def work(given: Spec) -> None:
    """Writes the whole output folder, or nothing that looks like one."""
    parts = vqa_rows.sources(given, folder=given.data_folder_path)
    try:
        processor = checkpoint.processor(given.model_selector_output)
        wanted = pictures.shape(processor)
    except (checkpoint.NoModel, pictures.BadPicture) as error:
        raise Failed(str(error)) from error
    encoder = _encoder(given, processor)
    tallies: dict[str, Tally] = {}
    try:
        with folders.filled(given.output_dir) as out:
            with Table(pictures.Shelf(out, wanted)) as table:
                found = {split: table.read(part, columns(given)) for split, part in parts.items()}
                table.finish()
            for split, rows in divided(found, whole=parts).items():
                tallies[split] = _write(out / f"{split}.jsonl", rows, encoder, given)
            _describe(out, given, tallies, len(table.shelf))
    except OSError as error:
        raise Failed(f"{error.filename or given.output_dir}: {error.strerror or error}") from error
    for split, tally in tallies.items():
        print(
            f"{split}: {tally.kept} of {tally.rows} rows, the longest question"
            f" {tally.longest_question} tokens, the longest answer {tally.longest_answer};"
            f" dropped: {tally.reasons() or 'none'}"
        )
    print(f"{len(table.shelf)} pictures, written to {given.output_dir}", flush=True)


def columns(given: Any) -> Columns:
    """What the columns are called."""
    return Columns(given.image_key, given.question_key, given.answers_key)


def _encoder(given: Spec, processor: Any) -> Encoder:
    from transformers import AutoConfig, GenerationConfig, logging

    from finery.recipes.vqa_encoding import Encoder

    # What is too long for the model is said here by file and line.
    logging.set_verbosity_error()
    folder = str(checkpoint.find(given.model_selector_output))
    config, generation = AutoConfig.from_pretrained(folder), GenerationConfig()
    if (Path(folder) / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(folder)
    return Encoder(processor, config, generation, task_prompt=given.task_prompt)


@dataclass(frozen=True)
class Numbered:
    """A row and the number of its picture."""

    row: Row
    picture: int


class Table:
    """The rows of all files, their pictures numbered and put on the shelf as they are decoded."""

    def __init__(self, shelf: pictures.Shelf) -> None:
        """Pictures are decoded by as many threads as there are cores."""
        self.shelf = shelf
        self.numbers: dict[str | bytes, int] = {}
        self.problems: list[BadRow] = []
        self.workers = len(os.sched_getaffinity(0))
        self.threads = ThreadPoolExecutor(self.workers)
        self.waiting: deque[tuple[Row, str, Future[Any]]] = deque()

    def read(self, part: vqa_rows.Part, names: Columns) -> list[Numbered]:
        """The rows of a file; what is wrong with any of them is kept for `finish`."""
        found = []
        for row in vqa_rows.read(part, names):
            if isinstance(row, BadRow):
                self.problems.append(row)
                continue
            # A row is kept for its texts; the bytes of its picture go with the decoding.
            picture, named = row.picture, str(row.picture)
            if isinstance(picture, bytes):
                key: str | bytes = hashlib.sha256(picture).digest()
                row = Row(row.path, row.line, Path(), row.question, row.answers)
            else:
                key = named
            if key not in self.numbers:
                self.numbers[key] = len(self.numbers)
                job = self.threads.submit(pictures.fitted, picture, self.shelf.shape)
                self.waiting.append((row, names.image, job))
                self._drain(leave=WAITING * self.workers)
            found.append(Numbered(row, self.numbers[key]))
        return found

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        self.threads.shutdown(cancel_futures=True)
        self.shelf.close()

    def finish(self) -> None:
        """Waits for the last picture; Failed at the first problem, with the others printed."""
        self._drain(leave=0)
        if self.problems:
            ordered = sorted(self.problems, key=lambda one: (str(one.path), one.line))
            for problem in ordered[:PROBLEMS_SAID]:
                print(problem)
            more = f" (and {len(ordered) - 1} more rows with problems)" if ordered[1:] else ""
            raise Failed(f"{ordered[0]}{more}")

    def _drain(self, *, leave: int) -> None:
        while len(self.waiting) > leave:
            row, column, job = self.waiting.popleft()
            try:
                self.shelf.add(job.result())
            except pictures.BadPicture as error:
                file = row.picture  # Path() where the row itself has the picture
                named = f"{file} " if isinstance(file, Path) and file != Path() else ""
                self.problems.append(row.bad(column, f"the picture {named}{error}"))


def divided(
    found: dict[str, list[Numbered]], *, whole: dict[str, vqa_rows.Part]
) -> dict[str, list[Numbered]]:
    """Each split's rows; what has no file gets the last tenths of the training pictures."""
    missing = [split for split in ("validation", "test") if split not in found]
    if not missing:
        return found
    order = {number: place for place, number in enumerate(_distinct(found["train"]))}
    each = max(1, round(len(order) * 0.1))
    first = len(order) - each * len(missing)
    if first < 1:
        raise Failed(
            f"{whole['train'].path}: {len(order)} pictures are too few to keep some for"
            f" {' and '.join(missing)}: give a file for each, or at least {1 + len(missing)}"
        )
    made = {**found, "train": [one for one in found["train"] if order[one.picture] < first]}
    for place, split in enumerate(missing):
        begin = first + place * each
        made[split] = [one for one in found["train"] if begin <= order[one.picture] < begin + each]
    return made


def _distinct(rows: list[Numbered]) -> Iterator[int]:
    return iter(dict.fromkeys(one.picture for one in rows))


def _write(path: Path, rows: list[Numbered], encoder: Encoder, given: Spec) -> Tally:
    """One split as JSON lines; Failed for a question that the model has no room for."""
    tally = Tally(rows=len(rows))
    with path.open("w", encoding="utf-8") as stream:
        for start in range(0, len(rows), given.batch_size):
            batch = rows[start : start + given.batch_size]
            # Of several right answers the one that most people gave is learned.
            learned = [Counter(one.row.answers).most_common(1)[0][0] for one in batch]
            prompts = encoder.prompts([one.row.question for one in batch])
            labels = encoder.answers(learned)
            for one, prompt, label in zip(batch, prompts, labels, strict=True):
                _fits(one.row, prompt, encoder, given)
                if len(label) > given.max_answer_length + 2:
                    tally.dropped[f"answers of more than {given.max_answer_length} tokens"] += 1
                    continue
                tally.kept += 1
                tally.longest_question = max(tally.longest_question, len(prompt))
                tally.longest_answer = max(tally.longest_answer, len(label))
                stream.write(_line(one, prompt, label) + "\n")
    if not tally.kept:
        raise Failed(f"{path.stem}: no usable rows ({tally.reasons() or 'the file is empty'})")
    return tally


def _fits(row: Row, prompt: list[int], encoder: Encoder, given: Spec) -> None:
    if encoder.foreign(row.question):
        word = encoder.tokenizer.image_token
        raise row.bad(given.question_key, f"has {word}, which stands for the picture: leave it out")
    if len(prompt) > encoder.room:
        raise row.bad(
            given.question_key,
            f"has {len(prompt)} tokens with its task and ends; beside the picture the model has"
            f" room for {encoder.room}: shorten it",
        )


def _line(one: Numbered, prompt: list[int], label: list[int]) -> str:
    line = {
        "picture": one.picture,
        "question": one.row.question,
        "answers": one.row.answers,
        "prompt_ids": prompt,
        "label_ids": label,
    }
    return json.dumps(line, ensure_ascii=False)


def rows(folder: Path, split: str) -> list[dict[str, Any]]:
    """The rows that were written of a split; Failed when there are none."""
    path = folder / f"{split}.jsonl"
    if not path.is_file():
        raise Failed(f"{path}: there are no prepared {split} rows; run preprocess first")
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def _describe(folder: Path, given: Spec, tallies: dict[str, Tally], count: int) -> None:
    counts = {split: tally.account() for split, tally in tallies.items()}
    told = {**spec.words(given), "splits": counts, "pictures": count}
    folders.write_json(folder / "preprocess_args.json", told)


if __name__ == "__main__":
    raise SystemExit(main())
