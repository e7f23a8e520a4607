"""All questions about a scene."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vega_policy.scene.annotations import TASKS, Row, Task
from vega_policy.scene.questions.asking import scanqa, sqa3d
from vega_policy.scene.questions.known import Known
from vega_policy.scene.questions.referring import multi3drefer, scan2cap, scanrefer
from vega_policy.scene.questions.vsi import vsi_bench
from vega_policy.spec import ContractError
from vega_policy.spec.names import require_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vega_policy.scene.truth import SceneTruth

Rows = dict[Task, "Sequence[Row]"]


def generate(
    truth: SceneTruth,
    *,
    tasks: Sequence[Task] = TASKS,
    seed: int = 0,
    labels: Sequence[str] = (),
    per_kind: int = 4,
) -> Rows:
    """Ask about one scene; only what has one answer beyond doubt.

    The same scene and seed give the same rows of a task, whatever other tasks are asked for. Numbers of
    SQA3D's and VSI-Bench's questions begin at 0 in each scene.

    Args:
        truth: The scene.
        tasks: Which data sets.
        seed: Another seed picks other questions.
        labels: Classes of all scenes, for descriptions of what is not there.
        per_kind: Most questions of each kind (relation, question word, VSI type).

    Raises:
        ContractError: An unknown task, or ``per_kind`` is less than 1.
    """
    for task in tasks:
        require_name(task, TASKS, what="task")
    if per_kind < 1:
        raise ContractError(f"per_kind is {per_kind}, expected at least 1")
    known = Known(truth)
    rows: Rows = {}
    for task in tasks:
        match task:
            case "scanrefer":
                rows[task] = scanrefer(known, seed=seed, per_kind=per_kind)
            case "multi3drefer":
                rows[task] = multi3drefer(known, seed=seed, per_kind=per_kind, labels=labels)
            case "scan2cap":
                rows[task] = scan2cap(known, seed=seed, per_kind=per_kind)
            case "scanqa":
                rows[task] = scanqa(known, seed=seed, per_kind=per_kind)
            case "sqa3d":
                rows[task] = sqa3d(known, seed=seed, per_kind=per_kind)
            case "vsi_bench":
                rows[task] = vsi_bench(known, seed=seed, per_kind=per_kind)
    return rows
