"""Descriptions of one thing or of several: ScanRefer, Multi3DRefer and Scan2Cap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from vega_policy.scene.annotations import Multi3DReferRow, Scan2CapRow, ScanReferRow
from vega_policy.scene.questions.choosing import generator, in_turn, shuffled
from vega_policy.scene.questions.known import View
from vega_policy.scene.questions.sentences import (
    CAPTION,
    COLOURS,
    NUMBERS,
    REFER,
    one,
    plural,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from vega_policy.scene.annotations import Box, EvalType
    from vega_policy.scene.questions.known import Known

_N_VIEWS = 40
"""Standing places and directions that are tried in a scene."""
_NEXT_M = 0.3
"""Things closer than this are next to each other."""
_ATTRIBUTES = {
    "only": frozenset[str](),
    "all": frozenset[str](),
    "biggest": frozenset({"shape"}),
    "smallest": frozenset({"shape"}),
    "tallest": frozenset({"shape"}),
    "shortest": frozenset({"shape"}),
}


@dataclass(frozen=True)
class Phrase:
    """A description and what it means."""

    kind: str
    label: str
    targets: tuple[int, ...]
    """Indices of things."""
    slots: tuple[tuple[str, str], ...]

    def text(self, rng: np.random.Generator) -> str:
        """Choose one of the paraphrases."""
        options = REFER[self.kind]
        return write(options[int(rng.integers(len(options)))], **dict(self.slots))

    @property
    def attributes(self) -> frozenset[str]:
        """Of ``spatial color shape``: what it uses."""
        own = _ATTRIBUTES.get(self.kind, frozenset({"spatial"}))
        named = dict(self.slots).get("thing", dict(self.slots).get("things", ""))
        is_coloured = named.partition(" ")[0] in COLOURS
        return own | {"color"} if is_coloured else own


def _phrase(kind: str, label: str, targets: Sequence[int], **slots: str) -> Phrase:
    return Phrase(kind, label, tuple(targets), tuple(slots.items()))


def single(known: Known, rng: np.random.Generator) -> list[Phrase]:
    """Return descriptions that fit one thing alone."""
    found = [_phrase("only", known.labels[i], [i], thing=name) for i, name in known.names.items()]
    for label in known.several:
        some = known.by_label[label]
        found += _by_relation(known, label, some)
        for what in ("biggest", "smallest", "tallest", "shortest"):
            best = known.most(some, what)
            if best is not None:
                found.append(_phrase(what, label, [best], thing=label))
    return found + list(_by_side(known, rng))


def _by_relation(known: Known, label: str, some: list[int]) -> Iterator[Phrase]:
    for anchor, name in known.names.items():
        if anchor in some:
            continue
        for kind in ("closest", "farthest"):
            best = known.nearest(some, anchor, farthest=kind == "farthest")
            if best is not None:
                yield _phrase(kind, label, [best], thing=label, anchor=name)
        on = [i for i in some if known.carrier[i] == anchor]
        if len(on) == 1 and known.is_on_clear(some, [anchor]):
            yield _phrase("on", label, on, thing=label, anchor=name)


def views(known: Known, rng: np.random.Generator, *, n: int = _N_VIEWS) -> list[View]:
    """Return places and directions, each named without doubt."""
    low = [i for i in known.names if known.stands_low(i)]
    pairs = [(a, b) for a in low for b in known.names if a != b]
    tried = (View(known, a, b) for a, b in shuffled(rng, pairs)[:n])
    return [view for view in tried if view.is_usable]


def _by_side(known: Known, rng: np.random.Generator) -> Iterator[Phrase]:
    for view in views(known, rng):
        for label in known.several:
            some = known.by_label[label]
            if view.by in some or view.facing in some:
                continue
            sides = [view.half(i) for i in some]
            for side in ("left", "right"):
                if None not in sides and sides.count(side) == 1:
                    slots = {"by": known.names[view.by], "facing": known.names[view.facing]}
                    target = some[sides.index(side)]
                    yield _phrase("side", label, [target], thing=label, side=side, **slots)


def several(known: Known) -> list[Phrase]:
    """Return descriptions that fit more than one thing."""
    found: list[Phrase] = []
    for label in known.several:
        some = known.by_label[label]
        found.append(_phrase("all", label, some, things=plural(label)))
        if known.coloured(label):
            colours = [known.colours[i] for i in some]
            for colour in dict.fromkeys(colours):
                same = [i for i in some if known.colours[i] == colour]
                if 1 < len(same) < len(some):
                    found.append(_phrase("all", label, same, things=plural(f"{colour} {label}")))
        for anchor, name in known.names.items():
            on = [i for i in some if known.carrier[i] == anchor]
            if len(on) > 1 and known.is_on_clear(some, [anchor]):
                found.append(_phrase("all_on", label, on, things=plural(label), anchor=name))
    return found


def nothing(known: Known, labels: Sequence[str]) -> tuple[list[Phrase], list[Phrase]]:
    """Return descriptions that fit nothing: of classes that are there, and of others.

    Args:
        known: The scene.
        labels: Classes of all scenes.
    """
    present: list[Phrase] = []
    for label, some in known.by_label.items():
        if known.clear[label] and known.coloured(label):
            missing = [c for c in COLOURS if c not in {known.colours[i] for i in some}]
            present += [_phrase("only", label, [], thing=f"{c} {label}") for c in missing]
    absent = [label for label in labels if not _shares_a_word(label, known.by_label)]
    return present, [_phrase("only", label, [], thing=label) for label in absent]


def _shares_a_word(label: str, labels: Sequence[str] | dict[str, list[int]]) -> bool:
    """Whether a class may be meant by another's name: a ``coffee table`` is a ``table``."""
    last = label.rsplit(maxsplit=1)[-1]
    return any(last == other.rsplit(maxsplit=1)[-1] for other in labels)


