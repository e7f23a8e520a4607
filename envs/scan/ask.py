"""Questions about exported scans, each proved, in the public annotation files."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from vega_policy.data.progress import Progress
from vega_policy.scene.annotations import TASKS, Row, Task
from vega_policy.scene.questions.blind import Blind, blind
from vega_policy.scene.questions.generate import Rows, generate
from vega_policy.scene.questions.prove import prove
from vega_policy.scene.readers.multi3drefer import write_multi3drefer
from vega_policy.scene.readers.scan2cap import write_scan2cap
from vega_policy.scene.readers.scanqa import write_scanqa
from vega_policy.scene.readers.scanrefer import write_scanrefer
from vega_policy.scene.readers.sqa3d import write_sqa3d
from vega_policy.scene.readers.vsi_bench import write_vsi
from vega_policy.scene.truth import TRUTH_FILE, SceneTruth, read_truth
from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envs.scan.export import ScanSettings

ANNOTATIONS = "annotations"
_NAMED = 3
"""Rows that an error shows."""


@dataclass(frozen=True)
class Written:
    """What was asked."""

    rows: dict[str, int]
    """By task."""
    proved: int
    """How many of all rows: each of them, or nothing would have been written."""
    blind: tuple[Blind, ...]
    """What is got without looking."""


def write_questions(settings: ScanSettings, scenes: Sequence[str]) -> Written:
    """Write the files of all tasks to ``<out>/annotations``, if each row is proved.

    Raises:
        ContractError: A scene has no truth, or it is broken; or rows are not proved, which is a mistake of
            the generator or of the proof: nothing is written, and the first rows are named.
    """
    truths = [read_truth(settings.out / scene / TRUTH_FILE) for scene in scenes]
    labels = sorted({item.label for truth in truths for item in truth.objects})
    rows: dict[Task, list[Any]] = {task: [] for task in TASKS}
    unproved: list[tuple[Row, str]] = []
    context = multiprocessing.get_context("spawn")
    with (
        Progress(len(truths), what="questions", unit="scenes") as progress,
        ProcessPoolExecutor(settings.workers, mp_context=context) as pool,
    ):
        one = partial(_ask, seed=settings.seed, labels=labels)
        for asked, open_rows in pool.map(one, truths):
            for task, some in asked.items():
                rows[task] += some
            unproved += open_rows
            progress.update(1)
    n = sum(len(some) for some in rows.values())
    if unproved:
        named = "\n".join(f"{row}: {why}" for row, why in unproved[:_NAMED])
        raise ContractError(
            f"{len(unproved)} of {n} rows are not proved, so none is written; report the first:\n{named}"
        )
    # Each scene counts from 0; in a file a number is that of one question.
    rows["sqa3d"] = [replace(row, question_id=i) for i, row in enumerate(rows["sqa3d"])]
    rows["vsi_bench"] = [replace(row, id=i) for i, row in enumerate(rows["vsi_bench"])]
    folder = settings.out / ANNOTATIONS
    write_scanrefer(folder / "scanrefer.json", rows["scanrefer"])
    write_multi3drefer(folder / "multi3drefer.json", rows["multi3drefer"])
    write_scan2cap(folder / "scan2cap.json", rows["scan2cap"])
    write_scanqa(folder / "scanqa.json", rows["scanqa"])
    write_sqa3d(folder / "sqa3d_questions.json", rows["sqa3d"])
    write_vsi(folder / "vsi_bench.jsonl", rows["vsi_bench"])
    return Written(
        rows={str(task): len(some) for task, some in rows.items()},
        proved=n,
        blind=blind(rows, truths),
    )


def _ask(
    truth: SceneTruth, *, seed: int, labels: Sequence[str]
) -> tuple[Rows, list[tuple[Row, str]]]:
    """Return the rows of a scene, and those of them that are not proved with the reason."""
    rows = generate(truth, seed=seed, labels=labels)
    reasons = [(row, prove(row, truth)) for some in rows.values() for row in some]
    return rows, [(row, why) for row, why in reasons if why is not None]
