"""Pictures of made-up documents, with questions and answers: data of DocVQA's shape, from a seed.

    python documents.py --out dataset --train 600 --validation 40 --test 60

Forms, receipts, tables and letters, drawn with Pillow in five fonts and several layouts. The same
seed and split give the same documents; the splits share none. Needs Pillow alone (and `datasets`
for --arrow). Nobody and nothing in them is real. It knows no model and trains none.

The fonts beside this file are DejaVu, cut down to Latin-1 (fonts/LICENSE lets them be passed on),
so that a picture looks the same on a machine with no fonts at all; the fifth is Pillow's own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SIDE = 160  # the page in units; layouts are written in these
SCALE = 3  # pixels a unit
FONTS = Path(__file__).resolve().parent / "fonts"
FACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "Pillow")
KINDS = ("form", "receipt", "table", "letter")
TYPES = {
    "form": ["form"],
    "receipt": ["layout"],
    "table": ["table/list"],
    "letter": ["free_text"],
}
COLUMNS = (
    "questionId",
    "question",
    "question_types",
    "image",
    "docId",
    "ucsf_document_id",
    "ucsf_document_page_no",
    "answers",
)

FIRST = (
    "Ada Alma Anna Axel Ben Carl Cora Dora Emil Eric Eva Finn Gina Hugo Ida Ines Iris Ivan Jack "
    "Jana Joel Jon Karl Kira Lars Lea Lena Leo Lisa Luca Luis Maja Mara Mark Max Mia Mona Nina "
    "Noah Nora Olga Otto Paul Pia Ralf Rita Rosa Ruth Sam Sara Tim Tina Tom Uma Vera Will Yan Zoe"
).split()
LAST = (
    "Adler Baker Bauer Beck Berg Blum Braun Brook Burke Conti Cruz Dale Diaz Ellis Evans Falk "
    "Fink Ford Frost Gomez Grant Haas Hart Hill Holm Horn Jones Kay Keller King Klein Koch Kraft "
    "Lane Lang Lopez Lund Marsh Mayer Moore Nash Novak Olsen Owen Park Quinn Reed Rossi Roth Ruiz "
    "Sato Shaw Silva Stein Stone Vogel Voss Wade Walsh Weber West Wolf Wood York Zahn"
).split()
CITIES = (
    "Athens Basel Berlin Bern Boston Bremen Cairo Denver Dublin Essen Genoa Ghent Graz Kiel Kyoto "
    "Leeds Lima Linz London Lyon Madrid Malmo Milan Munich Nice Osaka Oslo Oxford Paris Porto Riga "
    "Rome Seoul Sofia Tokyo Turin Vienna Warsaw York Zurich"
).split()
GOODS = (
    "Apple Beans Bread Brush Cable Candle Cheese Chair Clock Coffee Cup Desk Eggs Fish Flour Glue "
    "Honey Ink Jam Juice Lamp Lemon Milk Nails Olives Onion Paint Paper Pasta Peas Pen Plant Plate "
    "Rice Ruler Salt Soap Soup Spoon Sugar Tape Tea Towel Vase Water Wool"
).split()
SHOPS = (
    "Corner Garden Harbor Market Station Village River Castle Forest Central".split(),
    "Cafe Shop Store Foods Books Tools".split(),
)
TITLES = {
    "form": ("ORDER FORM", "ENTRY FORM", "VISITOR", "MEMBER CARD", "REQUEST", "BOOKING"),
    "table": ("STOCK", "PRICES", "ORDER", "DELIVERY", "OFFER", "INVOICE"),
}


@dataclass(frozen=True)
class Line:
    """A piece of text where it was drawn; `edges` are the x of each character and of the end."""

    text: str
    edges: tuple[float, ...]  # in units, as are top and bottom
    top: float
    bottom: float


@dataclass(frozen=True)
class Question:
    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Document:
    kind: str
    number: int
    image: Image.Image
    lines: tuple[Line, ...]
    questions: tuple[Question, ...]
    name: str  # unique among all seeds and splits

    @property
    def rows_of_text(self) -> list[list[Line]]:
        """The pieces of text from top to bottom, those at one height together."""
        found: list[list[Line]] = []
        for line in sorted(self.lines, key=lambda line: (line.bottom, line.edges[0])):
            if found and line.bottom - found[-1][0].bottom < 4:
                found[-1].append(line)
            else:
                found.append([line])
        return [sorted(row, key=lambda line: line.edges[0]) for row in found]

    @property
    def text(self) -> str:
        """All of it, as a reader would type it."""
        return "\n".join(" ".join(piece.text for piece in row) for row in self.rows_of_text)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row a question, with DocVQA's columns."""
        return [
            {
                "questionId": str(self.number * 10 + at),
                "question": asked.text,
                "question_types": TYPES[self.kind],
                "image": self.image,
                "docId": self.number,
                "ucsf_document_id": self.name,
                "ucsf_document_page_no": "1",
                "answers": list(asked.answers),
            }
            for at, asked in enumerate(self.questions)
        ]


@dataclass
class Page:
    """What is being drawn: one face, one ink, and where the text went."""

    r: Random
    face: str
    image: Image.Image
    lines: list[Line] = field(default_factory=list)
    ink: tuple[int, int, int] = (0, 0, 0)

    def font(self, size: float) -> ImageFont.FreeTypeFont:
        return font(self.face, round(size * SCALE))

    def width(self, text: str, size: float) -> float:
        return float(self.font(size).getlength(text)) / SCALE

    def write(
        self, x: float, y: float, text: str, size: float, *, align: str = "left", room: float = 0
    ) -> float:
        """Draws one piece of text at the height y; in less than `room` units. Gives its end."""
        while room and self.width(text, size) > room and size > 9:
            size -= 0.25
        face, length = self.font(size), self.width(text, size)
        x -= {"left": 0.0, "right": length, "center": length / 2}[align]
        draw = ImageDraw.Draw(self.image)
        draw.text((x * SCALE, y * SCALE), text, font=face, fill=self.ink, anchor="ls")
        edges = tuple(x + face.getlength(text[:n]) / SCALE for n in range(len(text) + 1))
        self.lines.append(Line(text, edges, y - 0.78 * size, y + 0.22 * size))
        return x + length

    def rule(self, x: float, y: float, to_x: float, to_y: float, *, grey: int = 120) -> None:
        draw = ImageDraw.Draw(self.image)
        spots = (x * SCALE, y * SCALE, to_x * SCALE, to_y * SCALE)
        draw.line(spots, fill=(grey, grey, grey), width=self.r.choice((2, 3)))

    def box(self, x: float, y: float, to_x: float, to_y: float, *, grey: int = 150) -> None:
        draw = ImageDraw.Draw(self.image)
        spots = (x * SCALE, y * SCALE, to_x * SCALE, to_y * SCALE)
        draw.rectangle(spots, outline=(grey, grey, grey), width=2)


_fonts: dict[tuple[str, int], ImageFont.FreeTypeFont] = {}


def font(face: str, size: int) -> ImageFont.FreeTypeFont:
    if (face, size) not in _fonts:
        if face == "Pillow":
            made = ImageFont.load_default(size)
            if not isinstance(made, ImageFont.FreeTypeFont):
                raise RuntimeError("this Pillow was built without FreeType; install it from PyPI")
        else:
            # The plain layout engine is in every build; the other one moves letters a little.
            path = str(FONTS / f"{face}.ttf")
            made = ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
        _fonts[face, size] = made
    return _fonts[face, size]


# ---- values ------------------------------------------------------------------------------------


def person(r: Random) -> str:
    return f"{r.choice(FIRST)} {r.choice(LAST)}"


def number(r: Random, digits: int = 4) -> str:
    return str(r.randrange(10 ** (digits - 1), 10**digits))


def price(r: Random, most: int = 50) -> str:
    return f"{r.randrange(1, most)}.{r.randrange(100):02d}"


def day(r: Random) -> str:
    return f"{r.randrange(1, 29):02d}.{r.randrange(1, 13):02d}.{r.randrange(1990, 2026)}"


def phone(r: Random) -> str:
    return f"555-{r.randrange(10000):04d}"


def ask(r: Random, answer: str, *forms: str, also: Iterable[str] = ()) -> Question:
    return Question(r.choice(forms), (answer, *also))


# ---- the four kinds ----------------------------------------------------------------------------


def form_fields(r: Random) -> list[tuple[str, str, Question]]:
    """Label, value and question of the fields that a form may have."""
    who, city, when, call, no = person(r), r.choice(CITIES), day(r), phone(r), number(r)
    return [
        ("Name", who, ask(r, who, "What is the name?", "Whose name is on the form?")),
        ("City", city, ask(r, city, "What is the city?", "Which city is given?")),
        ("Date", when, ask(r, when, "What is the date?", "Which date is given?")),
        ("Phone", call, ask(r, call, "What is the phone number?", "Which phone is given?")),
        ("No.", no, ask(r, no, "What is the number?", "Which number does it have?")),
    ]


