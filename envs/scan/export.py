"""Scans exported in parallel; what is complete is never made again.

A scan is a folder in ScanNet's layout (`scene.readers.write_scannet`) with two files more: ``truth.json``
(`scene.truth`) and ``instance-filt/<i>.png``, 8 bits, ``object_id + 1`` of each pixel as in ScanNet's
2D instances. It is written beside its place and moved there when whole.
"""
# pyright: basic

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from envs.scan.boxes import box_of
from envs.scan.rendered import Rendered, Thing, draw_turn, render
from vega_policy.data.progress import Progress
from vega_policy.scene.readers.write_scannet import write_scan
from vega_policy.scene.truth import SPLITS_FILE, TRUTH_FILE, write_truth
from vega_policy.spec import ContractError, EnvFault
from vega_policy.spec.files import write_atomic
from vega_policy.spec.processes import end_with_parent, worker_environment

if TYPE_CHECKING:
    from collections.abc import Iterable

logger = logging.getLogger(__name__)

Kind = Literal["rooms", "libero"]
INSTANCES = "instance-filt"
SETTINGS_FILE = "settings.json"
LIBERO_TASKS = tuple(
    (suite, task_id)
    for suite in ("libero_spatial", "libero_object", "libero_goal", "libero_10")
    for task_id in (0, 4, 8)
)
"""The scenes drawn in turn: table top, floor, table top with fixtures, living room, kitchen, study."""
_MAX_RESTARTS = 3
_SPREAD_M = 0.12


@dataclass(frozen=True, kw_only=True)
class ScanSettings:
    """What to export."""

    kind: Kind
    out: Path
    """Scenes go to ``<out>/<scene>/``, videos to ``<out>/videos/<kind>/``."""
    n: int
    """Scenes; a larger number later adds to those that are there."""
    seed: int = 0
    """Another seed draws other scenes."""
    frames: int = 24
    """Views of each scene."""
    width_px: int = 160
    height_px: int = 120
    fovy_deg: float = 60.0
    """Vertical field of view."""
    video: bool = True
    """Write the walk as mp4 too, one picture for each view."""
    workers: int = 1


def export_scans(settings: ScanSettings) -> list[str]:
    """Render what is missing and return the ids of all scenes asked for.

    Raises:
        ContractError: A number is out of range, or the folder holds scans made with other settings.
        EnvFault: Rendering processes keep dying.
    """
    _check(settings)
    _remember(settings)
    ids = [scene_id(settings, k) for k in range(settings.n)]
    restarts = 0
    while missing := [k for k in range(settings.n) if not (settings.out / ids[k]).is_dir()]:
        try:
            _run(settings, missing)
        except BrokenProcessPool as error:
            restarts += 1
            if restarts > _MAX_RESTARTS:
                raise EnvFault(
                    f"rendering processes died {restarts} times with {len(missing)} scenes open; "
                    "what is done is kept, run the same command again"
                ) from error
            logger.warning("a rendering process died; its scene is made again")
    splits = {
        name: [one for k, one in enumerate(ids) if split(k) == name] for name in ("train", "val")
    }
    write_atomic(settings.out / SPLITS_FILE, json.dumps(splits, indent=1) + "\n")
    return ids


def scene_id(settings: ScanSettings, k: int) -> str:
    """Name scene ``k`` of a seed in ScanNet's manner: place and, after the underscore, seed."""
    return f"{'room' if settings.kind == 'rooms' else 'tabletop'}{k:04d}_{settings.seed:02d}"


def split(k: int) -> Literal["train", "val"]:
    """Say which side scene number ``k`` is on, however many there are: 200 and 60 of the first 260."""
    return "train" if k % 13 < 10 else "val"


