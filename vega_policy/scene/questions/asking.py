"""Questions about a scene (ScanQA), and from a place in it (SQA3D)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from vega_policy.scene.annotations import ScanQARow, SQA3DRow
from vega_policy.scene.questions.choosing import generator, in_turn, shuffled
from vega_policy.scene.questions.known import STEP_M
from vega_policy.scene.questions.referring import views
from vega_policy.scene.questions.sentences import (
    ASK,
    NUMBERS,
    SECTORS,
    SITUATED,
    SITUATION,
    WAYS,
    one,
    plural,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from vega_policy.scene.questions.known import Known, View
    from vega_policy.scene.truth import ObjectTruth

_NEXT_M = 0.5
"""Farther things are not next to each other."""
_EYE_M = 1.5
_EVEN = {"is_way": 2, "can_see": 2, "which_turn": 2, "how_many": 2}
"""Kinds of which so many answers at least are equally often right, or none is asked."""


@dataclass(frozen=True)
class Question:
    """A question and all its right answers, the shortest first."""

    kind: str
    text: str
    answers: tuple[str, ...]
    about: tuple[int, ...]
    """Indices of the things one has to look at."""
    way: str = ""
    """Of `WAYS`, where it asks for one."""

    @property
    def key(self) -> str:
        """What answers are balanced by."""
        return self.answers[0]


def scanqa(known: Known, *, seed: int, per_kind: int) -> list[ScanQARow]:
    """Ask how many, what colour, where, what is on and what is next to something."""
    rng = generator(seed, known.truth.scene_id, "scanqa")
    asked = [*_counts(known, rng), *_colours(known, rng), *_places(known, rng)]
    picked = [
        q
        for kind in ASK
        for q in in_turn(rng, [a for a in asked if a.kind == kind], per_kind, by=lambda a: a.key)
    ]
    return [
        ScanQARow(
            scene_id=known.truth.scene_id,
            question_id=f"{known.truth.scene_id}-{k}",
            question=q.text,
            answers=q.answers,
            object_ids=tuple(known.ids[i] for i in q.about),
            object_names=tuple(known.labels[i] for i in q.about),
        )
        for k, q in enumerate(picked)
    ]


def _say(rng: np.random.Generator, kind: str, **slots: str) -> str:
    options = ASK[kind]
    return write(options[int(rng.integers(len(options)))], **slots)


def _number(n: int) -> tuple[str, ...]:
    return (str(n), NUMBERS[n])


def _counts(known: Known, rng: np.random.Generator) -> Iterator[Question]:
    for label, some in known.by_label.items():
        if not known.clear[label] or len(some) >= len(NUMBERS):
            continue
        text = _say(rng, "count", things=plural(label))
        yield Question("count", text, _number(len(some)), tuple(some))
        if known.coloured(label):
            for colour in dict.fromkeys(known.colours[i] for i in some):
                same = tuple(i for i in some if known.colours[i] == colour)
                if len(same) < len(some):
                    text = _say(rng, "count", things=plural(f"{colour} {label}"))
                    yield Question("count", text, _number(len(same)), same)
        for anchor, name in known.names.items():
            on = tuple(i for i in some if known.carrier[i] == anchor)
            # None of them where something else is: always saying one would be right too often.
            if anchor in known.carrier and known.is_on_clear(some, [anchor]) and anchor not in some:
                text = _say(rng, "count_on", things=plural(label), anchor=name)
                yield Question("count_on", text, _number(len(on)), on)


def _colours(known: Known, rng: np.random.Generator) -> Iterator[Question]:
    for label, some in known.by_label.items():
        if not known.clear[label] or not known.coloured(label):
            continue
        if len(some) == 1:
            yield _colour(known, rng, "color", some[0])
            continue
        for anchor, name in known.names.items():
            if anchor in some:
                continue
            best = known.nearest(some, anchor)
            if best is not None:
                yield _colour(known, rng, "color_closest", best, anchor=name)
            on = [i for i in some if known.carrier[i] == anchor]
            if len(on) == 1 and known.is_on_clear(some, [anchor]):
                yield _colour(known, rng, "color_on", on[0], anchor=name)


def _colour(known: Known, rng: np.random.Generator, kind: str, i: int, **slots: str) -> Question:
    text = _say(rng, kind, thing=known.labels[i], **slots)
    return Question(kind, text, (known.colours[i], f"it is {known.colours[i]}"), (i,))


def _places(known: Known, rng: np.random.Generator) -> Iterator[Question]:
    everything = range(known.n)
    for i, name in known.names.items():
        carrier = known.carrier[i]
        if carrier is not None and carrier in known.names and known.is_on_clear([i], everything):
            on = known.names[carrier]
            answers = (f"on the {on}", f"on top of the {on}", f"it is on the {on}")
            yield Question("where", _say(rng, "where", thing=name), answers, (i,))
        cargo = [j for j in everything if known.carrier[j] == i]
        if (
            cargo
            and known.is_on_clear(everything, [i])
            and len({known.labels[j] for j in cargo}) == 1
        ):
            j = cargo[0]
            if len(cargo) == 1 and known.shown[j]:
                text = _say(rng, "what_on", anchor=name)
                yield Question("what_on", text, _named(known, j), (j,))
        neighbour = _neighbour(known, i)
        if neighbour is not None:
            text = _say(rng, "what_next", anchor=name)
            yield Question("what_next", text, _named(known, neighbour), (neighbour,))


def _named(known: Known, i: int) -> tuple[str, ...]:
    label, colour = known.labels[i], known.colours[i]
    return (label, one(label), f"{colour} {label}") if colour else (label, one(label))


def _neighbour(known: Known, i: int) -> int | None:
    """Return what is next to a thing, of what stands on the same: nothing else comes as close."""
    beside = [j for j in range(known.n) if j != i and known.carrier[j] == known.carrier[i]]
    if not beside:
        return None
    best = min(beside, key=lambda j: float(known.gaps[i, j]))
    others = [j for j in beside if j != best]
    nearest_other = min((float(known.gaps[i, j]) for j in others), default=np.inf)
    gap = float(known.gaps[i, best])
    is_clear = (
        gap <= _NEXT_M - 0.02
        and nearest_other >= gap + known.margin_m
        and known.labels[best] != known.labels[i]
        and known.shown[best]
        and known.is_on_clear([i, *beside], range(known.n))
    )
    return best if is_clear else None


def sqa3d(known: Known, *, seed: int, per_kind: int) -> list[SQA3DRow]:
    """Ask somebody who stands by one thing and faces another.

    ``rotation`` turns about the vertical; without it one faces along +x.
    """
    rng = generator(seed, known.truth.scene_id, "sqa3d")
    found: list[tuple[View, int, Question]] = []
    for view in views(known, rng):
        free = np.flatnonzero(known.is_free(view.stand))
        if len(free):
            k = int(free[rng.integers(len(free))])
            found += [(view, k, q) for q in _situated(known, view, rng)]
    picked: list[tuple[View, int, Question]] = []
    for kind in SITUATED:
        # Answers are balanced for each way: what is behind is rare, so that `no` would be a good guess.
        balanced = [
            item
            for way in ("", *WAYS)
            for item in in_turn(
                *(rng, [f for f in found if (f[2].kind, f[2].way) == (kind, way)], per_kind),
                by=lambda f: f[2].key,
                even=_EVEN.get(kind, 1),
            )
        ]
        picked += in_turn(rng, balanced, per_kind, by=lambda f: f[2].way)
    rows: list[SQA3DRow] = []
    for view, k, q in picked:
        x, y = (float(v) for v in view.stand[k])
        ahead = known.centres[view.facing, :2] - view.stand[k]
        yaw = float(np.arctan2(ahead[1], ahead[0]))
        slots = {"by": known.names[view.by], "facing": known.names[view.facing]}
        situations = [write(t, **slots) for t in SITUATION["stand"]]
        situations = shuffled(rng, situations)
        rows.append(
            SQA3DRow(
                scene_id=known.truth.scene_id,
                question_id=len(rows),
                situation=situations[0],
                question=q.text,
                answer=q.answers[0],
                position=(x, y, 0.0),
                rotation=(0.0, 0.0, float(np.sin(yaw / 2)), float(np.cos(yaw / 2))),
                alternative_situations=tuple(situations[1:]),
            )
        )
    return rows


def _situated(known: Known, view: View, rng: np.random.Generator) -> Iterator[Question]:
    away = {view.by, view.facing}
    sectors = {i: view.sector(i) for i in known.names if i not in away}
    for i, name in known.names.items():
        if i in away:
            continue
        for way, words in WAYS.items():
            holds = view.holds(i, way)
            if holds is not None:
                yield _situated_question(
                    "is_way", "yes" if holds else "no", i, thing=name, way=words
                )
        sector = sectors[i]
        if sector in SECTORS:
            yield _situated_question("where", str(sector), i, thing=name)
        if sector in ("left", "right"):
            yield _situated_question("which_turn", str(sector), i, thing=name)
        if view.is_out_of_sight(i):
            yield _situated_question("can_see", "no", i, thing=name)
        if sector == "front" and _in_sight(known, view, i):
            yield _situated_question("can_see", "yes", i, thing=name)
    for label in known.several:
        some = known.by_label[label]
        if away & set(some):
            continue
        for way, words in WAYS.items():
            holds = [view.holds(i, way) for i in some]
            if None in holds:
                continue
            n = holds.count(True)
            if n < len(NUMBERS):
                slots = {"things": plural(label), "way": words}
                yield _situated_question("how_many", NUMBERS[n], *some, **slots)
            if n == 1 and known.coloured(label):
                i = some[holds.index(True)]
                slots = {"thing": label, "way": words}
                yield _situated_question("what_color", known.colours[i], i, **slots)
    names = [i for i in known.names if i not in away]
    for i, j in shuffled(rng, list(combinations(names, 2)))[:8]:
        off = view.off_m[:, [i, j]]
        lead = off[:, 1] - off[:, 0]
        # Between two standpoints, either distance may change by a step.
        least = known.margin_m + STEP_M
        if off.min() >= 0.15 and np.abs(lead).min() >= least and len({*(lead > 0)}) == 1:
            closer = known.names[i if lead[0] > 0 else j]
            first, second = shuffled(rng, [i, j])
            slots = {"thing": known.names[first], "other": known.names[second]}
            yield _situated_question("which_closer", closer, i, j, **slots)


def _situated_question(kind: str, answer: str, *about: int, **slots: str) -> Question:
    words = slots.get("way")
    way = next((name for name, said in WAYS.items() if said == words), "")
    return Question(kind, write(SITUATED[kind][0], **slots), (answer,), about, way)


def _in_sight(known: Known, view: View, i: int) -> bool:
    """Whether nothing is between the eyes, wherever they are, and the middle of a thing."""
    stand = view.stand[known.is_free(view.stand, by_m=0.1)]
    eyes = np.column_stack([stand, np.full(len(stand), _EYE_M)])
    return not any(
        _is_crossed(known.objects[j], eyes, known.centres[i])
        for j in range(known.n)
        if j != i and known.carrier[i] != j
    )


def _is_crossed(thing: ObjectTruth, starts: NDArray[np.float64], end: NDArray[np.float64]) -> bool:
    """Whether a segment from one of (s, 3) points goes through a box made larger all around."""
    half = thing.size / 2 + STEP_M
    origin = (starts - thing.centre) @ thing.axes.T
    step = (end - starts) @ thing.axes.T
    # Slab by slab; a segment along a slab takes all but forever to leave it.
    step = np.where(np.abs(step) < 1e-9, 1e-9, step)
    a, b = (-half - origin) / step, (half - origin) / step
    enter = np.minimum(a, b).max(axis=1)
    leave = np.maximum(a, b).min(axis=1)
    return bool((np.maximum(enter, 0.0) <= np.minimum(leave, 1.0)).any())
