"""The seams of the package: two to four methods each.

Shape legend: ``b`` batch, ``v`` views (cameras), ``n`` tokens, ``c`` prior width, ``d`` width of
the language model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from vega_policy.spec.action import ActionChunk, ActionSpec
    from vega_policy.spec.observation import Observation


@runtime_checkable
class Policy(Protocol):
    """Observations in, action chunks out."""

    @property
    def action_spec(self) -> ActionSpec:
        """What the returned numbers mean."""
        ...

    def act(self, batch: Sequence[Observation], *, keys: Sequence[int]) -> list[ActionChunk]:
        """Answer each observation with a chunk.

        The answer does not depend on what else is in the batch; every random draw comes from
        the observation's key, never from global state.
        """
        ...


class Simulator(Protocol):
    """What the rollout worker asks of an environment (`envs.LiberoEnv` is one)."""

    instruction: str
    """The current task in words."""
    max_steps: int
    """Step limit of the benchmark, settling steps not counted."""
    action_spec: ActionSpec

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode.

        ``options``: ``init_state_id`` chooses the initial state; ``perturbation`` and
        ``repetition`` are those of the `EpisodeKey`. Afterwards ``instruction`` is what the policy
        is to be told, rewritten where the perturbation says so.

        Returns the observation (``agentview``, ``wrist``: (h, w, 3) uint8; ``proprio``: (8,)) and
        an info dictionary.
        """
        ...

    def step_chunk(
        self, actions: NDArray[np.floating[Any]], *, look_when_over: bool = True
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Apply (n, 7) actions, stopping early at success; render only the last observation.

        Without ``look_when_over`` an observation that ends the episode may lack its images.

        Returns Gymnasium's five values; ``info["n_steps"]`` is how many actions were applied and
        ``info["states"]`` (n_steps, s) float64 is the simulator state after each.
        """
        ...

    def sim_state(self) -> NDArray[np.float64]:
        """Return the flattened simulator state."""
        ...

    def close(self) -> None:
        """Release the simulator and its off-screen GL context."""
        ...
