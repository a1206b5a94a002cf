"""Words and sentence patterns from which the stand-in's made-up places and stories are built.

Only lists and the functions that fill them; what a document looks like is in corpus.py.
Everything takes a `random.Random`, so the same seed gives the same text.
"""

from __future__ import annotations

from random import Random

FIRST = (
    "Ada Agnes Albert Alice Amir Anna Anton Arthur Aster Bela Bertha Boris Bruno Carla Cecil Clara "
    "Conrad Cora Dalia Daniel Diana Edgar Edith Elena Elias Ella Elsa Emma Erik Esther Eva Felix "
    "Flora Frank Frida Georg Gloria Greta Hannah Harold Heidi Helen Henry Hilda Ida Igor Ingrid "
    "Iris Ivan Jakob Jane Joan Joel Johan Julia Karim Karl Kaya Klara Laila Lars Laura Lena Leo "
    "Lina Lotte Louis Lucy Lukas Mara Marco Maria Martha Max Mila Mina Mona Nadia Nils Nora Olaf "
    "Olga Oscar Otto Paul Paula Peter Petra Rita Robin Rosa Ruth Sam Samira Sara Simon Sofia "
    "Stella "
    "Sven Tara Theo Tilda Tom Ulla Uma Vera Victor Viola Walter Wanda Willa Yara Yusuf Zara Zoe"
).split()
START = (
    "Al Am Ar Ash Bar Ben Ber Bor Bran Bri Cal Car Cor Dal Dar Del Dor Ed El Em Fal Fen Fer Fin "
    "Gal Gar Gil Gor Hal Har Hel Hol Jor Kal Kel Kor Lam Lan Lin Lor Mal Mar Mel Mor Nal Nor Ol Or "
    "Pal Pel Per Quin Ral Ran Rol Ros Sal San Sel Sor Tal Tam Tor Ul Val Ver Vin Wal Wen Wil "
    "Yar Zel"
).split()
MIDDLE = "a e i o u an en in er ar el il on or and end ing ist".split()
PERSON_END = (
    "berg by dal der don fell field ford gate ham holm ing kin land ley lin man mann mark mer "
    "moor ner ning rick rup sen ser ski son stad stein ster ston tell ton van vik well win "
    "wood worth"
).split()
PLACE_END = (
    "bridge brook burg bury by cliff dale field ford gate ham haven hill holm hurst land ley mouth "
    "port ridge shore side stead stone thorpe ton vale view water well wick wood worth"
).split()
PLACE_TYPE = (
    "House Hall Tower Park School Library Museum Market Station Hotel Theatre Farm Garden Castle "
    "Harbour Bakery Cinema Academy Club Centre Inn Lodge Manor Abbey Court Gallery Studio Works "
    "Bridge Square Clinic College Stables Camp Pool Court Chapel Mill"
).split()
ROLES = (
    "director manager cook gardener teacher guard secretary librarian baker driver painter doctor "
    "nurse captain mayor treasurer owner founder architect head porter guide cleaner chairman "
    "coach singer pianist photographer carpenter plumber electrician accountant clerk editor "
    "engineer farmer keeper leader lawyer mechanic organist poet printer ranger reporter tailor "
    "trainer waiter watchman weaver webmaster caretaker potter sculptor curator host gatekeeper "
    "locksmith glazier beekeeper shepherd fisher smith judge"
).split()
ITEMS = (
    "ticket|day ticket|cup of coffee|cup of tea|bowl of soup|loaf of bread|piece of cake|"
    "single room|"
    "double room|guided tour|bicycle for a day|boat for an hour|lesson|map|poster|postcard|locker|"
    "parking place|breakfast|lunch|dinner|glass of juice|jar of honey|family ticket|season ticket|"
    "towel|sandwich|book|shower|tent for a night|haircut|audio guide|sauna visit|concert ticket|"
    "year card|small pizza|ride|candle|bag of apples|workshop|membership|night in the hostel"
).split("|")
MONEY = "crowns|euros|pounds|dollars|francs|coins|marks".split("|")
ROOMS = (
    "kitchen|office|library|reading room|dining room|ticket office|lost property office|cloakroom|"
    "garage|workshop|laundry|meeting room|music room|lecture hall|archive|first aid room|cafe|shop|"
    "nursery|gym|pool|boiler room|post box|bicycle stand|main entrance|computer room|art room|"
    "sewing room|storage room|waiting room|darkroom|pottery|bell|fountain|play room|tea room|"
    "exhibition|theatre|rest room|server room|attic studio|map room|greenhouse|stable|well"
).split("|")
WHERE = (
    "on the ground floor|on the first floor|on the second floor|on the third floor|in the cellar|"
    "in the attic|behind the garden|next to the main door|at the end of the corridor|in the tower|"
    "opposite the stairs|across the yard|under the stairs|beside the river|in the north wing|"
    "in the south wing|in the east wing|in the west wing|behind the kitchen|above the shop|"
    "below the library|next to the car park|near the old oak|behind the blue door|in the old barn|"
    "on the roof|at the top of the hill|left of the entrance|right of the entrance|in the "
    "red house|"
    "in the courtyard|beside the lift|through the glass door|in the long gallery|past the well"
).split("|")
COLOURS = (
    "red blue green yellow white black brown grey orange purple pink golden silver violet "
    "turquoise "
    "cream crimson olive scarlet beige"
).split()
OBJECTS = (
    "front door|flag|roof|boat|bus|sign|fence|gate|uniform|logo|tram|tower|sofa|carpet|bell|van|"
    "train|bench|post box|clock|curtain|piano|bicycle|tent|lamp|map|badge|ticket|bridge|stairs"
).split("|")
PETS = (
    "cat dog horse goat parrot donkey owl rabbit cow "
    "boat ferry robot tram ghost pony goose tortoise ship"
).split()
PET_NAMES = (
    "Pepper Misty Toffee Button Shadow Ginger Daisy Cookie Lucky Smoky Poppy Tiger Coco Ruby "
    "Max Bella Star Snowy Cloud Rusty Berry Honey Pirate Maple Olive Sunny Velvet Whisper Bramble "
    "Clover Domino Ember Falcon Juniper Marble Nutmeg Pebble Quill Rocket Saffron Thistle Willow"
).split()
EVENTS = (
    "choir|concert|market|yoga class|chess club|book club|flea market|film night|dance class|"
    "painting class|story hour|open day|summer party|quiz night|staff meeting|cooking class|"
    "language class|swimming lesson|singing lesson|repair evening|theatre group|jazz night|"
    "garden club|sewing circle|photography club|running group|bread day|poetry evening"
).split("|")
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()
THINGS = (
    "rooms|windows|chairs|books|bicycles|boats|trees|members|seats|beds|steps|doors|horses|clocks|"
    "tables|lamps|paintings|computers|teachers|pupils|gardens|ovens|bells|pianos|towers|halls"
).split("|")
DISHES = (
    "onion soup|potato salad|apple cake|fish pie|mushroom stew|cheese bread|lentil soup|rice "
    "pudding|"
    "cherry pie|pumpkin soup|fried fish|egg noodles|bean stew|plum cake|carrot cake|tomato soup|"
    "roast chicken|vegetable curry|lemon tart|spinach pie|leek soup|pear tart|barley soup|"
    "walnut cake"
).split("|")
BRING = (
    "a towel|a pen and paper|warm shoes|a bottle of water|a hat|an old shirt|your own cup|a "
    "blanket|"
    "a raincoat|a lamp|a spoon|a photograph|a passport|good shoes|a pillow|a song|a friend|a book"
).split("|")
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
).split()
MATERIALS = (
    "oak|pine|stone|glass|iron|copper|brick|clay|bronze|marble|steel|slate|silver|straw".split("|")
)
STREETS = "Street|Lane|Road|Square|Avenue|Way|Row|Hill|Yard|Alley".split("|")

# Opens and closes of a question, so that the model meets the same question in many coats.
GREET = [
    "",
    "",
    "",
    "",
    "",
    "",
    "Hello! ",
    "Hi, ",
    "Excuse me, ",
    "Good morning. ",
    "One question: ",
    "Quick question: ",
    "Please, ",
    "Sorry, ",
    "Hello, ",
    "Good day. ",
    "I have a question. ",
]
CLOSE = [
    "",
    "",
    "",
    "",
    "",
    "",
    "",
    " Thank you.",
    " Thanks!",
    " Please answer.",
    " I need to know.",
]
WRAP = [
    "Can you tell me {q}?",
    "Could you tell me {q}?",
    "Do you know {q}?",
    "Please tell me {q}.",
    "Tell me {q}.",
    "I would like to know {q}.",
    "I want to know {q}.",
    "I forgot {q}.",
    "Remind me {q}.",
    "Would you tell me {q}?",
    "May I ask {q}?",
    "A friend asked me {q}.",
    "Somebody wants to know {q}.",
    "I wonder {q}.",
    "Do you remember {q}?",
    "Let me know {q}.",
    "I need to find out {q}.",
    "Can you say {q}?",
    "My sister wants to know {q}.",
]


def person(r: Random) -> str:
    middle = r.choice(MIDDLE) if r.random() < 0.5 else ""
    return f"{r.choice(FIRST)} {r.choice(START)}{middle}{r.choice(PERSON_END)}"


def town(r: Random) -> str:
    middle = r.choice(MIDDLE) if r.random() < 0.4 else ""
    return f"{r.choice(START)}{middle}{r.choice(PLACE_END)}"


def place(r: Random) -> str:
    x = r.random()
    if x < 0.45:
        return f"{town(r)} {r.choice(PLACE_TYPE)}"
    if x < 0.6:
        return f"the {r.choice(PLACE_TYPE).lower()} of {town(r)}"
    if x < 0.8:
        return town(r)
    return f"the {town(r)} {r.choice(PLACE_TYPE)}"


def clock(r: Random) -> str:
    hour = r.choice(NUMBERS[1:13])
    x = r.random()
    if x < 0.3:
        return f"{hour} o'clock"
    if x < 0.5:
        return f"half past {hour}"
    if x < 0.6:
        return f"a quarter {r.choice(['past', 'to'])} {hour}"
    if x < 0.75:
        return f"{hour} in the {r.choice(['morning', 'evening', 'afternoon'])}"
    return f"{r.randrange(5, 24)}:{r.choice(['00', '10', '15', '20', '30', '40', '45', '50'])}"


def number(r: Random, top: int = 90) -> str:
    return str(r.randrange(2, top)) if r.random() < 0.6 else r.choice(NUMBERS[2:])


def cap(text: str) -> str:
    return text[:1].upper() + text[1:]


def a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def pick(r: Random, patterns: str, **values: object) -> str:
    """One of the patterns between the bars, filled."""
    return r.choice(patterns.split("|")).format(**values)
