"""The text that the stand-in is trained on: chats and plain text from templates, all seeded.

A document is either a list of chat messages or a plain string. What is said comes from
knowledge.py, facts.py and stories.py; nothing here knows about tokens or training (build.py), and
nothing mentions the facts of the quickstart's dataset: those are what fine-tuning has to teach
(a test holds the two apart).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random

import grammar as g
from facts import fact
from grammar import cap
from knowledge import THINGS, Pair, howto, small, talk, thing
from stories import LESSON, story, tale

Messages = list[dict[str, str]]


def told(r: Random) -> Messages:
    """A fact that stands in the chat itself: the answer is there to be copied."""
    question, answer = fact(r)
    noise = [fact(r)[1] for _ in range(r.randrange(0, 2))]
    facts = [answer, *noise]
    r.shuffle(facts)
    text = " ".join(facts)
    if r.random() < 0.5:
        return [{"role": "system", "content": text}, *turn((question, answer))]
    return turn((f"{text} {question}", answer))


def echo(r: Random) -> Pair:
    others = [fact(r)[1], g.person(r), g.place(r), r.choice(THINGS).fact, r.choice(LESSON)]
    text = r.choice([*others, g.town(r)])
    return g.pick(
        r, "Repeat this: {x}|Say this again: {x}|Please write: {x}|Copy this: {x}", x=text
    ), text


def turn(pair: Pair) -> Messages:
    return [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]


SYSTEM = [
    "You are a helpful assistant.",
    "You are a friendly assistant. Answer in short sentences.",
    "Answer the questions of the user.",
    "You are a small model that explains things simply.",
]


def chat(r: Random) -> Messages:
    makers = [talk, thing, howto, small, fact, tale, echo]
    weights = [14, 24, 8, 8, 34, 8, 6]
    if r.random() < 0.1:
        return told(r)
    turns = 1 if r.random() < 0.8 else r.randrange(2, 4)
    messages: Messages = []
    if r.random() < 0.08:
        messages.append({"role": "system", "content": r.choice(SYSTEM)})
    for make in r.choices(makers, weights, k=turns):
        messages += turn(make(r))
    return messages


def plain(r: Random) -> str:
    x = r.random()
    if x < 0.5:
        return story(r)
    if x < 0.75:
        t = r.choice(THINGS)
        parts = [f"{cap(t.one)} {t.use}.", f"You can find {t.one} {t.place}.", t.fact]
        r.shuffle(parts)
        return " ".join([f"{cap(t.one)} is {t.what}.", *parts])
    p = g.place(r)
    lines = [fact(r)[1] for _ in range(3)]
    return f"Notes about {p}. " + " ".join(lines)


def manual() -> list[str]:
    """Paragraphs of prose from the language reference that comes with Python."""
    import pydoc_data.topics as topics

    found = []
    for text in topics.topics.values():
        for block in re.split(r"\n\s*\n", text):
            line = re.sub(r"\s+", " ", block).strip()
            letters = sum(c.isalpha() or c == " " for c in line)
            if (
                80 < len(line) < 500
                and letters / len(line) > 0.93
                and line[0].isupper()
                and line[-1] == "."
            ):
                found.append(line)
    return found


def documents(seed: int, count: int) -> Iterator[Messages | str]:
    """`count` documents; the same seed gives the same ones."""
    r = Random(seed)
    prose = manual()
    for _ in range(count):
        x = r.random()
        if x < 0.84:
            yield chat(r)
        elif x < 0.95:
            yield plain(r)
        else:
            yield r.choice(prose)
