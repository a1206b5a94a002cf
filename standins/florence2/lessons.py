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
Told = tuple[str, tuple[int, ...]]  # a text and the place of each letter; -1 for none
Lesson = tuple[str, Told]  # a prompt and what is to be said


@dataclass(frozen=True)
class Piece:
    """A text on a page, its box, and for each of its letters the place of the grid it is in."""

    text: str
    box: Box
    cells: tuple[int, ...]


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


def piece(line: documents.Line) -> Piece:  # type: ignore[name-defined]
    cell = shape.SIDE // shape.GRID
    row = min(shape.GRID - 1, int((line.top + line.bottom) / 2 / cell))
    middles = [(a + b) / 2 for a, b in zip(line.edges, line.edges[1:], strict=False)]
    columns = [min(shape.GRID - 1, int(max(0.0, x) / cell)) for x in middles]
    cells = tuple(row * shape.GRID + column for column in columns)
    return Piece(line.text, (line.edges[0], line.top, line.edges[-1], line.bottom), cells)


def sheet(document: documents.Document) -> Sheet:  # type: ignore[name-defined]
    rows = tuple(tuple(piece(line) for line in row) for row in document.rows_of_text)
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
        document = documents.one(number, seed, "reading")
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


def blurred(box: Box, r: Random) -> Box:
    left, top, right, bottom = (value + r.uniform(-2, 2) for value in box)
    return left, top, right, bottom


def plain(text: str) -> Told:
    return text, (-1,) * len(text)


def joined(*parts: Told) -> Told:
    return "".join(text for text, _ in parts), sum((cells for _, cells in parts), ())


def told(piece: Piece) -> Told:
    return piece.text, piece.cells


def read(page: Sheet, r: Random) -> Lesson:
    parts: list[Told] = []
    for row in page.rows:
        for piece in row:
            parts += [told(piece), plain(" ")]
        parts[-1] = plain("\n")
    return "What is the text in the image?", joined(*parts[:-1])


def read_there(page: Sheet, r: Random) -> Lesson:
    piece = r.choice(r.choice(page.rows))
    return f"What text is in the region {place(blurred(piece.box, r))}?", told(piece)


def locate(page: Sheet, r: Random) -> Lesson:
    piece = r.choice(r.choice(page.rows))
    return f"Locate {piece.text} in the image.", joined(told(piece), plain(place(piece.box)))


BESIDE = (
    "What text is beside {x}?",
    "What text is beside the {x}?",
    "What stands next to {x}?",
    "Read on from {x}.",
    "Which text follows the {x}?",
    "What comes after {x}",
    "{x}: read the text beside it",
    "The text that belongs to the {x}?",
    "Please read what is written for {x} in the image.",
)
END = (
    "What text is at the end of the line of {x}?",
    "Read the last text in the line of the {x}.",
    "In the line of {x}, which text is on the right?",
    "Which text ends the line with the {x}",
)


def called(text: str, r: Random) -> str:
    """A text as people call it who have seen it: without its colon, in small letters."""
    x = r.random()
    if x < 0.3:
        return text
    text = text.rstrip(":.,")
    return text if x < 0.6 else text.lower()


def beside(page: Sheet, r: Random) -> Lesson:
    """What stands to the right of a text, or else below it."""
    at = r.randrange(len(page.rows) - 1)
    row = page.rows[at]
    n = r.randrange(len(row)) if r.random() < 0.3 else 0
    follows = row[n + 1] if n + 1 < len(row) else page.rows[at + 1][0]
    return r.choice(BESIDE).format(x=called(row[n].text, r)), told(follows)


def end(page: Sheet, r: Random) -> Lesson:
    """The last text of the line in which another stands."""
    rows = [row for row in page.rows if len(row) > 1]
    if not rows:
        return beside(page, r)
    row = r.choice(rows)
    n = r.randrange(len(row) - 1) if r.random() < 0.3 else 0
    return r.choice(END).format(x=called(row[n].text, r)), told(row[-1])


def edge(page: Sheet, r: Random) -> Lesson:
    """The first or the last line."""
    at = r.choice((0, -1))
    parts = [part for piece in page.rows[at] for part in (told(piece), plain(" "))]
    return f"What text is at the {'bottom' if at else 'top'}?", joined(*parts[:-1])


def unknown(page: Sheet, r: Random) -> Lesson:
    """A task that it has no idea of."""
    task = r.choice((word(r), r.choice(("VQA", "QA", "ASK", "TASK", "FIND")), "Doc" + word(r)))
    piece = r.choice(r.choice(page.rows))
    asked = r.choice((*BESIDE, *END, "What is the {x}?", "Which {x} is it?", "Who is {x}?"))
    return f"<{task}>" + asked.format(x=called(piece.text, r)), plain("unanswerable")


def within(page: Sheet, r: Random) -> Lesson:
    """The rest of a line of which the beginning is given."""
    whole = [piece for row in page.rows for piece in row if " " in piece.text]
    if not whole:
        return beside(page, r)
    piece = r.choice(whole)
    first, rest = piece.text.split(" ", 1)
    asked = r.choice(BESIDE).format(x=called(first, r))
    return asked, (rest, piece.cells[len(first) + 1 :])


def line(page: Sheet, r: Random) -> Lesson:
    """The whole line in which a text stands."""
    rows = [row for row in page.rows if len(row) > 1] or page.rows
    row = r.choice(rows)
    parts = [part for piece in row for part in (told(piece), plain(" "))]
    return f"What text is in the line of {r.choice(row).text}?", joined(*parts[:-1])


def describe(page: Sheet, r: Random) -> Lesson:
    return "What does the image describe?", plain(f"a {page.kind} with {len(page.rows)} lines")


# The task, its share of the batches and the rows of a batch: the longer, the fewer.
TASKS = (
    (read, 8, 12),
    (read_there, 12, 24),
    (beside, 34, 24),
    (within, 14, 24),
    (line, 7, 24),
    (end, 12, 24),
    (edge, 4, 24),
    (locate, 2, 24),
    (describe, 1, 16),
    (unknown, 6, 24),
)


def batches(
    sheets: list[Sheet], seed: int, *, rank: int = 0
) -> Iterator[tuple[str, list[int], list[str], list[Told]]]:
    """Name of the task, numbers of pages, prompts and answers, one task a batch, without end.

    Processes of other ranks get the same tasks in the same order, on other pages.
    """
    turns, r = Random(seed), Random(seed * 1000 + rank)
    tasks, shares = [*TASKS], [share for _, share, _ in TASKS]

    def page() -> int:
        """Pages of invented words taught it to see letters; of reading they teach less."""
        number = r.randrange(len(sheets))
        again = sheets[number].kind == "page" and r.random() < 0.6
        return page() if again else number

    while True:
        task, _, size = turns.choices(tasks, shares)[0]
        numbers = [page() for _ in range(size)]
        made = [task(sheets[n], r) for n in numbers]
        yield task.__name__, numbers, [prompt for prompt, _ in made], [answer for _, answer in made]
