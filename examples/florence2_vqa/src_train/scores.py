"""How good an answer is: DocVQA's ANLS, and exact match.  Plain Python, for anyone to use."""


def anls(said: str, answers: list[str]) -> float:
    """Average normalized Levenshtein similarity of one answer to the best of the right ones.

    1 when they are the same but for case and spaces, less for every letter that differs, and 0
    when half of the letters or more do: such an answer was not read, it was guessed.
    """
    best = 0.0
    for answer in answers:
        one, other = normal(said), normal(answer)
        longest = max(len(one), len(other))
        away = distance(one, other) / longest if longest else 0.0
        best = max(best, 1.0 - away if away < 0.5 else 0.0)
    return best


def exact_match(said: str, answers: list[str]) -> float:
    """1 when the answer is one of the right ones, but for case and spaces; else 0."""
    return float(normal(said) in [normal(answer) for answer in answers])


def normal(text: str) -> str:
    return " ".join(text.lower().split())


def distance(one: str, other: str) -> int:
    """How many letters must be put in, taken out or replaced to get from one to the other."""
    row = list(range(len(other) + 1))
    for at, letter in enumerate(one, 1):
        corner, row[0] = row[0], at
        for to, wanted in enumerate(other, 1):
            corner, row[to] = (
                row[to],
                min(row[to] + 1, row[to - 1] + 1, corner + (letter != wanted)),
            )
    return row[-1]