def _check(settings: ScanSettings) -> None:
    wrong = [
        f"{name} is {value!r}, expected a whole number from {least} to {most}"
        for name, value, least, most in (
            ("n", settings.n, 1, 9999),
            ("seed", settings.seed, 0, 99),
            ("frames", settings.frames, 2, 9999),
            ("width_px", settings.width_px, 16, 4096),
            ("height_px", settings.height_px, 16, 4096),
            ("workers", settings.workers, 1, 999),
        )
        if not isinstance(value, int) or not least <= value <= most
    ]
    if settings.kind not in get_args(Kind):
        wrong.append(f"kind is {settings.kind!r}, expected one of {', '.join(get_args(Kind))}")
    if not 10 <= settings.fovy_deg <= 120:
        wrong.append(f"fovy_deg is {settings.fovy_deg}, expected 10 to 120 degrees")
    if settings.video and (settings.width_px % 2 or settings.height_px % 2):
        wrong.append(f"a video needs even sides, got {settings.width_px}x{settings.height_px}")
    if not os.environ.get("MUJOCO_GL"):
        wrong.append("MUJOCO_GL is not set; export MUJOCO_GL=osmesa (CPU) or egl (GPU)")
    if wrong:
        raise ContractError("; ".join(wrong))


def _remember(settings: ScanSettings) -> None:
    """Refuse to mix scans that were made differently in one folder."""
    path = settings.out / SETTINGS_FILE
    defining = ("kind", "seed", "frames", "width_px", "height_px", "fovy_deg", "video")
    mine = {name: getattr(settings, name) for name in defining}
    if not path.is_file():
        write_atomic(path, json.dumps(mine, indent=1) + "\n")
        return
    theirs = json.loads(path.read_text())
    wrong = [
        f"{k} is {mine[k]!r} now, was {theirs.get(k)!r}" for k in mine if mine[k] != theirs.get(k)
    ]
    if wrong:
        raise ContractError(
            f"{settings.out} holds scans made with other settings: {'; '.join(wrong)}; "
            "choose another folder, or the same settings to continue"
        )


