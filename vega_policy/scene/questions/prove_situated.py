"""Proof of questions asked from a place in the scene (SQA3D).

A situation names what one stands by and what one faces; the answer must hold at hundreds of places that
this leaves, and at the one the row states.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vega_policy.scene.questions.measured import STANDS_WITHIN_M, Doubt
from vega_policy.scene.questions.sentences import SITUATED, SITUATION, WAYS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from vega_policy.scene.annotations import SQA3DRow
    from vega_policy.scene.questions.meaning import Meaning

_EYE_M = 1.5
_AHEAD_DEG, _SIGHT_DEG = 43.0, 112.0
"""Off the middle of what one looks at: what is less is seen, what is more is not."""
_LOOKS = 40
"""Places from which lines of sight are followed."""


def prove_sqa3d(row: SQA3DRow, meaning: Meaning) -> None:
    """Check the situation, the pose and the answer of a row.

    Raises:
        Doubt: One of them is wrong or open.
    """
    said = [
        meaning.one_reading(text, SITUATION).slots
        for text in (row.situation, *row.alternative_situations)
    ]
    if any(slots != said[0] for slots in said):
        raise Doubt("the alternative situations do not say the same")
    by, facing = meaning.the(said[0]["by"]), meaning.the(said[0]["facing"])
    if by == facing:
        raise Doubt("one stands by what one faces")
    here = _pose(row, by, facing, meaning)
    stand = np.concatenate([here[None], meaning.measured.places_by(by)])
    question = meaning.one_reading(row.question, SITUATED)
    answer = _answer(question.kind, question.slots, stand, facing, meaning)
    if row.answer != answer:
        raise Doubt(f"{row.question!r} has the answer {answer!r}, the row says {row.answer!r}")


def _pose(row: SQA3DRow, by: int, facing: int, meaning: Meaning) -> NDArray[np.float64]:
    """Return the (2,) place of a row; somebody fits there and the rotation is where they look."""
    if row.position is None or row.rotation is None:
        raise Doubt("the row has no position or no rotation")
    measured = meaning.measured
    here = np.array(row.position[:2])
    if not measured.on_floor(here[None])[0] or row.position[2] != 0:
        raise Doubt(f"{row.position} is not on the floor")
    if measured.off_plan(by, here[None])[0] > STANDS_WITHIN_M + 0.01:
        raise Doubt(f"{row.position} is not by the object one stands by")
    if not measured.is_free(here[None])[0]:
        raise Doubt(f"nobody fits at {row.position}")
    x, y, z, w = row.rotation
    # First column of the rotation of a unit quaternion: where +x is turned to.
    ahead = np.array([1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)])
    to = np.append(measured.objects[facing].centre[:2] - here, 0.0)
    if abs(x * x + y * y + z * z + w * w - 1) > 1e-6 or ahead @ to < 0.9999 * np.linalg.norm(to):
        raise Doubt(f"rotation {row.rotation} does not look at what one faces")
    return here


def _answer(
    kind: str,
    slots: Mapping[str, str],
    stand: NDArray[np.float64],
    facing: int,
    meaning: Meaning,
) -> str:
    way = next((name for name, words in WAYS.items() if words == slots.get("way")), "")
    match kind:
        case "is_way":
            i = meaning.the(slots["thing"])
            return "yes" if meaning.is_way(stand, facing, i, way) else "no"
        case "how_many":
            some = meaning.many(slots["things"])
            n = sum(meaning.is_way(stand, facing, i, way) for i in some)
            return meaning.number_word(n)
        case "what_color":
            some = meaning.fitting(slots["thing"])
            found = [i for i in some if meaning.is_way(stand, facing, i, way)]
            if len(found) != 1:
                raise Doubt(f"{slots['thing']!r} {slots['way']!r} fits {len(found)} objects")
            return meaning.colour(found[0])
        case "which_closer":
            return _closer(slots["thing"], slots["other"], stand, meaning)
        case "can_see":
            return _can_see(meaning.the(slots["thing"]), stand, facing, meaning)
        case _:
            sector = meaning.sector(stand, facing, meaning.the(slots["thing"]))
            if kind == "which_turn" and sector not in ("left", "right"):
                raise Doubt(f"it is {sector}, neither left nor right")
            return sector


def _closer(one: str, other: str, stand: NDArray[np.float64], meaning: Meaning) -> str:
    first, second = (meaning.measured.off_plan(meaning.the(name), stand) for name in (one, other))
    lead = second - first
    if np.abs(lead).min() < 0.05 or len({*np.sign(lead)}) > 1:
        raise Doubt(f"from some places {one!r} is closer, from others {other!r}")
    return one if lead[0] > 0 else other


def _can_see(i: int, stand: NDArray[np.float64], facing: int, meaning: Meaning) -> str:
    """Say ``yes`` where a thing is ahead and nothing is before it, ``no`` where it is too far round."""
    measured = meaning.measured
    off_deg = np.abs(meaning.bearings(stand, facing, i))
    if off_deg.min() > _SIGHT_DEG:
        return "no"
    if off_deg.max() > _AHEAD_DEG:
        raise Doubt(
            f"it is up to {off_deg.max():.0f} degrees aside, neither ahead nor out of sight"
        )
    carrier = measured.support(i)
    but = [i] if carrier is None else [i, carrier]
    stand = stand[measured.is_free(stand)]
    for x, y in stand[:: max(1, len(stand) // _LOOKS)]:
        if measured.is_blocked(np.array([x, y, _EYE_M]), measured.objects[i].centre, but):
            raise Doubt("something is before it, seen from some of the places")
    return "yes"
