"""What noun phrases and descriptions mean in a scene, read off its measured geometry.

Part of the proof: nothing of the generator is used but the sentences. Whatever is not beyond doubt raises
`Doubt`: a class of which some thing is never shown, a phrase that fits two things, a comparison that is close.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vega_policy.scene.questions.measured import Doubt, Measured
from vega_policy.scene.questions.sentences import (
    COLOURS,
    NUMBERS,
    Family,
    Sentence,
    plural,
    read,
    without_colour,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_LEAST_M = 0.15
"""Two distances that are compared differ by this, in large rooms by twice as much."""
_LARGE_M2 = 40.2
_SLACK_M = 0.012
"""`Measured.apart` is known to a centimetre."""


class Meaning:
    """Reads texts about one scene.

    Args:
        measured: The scene.
    """

    def __init__(self, measured: Measured) -> None:
        self.measured = measured
        self.labels = [o.label for o in measured.objects]
        self.colours = [o.colour for o in measured.objects]
        self.index = {o.object_id: i for i, o in enumerate(measured.objects)}

    def one_reading(self, text: str, family: Family, *, also: str = "") -> Sentence:
        """Return the only way to read a sentence; ``also`` is a class the scene may lack."""
        nouns = {*self.labels, also} - {""}
        readings = read(text, family, nouns=nouns)
        if len(readings) != 1:
            ways = ", ".join(r.kind for r in readings) or "no way"
            raise Doubt(f"{text!r} can be read in {ways}, expected one")
        return readings[0]

    # -- nouns --------------------------------------------------------------------------------------

    def of_class(self, label: str) -> list[int]:
        """Return all things of a class, each of them shown and none of another class like it."""
        found = [i for i, name in enumerate(self.labels) if name == label]
        kinds = {name for name in self.labels if name != label and name.endswith(f" {label}")}
        if kinds:
            raise Doubt(f"{label!r} may be {', '.join(sorted(kinds))}")
        hidden = [i for i in found if not self.measured.is_shown(i)]
        if hidden:
            raise Doubt(f"no frame shows {label} {self._ids(hidden)}")
        return found

    def fitting(self, phrase: str) -> list[int]:
        """Return all things that a class, or a colour word and a class, fits."""
        if phrase in self.labels:
            return self.of_class(phrase)
        colour, label = without_colour(phrase)
        found = self.of_class(label)
        if not colour:
            return found
        return [i for i in found if self.colour(i) == colour]

    def the(self, phrase: str) -> int:
        """Return the only thing that a phrase fits."""
        found = self.fitting(phrase)
        if len(found) != 1:
            raise Doubt(f"{phrase!r} fits {len(found)} objects, expected one")
        return found[0]

    def many(self, phrase: str) -> list[int]:
        """Return all things that a phrase in the plural fits."""
        for label in dict.fromkeys(self.labels):
            for name in (label, *(f"{colour} {label}" for colour in COLOURS)):
                if plural(name) == phrase:
                    return self.fitting(name)
        raise Doubt(f"nothing in the scene is called {phrase!r}")

    def colour(self, i: int) -> str:
        """Return the colour word of a thing."""
        if self.colours[i] not in COLOURS:
            raise Doubt(f"no colour word fits {self.labels[i]} {self._ids([i])}")
        return self.colours[i]

    def is_called(self, i: int, phrase: str) -> bool:
        """Whether a phrase with or without an article fits a thing, maybe among others."""
        bare = phrase.removeprefix("an ") if phrase.startswith("an ") else phrase.removeprefix("a ")
        if bare == self.labels[i]:
            return True
        colour, label = without_colour(bare)
        return label == self.labels[i] and colour == self.colours[i]

    def number(self, text: str) -> int:
        """Return what digits or a word say."""
        if text in NUMBERS:
            return NUMBERS.index(text)
        if not text.isascii() or not text.isdigit():
            raise Doubt(f"{text!r} is no number")
        return int(text)

    def number_word(self, n: int) -> str:
        """Return the word of a number from 0 to 10."""
        if n >= len(NUMBERS):
            raise Doubt(f"there is no word for {n}")
        return NUMBERS[n]

    def _ids(self, some: Sequence[int]) -> str:
        return ", ".join(str(self.measured.objects[i].object_id) for i in some)

    # -- relations ----------------------------------------------------------------------------------

    @property
    def margin_m(self) -> float:
        """Least difference of two distances that are compared, less what they are known to."""
        has_floor = self.measured.truth.floor is not None
        is_large = has_floor and self.measured.area_m2() > _LARGE_M2
        return (2 * _LEAST_M if is_large else _LEAST_M) - _SLACK_M

    def extreme(self, some: Sequence[int], to: int, *, farthest: bool = False) -> int:
        """Return what is closest to a thing, or farthest, by surfaces and by centres."""
        if len(some) < 2 or to in some:
            raise Doubt(f"{len(some)} objects to compare, expected two others")
        sign = -1 if farthest else 1
        gaps = {i: self.measured.apart(i, to) for i in some}
        best, second = sorted(some, key=lambda i: sign * gaps[i])[:2]
        if abs(gaps[second] - gaps[best]) < self.margin_m:
            raise Doubt(
                f"{self._ids(some)} are {self._metres(gaps)} from {self._ids([to])}: too close"
            )
        by_centres = min(some, key=lambda i: sign * self.measured.centres_apart(i, to))
        if by_centres != best:
            raise Doubt(f"closest points and centres disagree on {self._ids(some)}")
        return best

    @staticmethod
    def _metres(gaps: dict[int, float]) -> str:
        return ", ".join(f"{gap:.2f} m" for gap in gaps.values())

    def on(self, some: Sequence[int], anchor: int) -> list[int]:
        """Return which of some things are on another."""
        return [i for i in some if self.measured.is_on(i, anchor)]

    def by_size(self, some: Sequence[int], what: str) -> int:
        """Return the ``biggest smallest tallest shortest`` of some things.

        By volume, a third more than the next at least, or by height, a fifth.
        """
        if len(some) < 2:
            raise Doubt(f"{len(some)} objects to compare, expected two")
        edges = np.array([self.measured.edges_m(i) for i in some])
        keys = edges.prod(axis=1) if what in ("biggest", "smallest") else edges[:, 2]
        order = np.argsort(keys)
        ratio = 4 / 3 if what in ("biggest", "smallest") else 6 / 5
        small, large = (0, 1) if what in ("smallest", "shortest") else (-2, -1)
        if keys[order[large]] < ratio * keys[order[small]]:
            raise Doubt(f"{self._ids(some)} are too similar to say which is {what}")
        return some[int(order[0 if what in ("smallest", "shortest") else -1])]

    def bearings(self, stand: NDArray[np.float64], facing: int, i: int) -> NDArray[np.float64]:
        """Return (p,) degrees to the left of the heading at which the centre of a thing is."""
        ahead, left = self.measured.seen_from(stand, facing, i)
        return np.degrees(np.arctan2(left, ahead))

    def is_way(self, stand: NDArray[np.float64], facing: int, i: int, way: str) -> bool:
        """Say whether a thing is ``left``, ``right`` (of two halves) or ``behind`` (a quarter).

        Raises:
            Doubt: It is from some of the places, and is not from others, or is within 2 degrees.
        """
        angles = self.bearings(stand, facing, i)
        off = np.abs(angles) - 135
        if way != "behind":
            side = angles if way == "left" else -angles
            # Behind, the two halves meet again.
            off = np.copysign(np.minimum(np.abs(side), 180 - np.abs(side)), side)
        return self._agreed(off, f"{self._ids([i])} is {way}")

    def sector(self, stand: NDArray[np.float64], facing: int, i: int) -> str:
        """Return which quarter a thing is in: ``front left behind right``."""
        angles = self.bearings(stand, facing, i)
        for name, middle in (("front", 0), ("left", 90), ("right", -90)):
            off = 45 - np.abs(angles - middle)
            if self._agreed(off, f"{self._ids([i])} is {name}"):
                return name
        return "behind"

    def _agreed(self, off_deg: NDArray[Any], what: str) -> bool:
        if np.abs(off_deg).min() < 2 or len({*np.sign(off_deg)}) > 1:
            share = float((off_deg > 0).mean())
            raise Doubt(f"{what} from {100 * share:.0f} % of the places, or is at the boundary")
        return bool(off_deg[0] > 0)

    # -- descriptions -------------------------------------------------------------------------------

    def described(self, sentence: Sentence) -> list[int]:
        """Return everything a description of `REFER` fits."""
        slots = sentence.slots
        match sentence.kind:
            case "only":
                return self.fitting(slots["thing"])
            case "closest" | "farthest":
                anchor = self.the(slots["anchor"])
                some = self.fitting(slots["thing"])
                return [self.extreme(some, anchor, farthest=sentence.kind == "farthest")]
            case "on":
                return self.on(self.fitting(slots["thing"]), self.the(slots["anchor"]))
            case "all":
                return self.many(slots["things"])
            case "all_on":
                return self.on(self.many(slots["things"]), self.the(slots["anchor"]))
            case "side":
                by, facing = self.the(slots["by"]), self.the(slots["facing"])
                stand = self.measured.places_by(by)
                some = self.fitting(slots["thing"])
                return [i for i in some if self.is_way(stand, facing, i, slots["side"])]
            case _:
                return [self.by_size(self.fitting(slots["thing"]), sentence.kind)]