def _run(settings: ScanSettings, missing: list[int]) -> None:
    os.environ.update(worker_environment(os.environ))
    jobs = _jobs(settings, missing)
    # LIBERO's textures, gigabytes of them, go with the process.
    tasks_per_child = 1 if settings.kind == "libero" else None
    context = multiprocessing.get_context("spawn")
    start = settings.n - len(missing)
    with (
        Progress(settings.n, what="scans", unit="scenes", start=start) as progress,
        ProcessPoolExecutor(
            min(settings.workers, len(jobs)),
            mp_context=context,
            max_tasks_per_child=tasks_per_child,
            initializer=_end_with_main_process,
        ) as pool,
    ):
        futures = [pool.submit(export_some, settings, numbers) for numbers in jobs]
        try:
            for future in as_completed(futures):
                progress.update(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _jobs(settings: ScanSettings, missing: list[int]) -> list[list[int]]:
    """Group scenes: rooms one by one, table tops by task, whose start-up is what takes long."""
    if settings.kind == "rooms":
        return [[k] for k in missing]
    of = len(LIBERO_TASKS)
    groups = ([k for k in missing if k % of == t] for t in range(of))
    return [group for group in groups if group]


def export_some(settings: ScanSettings, numbers: list[int]) -> int:
    """Render some scenes in this process and return how many."""
    made = _rooms if settings.kind == "rooms" else _table_tops
    for rendered in made(settings, numbers):
        _write(settings, rendered)
    return len(numbers)


def _rooms(settings: ScanSettings, numbers: list[int]) -> Iterable[Rendered]:
    for k in numbers:
        yield render_room(settings, k)


def render_room(settings: ScanSettings, k: int) -> Rendered:
    """Render room ``k``; nothing is written."""
    import mujoco

    from envs.scan.posed_camera import PosedCamera
    from envs.scan.rooms import CAMERA, furnish, mjcf
    from envs.scan.walk import walk_room

    mj: Any = mujoco
    room = furnish((settings.seed, k))
    rng = np.random.default_rng([settings.seed, k, 1])
    model = mj.MjModel.from_xml_string(mjcf(room))
    data = mj.MjData(model)
    mj.mj_forward(model, data)
    things = []
    for number, thing in enumerate(room.things):
        body = mj.mj_name2id(model, mj.mjtObj.mjOBJ_BODY, f"object{number}")
        geoms = tuple(int(g) for g in np.flatnonzero(model.geom_bodyid == body))
        axes = data.xmat[body].reshape(3, 3).T.copy()
        piece = thing.piece
        things.append(
            Thing(
                label=piece.label,
                colour=piece.colour,
                geoms=geoms,
                axes=axes,
                stands_on=thing.stands_on,
            )
        )
    with PosedCamera(
        model,
        data,
        camera=CAMERA,
        width=settings.width_px,
        height=settings.height_px,
        fovy_deg=settings.fovy_deg,
    ) as camera:
        return render(
            camera,
            model,
            data,
            scene_id=scene_id(settings, k),
            dataset=settings.kind,
            things=things,
            poses=walk_room(room, rng, n=settings.frames),
            floor=room.floor_corners,
            turn=draw_turn(rng),
        )


def _table_tops(settings: ScanSettings, numbers: list[int]) -> Iterable[Rendered]:
    from envs.scan.libero_scenes import CAMERA, TableTop
    from envs.scan.posed_camera import PosedCamera
    from envs.scan.walk import orbit

    suite, task_id = LIBERO_TASKS[numbers[0] % len(LIBERO_TASKS)]
    scene = TableTop(suite=suite, task_id=task_id)
    try:
        with PosedCamera(
            scene.model,
            scene.data,
            camera=CAMERA,
            width=settings.width_px,
            height=settings.height_px,
            fovy_deg=settings.fovy_deg,
        ) as camera:
            for k in numbers:
                scene.draw(seed=settings.seed, index=k)
                rng = np.random.default_rng([settings.seed, k, 2])
                things = scene.things()
                boxes = np.stack([box_of(scene.model, scene.data, t.geoms) for t in things])
                poses = orbit(
                    scene.middle(), rng, n=settings.frames, spread_m=_SPREAD_M, boxes=boxes
                )
                yield render(
                    camera,
                    scene.model,
                    scene.data,
                    scene_id=scene_id(settings, k),
                    dataset=settings.kind,
                    things=things,
                    poses=poses,
                    floor=None,
                    turn=draw_turn(rng),
                )
    finally:
        scene.close()


def _write(settings: ScanSettings, rendered: Rendered) -> None:
    name = rendered.scan.scene_id
    if settings.video:
        from vega_policy.scene.readers.video import write_video

        path = settings.out / "videos" / settings.kind / f"{name}.mp4"
        write_video(path, [frame.image for frame in rendered.scan.frames], fps=4)
    partial = settings.out / f".partial-{name}"
    shutil.rmtree(partial, ignore_errors=True)
    folder = write_scan(partial, rendered.scan)
    write_truth(folder / TRUTH_FILE, rendered.truth)
    write_instances(folder / INSTANCES, rendered)
    folder.rename(settings.out / name)
    partial.rmdir()


def write_instances(folder: Path, rendered: Rendered) -> None:
    """Write which object each pixel shows, one 8-bit png a frame."""
    from PIL import Image

    folder.mkdir(parents=True)
    for frame, mask in zip(rendered.scan.frames, rendered.instances, strict=True):
        Image.fromarray(mask).save(folder / f"{frame.index}.png")


def _end_with_main_process() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        end_with_parent(parent.pid)


def to_check(scenes: list[str], *, n: int) -> list[str]:
    """Pick ``n`` scenes, evenly spread; all if there are fewer."""
    if n < 0:
        raise ContractError(f"check is {n}, expected 0 or more scenes")
    picked = np.linspace(0, len(scenes) - 1, min(n, len(scenes)), dtype=int)
    return [scenes[k] for k in picked]
