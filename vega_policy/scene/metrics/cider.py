"""CIDEr-D (Vedantam et al. 2015, eq. 4-5): agreement of n-grams weighted by how rare they are."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from vega_policy.scene.metrics.bleu import MAX_N, ngrams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SIGMA = 6.0
"""Of the penalty for a difference in length."""


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Return CIDEr-D of each item; the score of a corpus is their mean.

    An n-gram is rare if few *items of this corpus* have it in a reference, so that an item's score
    depends on all others; in a corpus of one item everything is common and the score is 0.

    Args:
        candidates: One text an item; words are parted by white space.
        references: The texts each is compared with, at least one.

    Returns:
        (items,) from 0 to 10, where a table prints 100 times this.
    """
    n_items = len(candidates)
    owner = np.repeat(np.arange(n_items), [len(texts) for texts in references])
    words = [text.split() for text in candidates]
    reference_words = [text.split() for text in chain.from_iterable(references)]
    # The length in the penalty is that in bigrams, as in the published code.
    bigrams = np.array([max(0, len(w) - 1) for w in words], dtype=np.float64)
    reference_bigrams = np.array([max(0, len(w) - 1) for w in reference_words], dtype=np.float64)
    penalty = np.exp(-((bigrams[owner] - reference_bigrams) ** 2) / (2 * SIGMA**2))
    total = np.zeros(len(owner))
    for n in range(1, MAX_N + 1):
        total += _cosine(words, reference_words, owner, n=n)
    per_reference = 10 * total * penalty / MAX_N
    return np.bincount(owner, per_reference, n_items) / np.bincount(owner, minlength=n_items)


def _cosine(
    words: list[list[str]], reference_words: list[list[str]], owner: NDArray[np.intp], *, n: int
) -> NDArray[np.float64]:
    """Return the clipped cosine of each reference with the candidate of its item."""
    columns: dict[tuple[str, ...], int] = {}
    candidate = _counts(words, columns, n=n)
    reference = _counts(reference_words, columns, n=n)
    candidate.resize((len(words), len(columns)))
    if not columns:
        return np.zeros(len(owner))
    membership = sparse.csr_matrix(
        (np.ones(len(owner)), (owner, np.arange(len(owner)))), shape=(len(words), len(owner))
    )
    frequency = np.asarray((membership @ reference > 0).sum(axis=0)).ravel()
    rarity = sparse.diags_array(np.log(len(words)) - np.log(np.maximum(1.0, frequency)))
    weighted = sparse.csr_matrix(candidate @ rarity)
    weighted_reference = sparse.csr_matrix(reference @ rarity)
    beside = weighted[owner]
    shared = np.asarray(beside.minimum(weighted_reference).multiply(weighted_reference).sum(axis=1))
    norms = _norms(beside) * _norms(weighted_reference)
    return np.divide(shared.ravel(), norms, out=np.zeros(len(owner)), where=norms > 0)


def _counts(
    texts: list[list[str]], columns: dict[tuple[str, ...], int], *, n: int
) -> sparse.csr_matrix:
    rows: list[int] = []
    places: list[int] = []
    counts: list[int] = []
    for i, words in enumerate(texts):
        for ngram, count in ngrams(words, n).items():
            rows.append(i)
            places.append(columns.setdefault(ngram, len(columns)))
            counts.append(count)
    return sparse.csr_matrix(
        (np.array(counts, dtype=np.float64), (rows, places)), shape=(len(texts), len(columns))
    )


def _norms(matrix: sparse.csr_matrix) -> NDArray[np.float64]:
    return np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