def form(page: Page) -> list[Question]:
    r = page.r
    fields = r.sample(form_fields(r), 4)
    size, left = r.uniform(11.5, 13), r.uniform(8, 14)
    page.write(SIDE / 2, r.uniform(18, 22), r.choice(TITLES["form"]), size + 1, align="center")
    style, end = r.choice(("colon", "columns", "boxes")), "" if r.random() < 0.3 else ":"
    for at, (label, value, _) in enumerate(fields):
        y = 52 + 29 * at + r.uniform(-2, 2)
        if style == "colon":
            x = page.write(left, y, f"{label}{end or ':'} {value}", size, room=SIDE - left - 6)
            page.rule(left, y + 6, SIDE - 10, y + 6, grey=170)
            continue
        x = page.write(left, y, f"{label}{end}", size)
        x = max(x + 5, left + 42)
        page.write(x, y, value, size, room=SIDE - x - 6)
        if style == "boxes":
            page.box(x - 4, y - 15, SIDE - 3, y + 7)
    return [question for _, _, question in fields]


def receipt(page: Page) -> list[Question]:
    r = page.r
    size, left, right = r.uniform(11.5, 13), r.uniform(8, 14), SIDE - r.uniform(8, 14)
    shop, no, when = f"{r.choice(SHOPS[0])} {r.choice(SHOPS[1])}", number(r), day(r)
    goods = [(name, price(r, 30)) for name in r.sample(GOODS, 2)]
    total = f"{sum(round(float(cost) * 100) for _, cost in goods) / 100:.2f}"
    sign = r.choice(("", "", "$"))
    page.write(SIDE / 2, r.uniform(18, 22), shop, size + 0.5, align="center", room=SIDE - 12)
    word = r.choice(("No.", "Receipt"))
    page.write(left, 44, word, size)
    page.write(right, 44, no, size, align="right")
    page.write(left, 66, "Date", size)
    page.write(right, 66, when, size, align="right")
    for at, (name, cost) in enumerate(goods):
        page.write(left, 92 + 22 * at, name, size)
        page.write(right, 92 + 22 * at, cost, size, align="right")
    page.rule(left, 121, right, 121)
    page.write(left, 140, "Total", size)
    page.write(right, 140, sign + total, size, align="right")
    asked, cost = r.choice(goods)
    return [
        ask(r, shop, "What is the name of the shop?", "Which shop is it from?"),
        ask(r, no, "What is the number?", "Which number does it have?"),
        ask(r, when, "What is the date?", "Which date is given?"),
        ask(
            r,
            sign + total,
            "What is the total?",
            "What is the total amount?",
            also=[total] if sign else [],
        ),
        ask(r, cost, f"What is the price of {asked}?", f"How much is the {asked}?"),
    ]


def table(page: Page) -> list[Question]:
    r = page.r
    size, left, right = r.uniform(11.5, 13), r.uniform(7, 11), SIDE - r.uniform(7, 11)
    rows = [(name, str(r.randrange(2, 100)), price(r, 30)) for name in r.sample(GOODS, 4)]
    title, middle = r.choice(TITLES["table"]), r.uniform(92, 98)
    page.write(SIDE / 2, r.uniform(18, 22), title, size + 1, align="center")
    grid = r.choice(("rules", "head", "grid"))
    for at, (name, count, cost) in enumerate([("Item", "Qty", "Price"), *rows]):
        y = 46 + 24 * at + (0 if grid == "grid" else r.uniform(-1, 1))
        page.write(left, y, name, size, room=middle - left - 24)
        page.write(middle, y, count, size, align="right")
        page.write(right, y, cost, size, align="right")
        if grid != "head" or at == 0:
            page.rule(left - 3, y + 7, right + 3, y + 7, grey=160)
    if grid == "grid":
        page.box(left - 4, 30, right + 3, 46 + 24 * 4 + 7)
    one, count, cost = r.choice(rows)
    of_it = (
        ask(r, count, f"What is the quantity of {one}?", f"How many {one} are listed?"),
        ask(r, cost, f"What is the price of {one}?", f"How much is the {one}?"),
    )
    return [
        r.choice(of_it),
        ask(r, rows[0][0], "Which item is listed first?", "What is the first item?"),
        ask(r, rows[-1][0], "Which item is listed last?", "What is the last item?"),
        ask(r, title, "What is the title?", "What is the title of the table?"),
    ]


