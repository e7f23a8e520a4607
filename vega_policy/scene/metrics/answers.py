"""Short answers compared as LEO compares them (Huang et al. 2024, arXiv:2311.12871)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

EmRefined = Literal["strict", "leo"]
"""``leo``: an empty answer is part of every answer, so it is right. ``strict``: it is wrong."""

_WORDS = {
    "letf": "left",
    "let": "left",
    "tehre": "there",
    "rigth": "right",
    "rght": "right",
    "behine": "behind",
    "tv": "TV",
    "chai": "chair",
    "wasing": "washing",
    "waslked": "walked",
    "oclock": "o'clock",
}
"""Mistakes of the annotators."""
# fmt: off
_NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)
# fmt: on
_DIGITS = {str(i): word for i, word in enumerate(_NUMBERS)} | {
    "23": "twenty-three",
    "none": "zero",
}

_WORD = re.compile(r"\b(" + "|".join(_WORDS) + r")\b")
_DIGIT = re.compile(r"\b(" + "|".join(_DIGITS) + r")\b")
_OUTER_BLANKS = re.compile(r"^ +| +$")
_UNUSUAL = re.compile(r"[^a-zA-Z0-9,'\s\-:]+")
_NUMBERED = re.compile(r"\b([a-zA-Z]+)[0-9]\b")
_ARTICLES = tuple(re.compile(rf"\b{article}\b ([a-zA-Z]+)") for article in ("a", "an", "the"))


def clean_answer(text: str) -> str:
    """Return an answer without case, articles, most punctuation and known typing mistakes.

    Digits up to 20 become words, ``none`` becomes ``zero`` and ``tv`` becomes ``TV``. Equal to the
    function that LEO, SQA3D's followers and Video-3D-LLM share; its replacements of non-ASCII letters
    are left out since they never find any.
    """
    text = _OUTER_BLANKS.sub("", text.lower())
    text = _UNUSUAL.sub("", re.sub(" {2,}", " ", text))
    text = _WORD.sub(lambda match: _WORDS[match[0]], text)
    text = re.sub(r"\bo' +clock\b", "o'clock", text)
    text = _DIGIT.sub(lambda match: _DIGITS[match[0]], text)
    text = _NUMBERED.sub(r"\g<1>", text)
    for article in _ARTICLES:
        text = article.sub(r"\g<1>", text)
    return re.sub(r"\bbackwards\b", "backward", text)


def refined_match(text: str, references: Sequence[str], *, em_r: EmRefined) -> bool:
    """Say whether an answer equals, contains or is part of a reference, blanks aside.

    Cleaned on both sides. Beware what even ``strict`` lets pass: ``a`` is part of ``table``.
    """
    answer = clean_answer(text)
    joined = "".join(answer.split())
    if em_r == "strict" and not joined:
        return False
    cleaned = [clean_answer(reference) for reference in references]
    targets = ["".join(reference.split()) for reference in cleaned]
    return any(joined in target or target in joined for target in targets)
