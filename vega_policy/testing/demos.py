"""Synthetic demonstrations: small, deterministic, in the layout of the real ones."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from vega_policy.data.libero_hdf5 import Demo, TaskAttributes, merge_demos, write_demo

if TYPE_CHECKING:
    from pathlib import Path

TASKS = {
    "pick_up_the_alphabet_soup_and_place_it_in_the_basket": (
        "pick up the alphabet soup and place it in the basket"
    ),
    "pick_up_the_milk_and_place_it_in_the_basket": "pick up the milk and place it in the basket",
}


def make_demo(
    seed: int, *, n_steps: int = 14, px: int = 128, instruction: str = "pick up the milk"
) -> Demo:
    """Make a demonstration whose images show where the hand is, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    position = np.cumsum(rng.normal(0, 0.02, (n_steps, 3)), axis=0)
    actions = np.clip(rng.normal(0, 0.3, (n_steps, 7)), -1, 1)
    actions[:, 6] = np.where(np.arange(n_steps) < n_steps // 2, -1.0, 1.0)
    ramp = np.linspace(0, 200, px).astype(np.uint8)
    images = np.zeros((n_steps, px, px, 3), dtype=np.uint8)
    images[..., 0] = ramp[:, None]
    images[..., 1] = ramp[None, :]
    images[..., 2] = (np.arange(n_steps) * 10 + seed).astype(np.uint8)[:, None, None]
    return Demo(
        agentview=images,
        wrist=(images[:, :, ::-1] // 2).astype(np.uint8),
        ee_states=np.concatenate([position, rng.normal(0, 0.1, (n_steps, 3))], axis=1),
        gripper_states=rng.uniform(0, 0.04, (n_steps, 2)),
        joint_states=rng.normal(0, 1, (n_steps, 7)),
        robot_states=rng.normal(0, 1, (n_steps, 9)),
        actions=actions,
        states=rng.normal(0, 1, (n_steps, 21)),
        rewards=(np.arange(n_steps) == n_steps - 1).astype(np.uint8),
        dones=(np.arange(n_steps) == n_steps - 1).astype(np.uint8),
        expert_mask=np.ones(n_steps, dtype=np.uint8),
        instruction=instruction,
        attributes={"seed": seed, "start": "sampled"},
    )


def with_mask(demo: Demo, mask: list[int]) -> Demo:
    """Return the demonstration with another expert mask."""
    return replace(demo, expert_mask=np.array(mask, dtype=np.uint8))


def write_task(path: Path, demos: list[Demo]) -> None:
    """Write one task file through single demonstrations, as collecting does."""
    parts: list[Path] = []
    for number, demo in enumerate(demos):
        parts.append(path.with_suffix("") / f"part-{number}.hdf5")
        write_demo(parts[-1], demo)
    task = TaskAttributes(
        instruction=demos[0].instruction,
        problem_name="Libero_Floor_Manipulation",
        bddl_file_name=f"libero_object/{path.stem}.bddl",
    )
    merge_demos(parts, path, task=task)


def write_suite(
    data_dir: Path,
    *,
    suite: str = "libero_object",
    n_demos: int = 3,
    n_steps: int = 14,
    px: int = 128,
) -> Path:
    """Write two tasks with a few demonstrations each; returns ``data_dir``."""
    for index, (task, instruction) in enumerate(TASKS.items()):
        demos = [
            make_demo(100 * index + k, instruction=instruction, n_steps=n_steps + k, px=px)
            for k in range(n_demos)
        ]
        write_task(data_dir / suite / f"{task}_demo.hdf5", demos)
    return data_dir
