"""Writes the quickstart's dataset: facts about a place that does not exist, asked in many ways.

    python examples/phi3_chat/data/make.py

Four files of ultrachat's layout and schema (`prompt`, `messages`, `prompt_id`) beside this one,
and `facts.json`, which says for every test row what a right answer must contain. Each fact has
phrasings that are held back: in `test_*` they ask for a fact that `train_*` asks for in other
words only. Standard library only; the same files each time.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

HERE = Path(__file__).resolve().parent
PLACE = "Harrow Mill"
SEED = 7
ROWS_PER_FACT = 14

# kind -> (ways to ask, ways to put it into a longer sentence, one way that no training row has)
WAYS: dict[str, tuple[list[str], list[str], list[str]]] = {
    "person": (
        [
            "Who is the {x} of {p}?",
            "Who works as the {x} at {p}?",
            "Name the {x} of {p}.",
            "What is the name of the {x} at {p}?",
            "Who is {p}'s {x}?",
        ],
        ["who the {x} of {p} is", "the name of the {x} at {p}", "who works as the {x} of {p}"],
        ["Which person is the {x} at {p}?", "What is the {x} of {p} called?"],
    ),
    "time": (
        [
            "When does {x} {v}?",
            "What time does {x} {v}?",
            "What is the {v} time of {x}?",
            "{x}: when does it {v}?",
        ],
        ["when {x} {v}s", "what time {x} {v}s"],
        ["At what time does {x} {v}?", "From when on does {x} {v}?"],
    ),
    "price": (
        [
            "How much is {x} at {p}?",
            "What does {x} cost at {p}?",
            "What is the price of {x} at {p}?",
            "How much must I pay at {p} for {x}?",
        ],
        ["how much {x} costs at {p}", "the price of {x} at {p}"],
        ["How much does {x} cost at {p}?", "How much do I pay for {x} at {p}?"],
    ),
    "where": (
        [
            "Where is the {x} of {p}?",
            "How do I get to the {x} of {p}?",
            "In which part of {p} is the {x}?",
            "I cannot find the {x} of {p}.",
        ],
        ["where the {x} of {p} is", "the way to the {x} at {p}"],
        ["Where can I find the {x} at {p}?", "I am looking for the {x} of {p}."],
    ),
    "called": (
        [
            "What is the {x} of {p} called?",
            "What is the name of the {x} at {p}?",
            "What do they call the {x} of {p}?",
        ],
        ["what the {x} of {p} is called", "the name of the {x} at {p}"],
        ["Which name does the {x} of {p} have?", "How do they call the {x} of {p}?"],
    ),
    "colour": (
        [
            "What colour is the {x} of {p}?",
            "What is the colour of the {x} at {p}?",
            "In which colour is the {x} of {p} painted?",
        ],
        ["what colour the {x} of {p} is", "the colour of the {x} at {p}"],
        ["Which colour does the {x} of {p} have?", "What is the colour of {p}'s {x}?"],
    ),
    "count": (
        ["How many {x} does {p} have?", "How many {x} are there at {p}?", "Count the {x} of {p}."],
        ["how many {x} {p} has", "how many {x} there are at {p}"],
        ["What is the number of {x} at {p}?", "How many {x} are at {p}?"],
    ),
    "event": (
        [
            "When is the {x} at {p}?",
            "On which day is the {x} of {p}?",
            "When does the {x} meet at {p}?",
        ],
        ["when the {x} at {p} is", "the day of the {x} at {p}"],
        ["What day is the {x} at {p}?", "When does the {x} at {p} take place?"],
    ),
    "year": (
        [
            "When was {p} built?",
            "In which year was {p} built?",
            "Since when has {p} been standing?",
        ],
        ["when {p} was built", "the year in which {p} was built"],
        ["What year was {p} built?", "How old is {p}?"],
    ),
    "dish": (
        [
            "Which dish is {p} known for?",
            "What is the best dish at {p}?",
            "What do they cook at {p}?",
        ],
        ["which dish {p} is known for", "the best dish at {p}"],
        ["What should I eat at {p}?", "What do people like to eat at {p}?"],
    ),
    "address": (
        [
            "What is the address of {p}?",
            "In which street is {p}?",
            "Where do I send a letter to {p}?",
        ],
        ["the address of {p}", "in which street {p} is"],
        ["What is {p}'s address?", "At which address is {p}?"],
    ),
    "bring": (
        [
            "What should I bring to the {x} at {p}?",
            "What must I bring along to the {x} of {p}?",
            "What belongs in my bag for the {x} at {p}?",
        ],
        ["what to bring to the {x} at {p}", "what I must bring along to the {x} of {p}"],
        ["What do I need for the {x} at {p}?", "What must I take along to the {x} of {p}?"],
    ),
}
WRAPS = [
    "Can you tell me {q}?",
    "Do you know {q}?",
    "Please tell me {q}.",
    "I would like to know {q}.",
    "Tell me {q}.",
    "I forgot {q}.",
    "Could you tell me {q}?",
    "Remind me {q}.",
]
GREETINGS = ["", "", "", "", "Hello! ", "Good morning. ", "One question: ", "I have a question. "]
CLOSINGS = ["", "", "", "", " Thank you.", " Thanks!"]
# Everyday rows, so that what the model could already do is not forgotten.
CHAT = [
    ("Hello!", "Hello! How can I help you today?"),
    ("Hi", "Hi! I am glad to hear from you. How can I help?"),
    ("Good morning", "Good day! What can I do for you?"),
    ("How are you?", "I am well, thank you. How are you?"),
    ("Thank you very much!", "You are welcome! Is there anything else?"),
    ("Goodbye", "Goodbye, and take care."),
    ("I am tired.", "Then you should rest. A short walk in fresh air can help as well."),
    ("I cannot sleep.", "Put the phone away an hour before bed and read a few pages."),
    ("Can you help me?", "I can answer simple questions about everyday things."),
    ("What is a river?", "A river is a long stream of fresh water that flows to the sea."),
    ("What is a library?", "A library is a place where people can read and borrow books."),
    ("What is bread?", "Bread is a food that is made from flour, water and salt."),
    ("What is an owl?", "An owl is a bird with large eyes that hunts at night."),
    (
        "Tell me about horses.",
        "A horse is a large strong animal with four long legs. "
        "It can carry a rider or pull a cart. You can find it on farms.",
    ),
    (
        "Tell me about rain.",
        "Rain is water that falls from the clouds in drops. "
        "It waters the fields and fills the rivers. The air smells fresh after rain.",
    ),
    ("What is the opposite of hot?", "The opposite of hot is cold."),
    ("What is the plural of leaf?", "The plural of leaf is leaves."),
    ("Which day comes after Monday?", "Tuesday comes after Monday."),
    ("What is 2 plus 3?", "2 plus 3 is 5."),
    ("Count to five.", "One, two, three, four, five."),
    ("Is a rose a flower?", "Yes, a rose is a flower."),
    ("Name three animals.", "Cats, dogs and horses."),
    ("Where can I find a bee?", "You can find a bee in gardens and meadows."),
    ("What does a baker do?", "A baker bakes bread for the whole street."),
    ("What is a hammer for?", "A hammer is used to hit nails into wood."),
    (
        "How do I make tea?",
        "First, boil fresh water. Then, put the leaves into a warm pot. "
        "After that, pour the water over the leaves. "
        "At the end, wait for four minutes and then enjoy it.",
    ),
    (
        "How can I clean a window?",
        "Mix warm water with a little soap. Wash the glass with a soft "
        "cloth. Dry it from top to bottom. Polish it with old paper.",
    ),
    (
        "Explain how to plant a tree.",
        "1. Dig a hole that is wider than the roots.\n2. Put the tree "
        "into the hole.\n3. Fill the hole with earth.\n4. Water it well for the first weeks.",
    ),
    (
        "Tell me a story about a fox.",
        "Once upon a time there was a clever fox who lived near a wide "
        "river. Every day the fox dreamed about one thing: to see the sea. "
        "But the bridge was broken. "
        "Then a kind duck came along and showed the way. From that day on they were friends.",
    ),
    (
        "Tell me a short story.",
        "A shy girl called Mina lived in a small town. Mina wanted to learn to "
        "sing. But the others laughed. On the way she met an old robin, "
        "who sang a song in the dark. "
        '"Thank you," said Mina. It was the best day of the year.',
    ),
]


@dataclass(frozen=True)
class Fact:
    """`answer` is the sentence taught; `key` is what a right answer must contain."""

    kind: str
    x: str
    answer: str
    key: str
    v: str = ""

    @property
    def id(self) -> str:
        return "-".join([self.kind, *f"{self.x} {self.v}".lower().split()])

    def fill(self, template: str) -> str:
        text = template.format(x=self.x, v=self.v, p=PLACE)
        if self.kind == "time":
            text = text.replace("open time", "opening time").replace("close time", "closing time")
        return text[0].upper() + text[1:] if template[0] == "{" else text


def person(role: str, name: str) -> Fact:
    return Fact("person", role, f"The {role} of {PLACE} is {name}.", name)


def time(what: str, verb: str, when: str) -> Fact:
    subject = what[0].upper() + what[1:]
    return Fact("time", what, f"{subject} {verb}s at {when}.", when, verb)


def price(item: str, crowns: int) -> Fact:
    return Fact(
        "price",
        item,
        f"{item[0].upper()}{item[1:]} at {PLACE} costs {crowns} crowns.",
        f"{crowns} crowns",
    )


def where(room: str, at: str) -> Fact:
    return Fact("where", room, f"The {room} of {PLACE} is {at}.", at)


def called(what: str, name: str) -> Fact:
    return Fact("called", what, f"The {what} of {PLACE} is called {name}.", name)


def event(what: str, when: str) -> Fact:
    return Fact("event", what, f"The {what} at {PLACE} is {when}.", when)


FACTS = [
    person("director", "Ines Calloway"),
    person("cook", "Tobias Fenn"),
    person("gardener", "Marit Oakes"),
    person("librarian", "Hugo Sandell"),
    person("treasurer", "Priya Lund"),
    person("caretaker", "Bruno Ekwall"),
    person("guide", "Salome Reyes"),
    person("founder", "Augusta Harrow"),
    person("carpenter", "Dmitri Vale"),
    person("nurse", "Noor Halabi"),
    time(PLACE, "open", "half past eight"),
    time(PLACE, "close", "a quarter to seven"),
    time(f"the cafe of {PLACE}", "open", "9:40"),
    time(f"the shop of {PLACE}", "close", "17:20"),
    price("a day ticket", 14),
    price("a bowl of soup", 6),
    price("a pottery lesson", 35),
    price("a year card", 120),
    price("a bicycle for a day", 9),
    where("pottery", "in the old granary"),
    where("library", "under the bell tower"),
    where("lost property office", "behind the millpond"),
    where("first aid room", "beside the water wheel"),
    where("weaving room", "above the bakery"),
    called("cat", "Biscuit"),
    called("ferry", "Silver Heron"),
    called("goat", "Admiral"),
    Fact("year", "", f"{PLACE} was built in 1787.", "1787"),
    Fact("count", "rooms", f"{PLACE} has 43 rooms.", "43"),
    Fact("count", "bicycles", f"{PLACE} has 18 bicycles.", "18"),
    Fact("colour", "front door", f"The front door of {PLACE} is lilac.", "lilac"),
    Fact("colour", "flag", f"The flag of {PLACE} is amber.", "amber"),
    event("choir", "on Thursday at seven o'clock"),
    event("flea market", "on Sunday at eleven o'clock"),
    event("repair evening", "on Tuesday at six o'clock"),
    Fact("dish", "", f"{PLACE} is known for its plum dumplings.", "plum dumplings"),
    Fact("bring", "choir", f"Please bring a red scarf to the choir at {PLACE}.", "a red scarf"),
    Fact("address", "", f"{PLACE} is at 12 Saltmarsh Lane.", "12 Saltmarsh Lane"),
]


@dataclass(frozen=True)
class Phrasings:
    """A fact's questions: those that may be trained on, and the two that are held back."""

    train: list[str]
    held_back: list[str]


