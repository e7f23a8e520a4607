"""What the control loop and an inference say to each other; neither waits for the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vega_policy.spec import ActionChunk, ActionSpec, Observation


@dataclass(frozen=True, eq=False, kw_only=True)
class Seen:
    """An observation and when its parts were taken, in seconds of the loop's clock."""

    observation: Observation
    stamps_s: Mapping[str, float]
    """By camera, and ``proprio``."""

    @property
    def oldest_s(self) -> float:
        """When the oldest part was taken."""
        return min(self.stamps_s.values())


@dataclass(frozen=True, eq=False, kw_only=True)
class Reply:
    """The end of one inference."""

    tick: int
    """Control step whose observation was asked about."""
    chunk: ActionChunk | None
    """None where it failed."""
    detail: str = ""
    """Why it failed."""
    latency_s: float = 0.0
    """From question to answer."""


class Link(Protocol):
    """A way to a policy: in a thread of this process, or at the other end of a websocket.

    Every method returns at once; one thread calls them.
    """

    @property
    def action_spec(self) -> ActionSpec:
        """What the numbers of the chunks mean."""
        ...

    def ask(self, seen: Seen, *, tick: int) -> None:
        """Have a chunk computed for what was seen at a control step; one question at a time.

        Raises:
            ValueError: The last question is not answered yet.
        """
        ...

    def poll(self) -> Reply | None:
        """Return the end of the question, once, or None while it is open."""
        ...

    def reset(self) -> None:
        """Forget the open question, and with it its answer: an episode begins."""
        ...

    def close(self) -> None:
        """Release thread and connection."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Command:
    """What the robot is told at one control step."""

    kind: Literal["action", "hold", "stop"]
    """``stop``: nothing may be sent; the arm has to stand still by its own means until a person
    releases it."""
    action: NDArray[np.float32] | None
    """(size,); of a hold the controller's own way to stay where it is. None with ``stop``."""
    reason: str = ""
    """Why it is not simply the policy's action; empty where it is."""
    interventions: tuple[str, ...] = field(default=())
    """Names of the limits that changed the action."""
    tick: int = 0
    chunk_tick: int | None = None
    """Control step whose observation the action answers."""
