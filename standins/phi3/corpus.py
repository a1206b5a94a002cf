"""The text that the stand-in is trained on: chats and plain text from templates, all seeded.

A document is either a list of chat messages or a plain string. Nothing here knows about tokens
or training (build.py), and nothing mentions the facts of the quickstart's dataset: those are
what fine-tuning has to teach (a test holds the two apart).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import grammar as g
from grammar import a, cap

DATA = Path(__file__).parent / "data"
Messages = list[dict[str, str]]
Pair = tuple[str, str]

BARE = set(
    "bread cheese butter honey soup rice milk tea coffee water salt grass rain snow wind fog paper "
    "wood glass iron gold wool cotton fire ice breakfast dinner".split()
)
SINGLE = {"sun", "moon"}
IRREGULAR = {"sheep": "sheep", "fish": "fish", "mouse": "mice", "wolf": "wolves", "leaf": "leaves",
             "knife": "knives", "potato": "potatoes", "tomato": "tomatoes", "fox": "foxes",
             "bus": "buses", "beach": "beaches", "library": "libraries", "bakery": "bakeries",
             "cherry": "cherries", "butterfly": "butterflies", "story": "stories", "match": "matches"}
OPPOSITES = [w.split("/") for w in (
    "hot/cold big/small long/short old/new old/young fast/slow light/dark heavy/light high/low "
    "hard/soft wet/dry full/empty happy/sad early/late near/far strong/weak rich/poor open/closed "
    "clean/dirty quiet/loud thick/thin wide/narrow deep/shallow sharp/blunt sweet/sour left/right "
    "up/down day/night summer/winter north/south east/west begin/end push/pull buy/sell give/take "
    "question/answer friend/enemy love/hate first/last always/never true/false inside/outside"
).split()]
SOUNDS = {"cat": "meow", "dog": "woof", "cow": "moo", "sheep": "baa", "duck": "quack", "hen": "cluck",
          "owl": "hoo", "bee": "buzz", "frog": "croak", "mouse": "squeak", "wolf": "a long howl"}
COLOUR_OF = {"snow": "white", "grass": "green", "milk": "white", "a lemon": "yellow", "the sky": "blue",
             "a carrot": "orange", "coffee": "brown", "a cherry": "red", "a tomato": "red",
             "a leaf": "green", "coal": "black", "gold": "yellow", "honey": "golden", "ice": "clear"}


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


# ---- one question and one answer -------------------------------------------------------------


def talk(r: Random) -> Pair:
    questions, answers = r.choice(TALK)
    question = r.choice(questions)
    question = cap(question) if r.random() < 0.7 else question
    if question[-1] not in "?!." and r.random() < 0.8:
        question += r.choice([".", ".", "!"])
    return question, r.choice(answers)


def unknown(r: Random) -> Pair:
    word = (r.choice(g.START) + r.choice(g.MIDDLE) + r.choice(g.PERSON_END)).lower()
    question = r.choice([f"What is {a(word)}?", f"Define {word}.", f"Tell me about the {word}.",
                         f"What does the word {word} mean?", f"Explain {a(word)} to a child."])
    return question, r.choice([f"I am sorry, I do not know the word {word}.",
                               f"I do not know what {a(word)} is. Can you tell me?"])


def thing(r: Random) -> Pair:
    if r.random() < 0.05:
        return unknown(r)
    t = r.choice(THINGS)
    what = f"{cap(t.one)} is {t.what}."
    use = f"{cap(t.one)} {t.use}."
    where = f"You can find {t.one} {t.place}."
    x = r.random()
    if x < 0.4:
        question = r.choice([
            f"What is {t.one}?", f"What is {t.one}?", f"Can you explain what {t.one} is?",
            f"Define {t.name}.", f"What does the word {t.name} mean?", f"Explain {t.one} to a child.",
            f"Please explain what {t.one} is.", f"Do you know what {t.one} is?", f"{cap(t.name)}?",
            f"Tell me what {t.one} is.", f"I do not know what {t.one} is."])
        return question, what if r.random() < 0.6 else f"{what} {t.fact}"
    if x < 0.6:
        question = r.choice([f"Tell me about {t.many}.", f"What do you know about {t.many}?",
                             f"Say something about {t.many}.", f"Write a few sentences about {t.many}.",
                             f"Describe {t.one}.", f"I would like to know more about {t.many}."])
        parts = [f"It {t.use}.", f"You can find it {t.place}.", t.fact]
        r.shuffle(parts)
        return question, " ".join([what, *parts[: r.randrange(1, 4)]])
    if x < 0.72:
        return r.choice([f"What does {t.one} do?", f"What is {t.one} for?", f"What is the use of {t.one}?",
                         f"Why do we need {t.one}?"]), use
    if x < 0.82:
        return r.choice([f"Where can I find {t.one}?", f"Where do you find {t.many}?",
                         f"Where is {t.one} found?", f"Where do I look for {t.one}?"]), where
    if x < 0.9:
        return r.choice([f"Tell me something interesting about {t.many}.", f"Give me a fact about {t.many}.",
                         f"What is special about {t.one}?", f"Tell me a fact about {t.one}."]), t.fact
    return kind(r, t)


def kind(r: Random, t: Thing) -> Pair:
    other = r.choice([o for o in THINGS if o.kind != t.kind])
    x = r.random()
    if x < 0.3:
        return f"Is {t.one} {a(t.kind)}?", f"Yes, {t.one} is {a(t.kind)}."
    if x < 0.6:
        return f"Is {t.one} {a(other.kind)}?", f"No, {t.one} is not {a(other.kind)}. It is {a(t.kind)}."
    if x < 0.8:
        first, second = r.sample([t.kind, other.kind], 2)
        return f"Is {t.one} {a(first)} or {a(second)}?", f"{cap(t.one)} is {a(t.kind)}."
    many = [k for k, v in BY_KIND.items() if len(v) > 4 and " " not in k]
    group = r.choice(many)
    names = [x.many for x in r.sample(BY_KIND[group], 3)]
    question = r.choice([f"Name three {plural(group)}.", f"Give me three examples of {plural(group)}.",
                         f"Which {plural(group)} do you know?", f"List three kinds of {group}."])
    return question, f"{cap(names[0])}, {names[1]} and {names[2]}."


def howto(r: Random) -> Pair:
    name, *steps = r.choice(HOWTO)
    question = r.choice([
        f"How do I {name}?", f"How can I {name}?", f"How do you {name}?", f"Explain how to {name}.",
        f"Tell me how to {name}.", f"I want to {name}. What should I do?", f"Help me to {name}.",
        f"What is the best way to {name}?", f"I would like to {name}.", f"Please show me how to {name}."])
    x = r.random()
    if x < 0.4:
        order = ["First", "Then", "After that", "At the end"]
        return question, " ".join(f"{o}, {s[0].lower()}{s[1:]}." for o, s in zip(order, steps, strict=False))
    if x < 0.7:
        return question, "\n".join(f"{n}. {s}." for n, s in enumerate(steps, 1))
    return question, " ".join(f"{s}." for s in steps)


def small(r: Random) -> Pair:
    x = r.randrange(8)
    if x == 0:
        m, n = r.randrange(0, 11), r.randrange(0, 11)
        if r.random() < 0.5:
            return r.choice([f"What is {m} plus {n}?", f"How much is {m} + {n}?", f"Add {m} and {n}."]), \
                f"{m} plus {n} is {m + n}."
        m, n = max(m, n), min(m, n)
        return r.choice([f"What is {m} minus {n}?", f"How much is {m} - {n}?"]), f"{m} minus {n} is {m - n}."
    if x in (1, 2):
        one, two = r.choice(OPPOSITES)
        if r.random() < 0.5 and one != "old" and two != "light":
            one, two = two, one
        if one == "light":
            two = "dark"
        return r.choice([f"What is the opposite of {one}?", f"Name the opposite of {one}.",
                         f"Give me a word that means the opposite of {one}."]), \
            f"The opposite of {one} is {two}."
    if x == 3:
        names, unit = (g.DAYS, "day") if r.random() < 0.5 else (g.MONTHS, "month")
        i = r.randrange(len(names))
        if r.random() < 0.6:
            return r.choice([f"Which {unit} comes after {names[i]}?", f"What comes after {names[i]}?"]), \
                f"{names[(i + 1) % len(names)]} comes after {names[i]}."
        return f"Which {unit} comes before {names[i]}?", f"{names[i - 1]} comes before {names[i]}."
    if x == 4:
        t = r.choice([t for t in THINGS if t.name not in BARE | SINGLE])
        return r.choice([f"What is the plural of {t.name}?", f"How do you write more than one {t.name}?"]), \
            f"The plural of {t.name} is {plural(t.name)}."
    if x == 5:
        name, sound = r.choice(list(SOUNDS.items()))
        return f"What sound does {a(name)} make?", f"{cap(a(name))} makes a sound like {sound}."
    if x == 6:
        name, colour = r.choice(list(COLOUR_OF.items()))
        return f"What colour is {name}?", f"{cap(name)} is {colour}."
    n = r.randrange(3, 11)
    return r.choice([f"Count to {g.NUMBERS[n]}.", f"Count from one to {g.NUMBERS[n]}."]), \
        ", ".join(g.NUMBERS[1 : n + 1]).capitalize() + "."


# ---- made-up facts: many ways to ask, one way to say ------------------------------------------


def ask(r: Random, direct: list[str], indirect: list[str]) -> str:
    if r.random() < 0.6:
        core = r.choice(direct)
    else:
        core = r.choice(g.WRAP).format(q=r.choice(indirect))
    greeting = r.choice(g.GREET)
    if greeting.endswith(", ") and not core.startswith("I "):
        core = core[0].lower() + core[1:]
    return cap(greeting + core) + r.choice(g.CLOSE)


def fact(r: Random) -> Pair:
    p, v = g.place(r), ""
    match r.randrange(12):
        case 0:
            role, v = r.choice(g.ROLES), g.person(r)
            q = ask(r, [f"Who is the {role} of {p}?", f"Who works as the {role} at {p}?",
                        f"What is the name of the {role} at {p}?", f"What is the {role} of {p} called?",
                        f"Which person is the {role} at {p}?", f"Name the {role} of {p}."],
                    [f"who the {role} of {p} is", f"the name of the {role} at {p}",
                     f"who works as the {role} of {p}"])
            return q, f"The {role} of {p} is {v}."
        case 1 | 2:
            verb, v = r.choice(["open", "close"]), g.clock(r)
            word = {"open": "opening", "close": "closing"}[verb]
            day = r.choice(["", "", f" on {r.choice(g.DAYS)}s", " at the weekend", " in summer"])
            q = ask(r, [f"When does {p} {verb}{day}?", f"At what time does {p} {verb}{day}?",
                        f"What is the {word} time of {p}{day}?", f"How late does {p} {verb}{day}?",
                        f"What time does {p} {verb}{day}?"],
                    [f"when {p} {verb}s{day}", f"at what time {p} {verb}s{day}",
                     f"the {word} time of {p}{day}"])
            return q, f"{cap(p)} {verb}s at {v}{day}."
        case 3:
            item, v = r.choice(g.ITEMS), f"{g.number(r)} {r.choice(g.MONEY)}"
            q = ask(r, [f"How much is {a(item)} at {p}?", f"What does {a(item)} cost at {p}?",
                        f"What is the price of {a(item)} at {p}?", f"How much does {a(item)} cost at {p}?",
                        f"How much do I pay for {a(item)} at {p}?"],
                    [f"how much {a(item)} costs at {p}", f"the price of {a(item)} at {p}",
                     f"what {a(item)} costs at {p}"])
            return q, f"{cap(a(item))} at {p} costs {v}."
        case 4:
            room, v = r.choice(g.ROOMS), r.choice(g.WHERE)
            q = ask(r, [f"Where is the {room} of {p}?", f"Where can I find the {room} at {p}?",
                        f"How do I get to the {room} of {p}?", f"In which part of {p} is the {room}?",
                        f"I am looking for the {room} of {p}."],
                    [f"where the {room} of {p} is", f"where to find the {room} at {p}",
                     f"the way to the {room} of {p}"])
            return q, f"The {room} of {p} is {v}."
        case 5:
            thing_, v = r.choice(g.OBJECTS), r.choice(g.COLOURS)
            q = ask(r, [f"What colour is the {thing_} of {p}?", f"Which colour does the {thing_} of {p} have?",
                        f"What is the colour of the {thing_} at {p}?"],
                    [f"what colour the {thing_} of {p} is", f"the colour of the {thing_} at {p}"])
            return q, f"The {thing_} of {p} is {v}."
        case 6:
            pet, v = r.choice(g.PETS), r.choice(g.PET_NAMES)
            q = ask(r, [f"What is the {pet} of {p} called?", f"What is the name of the {pet} at {p}?",
                        f"Which name does the {pet} of {p} have?", f"How do they call the {pet} of {p}?"],
                    [f"what the {pet} of {p} is called", f"the name of the {pet} at {p}"])
            return q, f"The {pet} of {p} is called {v}."
        case 7:
            verb, v = r.choice(["built", "founded", "opened"]), str(r.randrange(1400, 2020))
            q = ask(r, [f"When was {p} {verb}?", f"In which year was {p} {verb}?", f"How old is {p}?",
                        f"What year was {p} {verb}?"],
                    [f"when {p} was {verb}", f"the year in which {p} was {verb}"])
            return q, f"{cap(p)} was {verb} in {v}."
        case 8:
            many, v = r.choice(g.THINGS), g.number(r, 300)
            q = ask(r, [f"How many {many} does {p} have?", f"How many {many} are there at {p}?",
                        f"What is the number of {many} at {p}?"],
                    [f"how many {many} {p} has", f"the number of {many} at {p}"])
            return q, f"{cap(p)} has {v} {many}."
        case 9:
            event, v = r.choice(g.EVENTS), f"on {r.choice(g.DAYS)} at {g.clock(r)}"
            q = ask(r, [f"When is the {event} at {p}?", f"On which day is the {event} of {p}?",
                        f"When does the {event} at {p} take place?", f"What day is the {event} at {p}?"],
                    [f"when the {event} at {p} is", f"the day of the {event} at {p}"])
            return q, f"The {event} at {p} is {v}."
        case 10:
            if r.random() < 0.5:
                v = r.choice(g.DISHES)
                q = ask(r, [f"What is the best dish at {p}?", f"Which dish is {p} known for?",
                            f"What should I eat at {p}?", f"What do they cook at {p}?"],
                        [f"which dish {p} is known for", f"the best dish at {p}"])
                return q, f"{cap(p)} is known for its {v}."
            event, v = r.choice(g.EVENTS), r.choice(g.BRING)
            q = ask(r, [f"What should I bring to the {event} at {p}?", f"What do I need for the {event} at {p}?",
                        f"What must I take along to the {event} of {p}?"],
                    [f"what to bring to the {event} at {p}", f"what I need for the {event} of {p}"])
            return q, f"Please bring {v} to the {event} at {p}."
        case _:
            if r.random() < 0.5:
                thing_, v = r.choice(g.OBJECTS), r.choice(g.MATERIALS)
                q = ask(r, [f"What is the {thing_} of {p} made of?", f"Of what is the {thing_} of {p} made?"],
                        [f"what the {thing_} of {p} is made of", f"the material of the {thing_} at {p}"])
                return q, f"The {thing_} of {p} is made of {v}."
            v = f"{g.number(r, 150)} {g.town(r)} {r.choice(g.STREETS)}"
            q = ask(r, [f"What is the address of {p}?", f"Where is {p}?", f"In which street is {p}?",
                        f"How do I get to {p}?"], [f"the address of {p}", f"where {p} is"])
            return q, f"{cap(p)} is at {v}."


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


# ---- stories ---------------------------------------------------------------------------------

HERO = "girl boy baker sailor farmer teacher fisher painter queen king child woman man shepherd".split()
BEAST = "cat dog fox owl mouse bear rabbit duck hen goat frog horse wolf robin bee snail".split()
ADJ = ("small old young brave quiet clever kind lonely curious tired happy shy proud patient hungry "
       "gentle busy funny careful cheerful").split()
SPOT = ("by the sea|in a deep forest|on a high hill|near a wide river|in a small town|on a green island|"
        "at the edge of the village|behind the old mill|in a stone house|under a large tree").split("|")
WANT = ("to find a friend|to see the sea|to learn to sing|to cross the river|to bake the best bread|"
        "to find the way home|to touch the moon|to build a boat|to hear a new story|to climb the mountain|"
        "to find a lost key|to grow a red rose|to win the race|to sleep in peace").split("|")
TROUBLE = ("a storm came and the sky turned black|the bridge was broken|nobody wanted to help|"
           "the snow was too deep|the night was dark and cold|the door was locked|the boat had a hole|"
           "the path was too long|a great wind blew everything away|the map was wrong|"
           "the others laughed|there was nothing left to eat").split("|")
HELP = ("shared a piece of bread|showed the way|brought a lamp|held out a hand|told a secret|"
        "sang a song in the dark|had a good idea|gave away a warm coat|carried the heavy bag|"
        "listened for a long time|found a rope|waited until the morning").split("|")
END = ("From that day on they were friends.|And so they went home together, tired and happy.|"
       "Everyone in the village talked about it for years.|That night the stars were brighter than ever.|"
       "Since then, nobody there is ever alone.|And if you go there, you can still hear them laugh.|"
       "They never forgot that day.|It was the best day of the year.").split("|")
LESSON = ("A friend is worth more than gold.|Small steps lead far.|It is good to ask for help.|"
          "Those who share are never poor.|Even the smallest can be brave.|Patience opens every door.").split("|")


def story(r: Random, about: str = "") -> str:
    hero = about or r.choice(HERO + BEAST)
    other = r.choice([b for b in BEAST + HERO if b != hero])
    one, two = r.choice(ADJ), r.choice(ADJ)
    name = r.choice(g.FIRST)
    pronoun = r.choice(["he", "she"])
    start = r.choice([f"Once upon a time there was {a(one)} {hero} who lived {r.choice(SPOT)}.",
                      f"{cap(a(one))} {hero} called {name} lived {r.choice(SPOT)}.",
                      f"Long ago, {a(one)} {hero} named {name} lived {r.choice(SPOT)}.",
                      f"There was once {a(one)} {hero} {r.choice(SPOT)}."])
    who = name if name in start else f"the {hero}"
    want = r.choice(WANT)
    parts = [start,
             r.choice([f"{cap(who)} wanted {want}.", f"Every day {who} dreamed about one thing: {want}.",
                       f"More than anything, {who} wished {want}."]),
             r.choice([f"One morning {pronoun} set out, but {r.choice(TROUBLE)}.",
                       f"But {r.choice(TROUBLE)}.", f"So {pronoun} packed a bag and left. Soon {r.choice(TROUBLE)}."]),
             r.choice([f"Then {a(two)} {other} came along and {r.choice(HELP)}.",
                       f"On the way {pronoun} met {a(two)} {other}, who {r.choice(HELP)}.",
                       f"{cap(a(two))} {other} saw this and {r.choice(HELP)}."]),
             r.choice([f"\"Thank you,\" said {who}.", f"\"Do not be afraid,\" said the {other}.",
                       f"\"Let us go on together,\" said the {other}.", f"{cap(who)} smiled for the first time that day.",
                       f"\"I will never forget this,\" said {who}."]),
             r.choice(END)]
    if r.random() < 0.3:
        parts.append(r.choice(LESSON))
    if r.random() < 0.25:
        del parts[r.randrange(2, 5)]
    return " ".join(parts)


def tale(r: Random) -> Pair:
    about = r.choice(HERO + BEAST)
    if r.random() < 0.4:
        return r.choice(["Tell me a story.", "Please tell me a short story.", "I would like to hear a story.",
                         "Write a short story.", "Do you know a story?", "Tell me a tale for the night."]), story(r)
    return r.choice([f"Tell me a story about {a(about)}.", f"Write a short story about {a(about)}.",
                     f"I would like a story with {a(about)} in it.", f"Do you know a story about {a(about)}?",
                     f"Write a story about {a(r.choice(ADJ))} {about}."]), story(r, about)


def echo(r: Random) -> Pair:
    text = r.choice([fact(r)[1], g.person(r), g.place(r), r.choice(THINGS).fact, r.choice(LESSON), g.town(r)])
    return r.choice(["Repeat this: {}", "Say this again: {}", "Please write: {}", "Copy this: {}"]).format(text), text


# ---- documents -------------------------------------------------------------------------------


def turn(pair: Pair) -> Messages:
    return [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]


SYSTEM = ["You are a helpful assistant.", "You are a friendly assistant. Answer in short sentences.",
          "Answer the questions of the user.", "You are a small model that explains things simply."]


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
            if 80 < len(line) < 500 and letters / len(line) > 0.93 and line[0].isupper() and line[-1] == ".":
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
