"""ROUGE-L (Lin 2004, eq. 2-4): the longest common subsequence, as the COCO captioning tools score it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

BETA = 1.2
"""Weight of recall against precision."""


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Return ROUGE-L of each item; the score of a corpus is their mean.

    Best precision and best recall may come from different references. Words are parted by single
    blanks, so that an empty text has one empty word and two blanks in a row hold another: the quirk
    of the COCO tools behind the score of an empty caption.

    Args:
        candidates: One text an item.
        references: The texts each is compared with, at least one.

    Returns:
        (items,) in [0, 1].
    """
    scores = np.zeros(len(candidates))
    for i, (candidate, texts) in enumerate(zip(candidates, references, strict=True)):
        words = candidate.split(" ")
        others = [text.split(" ") for text in texts]
        common = [longest_common(words, other) for other in others]
        precision = max(common) / len(words)
        recall = max(n / len(other) for n, other in zip(common, others, strict=True))
        if precision and recall:
            scores[i] = (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
    return scores


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence (bit-parallel, Hyyrö 2004)."""
    where: dict[str, int] = {}
    for i, word in enumerate(a):
        where[word] = where.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        hits = row & where.get(word, 0)
        row = (row + hits | row - hits) & full
    return len(a) - row.bit_count()
