"""What the stand-in is taught: pages to look at and Florence-2's own tasks on them, all seeded.

Reading, where a text stands, what stands in a place, what stands beside a text. Never a question of
the dataset: what those mean is left to fine-tuning. No tensors of the model here (build.py).
"""

from __future__ import annotations

import multiprocessing
import string
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy
import shape
from numpy.typing import NDArray
from PIL import Image

documents = shape.documents()
LETTERS = string.ascii_letters + string.digits + ".,:-$"
DOWN, ACROSS = 8, 4  # units of a place that one letter is asked for; a page has 20 by 40
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Piece:
    text: str
    box: Box


@dataclass(frozen=True)
class Sheet:
    """A page without its picture: what is written on it and where."""

    kind: str
    rows: tuple[tuple[Piece, ...], ...]
    text: str


def word(r: Random) -> str:
    """Something that no list holds: an invented word, a number, a code."""
    x = r.random()
    if x < 0.5:
        made = "".join(r.choice("bcdfghjklmnprstvwz") + r.choice("aeiouy") for _ in range(4))
        made = made[r.randrange(2) : r.randrange(4, 9)] + r.choice(("", "", "n", "r", "s", "ck"))
        return r.choice((made.title(), made, made.upper()[:6]))
    if x < 0.75:
        cut = r.choice((".", "-", "", ":", ","))
        left, right = str(r.randrange(1000)), f"{r.randrange(100):02d}"
        return r.choice(("", "", "$")) + left + cut + right
    return "".join(r.choice(LETTERS) for _ in range(r.randrange(2, 8)))


def scribble(page: documents.Page) -> list[documents.Question]:  # type: ignore[name-defined]
    """Invented words in rows and columns at no place in particular."""
    r = page.r
    size, y = r.uniform(11, 13.5), r.uniform(14, 24)
    while y < 152:
        x = r.uniform(4, 20)
        while x < 125:
            text = word(r)
            if x + page.width(text, size) > 156:
                break
            x = page.write(x, y, text, size) + r.choice((5.0, r.uniform(5, 40)))
        if r.random() < 0.15:
            page.rule(r.uniform(2, 30), y + 6, r.uniform(100, 158), y + 6, grey=150)
        y += r.uniform(18, 30)
    return []


def sheet(document: documents.Document) -> Sheet:  # type: ignore[name-defined]
    rows = tuple(
        tuple(
            Piece(line.text, (line.edges[0], line.top, line.edges[-1], line.bottom)) for line in row
        )
        for row in document.rows_of_text
    )
    return Sheet(document.kind, rows, document.text)


