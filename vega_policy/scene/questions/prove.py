"""A second opinion on every row: the sentence is read back, the scene is measured anew.

Nothing of the generator is used but its sentences. Shapes, nouns and relations are those of `measured`
and `meaning`; a row is proved where they leave exactly the answer it gives.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from vega_policy.scene.annotations import (
    Multi3DReferRow,
    Scan2CapRow,
    ScanQARow,
    ScanReferRow,
    SQA3DRow,
    VsiRow,
)
from vega_policy.scene.questions.meaning import Meaning
from vega_policy.scene.questions.measured import Doubt, Measured
from vega_policy.scene.questions.prove_situated import prove_sqa3d
from vega_policy.scene.questions.prove_vsi import prove_vsi
from vega_policy.scene.questions.sentences import ASK, CAPTION, REFER, without_colour

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vega_policy.scene.annotations import Box, Row
    from vega_policy.scene.questions.sentences import Sentence
    from vega_policy.scene.truth import SceneTruth

_BESIDE_M = 0.31
_NEXT_M = 0.5
_SENTENCE = re.compile(r"[^.]+\.")


def prove(row: Row, truth: SceneTruth) -> str | None:
    """Return what is wrong with a row, or what cannot be shown; None where it is proved.

    Args:
        row: A row of any task.
        truth: The scene it is about.
    """
    scene = row.scene_name if isinstance(row, VsiRow) else row.scene_id
    if scene != truth.scene_id:
        return f"the row is about {scene}, the truth about {truth.scene_id}"
    try:
        meaning = _meaning(truth)
        match row:
            case ScanReferRow():
                _scanrefer(row, meaning)
            case Multi3DReferRow():
                _multi3drefer(row, meaning)
            case Scan2CapRow():
                _scan2cap(row, meaning)
            case ScanQARow():
                _scanqa(row, meaning)
            case SQA3DRow():
                prove_sqa3d(row, meaning)
            case VsiRow():
                prove_vsi(row, meaning)
    except Doubt as doubt:
        return str(doubt)
    return None


@lru_cache(maxsize=4)
def _meaning(truth: SceneTruth) -> Meaning:
    """Return a scene's geometry, kept for the next rows about it."""
    measured = Measured(truth)
    for i in range(len(truth.objects)):
        if (wrong := measured.inconsistent(i)) is not None:
            raise Doubt(wrong)
    return Meaning(measured)


def _scanrefer(row: ScanReferRow, meaning: Meaning) -> None:
    i = _object(row.object_id, meaning)
    _check_name(row.object_name, i, meaning)
    _check_boxes([row.box], [i], meaning)
    n = meaning.labels.count(row.object_name)
    _check("eval_type", row.eval_type, "unique" if n == 1 else "multiple")
    if row.token:
        _check("token", " ".join(row.token).replace(" ,", ","), row.description)
    found = meaning.described(meaning.one_reading(row.description, REFER))
    _check_targets(row.description, found, [row.object_id], meaning)


def _multi3drefer(row: Multi3DReferRow, meaning: Meaning) -> None:
    said = meaning.one_reading(row.description, REFER, also=row.object_name)
    of_class = [i for i, label in enumerate(meaning.labels) if label == row.object_name]
    targets = [_object(k, meaning) for k in row.object_ids]
    if row.boxes is None:
        raise Doubt("the row has no boxes")
    _check_boxes(row.boxes, targets, meaning)
    for i in targets:
        _check_name(row.object_name, i, meaning)
    others = "w" if len(of_class) > min(len(targets), 1) else "wo"
    n = ("zt", "st", "mt")[min(len(targets), 2)]
    _check("eval_type", row.eval_type, n if n == "mt" else f"{n}_{others}_d")
    _check("attributes", row.attributes, _attributes(said))
    if of_class:
        _check_targets(row.description, meaning.described(said), row.object_ids, meaning)
        return
    # Of a class that is not there, nor anything that goes by its last word.
    _check("description", said.slots.get("thing"), row.object_name)
    _check("targets", row.object_ids, ())
    last = row.object_name.split(" ")[-1]
    if alike := {name for name in meaning.labels if name.split(" ")[-1] == last}:
        raise Doubt(f"{row.object_name!r} may be {', '.join(sorted(alike))}")


def _attributes(said: Sentence) -> frozenset[str]:
    named = said.slots.get("thing") or said.slots.get("things", "")
    found = {"color"} if without_colour(named)[0] else set[str]()
    if said.kind in ("biggest", "smallest", "tallest", "shortest"):
        found.add("shape")
    elif said.kind not in ("only", "all"):
        found.add("spatial")
    return frozenset(found)


def _scan2cap(row: Scan2CapRow, meaning: Meaning) -> None:
    i = _object(row.object_id, meaning)
    _check_name(row.object_name, i, meaning)
    _check_boxes([row.box, row.box_input], [i, i], meaning)
    n = meaning.labels.count(row.object_name)
    _check("question_type", row.question_type, "unique" if n == 1 else "multiple")
    if not meaning.measured.is_shown(i):
        raise Doubt(f"no frame shows object {row.object_id}")
    if not 1 <= len(row.references) <= 5 or len(set(row.references)) < len(row.references):
        raise Doubt(f"{len(row.references)} references, expected 1 to 5 that differ")
    for reference in row.references:
        sentences = _SENTENCE.findall(reference)
        if not sentences or "".join(sentences) != reference:
            raise Doubt(f"{reference!r} is no caption")
        for sentence in sentences:
            if not _is_true(meaning.one_reading(sentence.strip(), CAPTION), i, meaning):
                raise Doubt(f"{sentence.strip()!r} is not true of object {row.object_id}")


