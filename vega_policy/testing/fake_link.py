"""Time that a test moves by hand, and a link that answers when that time has come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vega_policy.control.link import Reply, Seen
from vega_policy.spec import ActionChunk, ActionSpec, Observation


@dataclass(eq=False)
class FakeClock:
    """Seconds that pass only when told to."""

    now_s: float = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


@dataclass(eq=False, kw_only=True)
class FakeLink:
    """Answers ``latency_s`` after it was asked, by the given clock; never by a thread."""

    clock: Callable[[], float]
    answer: Callable[[int], NDArray[np.float32]]
    """Called with the tick of the question; returns the actions (horizon, size)."""
    action_spec: ActionSpec = field(default_factory=ActionSpec)
    latency_s: float = 0.0
    fails: str = ""
    """Every question ends at once without a chunk, for this reason."""
    asked: list[int] = field(default_factory=list[int])
    """Ticks of all questions so far."""
    n_resets: int = 0
    _open: tuple[int, float] | None = None

    def ask(self, seen: Seen, *, tick: int) -> None:  # noqa: ARG002 - it answers blindly
        """See `vega_policy.control.link.Link.ask`."""
        if self._open is not None:
            raise ValueError(f"the question of tick {self._open[0]} is still open")
        self.asked.append(tick)
        self._open = (tick, self.clock())

    def poll(self) -> Reply | None:
        """See `vega_policy.control.link.Link.poll`."""
        if self._open is None:
            return None
        tick, asked_s = self._open
        waited_s = self.clock() - asked_s
        # A fake clock adds periods up, and the sum of four may be a hair short of four.
        if not self.fails and waited_s < self.latency_s - 1e-9:
            return None
        self._open = None
        if self.fails:
            return Reply(tick=tick, chunk=None, detail=self.fails, latency_s=waited_s)
        return Reply(tick=tick, chunk=ActionChunk(self.answer(tick)), latency_s=waited_s)

    def reset(self) -> None:
        """See `vega_policy.control.link.Link.reset`."""
        self.n_resets += 1
        self._open = None

    def close(self) -> None:
        """See `vega_policy.control.link.Link.close`."""
        self._open = None


def seen_at(
    now_s: float,
    *,
    position_m: tuple[float, float, float] = (0.0, 0.0, 0.2),
    shade: int | None = None,
) -> Seen:
    """Return a small observation of which every part was taken now.

    Args:
        now_s: By the loop's clock.
        position_m: Of the end effector.
        shade: Colour of both images, 0 to 255; None: changes with the time.
    """
    colour = int(now_s * 1000) % 256 if shade is None else shade
    image = np.full((4, 4, 3), colour, dtype=np.uint8)
    proprio = np.array([*position_m, 0, 0, 0, 0.04, -0.04], dtype=np.float32)
    images = {"agentview": image, "wrist": image}
    return Seen(
        observation=Observation(images=images, proprio=proprio, instruction="stack the block"),
        stamps_s=dict.fromkeys((*images, "proprio"), now_s),
    )
