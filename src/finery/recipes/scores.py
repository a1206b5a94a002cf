"""How near generated answers are to the reference: ROUGE, BLEU, exact match, ANLS; all 0 to 1.

ROUGE is the `rouge-score` package's, with words of any script instead of its
English ones; BLEU is sacrebleu's.  ANLS is the measure of DocVQA (Biten et al. 2019).
Which answers are scored is `evaluate`'s and `vqa_evaluate`'s affair.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

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


def nearest(answers: Sequence[str], accepted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Means of ANLS and exact match, each answer held against the best of those accepted for it.

    Case and the spaces around and between words do not count; an answer of which half
    or more is wrong counts as nothing, as DocVQA has it.
    """
    total = {"anls": 0.0, "exact_match": 0.0}
    for answer, references in zip(answers, accepted, strict=True):
        total["anls"] += max(similarity(answer, reference) for reference in references)
        plain = {_plain(reference) for reference in references}
        total["exact_match"] += _plain(answer) in plain
    return {name: value / max(1, len(answers)) for name, value in total.items()}


def similarity(answer: str, reference: str) -> float:
    """1 less the edit distance by the longer of both; 0 when that is a half or less."""
    one, other = _plain(answer), _plain(reference)
    longest = max(len(one), len(other))
    if not longest or one == other:
        return 1.0
    near = 1 - _distance(one, other) / longest
    return near if near > 0.5 else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _distance(one: str, other: str) -> int:
    """Levenshtein's, a row of the table at a time."""
    row = list(range(len(other) + 1))
    for above, letter in enumerate(one, 1):
        corner, row[0] = row[0], above
        for place, opposite in enumerate(other, 1):
            cost = min(row[place] + 1, row[place - 1] + 1, corner + (letter != opposite))
            corner, row[place] = row[place], cost
    return row[-1]


def table(found: Mapping[str, Mapping[str, float]], names: Sequence[str], *, rows: int) -> str:
    """The base model's scores and the tuned one's as lines: name, base, tuned, change."""
    lines = [f"on {rows} test rows{'':<14}{'base':>10}{'tuned':>10}{'change':>10}"]
    width = len(lines[0]) - 30
    for name in names:
        base, tuned = found["base"][name], found["tuned"][name]
        lines.append(f"{name:<{width}}{base:>10.4f}{tuned:>10.4f}{tuned - base:>+10.4f}")
    return "\n".join(lines)


def rouge(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F-measures; lines are the sentences of rougeLsum."""
    from rouge_score.rouge_scorer import RougeScorer  # brings nltk: seconds to import

    scorer = RougeScorer(list(ROUGES), tokenizer=_Words())
    totals = dict.fromkeys(ROUGES, 0.0)
    for answer, reference in zip(answers, references, strict=True):
        for name, score in scorer.score(reference, answer).items():
            totals[name] += float(score.fmeasure)
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


class _Words:
    """What `rouge-score` calls a tokenizer; its own knows the letters a to z alone."""

    def tokenize(self, text: str) -> list[str]:
        return WORD.findall(text.lower())
