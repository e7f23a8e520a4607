"""Questions about exported scans, in the public annotation files."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from vega_policy.data.progress import Progress
from vega_policy.scene.questions.generate import TASKS, generate
from vega_policy.scene.readers.multi3drefer import write_multi3drefer
from vega_policy.scene.readers.scan2cap import write_scan2cap
from vega_policy.scene.readers.scanqa import write_scanqa
from vega_policy.scene.readers.scanrefer import write_scanrefer
from vega_policy.scene.readers.sqa3d import write_sqa3d
from vega_policy.scene.readers.vsi_bench import write_vsi
from vega_policy.scene.truth import TRUTH_FILE, read_truth

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envs.scan.export import ScanSettings

ANNOTATIONS = "annotations"


def write_questions(settings: ScanSettings, scenes: Sequence[str]) -> dict[str, int]:
    """Write the files of all tasks to ``<out>/annotations`` and return how many rows each has.

    Raises:
        ContractError: A scene has no truth, or it is broken.
    """
    truths = [read_truth(settings.out / scene / TRUTH_FILE) for scene in scenes]
    labels = sorted({item.label for truth in truths for item in truth.objects})
    rows: dict[str, list[Any]] = {task: [] for task in TASKS}
    context = multiprocessing.get_context("spawn")
    with (
        Progress(len(truths), what="questions", unit="scenes") as progress,
        ProcessPoolExecutor(settings.workers, mp_context=context) as pool,
    ):
        one = partial(generate, seed=settings.seed, labels=labels)
        for asked in pool.map(one, truths):
            for task, some in asked.items():
                rows[task] += some
            progress.update(1)
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
    return {task: len(some) for task, some in rows.items()}