def scanrefer(known: Known, *, seed: int, per_kind: int) -> list[ScanReferRow]:
    """Describe things one at a time."""
    rng = generator(seed, known.truth.scene_id, "scanrefer")
    phrases = single(known, rng)
    rows: list[ScanReferRow] = []
    said: dict[int, int] = {}
    for phrase in _picked(rng, phrases, per_kind):
        (i,) = phrase.targets
        text = phrase.text(rng)
        rows.append(
            ScanReferRow(
                scene_id=known.truth.scene_id,
                object_id=known.ids[i],
                object_name=known.labels[i],
                ann_id=str(said.get(i, 0)),
                description=text,
                token=tuple(text.replace(",", " ,").split()),
                eval_type="unique" if known.counts[known.labels[i]] == 1 else "multiple",
                box=_box(known, i),
            )
        )
        said[i] = said.get(i, 0) + 1
    return rows


def _picked(rng: np.random.Generator, phrases: list[Phrase], per_kind: int) -> list[Phrase]:
    kinds = sorted({phrase.kind for phrase in phrases})
    return [
        phrase
        for kind in kinds
        for phrase in in_turn(
            *(rng, [p for p in phrases if p.kind == kind], per_kind),
            by=lambda p: p.targets or p.label,
        )
    ]


def multi3drefer(
    known: Known, *, seed: int, per_kind: int, labels: Sequence[str]
) -> list[Multi3DReferRow]:
    """Describe any number of things, all five types."""
    rng = generator(seed, known.truth.scene_id, "multi3drefer")
    present, absent = nothing(known, labels)
    one_of = single(known, rng)
    alone = [p for p in one_of if known.counts[p.label] == 1]
    among = [p for p in one_of if known.counts[p.label] > 1]
    types: dict[EvalType, list[Phrase]] = {
        "zt_w_d": present,
        "zt_wo_d": absent,
        "st_w_d": in_turn(rng, among, 2 * per_kind, by=lambda p: p.kind),
        "st_wo_d": alone,
        "mt": several(known),
    }
    rows: list[Multi3DReferRow] = []
    for eval_type, phrases in types.items():
        n = 2 * per_kind if eval_type in ("st_w_d", "mt") else per_kind
        for phrase in in_turn(rng, phrases, n, by=lambda p: (p.kind, p.label)):
            rows.append(
                Multi3DReferRow(
                    scene_id=known.truth.scene_id,
                    object_ids=tuple(known.ids[i] for i in phrase.targets),
                    description=phrase.text(rng),
                    eval_type=eval_type,
                    object_name=phrase.label,
                    ann_id=len(rows),
                    attributes=phrase.attributes,
                    boxes=tuple(_box(known, i) for i in phrase.targets),
                )
            )
    return rows


def scan2cap(known: Known, *, seed: int, per_kind: int) -> list[Scan2CapRow]:
    """Caption things that are shown: two to five paraphrases of what is true of each."""
    rng = generator(seed, known.truth.scene_id, "scan2cap")
    shown = [i for i in range(known.n) if known.shown[i]]
    picked = in_turn(rng, shown, 3 * per_kind, by=lambda i: known.labels[i])
    rows: list[Scan2CapRow] = []
    for i in picked:
        references = _captions(known, i)
        n = int(rng.integers(2, 6))
        box = _box(known, i)
        rows.append(
            Scan2CapRow(
                scene_id=known.truth.scene_id,
                object_id=known.ids[i],
                box=box,
                references=tuple(shuffled(rng, references)[:n]),
                box_input=box,
                object_name=known.labels[i],
                ann_id="0",
                question_type="unique" if known.counts[known.labels[i]] == 1 else "multiple",
            )
        )
    return rows


def _captions(known: Known, i: int) -> list[str]:
    label, colour = known.labels[i], known.colours[i]
    name = f"{colour} {label}" if colour else label
    first = [write(t, one=one(name)) for t in CAPTION["is"]]
    if colour:
        first += [write(t, label=label, color=colour) for t in CAPTION["color"]]
    second = _second(known, i)
    return [f"{a} {b}".strip() for a in first for b in second]


def _second(known: Known, i: int) -> list[str]:
    """Say where a thing is, in the words that tell most of it."""
    label = known.labels[i]
    carrier = known.carrier[i]
    if carrier in known.names and known.is_on_clear([i], [carrier]):
        return [write(t, anchor=known.names[carrier]) for t in CAPTION["on"]]
    near = [
        j
        for j in known.names
        if j != i
        and known.carrier[j] == carrier
        and 0.01 < known.gaps[i, j] < _NEXT_M
        and known.is_on_clear([i, j], range(known.n))
    ]
    if near:
        closest = min(near, key=lambda j: float(known.gaps[i, j]))
        return [write(t, anchor=known.names[closest]) for t in CAPTION["next"]]
    n = known.counts[label]
    if not known.clear[label] or n >= len(NUMBERS):
        return [""]
    if n == 1:
        return [write(t, label=label) for t in CAPTION["alone"]]
    return [write(t, n=NUMBERS[n], things=plural(label)) for t in CAPTION["among"]]


def _box(known: Known, i: int) -> Box:
    return cast("Box", tuple(float(x) for x in known.objects[i].box))
