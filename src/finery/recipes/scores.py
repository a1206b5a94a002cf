"""How near generated answers are to the reference: ROUGE, BLEU, exact match; all from 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence

ROUGES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
BLEUS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")


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
    """Mean F-measures."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGES), use_stemmer=False, split_summaries=False)
    found = [scorer.score(r, a) for a, r in zip(answers, references, strict=True)]
    return {
        name: sum(float(one[name].fmeasure) for one in found) / max(1, len(found))
        for name in ROUGES
    }


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
