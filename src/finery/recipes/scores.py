"""How near generated answers are to the reference: ROUGE, BLEU, exact match; all from 0 to 1.

ROUGE is computed here, as the `rouge-score` package does without its stemmer (a
test holds them together), but with words of any script, and without the seconds
that package takes to be imported.  BLEU is sacrebleu's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

ROUGES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
BLEUS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
WORD = re.compile(r"[^\W_]+")


def texts(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Means over all pairs; BLEU over the corpus, for 1 to 4 words in a row."""
    return {
        "exact_match": exact(answers, references),
        **rouge(answers, references),
        **bleu(answers, references),
    }


def exact(answers: Sequence[str], references: Sequence[str]) -> float:
    """The share of answers that are the reference, spaces around them aside."""
    same = sum(a.strip() == r.strip() for a, r in zip(answers, references, strict=True))
    return same / max(1, len(references))


def rouge(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F-measures; lines are the sentences of rougeLsum."""
    totals = dict.fromkeys(ROUGES, 0.0)
    for answer, reference in zip(answers, references, strict=True):
        said, wanted = _words(answer), _words(reference)
        totals["rouge1"] += _overlap(said, wanted, size=1)
        totals["rouge2"] += _overlap(said, wanted, size=2)
        totals["rougeL"] += _f_measure(len(_common(wanted, said)), len(said), len(wanted))
        totals["rougeLsum"] += _summary(answer, reference)
    return {name: total / max(1, len(references)) for name, total in totals.items()}


def bleu(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU of words, brevity penalty included."""
    from sacrebleu.metrics.bleu import BLEU

    return {
        name: float(
            BLEU(max_ngram_order=order, force=True)
            .corpus_score(list(answers), [list(references)])
            .score
        )
        / 100
        for order, name in enumerate(BLEUS, 1)
    }


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _overlap(said: list[str], wanted: list[str], *, size: int) -> float:
    mine, theirs = (
        Counter(zip(*(words[start:] for start in range(size)), strict=False))
        for words in (said, wanted)
    )
    return _f_measure((mine & theirs).total(), mine.total(), theirs.total())


def _summary(answer: str, reference: str) -> float:
    """Of each line of the reference, the words in common with any line of the answer."""
    said = [_words(line) for line in answer.splitlines() if line]
    wanted = [_words(line) for line in reference.splitlines() if line]
    left = [Counter(word for line in part for word in line) for part in (said, wanted)]
    hits = 0
    for line in wanted:
        for place in sorted({place for other in said for place in _common(line, other)}):
            if left[0][line[place]] > 0 and left[1][line[place]] > 0:
                hits += 1
                left[0][line[place]] -= 1
                left[1][line[place]] -= 1
    return _f_measure(hits, sum(map(len, said)), sum(map(len, wanted)))


def _common(wanted: list[str], said: list[str]) -> list[int]:
    """Places in `wanted` of a longest common subsequence with `said`."""
    table = [[0] * (len(said) + 1)]
    for word in wanted:
        above, row = table[-1], [0]
        for column, other in enumerate(said):
            row.append(above[column] + 1 if word == other else max(above[column + 1], row[-1]))
        table.append(row)
    places = []
    row_number, column = len(wanted), len(said)
    while row_number and column:
        if wanted[row_number - 1] == said[column - 1]:
            row_number, column = row_number - 1, column - 1
            places.append(row_number)
        elif table[row_number][column - 1] > table[row_number - 1][column]:
            column -= 1
        else:
            row_number -= 1
    return places


def _f_measure(hits: int, said: int, wanted: int) -> float:
    return 2 * hits / (said + wanted) if hits else 0.0
