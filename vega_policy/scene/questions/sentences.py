"""Every sentence the questions are made of: written by the generator, read back by the proof.

A sentence has a kind and slots; a slot holds a noun phrase (a class, or a colour word and a class), or a
word of a fixed choice. Words are few on purpose: a tiny language model learns them in minutes.

The sentences of `VSI` are those of VSI-Bench (github.com/vision-x-nyu/thinking-in-space, Apache-2.0; as
templates in github.com/VITA-Group/VLM-3R, Apache-2.0): constants of its protocol, kept to the letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
COLOURS = (
    *("red", "orange", "yellow", "green", "blue", "purple"),
    *("pink", "brown", "white", "black", "gray"),
)
SIDES = ("left", "right")
SECTORS = ("front", "left", "behind", "right")

Family = Mapping[str, tuple[str, ...]]
"""Paraphrases of each kind."""

REFER: Family = {
    "only": ("the {thing}", "find the {thing}"),
    "closest": ("the {thing} closest to the {anchor}", "find the {thing} closest to the {anchor}"),
    "farthest": (
        "the {thing} farthest from the {anchor}",
        "find the {thing} farthest from the {anchor}",
    ),
    "on": ("the {thing} on the {anchor}", "find the {thing} on the {anchor}"),
    "side": (
        "standing by the {by} and facing the {facing}, the {thing} to the {side}",
        "facing the {facing} and standing by the {by}, find the {thing} to the {side}",
    ),
    "biggest": ("the biggest {thing}", "find the biggest {thing}"),
    "smallest": ("the smallest {thing}", "find the smallest {thing}"),
    "tallest": ("the tallest {thing}", "find the tallest {thing}"),
    "shortest": ("the shortest {thing}", "find the shortest {thing}"),
    "all": ("all the {things}", "find all the {things}"),
    "all_on": ("all the {things} on the {anchor}", "find all the {things} on the {anchor}"),
}
"""What a description may say. ``only``: the one that the noun phrase fits."""

CAPTION: Family = {
    "is": ("this is {one}.", "the object is {one}."),
    "color": ("the {label} is {color}.", "this {label} is {color}."),
    "on": ("it is on the {anchor}.", "it is on top of the {anchor}."),
    "next": ("it is next to the {anchor}.", "the {anchor} is next to it."),
    "alone": ("it is the only {label}.", "there is only one {label}."),
    "among": ("it is one of {n} {things}.", "there are {n} {things}."),
}
"""A caption is some of these in a row, all true of the object."""

ASK: Family = {
    "count": ("how many {things} are there?", "what is the number of {things}?"),
    "count_on": ("how many {things} are on the {anchor}?",),
    "color": ("what color is the {thing}?", "what is the color of the {thing}?"),
    "color_on": ("what color is the {thing} on the {anchor}?",),
    "color_closest": ("what color is the {thing} closest to the {anchor}?",),
    "where": ("where is the {thing}?",),
    "what_on": ("what is on the {anchor}?", "what is on top of the {anchor}?"),
    "what_next": ("what is next to the {anchor}?",),
}
"""ScanQA."""

SITUATION: Family = {
    "stand": (
        "I am standing by the {by} and facing the {facing}.",
        "I am facing the {facing} and standing by the {by}.",
        "standing by the {by}, I am facing the {facing}.",
    )
}
"""SQA3D: all three say the same."""

SITUATED: Family = {
    "what_color": ("What color is the {thing} {way}?",),
    "is_way": ("Is the {thing} {way}?",),
    "how_many": ("How many {things} are {way}?",),
    "can_see": ("Can I see the {thing} without turning around?",),
    "which_closer": ("Which is closer to me, the {thing} or the {other}?",),
    "which_turn": ("Which way should I turn to face the {thing}?",),
    "where": ("Where is the {thing} from here?",),
}
"""SQA3D, one kind or more for each of its types."""
WAYS = {"left": "to my left", "right": "to my right", "behind": "behind me"}

_CLOSEST_POINT = "Measuring from the closest point of each object, "
_STAND = "If I am standing by the {by} and facing the {facing}, is the {thing} to "
_ROUTE = (
    "You are a robot beginning at the {by} and facing the {facing}. You want to navigate to the "
    "{goal}. You will perform the following actions (Note: for each [please fill in], choose either "
    "'turn back,' 'turn left,' or 'turn right.'): {actions} You have reached the final destination."
)
VSI: Family = {
    "object_counting": ("How many {label}(s) are in this room?",),
    "object_abs_distance": (
        _CLOSEST_POINT
        + "what is the direct distance between the {thing} and the {other} (in meters)?",
    ),
    "object_size_estimation": (
        "What is the length of the longest dimension (length, width, or height) of the {thing}, "
        "measured in centimeters?",
    ),
    "room_size_estimation": (
        "What is the size of this room (in square meters)? If multiple rooms are shown, estimate the "
        "size of the combined space.",
    ),
    "object_rel_distance": (
        _CLOSEST_POINT + "which of these objects ({choices}) is the closest to the {thing}?",
    ),
    "object_rel_direction_easy": (_STAND + "the left or the right of the {facing}?",),
    "object_rel_direction_medium": (
        _STAND
        + "my left, right, or back? An object is to my back if I would have to turn at least "
        "135 degrees in order to face it.",
    ),
    "object_rel_direction_hard": (
        _STAND
        + "my front-left, front-right, back-left, or back-right? The directions refer to the "
        "quadrants of a Cartesian plane (if I am standing at the origin and facing along the positive "
        "y-axis).",
    ),
    "route_planning": (_ROUTE,),
    "obj_appearance_order": (
        "What will be the first-time appearance order of the following categories in the video: "
        "{choices}?",
    ),
}
FILL_IN = "[please fill in]"
FORWARD = "Go forward until the {to}"
TURNS = {"left": "Turn Left", "right": "Turn Right", "back": "Turn Back"}
QUADRANTS = ("front-left", "front-right", "back-left", "back-right")

_CHOICES = {"side": SIDES, "color": COLOURS, "n": NUMBERS, "way": tuple(WAYS.values())}
_NOUN = r"[a-z]+(?: [a-z]+){0,2}"
_FREE = {"choices": r"[^()?]+", "actions": r"1\. .+\."}
_ARTICLE = {"one": r"(?:an? )?"}
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Sentence:
    """What a text says."""

    kind: str
    slots: Mapping[str, str]


def write(template: str, **slots: str) -> str:
    """Fill a template."""
    return template.format(**slots)


def read(text: str, family: Family, *, nouns: Iterable[str] = ()) -> tuple[Sentence, ...]:
    """Return every way to read a text.

    Args:
        text: A whole sentence.
        family: The kinds it may be of.
        nouns: Classes. If any, the readings whose noun phrases name them are returned where there are
            any, so that ``the lamp on the desk`` is no class of its own.
    """
    readings: list[Sentence] = []
    for kind, templates in family.items():
        for template in templates:
            found = _pattern(template).fullmatch(text)
            if found is not None and Sentence(kind, found.groupdict()) not in readings:
                readings.append(Sentence(kind, found.groupdict()))
    known = {*nouns, *map(plural, nouns)}
    named = [r for r in readings if all(_is_noun(r, slot, known) for slot in r.slots)]
    return tuple(named or readings)


def _is_noun(sentence: Sentence, slot: str, known: set[str]) -> bool:
    if slot in _CHOICES or slot in _FREE:
        return True
    return without_colour(sentence.slots[slot].removeprefix("an ").removeprefix("a "))[1] in known


@lru_cache(maxsize=256)
def _pattern(template: str) -> re.Pattern[str]:
    # Odd parts are names of slots; the second time a slot must say the same.
    written, seen = "", set[str]()
    for i, part in enumerate(_SLOT.split(template)):
        if i % 2 == 0:
            written += re.escape(part)
        elif part in seen:
            written += f"(?P={part})"
        else:
            noun = _ARTICLE.get(part, "") + _NOUN
            inner = "|".join(_CHOICES[part]) if part in _CHOICES else _FREE.get(part, noun)
            written += f"(?P<{part}>{inner})"
            seen.add(part)
    return re.compile(written)


def without_colour(phrase: str) -> tuple[str, str]:
    """Split a noun phrase into its colour word, or an empty one, and the rest."""
    first, _, rest = phrase.partition(" ")
    return (first, rest) if first in COLOURS and rest else ("", phrase)


def _is_plural(phrase: str) -> bool:
    return phrase.endswith("s") and not phrase.endswith(("ss", "us"))


def plural(phrase: str) -> str:
    """Return the plural of a noun phrase; ``cookies`` are many already."""
    if _is_plural(phrase):
        return phrase
    if phrase.endswith(("s", "x", "ch", "sh")):
        return phrase + "es"
    if phrase.endswith("lf"):
        return phrase[:-1] + "ves"
    if phrase.endswith("y") and phrase[-2] not in "aeiou":
        return phrase[:-1] + "ies"
    return phrase + "s"


def one(phrase: str) -> str:
    """Put the article before a noun phrase, if it takes one."""
    if _is_plural(phrase):
        return phrase
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase
