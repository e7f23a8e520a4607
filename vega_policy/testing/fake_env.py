"""A simulator that needs no simulator: a hand that has to reach a coloured block.

It is deterministic, draws both cameras, follows the `Simulator` protocol, and breaks on request in
each way a real one does.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vega_policy.spec import AGENTVIEW, WRIST, ActionSpec, ContractError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

SUITES = {"fake_reach": 10, "fake_small": 2}
"""Suites and their number of tasks."""
N_INIT_STATES = 50
PERTURBATIONS = ("none", "wind-1", "dark-1")
"""``wind-1``: the hand starts elsewhere; ``dark-1``: the block has another colour, unseen by
`FakePolicy`."""
TASKS = ("red", "green", "blue", "yellow", "orange", "violet", "cyan", "pink", "white", "brown")
BLOCK_RGB = (210, 60, 50)
"""Colour of the block in every task; `FakePolicy` looks for it."""
_STEP_M = 0.02
_REACH_M = 0.03
_TABLE_M = 0.5
"""Half the side of the table both cameras look at."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A breakdown to order."""

    kind: Literal["exit", "kill", "raise", "hang", "contract"]
    """``exit``: `os._exit`; ``kill``: SIGKILL to itself; ``raise``: RuntimeError; ``hang``: sleep;
    ``contract``: ContractError."""
    counter: Path
    """File that counts how often it happened, since the process does not survive it."""
    task_id: int = 0
    init_state_id: int = 0
    at_step: int = 8
    """Breaks in the first chunk that begins at this step or later."""
    times: int = 1
    """How often it breaks, over all processes."""

    def strike(self) -> None:
        """Break, unless it happened often enough already."""
        happened = len(self.counter.read_text()) if self.counter.exists() else 0
        if happened >= self.times:
            return
        with self.counter.open("a") as handle:
            handle.write("x")
        match self.kind:
            case "exit":
                os._exit(66)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "raise":
                raise RuntimeError("the fake simulator was told to break")
            case "contract":
                raise ContractError("the fake simulator needs a library; install it")
            case "hang":
                time.sleep(3600)


class FakeEnv:
    """Reach the block; the step limit makes some initial states too far away.

    Args:
        suite: One of `SUITES`.
        task_id: Below the suite's number of tasks.
        camera_px: Side of the square images.
        max_steps: Step limit.
        step_s: Seconds each control step takes, to give other processes time to interfere.
        faults: Breakdowns to order.
        action_spec: What the numbers mean; another one than the policy's must be refused.

    Raises:
        ContractError: Unknown suite or task.
    """

    def __init__(
        self,
        *,
        suite: str,
        task_id: int,
        camera_px: int = 128,
        max_steps: int = 40,
        step_s: float = 0.0,
        faults: Sequence[Fault] = (),
        action_spec: ActionSpec | None = None,
    ) -> None:
        if task_id not in range(SUITES.get(suite, 0)):
            raise ContractError(f"there is no task {task_id} in suite {suite}")
        self.instruction = f"reach the {TASKS[task_id]} block"
        self.max_steps = max_steps
        self.action_spec = ActionSpec() if action_spec is None else action_spec
        self._suite, self._task_id = suite, task_id
        self._camera_px = camera_px
        self._step_s = step_s
        self._faults = tuple(faults)
        self._init_state_id = 0
        self._n_steps = 0
        self._perturbation = "none"
        self._hand = np.zeros(3)
        self._block = np.zeros(3)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Put hand and block where seed, task and initial state say."""
        self._init_state_id = int((options or {}).get("init_state_id", 0))
        what = f"{self._suite} {self._task_id} {self._init_state_id} {seed or 0}"
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(what.encode()).digest()[:8]))
        self._hand = np.array([0.0, -0.3, 0.2])
        self._block = np.append(rng.uniform(-0.4, 0.4, 2), 0.02)
        self._perturbation = str((options or {}).get("perturbation", "none"))
        if self._perturbation not in PERTURBATIONS:
            raise ContractError(f"there is no perturbation {self._perturbation!r}")
        if self._perturbation == "wind-1":
            self._hand[:2] += rng.uniform(-0.1, 0.1, 2)
        self._n_steps = 0
        return self._observe(), {}

    def step_chunk(
        self,
        actions: NDArray[np.floating[Any]],
        *,
        look_when_over: bool = True,
        look: bool = True,
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Move the hand by at most 2 cm per action and axis; see `Simulator.step_chunk`."""
        for fault in self._faults:
            here = (fault.task_id, fault.init_state_id) == (self._task_id, self._init_state_id)
            if here and self._n_steps >= fault.at_step:
                fault.strike()
        succeeded, done = False, 0
        states: list[NDArray[np.float64]] = []
        for action in actions:
            time.sleep(self._step_s)
            self._hand = self._hand + _STEP_M * np.clip(action[:3], -1.0, 1.0)
            states.append(self.sim_state())
            done += 1
            succeeded = bool(np.abs(self._hand - self._block).max() < _REACH_M)
            if succeeded or self._n_steps + done >= self.max_steps:
                break
        self._n_steps += done
        truncated = not succeeded and self._n_steps >= self.max_steps
        info = {"n_steps": done, "states": np.stack(states)}
        looks = look and (look_when_over or not (succeeded or truncated))
        return self._observe(looks=looks), float(succeeded), succeeded, truncated, info

    def look(self) -> dict[str, Any]:
        """Return the observation of this moment; no time passes."""
        return self._observe()

    def sim_state(self) -> NDArray[np.float64]:
        """Return hand and block, (6,)."""
        return np.concatenate([self._hand, self._block])

    def close(self) -> None:
        """Release nothing."""

    def _observe(self, *, looks: bool = True) -> dict[str, Any]:
        proprio = np.concatenate([self._hand, np.zeros(3), [0.04, -0.04]]).astype(np.float32)
        if not looks:
            return {"proprio": proprio}
        return {
            AGENTVIEW: self._draw(np.zeros(2), _TABLE_M),
            WRIST: self._draw(self._hand[:2], _TABLE_M / 2),
            "proprio": proprio,
        }

    def _draw(self, centre: NDArray[np.float64], half_side_m: float) -> NDArray[np.uint8]:
        """Look straight down on a square of the table."""
        px = self._camera_px
        axis = (np.arange(px) + 0.5) / px * 2 - 1
        x = centre[0] + half_side_m * axis[None, :]
        y = centre[1] - half_side_m * axis[:, None]
        checks = (np.floor(x * 10) + np.floor(y * 10)) % 2
        image = (np.array([150, 132, 112]) + 14 * checks[..., None]).astype(np.uint8)
        block = np.maximum(np.abs(x - self._block[0]), np.abs(y - self._block[1])) < 0.04
        image[block] = BLOCK_RGB if self._perturbation != "dark-1" else (90, 30, 25)
        ring = np.abs(np.hypot(x - self._hand[0], y - self._hand[1]) - 0.04) < 0.012
        image[ring] = (40, 44, 52)
        return image