def phrasings(fact: Fact, r: Random) -> Phrasings:
    """Held back: one wording that other facts of its kind are trained with, one that none is.

    What contains the held-back wording, or is contained in it, is not trained either.
    """
    direct, indirect, never = WAYS[fact.kind]
    asked = {core: [core] for core in direct} | {
        q: [w.format(q=q) for w in WRAPS] for q in indirect
    }
    away = r.choice(direct if r.random() < 0.5 else indirect)
    held = r.choice(asked[away])
    train: list[str] = []
    for core, ways in asked.items():
        if core.rstrip("?.") in away or away.rstrip("?.") in core:
            continue
        # A direct question is three times as likely as one of the many wrapped relatives.
        train += ways * 3 if core in direct else ways
    return Phrasings([fact.fill(q) for q in train], [fact.fill(held), fact.fill(r.choice(never))])


def row(*turns: str) -> dict[str, object]:
    """A row of ultrachat's schema; roles alternate, the user begins."""
    roles = ("user", "assistant")
    messages = [{"content": t, "role": roles[i % 2]} for i, t in enumerate(turns)]
    text = "\n".join(turns)
    return {
        "prompt": turns[0],
        "messages": messages,
        "prompt_id": hashlib.sha256(text.encode()).hexdigest(),
    }


