"""Where the files of each task lie in a data folder, so that real files drop in under their own names.

A file is taken from the first of its places that exists: the short name that generated questions have,
then the released name in a folder of its data set.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vega_policy.scene.readers.multi3drefer import read_multi3drefer
from vega_policy.scene.readers.scan2cap import read_scan2cap
from vega_policy.scene.readers.scanqa import read_scanqa
from vega_policy.scene.readers.scanrefer import read_scanrefer
from vega_policy.scene.readers.sqa3d import read_sqa3d
from vega_policy.scene.readers.vsi_bench import read_vsi
from vega_policy.spec import ContractError
from vega_policy.spec.names import require_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_PLACES: dict[str, tuple[str, ...]] = {
    "scanrefer": (
        "scanrefer.json",
        "scanrefer/ScanRefer_filtered_{split}.json",
        "scanrefer/scanrefer_vg_{split}_llava_style.json",
    ),
    "multi3drefer": (
        "multi3drefer.json",
        "multi3drefer/multi3drefer_{split}.json",
        "multi3drefer/multi3drefer_{split}_llava_style.json",
    ),
    "scan2cap": (
        "scan2cap.json",
        "scan2cap/scan2cap_{split}_llava_style.json",
        "scanrefer/ScanRefer_filtered_{split}.json",
    ),
    "scanqa": (
        "scanqa.json",
        "scanqa/ScanQA_v1.0_{split}.json",
        "scanqa/scanqa_{split}_llava_style.json",
    ),
    "sqa3d": (
        "sqa3d_questions.json",
        "sqa3d/v1_balanced_questions_{split}_scannetv2.json",
        "sqa3d/balanced/v1_balanced_questions_{split}_scannetv2.json",
        "sqa3d/sqa3d_{split}_llava_style.json",
    ),
    "vsi_bench": (
        "vsi_bench.jsonl",
        "vsi_bench/{split}.jsonl",
        "vsi_bench/{split}.parquet",
        "vsi_bench/{split}-00000-of-00001.parquet",
    ),
}
SPLITS = dict.fromkeys(_PLACES, "val") | {"sqa3d": "test", "vsi_bench": "test"}
"""The split on which each task is reported."""
_READERS: dict[str, Callable[[Path], Sequence[object]]] = {
    "scanrefer": read_scanrefer,
    "multi3drefer": read_multi3drefer,
    "scan2cap": read_scan2cap,
    "scanqa": read_scanqa,
    "sqa3d": read_sqa3d,
    "vsi_bench": read_vsi,
}


def annotation_file(root: Path | str, task: str, *, split: str | None = None) -> Path:
    """Return the annotation file of a task.

    Args:
        root: The data folder.
        task: One of ``scanrefer multi3drefer scan2cap scanqa sqa3d vsi_bench``.
        split: As in the names of the files; None: the one the task is reported on.

    Raises:
        ContractError: An unknown task, or no file in any of its places; all are named.
    """
    require_name(task, _PLACES, what="task")
    names = [place.format(split=split or SPLITS[task]) for place in _PLACES[task]]
    found = next((Path(root) / name for name in names if (Path(root) / name).is_file()), None)
    if found is None:
        raise ContractError(
            f"no annotations of {task} in {root}; put one of {', '.join(names)} there"
        )
    return found


def missing_annotations(root: Path | str, tasks: Iterable[str]) -> list[str]:
    """Return one sentence for each task without annotations: what is missing and where it goes."""
    sentences: list[str] = []
    for task in tasks:
        try:
            annotation_file(root, task)
        except ContractError as error:
            sentences.append(str(error))
    return sentences


def read_annotations(root: Path | str, task: str, *, split: str | None = None) -> Sequence[object]:
    """Read the rows of a task from a data folder; see `annotation_file`.

    Raises:
        ContractError: As `annotation_file`, or rows have problems; all are listed.
    """
    return _READERS[require_name(task, _READERS, what="task")](
        annotation_file(root, task, split=split)
    )
