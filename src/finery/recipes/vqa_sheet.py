"""A sheet of pictures with what was asked, what is right and what a model said: for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from finery.recipes import scores

CASES = 4  # on one sheet
LEAST_WIDTH = 320  # pixels, so that a question fits below a small picture
LINE_HEIGHT = 22
TEXT_WIDTH = 70  # characters
Case = tuple[Any, dict[str, Any], str]  # a picture's bytes, its row, the answer


def draw(cases: Sequence[Case]) -> Image.Image:
    """Pictures side by side; below each the question, the right answer and the model's."""
    font = ImageFont.load_default(14)
    columns = []
    for array, row, said in cases:
        lines = [row["question"], f"right: {row['answers'][0]}", f"model: {said}"]
        picture = Image.fromarray(array)
        width = max(picture.width, LEAST_WIDTH)
        column = Image.new("RGB", (width, picture.height + LINE_HEIGHT * len(lines) + 8), "white")
        column.paste(picture, (0, 0))
        pen = ImageDraw.Draw(column)
        for place, text in enumerate(lines):
            top = picture.height + 4 + place * LINE_HEIGHT
            wrong = place == 2 and not scores.nearest([said], [row["answers"]])["exact_match"]
            pen.text((4, top), text[:TEXT_WIDTH], font=font, fill="#b00020" if wrong else "black")
        columns.append(column)
    made = Image.new(
        "RGB", (sum(c.width for c in columns), max(c.height for c in columns)), "white"
    )
    left = 0
    for column in columns:
        made.paste(column, (left, 0))
        left += column.width
    return made
