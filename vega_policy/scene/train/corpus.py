"""Scans and questions from disk, and which scenes training sees."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vega_policy.data.progress import Progress
from vega_policy.scene.annotations import Row, Task
from vega_policy.scene.readers.folder import missing_annotations, read_annotations
from vega_policy.scene.readers.scannet import list_scans, read_scan
from vega_policy.scene.train.cases import Case, case_of
from vega_policy.scene.train.rooms import Room, room_of
from vega_policy.scene.truth import SPLITS_FILE
from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from vega_policy.scene.train.settings import DataConfig

log = logging.getLogger(__name__)


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


def read_split(config: DataConfig) -> tuple[list[str], list[str]]:
    """Return training and held-out scenes, as ``splits.json`` beside the scans says.

    Raises:
        ContractError: The file is missing or no split, names scenes that are not there, or leaves fewer
            than two scenes on one side.
    """
    path = Path(config.scans) / SPLITS_FILE
    if not path.is_file():
        raise ContractError(
            f"no file {path}, expected scenes of train and val in it; render scans with scripts/scan.py"
        )
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ContractError(
            f"{path} is no JSON ({error}); render again with scripts/scan.py"
        ) from error
    sides = [content.get(side) for side in ("train", "val")] if isinstance(content, dict) else []
    if not sides or not all(isinstance(scenes, list) for scenes in sides):
        raise ContractError(f"{path} has no lists train and val; render again with scripts/scan.py")
    train, held_out = (
        [str(scene) for scene in content[side]][:limit]
        for side, limit in (("train", config.train_scenes), ("val", config.held_out_scenes))
    )
    missing = sorted({*train, *held_out} - set(list_scans(config.scans)))
    if missing:
        raise ContractError(
            f"{path} names {len(missing)} scenes that are not there, {missing[0]} first; render them "
            "with scripts/scan.py"
        )
    if min(len(train), len(held_out)) < 2:
        raise ContractError(
            f"{path} leaves {len(train)} scenes for training and {len(held_out)} held out, expected "
            "at least 2 and 2; render more with scripts/scan.py"
        )
    return train, held_out


def read_rows(folder: Path, tasks: Sequence[Task]) -> dict[Task, list[Row]]:
    """Read the annotation files of some tasks.

    Raises:
        ContractError: Files are missing; all are named.
    """
    missing = missing_annotations(folder, tasks)
    if missing:
        raise ContractError(
            f"{'; '.join(missing)}; scripts/scan.py questions=true writes generated ones"
        )
    return {task: [cast("Row", r) for r in read_annotations(folder, task)] for task in tasks}


def read_corpus(
    config: DataConfig,
    *,
    tasks: Sequence[Task],
    px: int,
    width_px: int,
    unit_px: int,
) -> Corpus:
    """Read scans and questions into memory.

    Args:
        config: Where they are.
        tasks: Which questions.
        px: See `room_of`, as are the next two.
        width_px: See there.
        unit_px: See there.

    Raises:
        ContractError: Something is missing, or a question names what is not there.
    """
    rows = read_rows(Path(config.annotations), tasks)
    root = Path(config.scans)
    train, held_out = read_split(config)
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