def letters(document: documents.Document) -> NDArray[numpy.uint8]:  # type: ignore[name-defined]
    """Which letter covers each small place of the page; 0 where none does."""
    made = numpy.zeros((shape.SIDE // DOWN, shape.SIDE // ACROSS), dtype=numpy.uint8)
    for line in document.lines:
        for at, letter in enumerate(line.text):
            if letter == " ":
                continue
            top, bottom = (round(y / DOWN) for y in (line.top + 1, line.bottom - 1))
            left, right = (round(x / ACROSS) for x in line.edges[at : at + 2])
            made[max(0, top) : max(top + 1, bottom), max(0, left) : max(left + 1, right)] = (
                LETTERS.index(letter) + 1
            )
    return made


def drawn(number: int, seed: int) -> tuple[NDArray[numpy.uint8], NDArray[numpy.uint8], Sheet]:
    """A page's picture as the model sees it, its letters, and what is on it."""
    if number % 3:
        document = documents.one(number * 7919 + number % 4, seed, "reading")
    else:
        r = Random(seed * 1_000_003 + number)
        page = documents.page(r)
        scribble(page)
        document = documents.Document("page", number, page.image, tuple(page.lines), (), "scribble")
    small = document.image.resize((shape.SIDE, shape.SIDE), Image.Resampling.BICUBIC)
    return numpy.asarray(small), letters(document), sheet(document)


def _drawn(task: tuple[int, int]) -> tuple[NDArray[numpy.uint8], NDArray[numpy.uint8], Sheet]:
    return drawn(*task)


def pages(
    count: int, seed: int, *, processes: int = 2
) -> tuple[NDArray[numpy.uint8], NDArray[numpy.uint8], list[Sheet]]:
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        made = pool.map(_drawn, [(number, seed) for number in range(count)], chunksize=64)
    pictures, signs, sheets = zip(*made, strict=True)
    return numpy.stack(pictures), numpy.stack(signs), list(sheets)


# ---- the tasks ---------------------------------------------------------------------------------


def place(box: Box) -> str:
    """A box in Florence-2's location tokens."""
    bins = (min(999, max(0, int(value / shape.SIDE * 1000))) for value in box)
    return "".join(f"<loc_{n}>" for n in bins)


def corners(box: Box) -> str:
    left, top, right, bottom = box
    return place((left, top, right, top)) + place((right, bottom, left, bottom))


def blurred(box: Box, r: Random) -> Box:
    left, top, right, bottom = (value + r.uniform(-2, 2) for value in box)
    return left, top, right, bottom


def read(page: Sheet, r: Random) -> tuple[str, str]:
    return "What is the text in the image?", page.text


def read_there(page: Sheet, r: Random) -> tuple[str, str]:
    piece = r.choice(r.choice(page.rows))
    return f"What text is in the region {place(blurred(piece.box, r))}?", piece.text


def read_with_places(page: Sheet, r: Random) -> tuple[str, str]:
    pieces = [piece for row in page.rows for piece in row]
    return "What is the text in the image, with regions?", "".join(
        piece.text + corners(piece.box) for piece in pieces
    )


def locate(page: Sheet, r: Random) -> tuple[str, str]:
    piece = r.choice(r.choice(page.rows))
    return f"Locate {piece.text} in the image.", piece.text + place(piece.box)


def beside(page: Sheet, r: Random) -> tuple[str, str]:
    """What stands to the right of a text, or else below it."""
    at = r.randrange(len(page.rows) - 1)
    row = page.rows[at]
    n = r.randrange(len(row))
    follows = row[n + 1] if n + 1 < len(row) else page.rows[at + 1][0]
    return f"What text is beside {row[n].text}?", follows.text


def within(page: Sheet, r: Random) -> tuple[str, str]:
    """The rest of a line of which the beginning is given."""
    whole = [piece.text for row in page.rows for piece in row if " " in piece.text]
    if not whole:
        return beside(page, r)
    first, rest = r.choice(whole).split(" ", 1)
    return f"What text is beside {first}?", rest


def describe(page: Sheet, r: Random) -> tuple[str, str]:
    return "What does the image describe?", f"a {page.kind} with {len(page.rows)} lines"


# The task, its share of the batches and the rows of a batch: the longer, the fewer.
TASKS = (
    (read, 34, 12),
    (read_there, 22, 24),
    (beside, 18, 24),
    (within, 8, 24),
    (locate, 10, 24),
    (read_with_places, 4, 6),
    (describe, 2, 16),
)


def batches(
    sheets: list[Sheet], seed: int, *, rank: int = 0
) -> Iterator[tuple[list[int], list[str], list[str]]]:
    """Numbers of pages, prompts and answers, one task a batch, without end.

    Processes of other ranks get the same tasks in the same order, on other pages.
    """
    turns, r = Random(seed), Random(seed * 1000 + rank)
    tasks, shares = [*TASKS], [share for _, share, _ in TASKS]
    while True:
        task, _, size = turns.choices(tasks, shares)[0]
        numbers = [r.randrange(len(sheets)) for _ in range(size)]
        made = [task(sheets[n], r) for n in numbers]
        yield numbers, [prompt for prompt, _ in made], [answer for _, answer in made]