def _is_true(said: Sentence, i: int, meaning: Meaning) -> bool:
    slots = said.slots
    match said.kind:
        case "is":
            return meaning.is_called(i, slots["one"])
        case "color":
            return slots["label"] == meaning.labels[i] and slots["color"] == meaning.colour(i)
        case "on":
            return meaning.measured.is_on(i, meaning.the(slots["anchor"]))
        case "next":
            return _is_next(i, meaning.the(slots["anchor"]), meaning)
        case "alone":
            return meaning.of_class(slots["label"]) == [i]
        case _:
            some = meaning.many(slots["things"])
            return i in some and len(some) == meaning.number(slots["n"])


def _is_next(i: int, anchor: int, meaning: Meaning) -> bool:
    """Whether two things stand on the same, close and apart."""
    measured = meaning.measured
    is_same_level = measured.support(i) == measured.support(anchor)
    return i != anchor and is_same_level and 0 < measured.apart(i, anchor) <= _BESIDE_M


def _scanqa(row: ScanQARow, meaning: Meaning) -> None:
    said = meaning.one_reading(row.question, ASK)
    looked_at = [_object(k, meaning) for k in row.object_ids]
    if len(row.object_names) != len(looked_at):
        raise Doubt(f"{len(row.object_names)} names for {len(looked_at)} objects")
    for name, i in zip(row.object_names, looked_at, strict=True):
        _check_name(name, i, meaning)
    if not row.answers:
        raise Doubt("the row has no answer")
    about = _asked_about(said, meaning)
    _check_targets(row.question, about, row.object_ids, meaning)
    for answer in row.answers:
        if not _is_answer(answer, said, about, meaning):
            raise Doubt(f"{answer!r} does not answer {row.question!r}")


def _asked_about(said: Sentence, meaning: Meaning) -> list[int]:
    """Return what has to be looked at."""
    slots, everything = said.slots, range(len(meaning.labels))
    anchor = meaning.the(slots["anchor"]) if "anchor" in slots else -1
    match said.kind:
        case "count":
            return meaning.many(slots["things"])
        case "count_on":
            return meaning.on(meaning.many(slots["things"]), anchor)
        case "color" | "where":
            return [meaning.the(slots["thing"])]
        case "color_on":
            return meaning.on(meaning.fitting(slots["thing"]), anchor)
        case "color_closest":
            return [meaning.extreme(meaning.fitting(slots["thing"]), anchor)]
        case "what_on":
            return meaning.on(everything, anchor)
        case _:
            return [_neighbour(anchor, meaning)]


def _neighbour(anchor: int, meaning: Meaning) -> int:
    """Return the one thing next to another: of what stands on the same, nothing else is as close."""
    measured = meaning.measured
    under = measured.support(anchor)
    beside = [j for j in range(len(meaning.labels)) if j != anchor and measured.support(j) == under]
    gaps = {j: measured.apart(j, anchor) for j in beside}
    best = min(beside, key=lambda j: gaps[j], default=None)
    if best is None or gaps[best] > _NEXT_M:
        raise Doubt("nothing is next to it")
    rivals = [gap for j, gap in gaps.items() if j != best]
    if min(rivals, default=np.inf) < gaps[best] + meaning.margin_m:
        raise Doubt("more than one thing is next to it")
    return best


def _is_answer(answer: str, said: Sentence, about: Sequence[int], meaning: Meaning) -> bool:
    match said.kind:
        case "count" | "count_on":
            return meaning.number(answer) == len(about)
        case "color" | "color_on" | "color_closest":
            return len(about) == 1 and answer.removeprefix("it is ") == meaning.colour(about[0])
        case "where":
            where = re.fullmatch(r"(?:it is )?on (?:top of )?the (.+)", answer)
            return where is not None and meaning.measured.is_on(about[0], meaning.the(where[1]))
        case _:
            return len(about) == 1 and meaning.is_called(about[0], answer)


# -- shared checks ----------------------------------------------------------------------------------


def _object(object_id: int, meaning: Meaning) -> int:
    if object_id not in meaning.index:
        raise Doubt(f"the scene has no object {object_id}")
    return meaning.index[object_id]


def _check(what: str, got: object, expected: object) -> None:
    if got != expected:
        raise Doubt(f"{what} is {got!r}, expected {expected!r}")


def _check_name(name: str, i: int, meaning: Meaning) -> None:
    _check(f"name of object {meaning.measured.objects[i].object_id}", name, meaning.labels[i])


def _check_boxes(boxes: Sequence[Box | None], some: Sequence[int], meaning: Meaning) -> None:
    if len(boxes) != len(some):
        raise Doubt(f"{len(boxes)} boxes for {len(some)} objects")
    for box, i in zip(boxes, some, strict=True):
        real = meaning.measured.objects[i]
        if box is None or np.abs(np.array(box) - real.box).max() > 1e-3:
            raise Doubt(f"box of object {real.object_id} is {box}, expected {real.box.tolist()}")


def _check_targets(text: str, found: Sequence[int], ids: Sequence[int], meaning: Meaning) -> None:
    expected = sorted(meaning.measured.objects[i].object_id for i in found)
    if expected != sorted(ids):
        raise Doubt(f"{text!r} means objects {expected}, the row says {sorted(ids)}")
