"""Make the golden data again, with the official environment and nothing of ours in between."""
# pyright: basic

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from envs.fidelity import files, scene, stack
from envs.fidelity.golden import EPISODES, STATE_EVERY, Episode, Golden, Trajectory, state_hash
from envs.official import Moment, OfficialEnv
from vega_policy.spec import CAMERAS, ContractError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

FRAME_PX = 128
_log = logging.getLogger(__name__)


def record(*, actions_dir: Path, out_dir: Path) -> Golden:
    """Play the action files officially and write what came of them.

    Args:
        actions_dir: Holds ``<episode>.npz`` with ``actions`` (n, 7) for every golden episode, say
            the folder of the golden data themselves.
        out_dir: Where the golden data go.

    Raises:
        ContractError: An action file is missing, or its actions do not solve the task.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    fixtures: dict[str, list[dict[str, list[float]]]] = {}
    proprios: dict[str, list[list[float]]] = {}
    substeps: list[list[float]] = []
    substep_step, renderer = 0, ""
    for episode in EPISODES:
        actions = _actions(actions_dir / f"{episode.name}.npz")
        with OfficialEnv(suite=episode.suite, task_id=episode.task_id, camera_px=FRAME_PX) as env:
            moments, is_held = _play(env, actions)
            fixtures[episode.name] = [scene.fixtures(env.handle)]
            renderer = stack.renderer(env.handle)
            for _ in range(2):
                env.start()
                fixtures[episode.name].append(scene.fixtures(env.handle))
        trajectory = _trajectory(episode, actions, moments, is_held=is_held)
        trajectory.save(out_dir / f"{episode.name}.npz")
        proprios[episode.name] = [m.proprio.tolist() for m in moments[::STATE_EVERY]]
        if episode.has_frames:
            for camera in CAMERAS:
                path = out_dir / f"{episode.name}-{camera}.png"
                Image.fromarray(moments[0].images[camera]).save(path, optimize=True)
        if not substeps:
            substep_step = _fastest(moments)
            substeps = _substeps(episode, actions[: substep_step + 1])
        _log.info("%s: %d steps, held when done: %s", episode.name, len(moments) - 1, is_held)
    golden = Golden(
        made_with={**stack.versions(), "processor": stack.processor().name, "renderer": renderer},
        fixtures=fixtures,
        proprios=proprios,
        substeps=substeps,
        substep_step=substep_step,
    )
    _write_json(out_dir / "golden.json", asdict(golden))
    _write_json(out_dir / "files.json", files.digests())
    return golden


def _actions(path: Path) -> NDArray[np.float32]:
    if not path.is_file():
        raise ContractError(
            f"{path} is missing; give a folder with one file of actions for each of "
            f"{', '.join(episode.name for episode in EPISODES)}"
        )
    with np.load(path) as arrays:
        return np.asarray(arrays["actions"], dtype=np.float32)


def _play(env: OfficialEnv, actions: NDArray[np.float32]) -> tuple[list[Moment], bool]:
    moments = list(env.episode(lambda _: actions, max_steps=len(actions)))
    return moments, scene.is_touched_by_finger(env.handle)


def _trajectory(
    episode: Episode, actions: NDArray[np.float32], moments: Sequence[Moment], *, is_held: bool
) -> Trajectory:
    if not moments[-1].is_success:
        raise ContractError(
            f"the actions of {episode.name} do not solve {episode.suite} task {episode.task_id}; "
            "record others from initial state 0"
        )
    states = [moment.state for moment in moments]
    return Trajectory(
        actions=actions[: len(moments) - 1],
        hashes=np.array([state_hash(state) for state in states], dtype=np.uint64),
        states=np.stack(states[::STATE_EVERY]),
        done=states[-1],
        is_held_when_done=is_held,
    )


def _fastest(moments: Sequence[Moment]) -> int:
    """Return the step, of the first forty, in which the hand moves farthest."""
    places = np.stack([moment.proprio[:3] for moment in moments[:40]])
    return int(np.linalg.norm(np.diff(places, axis=0), axis=1).argmax())


def _substeps(episode: Episode, actions: NDArray[np.float32]) -> list[list[float]]:
    """Return where the hand is after each physics step of the last of these control steps."""
    seen: list[list[float]] = []
    with OfficialEnv(suite=episode.suite, task_id=episode.task_id, camera_px=16) as env:
        env.start()
        for action in actions[:-1]:
            env.step(action)
        simulator: Any = env.handle.sim
        step = simulator.step

        def watched(*arguments: Any, **options: Any) -> None:  # noqa: ANN401
            step(*arguments, **options)
            seen.append(scene.hand_position(env.handle).tolist())

        simulator.step = watched
        env.step(actions[-1])
    return seen


def _write_json(path: Path, content: object) -> None:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    path.write_text(text.replace("],", "],\n").replace("},", "},\n").replace('",', '",\n') + "\n")
