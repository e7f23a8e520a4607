"""Scans and questions from disk, and which scenes training sees."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vega_policy.data.progress import Progress
from vega_policy.scene.readers.multi3drefer import read_multi3drefer
from vega_policy.scene.readers.scan2cap import read_scan2cap
from vega_policy.scene.readers.scannet import list_scans, read_scan
from vega_policy.scene.readers.scanqa import read_scanqa
from vega_policy.scene.readers.scanrefer import read_scanrefer
from vega_policy.scene.readers.sqa3d import read_sqa3d
from vega_policy.scene.readers.vsi_bench import read_vsi
from vega_policy.scene.train.cases import Case, Row, Task, case_of
from vega_policy.scene.train.rooms import Room, room_of
from vega_policy.spec import ContractError
from vega_policy.train.prior.stage import draw_generator

if TYPE_CHECKING:
    from collections.abc import Callable

    from vega_policy.scene.train.settings import DataConfig

log = logging.getLogger(__name__)

ANNOTATION_FILES: dict[Task, str] = {
    "scanrefer": "scanrefer.json",
    "multi3drefer": "multi3drefer.json",
    "scan2cap": "scan2cap.json",
    "scanqa": "scanqa.json",
    "sqa3d": "sqa3d_questions.json",
    "vsi_bench": "vsi_bench.jsonl",
}
"""Names in the folder of annotations; SQA3D's answers lie beside its questions."""

_READERS: dict[Task, Callable[[Path], Sequence[Row]]] = {
    "scanrefer": read_scanrefer,
    "multi3drefer": read_multi3drefer,
    "scan2cap": read_scan2cap,
    "scanqa": read_scanqa,
    "sqa3d": read_sqa3d,
    "vsi_bench": read_vsi,
}


@dataclass(frozen=True, eq=False)
class Corpus:
    """Rooms and questions on both sides of the split."""

    train: Sequence[Room]
    held_out: Sequence[Room]
    cases: Mapping[str, Sequence[Case]]
    """By scene, of all tasks, in the order of the files."""
    rows: Mapping[Task, Sequence[Row]]
    """Of the held-out scenes, by task."""

    def asked(self, rooms: Sequence[Room], tasks: Sequence[Task]) -> dict[str, list[Case]]:
        """Return the questions of some tasks by scene, of rooms that have any."""
        chosen = {r.scene_id: [c for c in self.cases[r.scene_id] if c.task in tasks] for r in rooms}
        return {scene: cases for scene, cases in chosen.items() if cases}


def split_scenes(
    scenes: Sequence[str], *, held_out: float, seed: int, limit: int | None = None
) -> tuple[list[str], list[str]]:
    """Return training and held-out scenes, each in an order drawn from the seed.

    Args:
        scenes: Sorted.
        held_out: Share, at least two scenes.
        seed: Of the order.
        limit: Use only so many.

    Raises:
        ContractError: There are fewer than two scenes on one side.
    """
    order = torch.randperm(len(scenes), generator=draw_generator(seed, "split")).tolist()
    drawn: list[str] = [scenes[int(i)] for i in order[:limit]]
    n = max(2, round(held_out * len(drawn)))
    if len(drawn) - n < 2:
        raise ContractError(
            f"{len(drawn)} scenes leave {max(len(drawn) - n, 0)} for training and {n} held out, "
            "expected at least 2 and 2; render more with scripts/scan.py"
        )
    return drawn[:-n], drawn[-n:]


def read_rows(folder: Path, tasks: Sequence[Task]) -> dict[Task, list[Row]]:
    """Read the annotation files of some tasks.

    Raises:
        ContractError: Files are missing; all are named.
    """
    missing = [ANNOTATION_FILES[t] for t in tasks if not (folder / ANNOTATION_FILES[t]).is_file()]
    if missing:
        raise ContractError(
            f"{folder} has no {', '.join(missing)}; write questions with scripts/scan.py, or leave "
            "these tasks out"
        )
    return {task: list(_READERS[task](folder / ANNOTATION_FILES[task])) for task in tasks}


def read_corpus(
    config: DataConfig,
    *,
    tasks: Sequence[Task],
    seed: int,
    px: int,
    width_px: int,
    unit_px: int,
) -> Corpus:
    """Read scans and questions into memory.

    Args:
        config: Where they are.
        tasks: Which questions.
        seed: Of the split.
        px: See `room_of`, as are the next two.
        width_px: See there.
        unit_px: See there.

    Raises:
        ContractError: Something is missing, or a question names what is not there.
    """
    rows = read_rows(Path(config.annotations), tasks)
    root = Path(config.scans)
    train, held_out = split_scenes(
        list_scans(root), held_out=config.held_out, seed=seed, limit=config.max_scenes
    )
    rooms: dict[str, Room] = {}
    with Progress(len(train) + len(held_out), what="reading scans", unit="scenes") as progress:
        for scene in [*train, *held_out]:
            scan = read_scan(root, scene, n_frames=config.n_frames)
            rooms[scene] = room_of(scan, px=px, width_px=width_px, unit_px=unit_px)
            progress.update(1)
    return corpus_of(
        [rooms[s] for s in train], [rooms[s] for s in held_out], rows, where=config.annotations
    )


def corpus_of(
    train: Sequence[Room],
    held_out: Sequence[Room],
    rows: Mapping[Task, Sequence[Row]],
    *,
    where: str = "the annotations",
) -> Corpus:
    """Put rooms and questions together.

    Args:
        train: Rooms.
        held_out: Rooms.
        rows: Of all scenes; those of other scenes are left out, and counted in the log.
        where: They come from.

    Raises:
        ContractError: A side has no question, or a question names an object that is not there.
    """
    rooms = {room.scene_id: room for room in [*train, *held_out]}
    cases: dict[str, list[Case]] = defaultdict(list, {scene: [] for scene in rooms})
    n_other = 0
    for some in rows.values():
        for case in map(case_of, some):
            if case.scene_id not in rooms:
                n_other += 1
                continue
            rooms[case.scene_id].indices(case.targets)
            cases[case.scene_id].append(case)
    if n_other:
        log.info("%s: %d questions are of scenes that are not used", where, n_other)
    for side, some_rooms in (("training", train), ("held-out", held_out)):
        if not any(cases[room.scene_id] for room in some_rooms):
            raise ContractError(
                f"{where} has no question about any of the {len(some_rooms)} {side} scenes; use "
                "annotations of these scans"
            )
    outside = {room.scene_id for room in held_out}
    return Corpus(
        train=train,
        held_out=held_out,
        cases=dict(cases),
        rows={t: [r for r in some if case_of(r).scene_id in outside] for t, some in rows.items()},
    )
