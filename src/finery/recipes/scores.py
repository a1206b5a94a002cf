"""How near generated answers are to the reference: ROUGE, BLEU, exact match; all from 0 to 1.

ROUGE is the `rouge-score` package's, with words of any script instead of its
English ones; BLEU is sacrebleu's.
"""

from __future__ import annotations

import re
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