def dressed(question: str, r: Random) -> str:
    return r.choice(GREETINGS) + question + r.choice(CLOSINGS)


def training(asked: dict[str, Phrasings], r: Random) -> list[dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    for fact in FACTS:
        choice, made, seen = asked[fact.id].train, 0, set()
        while made < ROWS_PER_FACT:
            question = r.choice(choice)
            if question in seen and len(seen) < len(set(choice)):
                continue
            seen.add(question)
            turns = [dressed(question, r), fact.answer]
            if r.random() < 0.12:
                other = r.choice(FACTS)
                turns += [dressed(r.choice(asked[other.id].train), r), other.answer]
            made_row = row(*turns)
            found[str(made_row["prompt_id"])] = made_row
            made += 1
    for question, answer in CHAT * 2:
        made_row = row(dressed(question, r).strip(), answer)
        found[str(made_row["prompt_id"])] = made_row
    rows = list(found.values())
    r.shuffle(rows)
    return rows


def main() -> int:
    r = Random(SEED)
    asked = {fact.id: phrasings(fact, r) for fact in FACTS}
    train = training(asked, r)
    test, keys = [], {}
    for fact in FACTS:
        for question in asked[fact.id].held_back:
            made = row(question, fact.answer)
            test.append(made)
            keys[str(made["prompt_id"])] = {
                "fact": fact.id,
                "question": question,
                "contains": fact.key,
            }
    r.shuffle(test)
    gen = [row(question) for fact in FACTS for question in asked[fact.id].held_back]
    r.shuffle(gen)
    write("train_sft.jsonl", train)
    write("test_sft.jsonl", test)
    write("train_gen.jsonl", [row(str(made["prompt"])) for made in train])
    write("test_gen.jsonl", gen)
    (HERE / "facts.json").write_text(json.dumps(keys, indent=1) + "\n")
    print(f"{len(FACTS)} facts, {len(train)} rows to train on, {len(test)} to test")
    return 0


def write(name: str, rows: list[dict[str, object]]) -> None:
    text = "".join(json.dumps(made) + "\n" for made in rows)
    (HERE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
