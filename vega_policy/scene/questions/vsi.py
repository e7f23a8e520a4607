"""Questions of VSI-Bench's eight tasks, by the rules of its makers as VLM-3R wrote them down.

Differences from those rules, all towards fewer and clearer questions: directions keep 10 degrees off both of
their boundaries, in the first quadrant too; large rooms keep the wider margin the rules name; orders of appearance
hold for a glimpse and for a good view alike; routes (made by people in the benchmark) are clear of furniture.
"""

from __future__ import annotations

from itertools import pairwise, permutations
from typing import TYPE_CHECKING

import numpy as np

from vega_policy.scene.annotations import VsiRow
from vega_policy.scene.questions.choosing import Letters, generator, in_turn, shuffled
from vega_policy.scene.questions.known import (
    APART_M,
    BOUNDARY_DEG,
    GAP_M,
    SHOWN,
    bearings,
    rectangle_gaps,
)
from vega_policy.scene.questions.published import spoken_m
from vega_policy.scene.questions.sentences import (
    FILL_IN,
    FORWARD,
    QUADRANTS,
    SIDES,
    TURNS,
    VSI,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from vega_policy.scene.questions.known import Known

FAR_M = 5.0
"""No direction between things farther apart."""
_TRIES = 400
"""Drawn combinations of things, of which a few are asked."""
Asked = tuple[str, str, str, "tuple[str, ...]"]
"""Type, question, right answer, wrong answers (none where a number is asked for)."""


def vsi_bench(known: Known, *, seed: int, per_kind: int) -> list[VsiRow]:
    """Ask all types a scene has questions of."""
    rows: list[VsiRow] = []
    for kind, ask in _TYPES.items():
        rng = generator(seed, known.truth.scene_id, kind)
        letters = Letters(rng)
        for question_type, question, right, wrong in in_turn(
            rng, ask(known, rng, kind), per_kind, by=lambda item: item[2]
        ):
            options, letter = letters.options(right, wrong) if wrong else (None, right)
            rows.append(
                VsiRow(
                    id=len(rows),
                    dataset=known.truth.dataset,
                    scene_name=known.truth.scene_id,
                    question_type=question_type,
                    question=question,
                    ground_truth=letter,
                    options=options,
                )
            )
    return rows


def _ask(kind: str, right: str, wrong: Sequence[str] = (), **slots: str) -> Asked:
    return kind, write(VSI[kind][0], **slots), right, tuple(wrong)


def _counting(known: Known, _: np.random.Generator, kind: str) -> list[Asked]:
    return [_ask(kind, str(known.counts[label]), label=label) for label in known.several]


def _room_size(known: Known, _: np.random.Generator, kind: str) -> list[Asked]:
    area = known.truth.room_size_m2
    return [] if area is None else [_ask(kind, f"{area:.1f}")]


def _size(known: Known, _: np.random.Generator, kind: str) -> list[Asked]:
    return [
        _ask(kind, str(round(100 * float(known.sizes[i].max()))), thing=known.labels[i])
        for i in known.singles
    ]


def _absolute(known: Known, _: np.random.Generator, kind: str) -> list[Asked]:
    found: list[Asked] = []
    for i, j in permutations(known.singles, 2):
        gap = spoken_m(float(known.gaps[i, j]))
        if gap is not None:
            found.append(_ask(kind, f"{gap:.1f}", thing=known.labels[i], other=known.labels[j]))
    return found


def _relative(known: Known, rng: np.random.Generator, kind: str) -> list[Asked]:
    labels = [label for label in known.by_label if known.clear[label]]
    found: list[Asked] = []
    if len(labels) < 5 or not known.singles:
        return found
    for _ in range(_TRIES):
        i = known.singles[int(rng.integers(len(known.singles)))]
        others = [label for label in labels if label != known.labels[i]]
        four = shuffled(rng, others)[:4]
        gaps = np.array([known.gaps[known.by_label[label], i].min() for label in four])
        if is_order_clear(gaps, margin_m=known.margin_m):
            best = int(np.argmin(gaps))
            wrong = [label for k, label in enumerate(four) if k != best]
            slots = {"choices": ", ".join(four), "thing": known.labels[i]}
            found.append(_ask(kind, four[best], wrong, **slots))
    return list(dict.fromkeys(found))


def is_order_clear(gaps: NDArray[np.float64], *, margin_m: float) -> bool:
    """Whether the least distance is one, and all differ by more than the margin."""
    return bool(gaps.min() >= GAP_M and np.diff(np.sort(gaps)).min() > margin_m)


DIRECTIONS = {
    "object_rel_direction_easy": (SIDES, (0, 135, 225, 360), ("left", None, "right")),
    "object_rel_direction_medium": (
        ("left", "right", "back"),
        (0, 135, 225, 360),
        ("left", "back", "right"),
    ),
    "object_rel_direction_hard": (
        QUADRANTS,
        (0, 90, 180, 270, 360),
        ("front-left", "back-left", "back-right", "front-right"),
    ),
}
"""By type: the choices, the boundaries in degrees to the left, and what lies between them."""


def direction(
    kind: str, stand: NDArray[np.float64], facing: NDArray[np.float64], points: NDArray[np.float64]
) -> str | None:
    """Return where a thing is, or None where that is open.

    Args:
        kind: See `DIRECTIONS`.
        stand: (2,) centre of what one stands by.
        facing: (2,) centre of what one faces.
        points: (5, 2) centre and corners of the thing; at most one corner may be elsewhere.
    """
    _, edges, names = DIRECTIONS[kind]
    angles = bearings(stand, facing, points) % 360
    if np.abs(angles[0] - np.array(edges)).min() < BOUNDARY_DEG:
        return None
    where = np.digitize(angles, edges[1:-1])
    return None if (where[1:] != where[0]).sum() > 1 else names[int(where[0])]


def _direction(known: Known, rng: np.random.Generator, kind: str) -> list[Asked]:
    found: list[Asked] = []
    points = np.concatenate([known.centres[:, None, :2], known.prints.corners], axis=1)
    some = known.singles
    if len(some) < 3:
        return found
    for _ in range(_TRIES):
        by, facing, thing = (some[int(i)] for i in rng.choice(len(some), 3, replace=False))
        three = known.gaps[np.ix_([by, facing, thing], [by, facing, thing])][[0, 0, 1], [1, 2, 2]]
        flat = np.hypot(*(known.centres[[by, by], :2] - known.centres[[facing, thing], :2]).T)
        if three.min() < APART_M or three.max() > FAR_M or flat.min() < APART_M:
            continue
        right = direction(kind, points[by, 0], points[facing, 0], points[thing])
        if right is not None:
            wrong = [name for name in DIRECTIONS[kind][0] if name != right]
            names = {"by": by, "facing": facing, "thing": thing}
            found.append(_ask(kind, right, wrong, **{k: known.labels[i] for k, i in names.items()}))
    return list(dict.fromkeys(found))


def turn(angle_deg: float) -> str | None:
    """Return ``left right back`` for a change of heading, or None where two would do."""
    if 30 <= abs(angle_deg) <= 135 - BOUNDARY_DEG:
        return "left" if angle_deg > 0 else "right"
    return "back" if abs(angle_deg) >= 135 + BOUNDARY_DEG else None


def _route(known: Known, rng: np.random.Generator, kind: str) -> list[Asked]:
    """Ask for the turns of a way from thing to thing.

    Two forms: one faces the first stop and has a turn before each further one, or one faces something else
    and has a turn before the first stop too.
    """
    stops = [i for i in known.singles if known.stands_low(i)]
    found: list[Asked] = []
    if len(stops) < 3:
        return found
    for _ in range(_TRIES):
        n = int(rng.integers(3, min(len(stops), 4) + 1))
        path = [stops[int(i)] for i in rng.choice(len(stops), n, replace=False)]
        is_aside = bool(rng.integers(2))
        facing, rest = (path[1], [path[0], *path[2:]]) if is_aside else (path[1], path)
        if len(rest) < 2 or not all(_is_way_free(known, a, b) for a, b in pairwise(rest)):
            continue
        at = known.centres[:, :2]
        looks = [facing, *rest[1:]] if is_aside else rest[1:]
        spots = [rest[0], *rest] if is_aside else rest
        turns: list[str | None] = []
        for k in range(1, len(looks)):
            here, heading = spots[k], at[looks[k - 1]] - at[spots[k - 1]]
            turns.append(turn(float(bearings(at[here], at[here] + heading, at[looks[k]]))))
        if not turns or None in turns:
            continue
        right = ", ".join(TURNS[t] for t in turns if t is not None)
        steps: list[str] = []
        for k, stop in enumerate(rest[1:]):
            if k > 0 or is_aside:
                steps.append(FILL_IN)
            steps.append(FORWARD.format(to=known.labels[stop]))
        actions = " ".join(f"{k}. {step}" for k, step in enumerate(steps, 1)) + "."
        names = {"by": rest[0], "facing": facing, "goal": rest[-1]}
        slots = {k: known.labels[i] for k, i in names.items()}
        wrong = _other_turns(rng, len(turns), right)
        found.append(_ask(kind, right, wrong, actions=actions, **slots))
    return list(dict.fromkeys(found))


def _other_turns(rng: np.random.Generator, n: int, right: str) -> list[str]:
    every = [""]
    for _ in range(n):
        every = [
            f"{before}, {turn}" if before else turn for before in every for turn in TURNS.values()
        ]
    return shuffled(rng, [text for text in every if text != right])[: 2 if n == 1 else 3]


def _is_way_free(known: Known, a: int, b: int) -> bool:
    """Whether a robot 0.2 m wide gets straight from one thing to another."""
    start, end = known.centres[a, :2], known.centres[b, :2]
    ahead = end - start
    length = float(np.hypot(*ahead))
    if known.gaps[a, b] < 2 * APART_M or length < 1.0:
        return False
    across = 0.1 * np.array([-ahead[1], ahead[0]]) / length
    strip = np.array([start - across, end - across, end + across, start + across])
    low = [i for i in range(known.n) if known.prints.low[i] < 1.0 and i not in (a, b)]
    low = [i for i in low if known.carrier[i] not in (a, b)]
    meets = rectangle_gaps(np.concatenate([strip[None], known.prints.corners[low]]))[0, 1:]
    return bool((meets > 0).all())


def _order(known: Known, rng: np.random.Generator, kind: str) -> list[Asked]:
    least = SHOWN * known.truth.image_px[0] * known.truth.image_px[1]
    first: dict[str, tuple[int, int]] = {}
    for label, some in known.by_label.items():
        if known.clear[label]:
            seen = np.max([known.objects[i].visible_px for i in some], axis=0)
            first[label] = (int(np.argmax(seen > 0)), int(np.argmax(seen >= least)))
    labels = list(first)
    found: list[Asked] = []
    if len(labels) < 4:
        return found
    for _ in range(_TRIES):
        four = shuffled(rng, labels)[:4]
        in_order = sorted(four, key=lambda label: first[label])
        pairs = pairwise(in_order)
        # Seen well before the next is seen at all.
        if all(first[a][1] < first[b][0] for a, b in pairs):
            right = ", ".join(in_order)
            orders = [", ".join(p) for p in permutations(in_order) if ", ".join(p) != right]
            wrong = shuffled(rng, orders)[:3]
            found.append(_ask(kind, right, wrong, choices=", ".join(four)))
    return list({item[2]: item for item in found}.values())


_TYPES: dict[str, Callable[[Known, np.random.Generator, str], list[Asked]]] = {
    "object_counting": _counting,
    "object_abs_distance": _absolute,
    "object_size_estimation": _size,
    "room_size_estimation": _room_size,
    "object_rel_distance": _relative,
    "object_rel_direction_easy": _direction,
    "object_rel_direction_medium": _direction,
    "object_rel_direction_hard": _direction,
    "route_planning": _route,
    "obj_appearance_order": _order,
}