def letter(page: Page) -> list[Question]:
    r = page.r
    size, left = r.uniform(11.5, 12.5), r.uniform(8, 12)
    city, when, to, sender = r.choice(CITIES), day(r), r.choice(LAST), person(r)
    no, amount = number(r), price(r, 90)
    title = r.choice(("Mr.", "Ms."))
    end = r.choice(("Yours,", "Regards,"))
    side = r.choice(("left", "right"))
    room = SIDE - left - 6
    pay = r.choice(("Please pay", "Please send", "You owe us"))
    lines = [
        (f"{city}, {when}", side),
        (f"Dear {title} {to},", "left"),
        (f"your order {no}", "left"),
        ("is ready.", "left"),
        (f"{pay} {amount}", "left"),
        (end, "left"),
        (sender, "left"),
    ]
    for at, (text, align) in enumerate(lines):
        y = 20 + 20.5 * at + r.uniform(-1, 1)
        x = left if align == "left" else SIDE - left
        page.write(x, y, text, size, align=align, room=room)
    return [
        ask(r, sender, "Who wrote the letter?", "Who signed the letter?"),
        ask(r, when, "What is the date?", "Which date is given?"),
        ask(r, no, "What is the order number?", "Which order is it about?"),
        ask(r, amount, "What amount is to be paid?", "How much is to be paid?"),
        ask(r, city, "Where was the letter written?", "Which city is it from?"),
    ]


DRAWN: dict[str, Callable[[Page], list[Question]]] = {
    "form": form,
    "receipt": receipt,
    "table": table,
    "letter": letter,
}


def page(r: Random) -> Page:
    """An empty sheet: a tint of paper, an ink and a face."""
    light = r.randrange(238, 256)
    tint = (light, light - r.randrange(0, 5), light - r.randrange(0, 12))
    dark = r.randrange(0, 70)
    ink = (dark, dark, min(110, dark + r.choice((0, 0, 40))))
    image = Image.new("RGB", (SIDE * SCALE, SIDE * SCALE), tint)
    return Page(r, r.choice(FACES), image, ink=ink)


def one(number: int, seed: int, split: str) -> Document:
    """The document of that number; no other needs to be made for it."""
    name = f"{split}-{seed}-{number}"
    # hash() differs between processes, Random(str) may between versions: this does neither.
    r = Random(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))
    kind = KINDS[number % len(KINDS)]
    sheet = page(r)
    questions = DRAWN[kind](sheet)
    return Document(kind, number, sheet.image, tuple(sheet.lines), tuple(questions), name)


def make(count: int, seed: int, split: str) -> Iterator[Document]:
    """`count` documents, the kinds in turn; the same seed and split give the same ones."""
    return (one(number, seed, split) for number in range(count))


# ---- a folder of them --------------------------------------------------------------------------


def write(out: Path, counts: dict[str, int], *, seed: int) -> dict[str, int]:
    """Pictures and SPLIT.jsonl with rows of {image, question, answers}; gives the rows a split."""
    written = {}
    for split, count in counts.items():
        (out / split).mkdir(parents=True, exist_ok=True)
        rows = []
        for document in make(count, seed, split):
            path = f"{split}/{document.number:05d}.png"
            document.image.save(out / path)
            for asked in document.questions:
                row = {"image": path, "question": asked.text, "answers": list(asked.answers)}
                rows.append(json.dumps(row) + "\n")
        (out / f"{split}.jsonl").write_text("".join(rows))
        written[split] = len(rows)
    return written


def arrow(out: Path, counts: dict[str, int], *, seed: int) -> dict[str, int]:
    """The same as a DatasetDict with DocVQA's columns, as `load_from_disk` reads it."""
    from datasets import Dataset, DatasetDict, Features, Image, Sequence, Value

    kinds = {"docId": Value("int32"), "image": Image()}
    lists = {"question_types": Sequence(Value("string")), "answers": Sequence(Value("string"))}
    features = Features(
        {name: kinds.get(name) or lists.get(name) or Value("string") for name in COLUMNS}
    )
    made = {}
    for split, count in counts.items():
        rows = [row for document in make(count, seed, split) for row in document.rows]
        made[split] = Dataset.from_list(rows, features=features)
    DatasetDict(made).save_to_disk(str(out))
    return {split: len(rows) for split, rows in made.items()}


def main(arguments: list[str] | None = None) -> int:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    flags.add_argument("--out", type=Path, required=True)
    flags.add_argument("--train", type=int, default=600, help="documents, not questions")
    flags.add_argument("--validation", type=int, default=40)
    flags.add_argument("--test", type=int, default=60)
    flags.add_argument("--seed", type=int, default=1)
    flags.add_argument("--arrow", action="store_true", help="an Arrow folder instead of pictures")
    given = flags.parse_args(arguments)
    counts = {"train": given.train, "validation": given.validation, "test": given.test}
    rows = (arrow if given.arrow else write)(given.out, counts, seed=given.seed)
    print(f"{given.out}: " + ", ".join(f"{n} rows in {split}" for split, n in rows.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
