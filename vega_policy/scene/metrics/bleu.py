"""BLEU (Papineni et al. 2002): n-gram precision of a corpus with a penalty for brevity."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MAX_N = 4


def ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """Count the runs of ``n`` words."""
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def bleu_statistics(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> NDArray[np.float64]:
    """Return what BLEU needs to know of each candidate; sums over a corpus are that corpus's.

    Args:
        candidates: One text an item; words are parted by white space.
        references: The texts each is compared with.

    Returns:
        (items, 10): matched n-grams for n = 1..4, n-grams for n = 1..4, words, and words of the
        reference closest in length (the shorter of two).
    """
    rows = np.zeros((len(candidates), 2 * MAX_N + 2))
    for row, candidate, texts in zip(rows, candidates, references, strict=True):
        words = candidate.split()
        others = [text.split() for text in texts]
        for n in range(1, MAX_N + 1):
            found = ngrams(words, n)
            allowed: Counter[tuple[str, ...]] = Counter()
            for other in others:
                allowed |= ngrams(other, n)
            row[n - 1] = (found & allowed).total()
            row[MAX_N + n - 1] = found.total()
        lengths = [len(other) for other in others]
        row[-2:] = len(words), min(lengths, key=lambda length: (abs(length - len(words)), length))
    return rows


def bleu(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return BLEU-1 to BLEU-4 of corpora.

    Args:
        totals: (..., 10) sums of `bleu_statistics`.

    Returns:
        (..., 4) in [0, 1]. The tiny constants keep a corpus without any match at 0; they are those of
        the COCO captioning tools.
    """
    matched, guessed = totals[..., :MAX_N], totals[..., MAX_N : 2 * MAX_N]
    precision = (matched + 1e-15) / (guessed + 1e-9)
    mean = np.cumprod(precision, axis=-1) ** (1 / np.arange(1, MAX_N + 1))
    ratio = (totals[..., -2] + 1e-15) / (totals[..., -1] + 1e-9)
    with np.errstate(over="ignore"):
        brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return mean * brevity[..., None]
