"""How far one gets without looking: the best answer to each wording, whatever things it names."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vega_policy.scene.annotations import ScanQARow
from vega_policy.scene.metrics.vsi_bench import mean_relative_accuracy
from vega_policy.scene.questions.sentences import ASK, REFER, SITUATED, Family, read, without_colour

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vega_policy.scene.annotations import ScanReferRow, SQA3DRow, Task, VsiRow
    from vega_policy.scene.truth import SceneTruth


@dataclass(frozen=True)
class Blind:
    """One kind of question of a task."""

    task: str
    kind: str
    n: int
    """Rows."""
    answers: int | None
    """How many different answers they have; None where they are boxes or captions."""
    best: str
    """What is right most often."""
    score: float | None
    """What the best answer to each wording is worth by the task's metric, 0 to 1; None for captions."""


def blind(rows: Mapping[Task, Sequence[Any]], truths: Iterable[SceneTruth]) -> tuple[Blind, ...]:
    """Return every kind of question with what is got without looking.

    For ScanRefer that is a random object of the right class, for Multi3DRefer that there is none. For
    ScanQA and SQA3D it is the exact matches of the answer that is right most often to the same words, but
    for the things they name; a colour word and ``to my left`` are such words. For VSI-Bench it is the
    accuracy or mean relative accuracy of one answer to all of a type, for choices a letter or a text.

    Args:
        rows: As `generate` returns them, of any number of scenes.
        truths: The scenes.
    """
    of_class = {t.scene_id: Counter(o.label for o in t.objects) for t in truths}
    labels = sorted({label for counts in of_class.values() for label in counts})
    return (
        *_refer(rows.get("scanrefer", ()), of_class, labels),
        *_types(rows.get("multi3drefer", ())),
        *(_captions(some) for some in (rows.get("scan2cap", ()),) if some),
        *_exact("scanqa", rows.get("scanqa", ()), ASK, labels),
        *_exact("sqa3d", rows.get("sqa3d", ()), SITUATED, labels),
        *_vsi(rows.get("vsi_bench", ())),
    )


def table(found: Iterable[Blind]) -> str:
    """Return one line a kind, to be read by people."""
    lines = [f"{'task':13} {'kind':29} {'rows':>6} {'answers':>7} {'score':>6}  most often right"]
    for row in found:
        answers = "" if row.answers is None else str(row.answers)
        score = "" if row.score is None else f"{100 * row.score:.1f}"
        lines.append(
            f"{row.task:13} {row.kind:29} {row.n:6d} {answers:>7} {score:>6}  {row.best}".rstrip()
        )
    return "\n".join(lines)


def _refer(
    rows: Sequence[ScanReferRow], of_class: Mapping[str, Counter[str]], labels: Sequence[str]
) -> list[Blind]:
    chances: dict[str, list[float]] = {}
    for row in rows:
        kind = read(row.description, REFER, nouns=labels)[0].kind
        chances.setdefault(kind, []).append(1 / of_class[row.scene_id][row.object_name])
    return [
        Blind("scanrefer", kind, len(c), None, "any of its class", float(np.mean(c)))
        for kind, c in sorted(chances.items())
    ]


def _types(rows: Sequence[Any]) -> list[Blind]:
    counts = Counter(row.eval_type for row in rows)
    return [
        Blind("multi3drefer", kind, n, None, "nothing", float(kind.startswith("zt")))
        for kind, n in sorted(counts.items())
    ]


def _captions(rows: Sequence[Any]) -> Blind:
    return Blind("scan2cap", "caption", len(rows), None, "", None)


def _exact(
    task: str, rows: Sequence[ScanQARow | SQA3DRow], family: Family, labels: Sequence[str]
) -> list[Blind]:
    # kind -> wording -> right answers of each row
    answers: dict[str, dict[tuple[str, bool], list[tuple[str, ...]]]] = {}
    for row in rows:
        said = read(row.question, family, nouns=labels)[0]
        named = said.slots.get("thing") or said.slots.get("things", "")
        wording = (said.slots.get("way", ""), bool(without_colour(named)[0]))
        right = row.answers if isinstance(row, ScanQARow) else (row.answer,)
        answers.setdefault(said.kind, {}).setdefault(wording, []).append(right)
    found: list[Blind] = []
    for kind, by_wording in sorted(answers.items()):
        rights = [right for some in by_wording.values() for right in some]
        n_right = sum(_most_frequent(some)[1] for some in by_wording.values())
        different = len({right[0] for right in rights})
        best = _most_frequent(rights)[0]
        found.append(Blind(task, kind, len(rights), different, best, n_right / len(rights)))
    return found


def _most_frequent(rights: Sequence[tuple[str, ...]]) -> tuple[str, int]:
    return Counter(answer for right in rights for answer in right).most_common(1)[0]


def _vsi(rows: Sequence[VsiRow]) -> list[Blind]:
    by_type: dict[str, list[VsiRow]] = {}
    for row in rows:
        by_type.setdefault(row.question_type, []).append(row)
    return [_constant(kind, some) for kind, some in sorted(by_type.items())]


def _constant(kind: str, rows: Sequence[VsiRow]) -> Blind:
    if rows[0].options is None:
        values = [float(row.ground_truth) for row in rows]
        scores = {
            value: float(np.mean([mean_relative_accuracy(value, truth) for truth in values]))
            for value in sorted({*values})
        }
        best = max(scores, key=lambda value: scores[value])
        return Blind("vsi_bench", kind, len(rows), len(scores), f"{best:g}", scores[best])
    letters = Counter(row.ground_truth for row in rows)
    texts = Counter(_right(row) for row in rows)
    best, n = max(letters.most_common(1)[0], texts.most_common(1)[0], key=lambda pair: pair[1])
    return Blind("vsi_bench", kind, len(rows), len(texts), best, n / len(rows))


def _right(row: VsiRow) -> str:
    return next(o[3:] for o in row.options or () if o[:1] == row.ground_truth)
