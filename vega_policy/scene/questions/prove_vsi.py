"""Proof of VSI-Bench's questions: numbers are measured, and of the options exactly one is right."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from vega_policy.scene.questions.measured import Doubt
from vega_policy.scene.questions.sentences import FILL_IN, TURNS, VSI

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vega_policy.scene.annotations import VsiRow
    from vega_policy.scene.questions.meaning import Meaning

_APART_M = (0.29, 5.01)
"""Things between which a direction is asked."""
_MARGIN_DEG = 9.9
_STEP = re.compile(r"(\d+)\. (\[please fill in\]|Go forward until the ([a-z ]+?))(?= \d+\. |\.$)")
_ROBOT_M = 0.09
"""Half the width of the robot that goes a route, nearly."""
_LOW_M = 1.0
_ROUND_SIZE = 0.51
"""Centimetres by which a rounded length may be off."""


def prove_vsi(row: VsiRow, meaning: Meaning) -> None:
    """Check the answer of a row, and that no other option is right.

    Raises:
        Doubt: It is wrong or open.
    """
    if row.dataset != meaning.measured.truth.dataset:
        raise Doubt(f"dataset is {row.dataset!r}, expected {meaning.measured.truth.dataset!r}")
    said = meaning.one_reading(row.question, VSI)
    if said.kind != row.question_type:
        raise Doubt(f"question_type is {row.question_type!r}, the question is of {said.kind!r}")
    if row.question_type in _NUMBERS:
        value, off = _NUMBERS[row.question_type](said.slots, meaning)
        if row.options is not None:
            raise Doubt("a number is asked for, but there are options")
        if not abs(_number(row.ground_truth) - value) <= off:
            raise Doubt(f"{row.question!r} has the answer {value:.2f}, not {row.ground_truth}")
        return
    answer, others = _CHOICES[row.question_type](said.slots, meaning)
    options = _options(row)
    if others is not None and {*options.values()} != others:
        raise Doubt(f"options are {sorted(options.values())}, expected {sorted(others)}")
    right = [letter for letter, text in options.items() if text == answer]
    if right != [row.ground_truth]:
        raise Doubt(
            f"{answer!r} answers {row.question!r}: {right}, the row says {row.ground_truth}"
        )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise Doubt(f"{text!r} is no number") from None


def _options(row: VsiRow) -> dict[str, str]:
    """Return the texts of all options by letter, in alphabetical order from A."""
    options = row.options or ()
    letters = "ABCD"[: len(options)]
    found = {text[:1]: text[3:] for text in options}
    if not 2 <= len(options) <= 4 or any(
        text[:3] != f"{letter}. " for letter, text in zip(letters, options, strict=False)
    ):
        raise Doubt(f"options are {options}, expected two to four from 'A. ...'")
    if len({*found.values()}) < len(options):
        raise Doubt(f"options are {options}, two are the same")
    return found


# -- numbers: value and how far the answer may be off -------------------------------------------------


def _counting(slots: Mapping[str, str], meaning: Meaning) -> tuple[float, float]:
    n = len(meaning.of_class(slots["label"]))
    if n < 2:
        raise Doubt(f"there is {n} {slots['label']}, and only what there is more of is counted")
    return n, 0.0


def _distance(slots: Mapping[str, str], meaning: Meaning) -> tuple[float, float]:
    one, other = _only(slots["thing"], meaning), _only(slots["other"], meaning)
    return meaning.measured.apart(one, other), 0.062


def _size(slots: Mapping[str, str], meaning: Meaning) -> tuple[float, float]:
    return 100 * max(meaning.measured.edges_m(_only(slots["thing"], meaning))), _ROUND_SIZE


def _room(_: Mapping[str, str], meaning: Meaning) -> tuple[float, float]:
    area = meaning.measured.area_m2()
    return area, 0.051 + 0.002 * area


_NUMBERS = {
    "object_counting": _counting,
    "object_abs_distance": _distance,
    "object_size_estimation": _size,
    "room_size_estimation": _room,
}


def _only(label: str, meaning: Meaning) -> int:
    """Return the only thing of a class; colour words are not used by the benchmark."""
    found = meaning.of_class(label)
    if len(found) != 1:
        raise Doubt(f"there are {len(found)} of {label!r}, expected one")
    return found[0]


# -- choices: the right text and, where they are prescribed, all texts --------------------------------


def _closest(slots: Mapping[str, str], meaning: Meaning) -> tuple[str, set[str] | None]:
    thing = _only(slots["thing"], meaning)
    names = slots["choices"].split(", ")
    gaps = {
        name: min((meaning.measured.apart(i, thing) for i in meaning.of_class(name)), default=-1.0)
        for name in names
    }
    best, second = sorted(names, key=lambda name: gaps[name])[:2]
    if thing in [i for name in names for i in meaning.of_class(name)] or gaps[best] < 0.15:
        raise Doubt(f"{best!r} touches {slots['thing']!r}, or is it, or is not there")
    if gaps[second] - gaps[best] < meaning.margin_m:
        raise Doubt(f"{best!r} and {second!r} are about as far from {slots['thing']!r}")
    return best, {*names}


_DIRECTIONS = {
    "object_rel_direction_easy": {"left": (0, 135), "right": (-135, 0)},
    "object_rel_direction_medium": {"left": (0, 135), "right": (-135, 0), "back": (135, 225)},
    "object_rel_direction_hard": {
        "front-left": (0, 90),
        "back-left": (90, 180),
        "back-right": (-180, -90),
        "front-right": (-90, 0),
    },
}
"""From and to, degrees to the left of where one faces."""


def _direction(kind: str, slots: Mapping[str, str], meaning: Meaning) -> tuple[str, set[str]]:
    by, facing, thing = (_only(slots[name], meaning) for name in ("by", "facing", "thing"))
    if len({by, facing, thing}) < 3:
        raise Doubt("a direction takes three different objects")
    for one, other in ((by, facing), (by, thing), (facing, thing)):
        gap = meaning.measured.apart(one, other)
        if not _APART_M[0] <= gap <= _APART_M[1]:
            raise Doubt(f"objects are {gap:.2f} m apart, too close or too far for a direction")
    at = meaning.measured.objects[by].centre[None, :2]
    angle = float(meaning.bearings(at, facing, thing)[0])
    for name, (low, high) in _DIRECTIONS[kind].items():
        for turn in (angle, angle + 360):
            if low + _MARGIN_DEG <= turn <= high - _MARGIN_DEG:
                return name, {*_DIRECTIONS[kind]}
    raise Doubt(f"{slots['thing']!r} is {angle:.0f} degrees to the left: no clear direction")


def _route(slots: Mapping[str, str], meaning: Meaning) -> tuple[str, None]:
    """Drive the route: where it turns, by how much, and whether the way is free."""
    measured = meaning.measured
    steps = _STEP.findall(slots["actions"])
    if " ".join(f"{n}. {step}" for n, step, _ in steps) + "." != slots["actions"]:
        raise Doubt(f"{slots['actions']!r} is no list of actions")
    here = _only(slots["by"], meaning)
    facing = _only(slots["facing"], meaning)
    heading = _way(here, facing, meaning)
    stops = [_only(to, meaning) for _, step, to in steps if step != FILL_IN]
    if not stops or stops[-1] != _only(slots["goal"], meaning) or steps[-1][1] == FILL_IN:
        raise Doubt("the route does not end at its goal")
    turns: list[str] = []
    for _, step, to in steps:
        if step == FILL_IN:
            ahead = _way(here, stops[0], meaning)
            turns.append(TURNS[_turn(heading, ahead)])
            heading = ahead
            continue
        stop = _only(to, meaning)
        ahead = _way(here, stop, meaning)
        if heading[0] * ahead[0] + heading[1] * ahead[1] < 0.999:
            raise Doubt(f"the robot does not face the {to} when it goes there")
        _drive(here, stop, meaning)
        here, stops = stop, stops[1:]
    if measured.corners[here][:, 2].min() > 0.1:
        raise Doubt("the goal does not stand on the floor")
    return ", ".join(turns), None


def _way(here: int, to: int, meaning: Meaning) -> tuple[float, float]:
    """Return the direction between two centres on the floor plan."""
    way = (meaning.measured.objects[to].centre - meaning.measured.objects[here].centre)[:2]
    length = float(np.linalg.norm(way))
    if length < 0.1:
        raise Doubt("two stops are at one place")
    return float(way[0]) / length, float(way[1]) / length


def _turn(heading: tuple[float, float], ahead: tuple[float, float]) -> str:
    """Return ``left right back``, 9.9 degrees off the boundary of 135; no turn is less than 30."""
    cosine = heading[0] * ahead[0] + heading[1] * ahead[1]
    sine = heading[0] * ahead[1] - heading[1] * ahead[0]
    if cosine < np.cos(np.radians(135 + _MARGIN_DEG)):
        return "back"
    if np.cos(np.radians(135 - _MARGIN_DEG)) < cosine < np.cos(np.radians(29.9)):
        return "left" if sine > 0 else "right"
    raise Doubt("a turn is too slight, or between sideways and back")


def _drive(here: int, stop: int, meaning: Meaning) -> None:
    """Go straight in steps of 2 cm and touch nothing but what one starts and ends at."""
    measured = meaning.measured
    a, b = measured.objects[here].centre[:2], measured.objects[stop].centre[:2]
    n = int(np.linalg.norm(b - a) / 0.02) + 2
    points = a + np.linspace(0, 1, n)[:, None] * (b - a)
    for i in range(len(measured.objects)):
        is_part = i in (here, stop) or measured.support(i) in (here, stop)
        is_low = measured.corners[i][:, 2].min() < _LOW_M
        if not is_part and is_low and measured.off_plan(i, points).min() < _ROBOT_M:
            raise Doubt(f"object {measured.objects[i].object_id} is in the way")


def _order(slots: Mapping[str, str], meaning: Meaning) -> tuple[str, None]:
    """Follow the video: a class is seen well before the next one is glimpsed."""
    names = slots["choices"].split(", ")
    times = {name: _seen(meaning.of_class(name), meaning) for name in names}
    in_order = sorted(names, key=lambda name: times[name])
    for i, name in enumerate(in_order[1:], 1):
        if times[name][0] <= times[in_order[i - 1]][1]:
            raise Doubt(f"{in_order[i - 1]!r} and {name!r} come into view at about the same time")
    return ", ".join(in_order), None


def _seen(some: Sequence[int], meaning: Meaning) -> tuple[int, int]:
    """Return the first frame with a glimpse of some things, and the first that shows one well."""
    truth = meaning.measured.truth
    least = 0.0019 * truth.image_px[0] * truth.image_px[1]
    glimpse = well = -1
    for k in range(len(truth.frames)):
        most = max((int(truth.objects[i].visible_px[k]) for i in some), default=0)
        glimpse = k if most > 0 and glimpse < 0 else glimpse
        if most >= least:
            well = k
            break
    if well < 0:
        raise Doubt("one of the classes is never seen")
    return glimpse, well


_CHOICES = {
    "object_rel_distance": _closest,
    **{
        kind: (lambda slots, meaning, kind=kind: _direction(kind, slots, meaning))
        for kind in _DIRECTIONS
    },
    "route_planning": _route,
    "obj_appearance_order": _order,
}
