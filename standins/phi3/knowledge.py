"""What the stand-in knows: everyday things, small talk, how to do things, small sums and words.

The knowledge itself is in data/*.txt; here are the ways to ask for it. Every function makes one
question and one answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

import grammar as g
from grammar import a, cap, pick

DATA = Path(__file__).parent / "data"
Pair = tuple[str, str]

BARE = set(
    "bread cheese butter honey soup rice milk tea coffee water salt grass rain snow wind fog paper "
    "wood glass iron gold wool cotton fire ice breakfast dinner".split()
)
SINGLE = {"sun", "moon"}
IRREGULAR = {
    "sheep": "sheep",
    "fish": "fish",
    "mouse": "mice",
    "wolf": "wolves",
    "leaf": "leaves",
    "knife": "knives",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "fox": "foxes",
    "bus": "buses",
    "beach": "beaches",
    "library": "libraries",
    "bakery": "bakeries",
    "cherry": "cherries",
    "butterfly": "butterflies",
    "story": "stories",
    "match": "matches",
}
OPPOSITES = [
    w.split("/")
    for w in (
        "hot/cold big/small long/short old/new old/young fast/slow light/dark heavy/light high/low "
        "hard/soft wet/dry full/empty happy/sad early/late near/far strong/weak rich/poor "
        "open/closed "
        "clean/dirty quiet/loud thick/thin wide/narrow deep/shallow sharp/blunt sweet/sour "
        "left/right "
        "up/down day/night summer/winter north/south east/west begin/end push/pull buy/sell "
        "give/take "
        "question/answer friend/enemy love/hate first/last always/never true/false inside/outside"
    ).split()
]
SOUNDS = {
    "cat": "meow",
    "dog": "woof",
    "cow": "moo",
    "sheep": "baa",
    "duck": "quack",
    "hen": "cluck",
    "owl": "hoo",
    "bee": "buzz",
    "frog": "croak",
    "mouse": "squeak",
    "wolf": "a long howl",
}
COLOUR_OF = {
    "snow": "white",
    "grass": "green",
    "milk": "white",
    "a lemon": "yellow",
    "the sky": "blue",
    "a carrot": "orange",
    "coffee": "brown",
    "a cherry": "red",
    "a tomato": "red",
    "a leaf": "green",
    "coal": "black",
    "gold": "yellow",
    "honey": "golden",
    "ice": "clear",
}


@dataclass(frozen=True)
class Thing:
    name: str
    kind: str
    what: str
    use: str
    place: str
    fact: str

    @property
    def one(self) -> str:
        if self.name in BARE:
            return self.name
        return f"the {self.name}" if self.name in SINGLE else a(self.name)

    @property
    def many(self) -> str:
        if self.name in BARE or self.name in SINGLE:
            return self.one
        return plural(self.name)


def plural(word: str) -> str:
    if word in IRREGULAR:
        return IRREGULAR[word]
    return word + ("es" if word.endswith(("s", "ch", "sh", "x")) else "s")


def rows(name: str) -> list[str]:
    lines = (DATA / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


THINGS = [Thing(*(p.strip() for p in line.split("|"))) for line in rows("things.txt")]
BY_KIND: dict[str, list[Thing]] = {}
for _t in THINGS:
    BY_KIND.setdefault(_t.kind, []).append(_t)
TALK = [
    ([q.strip() for q in left.split(" / ")], [x.strip() for x in right.split(" / ")])
    for left, right in (line.split(" => ") for line in rows("talk.txt"))
]
HOWTO = [[p.strip() for p in line.split("|")] for line in rows("howto.txt")]
WHAT = (
    "What is {one}?|What is {one}?|Can you explain what {one} is?|Define {name}.|"
    "What does the word {name} mean?|Explain {one} to a child.|Please explain what {one} is.|"
    "Do you know what {one} is?|{Name}?|Tell me what {one} is.|I do not know what {one} is."
)
ABOUT = (
    "Tell me about {many}.|What do you know about {many}?|Say something about {many}.|"
    "Write a few sentences about {many}.|Describe {one}.|I would like to know more about {many}."
)
USE = "What does {one} do?|What is {one} for?|What is the use of {one}?|Why do we need {one}?"
PLACE = (
    "Where can I find {one}?|Where do you find {many}?|Where is {one} found?|"
    "Where do I look for {one}?"
)
SPECIAL = (
    "Tell me something interesting about {many}.|Give me a fact about {many}.|"
    "What is special about {one}?|Tell me a fact about {one}."
)
UNKNOWN = (
    "What is {one}?|Define {name}.|Tell me about the {name}.|What does the word {name} mean?|"
    "Explain {one} to a child."
)
DO_NOT_KNOW = (
    "I am sorry, I do not know the word {name}.|I do not know what {one} is. Can you tell me?"
)
GROUP = (
    "Name three {many}.|Give me three examples of {many}.|Which {many} do you know?|"
    "List three kinds of {one}."
)
HOW = (
    "How do I {x}?|How can I {x}?|How do you {x}?|Explain how to {x}.|Tell me how to {x}.|"
    "I want to {x}. What should I do?|Help me to {x}.|What is the best way to {x}?|"
    "I would like to {x}.|Please show me how to {x}."
)


def talk(r: Random) -> Pair:
    questions, answers = r.choice(TALK)
    question = r.choice(questions)
    question = cap(question) if r.random() < 0.7 else question
    if question[-1] not in "?!." and r.random() < 0.8:
        question += r.choice([".", ".", "!"])
    return question, r.choice(answers)


def unknown(r: Random) -> Pair:
    """A word that does not exist, and the honest answer."""
    word = (r.choice(g.START) + r.choice(g.MIDDLE) + r.choice(g.PERSON_END)).lower()
    values = {"name": word, "one": a(word)}
    return pick(r, UNKNOWN, **values), pick(r, DO_NOT_KNOW, **values)


def thing(r: Random) -> Pair:
    if r.random() < 0.05:
        return unknown(r)
    t = r.choice(THINGS)
    names = {"one": t.one, "many": t.many, "name": t.name, "Name": cap(t.name)}
    what = f"{cap(t.one)} is {t.what}."
    x = r.random()
    if x < 0.4:
        return pick(r, WHAT, **names), what if r.random() < 0.6 else f"{what} {t.fact}"
    if x < 0.6:
        question = pick(r, ABOUT, **names)
        parts = [f"It {t.use}.", f"You can find it {t.place}.", t.fact]
        r.shuffle(parts)
        return question, " ".join([what, *parts[: r.randrange(1, 4)]])
    if x < 0.72:
        return pick(r, USE, **names), f"{cap(t.one)} {t.use}."
    if x < 0.82:
        return pick(r, PLACE, **names), f"You can find {t.one} {t.place}."
    if x < 0.9:
        return pick(r, SPECIAL, **names), t.fact
    return kind(r, t)


def kind(r: Random, t: Thing) -> Pair:
    other = r.choice([o for o in THINGS if o.kind != t.kind])
    x = r.random()
    if x < 0.3:
        return f"Is {t.one} {a(t.kind)}?", f"Yes, {t.one} is {a(t.kind)}."
    if x < 0.6:
        return (
            f"Is {t.one} {a(other.kind)}?",
            f"No, {t.one} is not {a(other.kind)}. It is {a(t.kind)}.",
        )
    if x < 0.8:
        first, second = r.sample([t.kind, other.kind], 2)
        return f"Is {t.one} {a(first)} or {a(second)}?", f"{cap(t.one)} is {a(t.kind)}."
    many = [k for k, v in BY_KIND.items() if len(v) > 4 and " " not in k]
    group = r.choice(many)
    names = [x.many for x in r.sample(BY_KIND[group], 3)]
    question = pick(r, GROUP, many=plural(group), one=group)
    return question, f"{cap(names[0])}, {names[1]} and {names[2]}."


def howto(r: Random) -> Pair:
    name, *steps = r.choice(HOWTO)
    question = pick(r, HOW, x=name)
    x = r.random()
    if x < 0.4:
        order = ["First", "Then", "After that", "At the end"]
        return question, " ".join(
            f"{o}, {s[0].lower()}{s[1:]}." for o, s in zip(order, steps, strict=False)
        )
    if x < 0.7:
        return question, "\n".join(f"{n}. {s}." for n, s in enumerate(steps, 1))
    return question, " ".join(f"{s}." for s in steps)


def small(r: Random) -> Pair:
    """Words and numbers; opposites come twice as often as the others."""
    return SMALL[r.randrange(len(SMALL))](r)


def arithmetic(r: Random) -> Pair:
    m, n = r.randrange(0, 11), r.randrange(0, 11)
    if r.random() < 0.5:
        question = pick(
            r, "What is {m} plus {n}?|How much is {m} + {n}?|Add {m} and {n}.", m=m, n=n
        )
        return question, f"{m} plus {n} is {m + n}."
    m, n = max(m, n), min(m, n)
    question = pick(r, "What is {m} minus {n}?|How much is {m} - {n}?", m=m, n=n)
    return question, f"{m} minus {n} is {m - n}."


def opposite(r: Random) -> Pair:
    one, two = r.choice(OPPOSITES)
    if r.random() < 0.5 and one != "old" and two != "light":
        one, two = two, one
    if one == "light":
        two = "dark"  # the word has two opposites; one is enough to learn
    asked = (
        "What is the opposite of {x}?|Name the opposite of {x}.|"
        "Give me a word that means the opposite of {x}."
    )
    return pick(r, asked, x=one), f"The opposite of {one} is {two}."


def calendar(r: Random) -> Pair:
    names, unit = (g.DAYS, "day") if r.random() < 0.5 else (g.MONTHS, "month")
    i = r.randrange(len(names))
    if r.random() < 0.6:
        question = pick(r, "Which {u} comes after {x}?|What comes after {x}?", u=unit, x=names[i])
        return question, f"{names[(i + 1) % len(names)]} comes after {names[i]}."
    return f"Which {unit} comes before {names[i]}?", f"{names[i - 1]} comes before {names[i]}."


def plurals(r: Random) -> Pair:
    t = r.choice([t for t in THINGS if t.name not in BARE | SINGLE])
    asked = "What is the plural of {x}?|How do you write more than one {x}?"
    return pick(r, asked, x=t.name), f"The plural of {t.name} is {plural(t.name)}."


def sound(r: Random) -> Pair:
    name, made = r.choice(list(SOUNDS.items()))
    return f"What sound does {a(name)} make?", f"{cap(a(name))} makes a sound like {made}."


def colour(r: Random) -> Pair:
    name, seen = r.choice(list(COLOUR_OF.items()))
    return f"What colour is {name}?", f"{cap(name)} is {seen}."


def counting(r: Random) -> Pair:
    n = r.randrange(3, 11)
    question = pick(r, "Count to {x}.|Count from one to {x}.", x=g.NUMBERS[n])
    return question, ", ".join(g.NUMBERS[1 : n + 1]).capitalize() + "."


SMALL = [arithmetic, opposite, opposite, calendar, plurals, sound, colour, counting]
