"""Choices that are the same for the same seed, and that leave nothing to guess from.

Answers of a kind are taken in turn and letters go round, so that always saying the same is not rewarded.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

T = TypeVar("T")
LETTERS = "ABCD"


def generator(seed: int, *what: str) -> np.random.Generator:
    """Return random numbers that depend on the seed and on what they are for."""
    return np.random.default_rng([seed, *(zlib.crc32(word.encode()) for word in what)])


def shuffled(rng: np.random.Generator, items: Sequence[T]) -> list[T]:
    """Return all items in random order."""
    return [items[int(i)] for i in rng.permutation(len(items))]


def in_turn(
    rng: np.random.Generator,
    items: Sequence[T],
    n: int,
    *,
    by: Callable[[T], Hashable],
    even: int = 1,
) -> list[T]:
    """Return up to ``n`` items, one of each answer in turn; which answer begins is random.

    Args:
        rng: Of the choice.
        items: Candidates.
        n: Most to return.
        by: Returns the answer of an item.
        even: No round is begun with fewer answers than this; all of them are taken equally often then.
    """
    groups: dict[Hashable, list[T]] = {}
    for item in shuffled(rng, items):
        groups.setdefault(by(item), []).append(item)
    queues = shuffled(rng, list(groups.values()))
    picked: list[T] = []
    while queues and len(picked) < n and len(queues) >= even:
        picked += [queue.pop() for queue in queues]
        queues = [queue for queue in queues if queue]
    return picked[:n]


class Letters:
    """Puts right answers on each letter equally often.

    Args:
        rng: Says where to begin.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._next = int(rng.integers(0, 12))

    def options(self, right: str, wrong: Sequence[str]) -> tuple[tuple[str, ...], str]:
        """Return the options with their letters, and the letter of the right one."""
        texts = shuffled(self._rng, wrong)
        place = self._next % (len(texts) + 1)
        self._next += 1
        texts.insert(place, right)
        options = tuple(f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))
        return options, LETTERS[place]
