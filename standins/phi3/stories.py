"""Short stories: somebody wants something, something is in the way, somebody helps."""

from __future__ import annotations

from random import Random

import grammar as g
from grammar import a, cap, pick

HERO = (
    "girl boy baker sailor farmer teacher fisher painter queen king child woman man shepherd"
).split()
BEAST = "cat dog fox owl mouse bear rabbit duck hen goat frog horse wolf robin bee snail".split()
ADJ = (
    "small old young brave quiet clever kind lonely curious tired happy shy proud patient hungry "
    "gentle busy funny careful cheerful"
).split()
SPOT = (
    "by the sea|in a deep forest|on a high hill|near a wide river|in a small town|on a green "
    "island|"
    "at the edge of the village|behind the old mill|in a stone house|under a large tree"
).split("|")
WANT = (
    "to find a friend|to see the sea|to learn to sing|to cross the river|to bake the best bread|"
    "to find the way home|to touch the moon|to build a boat|to hear a new story|to climb the "
    "mountain|"
    "to find a lost key|to grow a red rose|to win the race|to sleep in peace"
).split("|")
TROUBLE = (
    "a storm came and the sky turned black|the bridge was broken|nobody wanted to help|"
    "the snow was too deep|the night was dark and cold|the door was locked|the boat had a hole|"
    "the path was too long|a great wind blew everything away|the map was wrong|"
    "the others laughed|there was nothing left to eat"
).split("|")
HELP = (
    "shared a piece of bread|showed the way|brought a lamp|held out a hand|told a secret|"
    "sang a song in the dark|had a good idea|gave away a warm coat|carried the heavy bag|"
    "listened for a long time|found a rope|waited until the morning"
).split("|")
END = (
    "From that day on they were friends.|And so they went home together, tired and happy.|"
    "Everyone in the village talked about it for years.|That night the stars were brighter "
    "than ever.|"
    "Since then, nobody there is ever alone.|And if you go there, you can still hear them laugh.|"
    "They never forgot that day.|It was the best day of the year."
).split("|")
LESSON = (
    "A friend is worth more than gold.|Small steps lead far.|It is good to ask for help.|"
    "Those who share are never poor.|Even the smallest can be brave.|Patience opens every door."
).split("|")
OPENING = (
    "Once upon a time there was {one} {hero} who lived {x}.|{One} {hero} called {name} lived {x}.|"
    "Long ago, {one} {hero} named {name} lived {x}.|There was once {one} {hero} {x}."
)
WISH = (
    "{Who} wanted {want}.|Every day {who} dreamed about one thing: {want}.|"
    "More than anything, {who} wished {want}."
)
SETBACK = "One morning {he} set out, but {x}.|But {x}.|So {he} packed a bag and left. Soon {x}."
RESCUE = (
    "Then {two} {other} came along and {x}.|On the way {he} met {two} {other}, who {x}.|"
    "{Two} {other} saw this and {x}."
)
SAID = (
    '"Thank you," said {who}.|"Do not be afraid," said the {other}.|'
    '"Let us go on together," said the {other}.|{Who} smiled for the first time that day.|'
    '"I will never forget this," said {who}.'
)
ANY = (
    "Tell me a story.|Please tell me a short story.|I would like to hear a story.|"
    "Write a short story.|Do you know a story?|Tell me a tale for the night."
)
ABOUT = (
    "Tell me a story about {one}.|Write a short story about {one}.|"
    "I would like a story with {one} in it.|Do you know a story about {one}?|"
    "Write a story about {such}."
)


def story(r: Random, about: str = "") -> str:
    """Five to seven sentences; the hero is `about` where it is given."""
    hero = about or r.choice(HERO + BEAST)
    other = r.choice([b for b in BEAST + HERO if b != hero])
    one, two = r.choice(ADJ), r.choice(ADJ)
    name = r.choice(g.FIRST)
    pronoun = r.choice(["he", "she"])
    start = opening(r, hero, name, a(one))
    who = name if name in start else f"the {hero}"
    values = {"who": who, "Who": cap(who), "he": pronoun, "other": other, "two": a(two)}
    values |= {"Two": cap(a(two)), "want": r.choice(WANT)}
    parts = [start, pick(r, WISH, **values)]
    troubles = [r.choice(TROUBLE) for _ in range(3)]
    parts.append(one_of(r, SETBACK, troubles, values))
    helps = [r.choice(HELP) for _ in range(3)]
    parts.append(one_of(r, RESCUE, helps, values))
    parts += [pick(r, SAID, **values), r.choice(END)]
    if r.random() < 0.3:
        parts.append(r.choice(LESSON))
    if r.random() < 0.25:
        del parts[r.randrange(2, 5)]
    return " ".join(parts)


def opening(r: Random, hero: str, name: str, one: str) -> str:
    spots = [r.choice(SPOT) for _ in range(4)]
    return one_of(r, OPENING, spots, {"one": one, "One": cap(one), "hero": hero, "name": name})


def one_of(r: Random, patterns: str, given: list[str], values: dict[str, str]) -> str:
    """One pattern, {x} filled with the entry of `given` at the same place."""
    options = patterns.split("|")
    at = r.choice(range(len(options)))
    return options[at].format(x=given[at], **values)


def tale(r: Random) -> tuple[str, str]:
    """A request for a story, and the story."""
    about = r.choice(HERO + BEAST)
    if r.random() < 0.4:
        return r.choice(ANY.split("|")), story(r)
    adjective = r.choice(ADJ)
    return pick(r, ABOUT, one=a(about), such=f"{a(adjective)} {about}"), story(r, about)
