"""A sheet of pictures with what was asked, what is right and what a model said: for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from finery.recipes import scores
from finery.recipes.pictures import Shelf

CASES = 4  # on one sheet
LEAST_WIDTH = 320  # pixels, so that a question fits below a small picture
LINE_HEIGHT = 22
TEXT_WIDTH = 70  # characters
WRONG = "#b00020"


def draw(shelf: Shelf, rows: Sequence[dict[str, Any]], said: Sequence[str]) -> Image.Image:
    """Some of the pictures side by side, each once, with a question and both answers below."""
    first: dict[int, int] = {}
    for number, row in enumerate(rows):
        first.setdefault(row["picture"], number)
    columns = [
        _column(shelf[picture], rows[number], said[number])
        for picture, number in list(first.items())[:CASES]
    ]
    height = max(column.height for column in columns)
    made = Image.new("RGB", (sum(column.width for column in columns), height), "white")
    left = 0
    for column in columns:
        made.paste(column, (left, 0))
        left += column.width
    return made


def _column(array: Any, row: dict[str, Any], said: str) -> Image.Image:
    picture = Image.fromarray(array)
    larger = max(1, LEAST_WIDTH // picture.width)
    picture = picture.resize((picture.width * larger, picture.height * larger))
    right = scores.nearest([said], [row["answers"]])["exact_match"]
    lines = (row["question"], f"right: {row['answers'][0]}", f"model: {said}")
    width = max(picture.width, LEAST_WIDTH)
    made = Image.new("RGB", (width, picture.height + LINE_HEIGHT * len(lines) + 8), "white")
    made.paste(picture, (0, 0))
    pen, font = ImageDraw.Draw(made), ImageFont.load_default(14)
    for place, text in enumerate(lines):
        colour = "black" if right or place < 2 else WRONG
        at = (4, picture.height + 4 + place * LINE_HEIGHT)
        pen.text(at, text[:TEXT_WIDTH], font=font, fill=colour)
    return made
