"""A policy without weights: it looks for the block of `FakeEnv` and moves towards it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from vega_policy.spec import AGENTVIEW, FULL_ARM, WRIST, ActionChunk, ActionSpec, Observation
from vega_policy.spec.names import require_name
from vega_policy.testing.fake_env import BLOCK_RGB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

ARMS = (FULL_ARM, "gate_clamped")
GRID = 8
"""Side of the gate maps."""


@dataclass(eq=False, kw_only=True)
class FakePolicy:
    """Finds the block in the third-person image; its aim wavers with the inference's key.

    The wavering makes a row depend on every key, so a test of equal rows is a test of equal keys.
    """

    action_spec: ActionSpec = field(default_factory=ActionSpec)
    waver: float = 0.5
    """Standard deviation of the noise on an action, in units of the action."""
    act_s: float = 0.0
    """Seconds an inference takes."""
    misbehaves: Literal["never", "raises", "nan", "short", "miscounts"] = "never"
    on_instruction: str = ""
    """Misbehaves where the instruction contains this text."""
    ignores: tuple[str, ...] = (WRIST, "instruction")
    """Inputs it is made without; see `vega_policy.rollout.doctor.policy_checks`."""
    batch_sizes: list[int] = field(default_factory=list[int])
    """Size of every batch asked for so far."""

    def arm(self, name: str) -> FakePolicy:
        """Return a variant; ``gate_clamped`` wavers three times as much."""
        require_name(name, ARMS, what="arm")
        return replace(self, waver=self.waver * (3 if name == "gate_clamped" else 1))

    def act(self, batch: Sequence[Observation], *, keys: Sequence[int]) -> list[ActionChunk]:
        """Answer each observation; see `vega_policy.spec.Policy`."""
        self.batch_sizes.append(len(batch))
        time.sleep(self.act_s)
        chunks = [self._chunk(o, k) for o, k in zip(batch, keys, strict=True)]
        bad = [self.on_instruction in o.instruction for o in batch]
        if self.misbehaves == "miscounts" and any(bad):
            return chunks[:-1]
        return chunks

    def _chunk(self, observation: Observation, key: int) -> ActionChunk:
        spec = self.action_spec
        is_bad = self.misbehaves != "never" and self.on_instruction in observation.instruction
        if is_bad and self.misbehaves == "raises":
            raise RuntimeError("the fake policy was told to fail")
        rng = np.random.default_rng(key)
        block = find_block(observation.images[AGENTVIEW])
        actions = np.zeros((spec.horizon, spec.size), dtype=np.float32)
        position = observation.proprio[:3].astype(np.float64)
        target = np.append(block, 0.02)
        for action in actions:
            move = np.clip((target - position) / 0.02, -1, 1)
            action[:3] = np.clip(move + self.waver * rng.normal(size=3), -1, 1)
            position = position + 0.02 * move
        if is_bad and self.misbehaves == "nan":
            actions[3, 2] = np.nan
        if is_bad and self.misbehaves == "short":
            actions = actions[:-1]
        axis = np.linspace(-1, 1, GRID)
        near = np.exp(-4 * np.hypot(axis[None, :] - 2 * block[0], axis[:, None] + 2 * block[1]))
        gate = (0.5 + 0.3 * (near - 0.5) + 0.02 * rng.normal(size=near.shape)).astype(np.float32)
        return ActionChunk(
            actions=actions,
            gate={AGENTVIEW: np.clip(gate, 0, 1), WRIST: np.clip(0.8 * gate.T, 0, 1)},
            timing_ms={"total": 1000 * self.act_s},
        )


def fake_arms(arms: Sequence[str]) -> dict[str, FakePolicy]:
    """Return the policy of each arm."""
    return {arm: FakePolicy().arm(arm) for arm in arms}


def find_block(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return where the block is on the table in metres, (2,); the middle if it is not seen."""
    rows, columns = np.nonzero((image == np.array(BLOCK_RGB)).all(axis=-1))
    if not len(rows):
        return np.zeros(2)
    px = len(image)
    return np.array([columns.mean() + 0.5 - px / 2, px / 2 - rows.mean() - 0.5]) / px
