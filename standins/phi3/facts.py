"""Made-up facts about made-up places: many ways to ask, one way to say.

Nothing here is true and no two documents agree; what the model takes from it is that questions in
very different words ask for the same thing. Fine-tuning then has only the answers left to teach.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import grammar as g
from grammar import a, cap

Pair = tuple[str, str]


@dataclass(frozen=True)
class Relation:
    """`draw` makes up the values; the patterns name them. {p} is the place, {P} with a capital."""

    draw: Callable[[Random], dict[str, str]]
    direct: str
    indirect: str
    answer: str


def hours(r: Random) -> dict[str, str]:
    verb, when = r.choice(["open", "close"]), g.clock(r)
    word = {"open": "opening", "close": "closing"}[verb]
    day = r.choice(["", "", f" on {r.choice(g.DAYS)}s", " at the weekend", " in summer"])
    return {"x": verb, "v": when, "word": word, "day": day}


WHO = Relation(
    lambda r: {"x": r.choice(g.ROLES), "v": g.person(r)},
    "Who is the {x} of {p}?|Who works as the {x} at {p}?|What is the name of the {x} at {p}?|"
    "What is the {x} of {p} called?|Which person is the {x} at {p}?|Name the {x} of {p}.",
    "who the {x} of {p} is|the name of the {x} at {p}|who works as the {x} of {p}",
    "The {x} of {p} is {v}.",
)
HOURS = Relation(
    hours,
    "When does {p} {x}{day}?|At what time does {p} {x}{day}?|What is the {word} time of {p}{day}?|"
    "How late does {p} {x}{day}?|What time does {p} {x}{day}?",
    "when {p} {x}s{day}|at what time {p} {x}s{day}|the {word} time of {p}{day}",
    "{P} {x}s at {v}{day}.",
)
PRICE = Relation(
    lambda r: {"x": a(r.choice(g.ITEMS)), "v": f"{g.number(r)} {r.choice(g.MONEY)}"},
    "How much is {x} at {p}?|What does {x} cost at {p}?|What is the price of {x} at {p}?|"
    "How much does {x} cost at {p}?|How much do I pay for {x} at {p}?",
    "how much {x} costs at {p}|the price of {x} at {p}|what {x} costs at {p}",
    "{X} at {p} costs {v}.",
)
WHERE = Relation(
    lambda r: {"x": r.choice(g.ROOMS), "v": r.choice(g.WHERE)},
    "Where is the {x} of {p}?|Where can I find the {x} at {p}?|How do I get to the {x} of {p}?|"
    "In which part of {p} is the {x}?|I am looking for the {x} of {p}.",
    "where the {x} of {p} is|where to find the {x} at {p}|the way to the {x} of {p}",
    "The {x} of {p} is {v}.",
)
COLOUR = Relation(
    lambda r: {"x": r.choice(g.OBJECTS), "v": r.choice(g.COLOURS)},
    "What colour is the {x} of {p}?|Which colour does the {x} of {p} have?|"
    "What is the colour of the {x} at {p}?",
    "what colour the {x} of {p} is|the colour of the {x} at {p}",
    "The {x} of {p} is {v}.",
)
CALLED = Relation(
    lambda r: {"x": r.choice(g.PETS), "v": r.choice(g.PET_NAMES)},
    "What is the {x} of {p} called?|What is the name of the {x} at {p}?|"
    "Which name does the {x} of {p} have?|How do they call the {x} of {p}?",
    "what the {x} of {p} is called|the name of the {x} at {p}",
    "The {x} of {p} is called {v}.",
)
YEAR = Relation(
    lambda r: {"x": r.choice(["built", "founded", "opened"]), "v": str(r.randrange(1400, 2020))},
    "When was {p} {x}?|In which year was {p} {x}?|How old is {p}?|What year was {p} {x}?",
    "when {p} was {x}|the year in which {p} was {x}",
    "{P} was {x} in {v}.",
)
COUNT = Relation(
    lambda r: {"x": r.choice(g.THINGS), "v": g.number(r, 300)},
    "How many {x} does {p} have?|How many {x} are there at {p}?|What is the number of {x} at {p}?",
    "how many {x} {p} has|the number of {x} at {p}",
    "{P} has {v} {x}.",
)
EVENT = Relation(
    lambda r: {"x": r.choice(g.EVENTS), "v": f"on {r.choice(g.DAYS)} at {g.clock(r)}"},
    "When is the {x} at {p}?|On which day is the {x} of {p}?|"
    "When does the {x} at {p} take place?|What day is the {x} at {p}?",
    "when the {x} at {p} is|the day of the {x} at {p}",
    "The {x} at {p} is {v}.",
)
DISH = Relation(
    lambda r: {"x": "", "v": r.choice(g.DISHES)},
    "What is the best dish at {p}?|Which dish is {p} known for?|What should I eat at {p}?|"
    "What do they cook at {p}?",
    "which dish {p} is known for|the best dish at {p}",
    "{P} is known for its {v}.",
)
BRING = Relation(
    lambda r: {"x": r.choice(g.EVENTS), "v": r.choice(g.BRING)},
    "What should I bring to the {x} at {p}?|What do I need for the {x} at {p}?|"
    "What must I take along to the {x} of {p}?",
    "what to bring to the {x} at {p}|what I need for the {x} of {p}",
    "Please bring {v} to the {x} at {p}.",
)
MADE_OF = Relation(
    lambda r: {"x": r.choice(g.OBJECTS), "v": r.choice(g.MATERIALS)},
    "What is the {x} of {p} made of?|Of what is the {x} of {p} made?",
    "what the {x} of {p} is made of|the material of the {x} at {p}",
    "The {x} of {p} is made of {v}.",
)
ADDRESS = Relation(
    lambda r: {"x": "", "v": f"{g.number(r, 150)} {g.town(r)} {r.choice(g.STREETS)}"},
    "What is the address of {p}?|Where is {p}?|In which street is {p}?|How do I get to {p}?",
    "the address of {p}|where {p} is",
    "{P} is at {v}.",
)
# Opening hours count twice, and the last two places are shared by two relations each.
RELATIONS: list[tuple[Relation, ...]] = [
    *((x,) for x in (WHO, HOURS, HOURS, PRICE, WHERE, COLOUR, CALLED, YEAR, COUNT, EVENT)),
    (DISH, BRING),
    (MADE_OF, ADDRESS),
]


def fact(r: Random) -> Pair:
    """A question in one of its many wordings, and the sentence that answers it."""
    p = g.place(r)
    pair = RELATIONS[r.randrange(len(RELATIONS))]
    kind = pair[0] if len(pair) == 1 or r.random() < 0.5 else pair[1]
    values = {"p": p, "P": cap(p), **kind.draw(r)}
    values["X"] = cap(values["x"])
    question = ask(r, kind.direct, kind.indirect, values)
    return question, kind.answer.format(**values)


def ask(r: Random, direct: str, indirect: str, values: dict[str, str]) -> str:
    """One of the patterns, filled, with or without words before and after it."""
    if r.random() < 0.6:
        core = g.pick(r, direct, **values)
    else:
        wrap = r.choice(g.WRAP)
        core = wrap.format(q=g.pick(r, indirect, **values))
    greeting = r.choice(g.GREET)
    if greeting.endswith(", ") and not core.startswith("I "):
        core = core[0].lower() + core[1:]
    return cap(greeting + core) + r.choice(g.CLOSE)
