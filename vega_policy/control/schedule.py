"""Chunk schedule: when to look and ask, and which row of which chunk a control step applies.

Ticks are control steps, counted from 0 at `Schedule.reset`. A chunk answers the observation of the
tick it was asked at; its row i was meant for the tick i after that one. The loop that drives a
schedule does, at every tick and in this order:

    accept() or lost()      if an answer came
    should_ask(), asked()   if there is an observation to ask about
    accept() or lost()      only where an answer takes no time: a simulator that waits for it
    next()
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from vega_policy.control.hold import require_delta
from vega_policy.spec import ActionSpec, ContractError, PolicyFault
from vega_policy.spec.names import require_name

if TYPE_CHECKING:
    from vega_policy.spec import ActionChunk

ScheduleName = Literal["open_loop", "asynchronous", "ensemble"]


class Schedule(Protocol):
    """Chunks in, one action per control step out; not for several threads."""

    def reset(self) -> None:
        """Forget everything, the open question included: an episode begins."""
        ...

    def should_ask(self, tick: int) -> bool:
        """Say whether to look and ask before this tick's action is taken."""
        ...

    def asked(self, tick: int) -> None:
        """Note that a question about this tick's observation is under way."""
        ...

    def lost(self, tick: int) -> None:
        """Note that the question of that tick will get no answer; it is asked again."""
        ...

    def accept(self, chunk: ActionChunk, *, asked: int, now: int) -> None:
        """Take the answer to the question of tick ``asked``, at tick ``now``.

        Raises:
            PolicyFault: The chunk must not reach a motor (`require_valid_chunk`); the question
                counts as lost.
        """
        ...

    def next(self, tick: int) -> NDArray[np.float32] | None:
        """Return the action (size,) of this tick; None: there is none, the robot has to hold.

        Looking ahead changes nothing: all rows until the next question may be taken at once.
        """
        ...


@dataclass(eq=False, kw_only=True)
class _Question:
    """The one question that may be open, shared by the schedules."""

    open: int | None = None
    """Tick it was asked at."""

    def ask(self, tick: int) -> None:
        if self.open is not None:
            raise ValueError(f"asked at tick {tick}, and that of tick {self.open} is still open")
        self.open = tick

    def close(self, tick: int) -> None:
        if self.open != tick:
            raise ValueError(f"an answer to tick {tick}; the open question is {self.open}")
        self.open = None


@dataclass(eq=False, kw_only=True)
class OpenLoop:
    """Apply the first ``n_execute`` actions of every chunk, then look again.

    With ``n_execute`` equal to the horizon this is the protocol of OpenVLA-OFT: the whole chunk
    runs without a glance at the cameras. While an answer is under way there is no action, and the
    chunk runs from its first row when it arrives, however old the observation is by then.
    """

    spec: ActionSpec
    n_execute: int | None = None
    """Actions applied per inference; None is the whole horizon."""
    _question: _Question = field(init=False, repr=False, default_factory=_Question)
    _rows: NDArray[np.float32] | None = field(init=False, repr=False, default=None)
    _start: int = field(init=False, repr=False, default=0)
    """Tick at which the first row runs."""

    def __post_init__(self) -> None:
        """Refuse a number of actions the chunk does not have."""
        if self.n_execute is not None and not 1 <= self.n_execute <= self.spec.horizon:
            raise ContractError(
                f"{self.n_execute} actions per inference, the chunk has {self.spec.horizon}; "
                f"choose 1 to {self.spec.horizon}"
            )

    def reset(self) -> None:
        """See `Schedule.reset`."""
        self._question = _Question()
        self._rows = None

    def should_ask(self, tick: int) -> bool:
        """Ask where no row is left."""
        return self._question.open is None and self.next(tick) is None

    def asked(self, tick: int) -> None:
        """See `Schedule.asked`."""
        self._question.ask(tick)

    def lost(self, tick: int) -> None:
        """See `Schedule.lost`."""
        self._question.close(tick)

    def accept(self, chunk: ActionChunk, *, asked: int, now: int) -> None:
        """See `Schedule.accept`."""
        self._question.close(asked)
        require_valid_chunk(chunk, self.spec)
        self._rows, self._start = chunk.actions[: self.n_execute], now

    def next(self, tick: int) -> NDArray[np.float32] | None:
        """See `Schedule.next`."""
        row = tick - self._start
        return self._rows[row] if self._rows is not None and 0 <= row < len(self._rows) else None


@dataclass(eq=False, kw_only=True)
class Asynchronous:
    """Ask for the next chunk while the current one runs; at every tick apply the row meant for it.

    The rows whose time passed during the inference are dropped (SmolVLA, arXiv:2506.01844). With
    ``d`` ticks from question to answer and ``s`` ticks between questions there is an action for
    every tick where ``d <= s <= horizon - d`` (`vega_policy.control.delay.gap_free`).

    Old and new rows are blended number by number: right for deltas, which are small and refer to
    the pose at execution, wrong for absolute poses, which are refused. The gripper is the newest
    chunk's: half open is a command nobody gave.
    """

    spec: ActionSpec
    ask_every: int | None = None
    """Ticks between two questions; None asks again as soon as the last one is answered."""
    blend: float = 1.0
    """Weight of the new chunk where the old one has a row too; 1 is the new chunk alone."""
    _question: _Question = field(init=False, repr=False, default_factory=_Question)
    _answered: int | None = field(init=False, repr=False, default=None)
    """Tick whose observation the newest chunk answers."""
    _plan: dict[int, NDArray[np.float32]] = field(init=False, repr=False, default_factory=dict)
    """Action by tick."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant."""
        if self.ask_every is not None and not 1 <= self.ask_every <= self.spec.horizon:
            raise ContractError(
                f"a question every {self.ask_every} ticks, the chunk has {self.spec.horizon} "
                f"actions; choose 1 to {self.spec.horizon}, or null: as soon as the last is answered"
            )
        if not 0 < self.blend <= 1:
            raise ContractError(
                f"weight of the new chunk is {self.blend}; choose above 0 and up to 1 (the new "
                "chunk alone)"
            )
        if self.blend < 1:
            require_delta(self.spec, what="blending two chunks")

    def reset(self) -> None:
        """See `Schedule.reset`."""
        self._question = _Question()
        self._answered = None
        self._plan = {}

    def should_ask(self, tick: int) -> bool:
        """Ask where ``ask_every`` ticks have passed since the question that was answered last."""
        if self._question.open is not None:
            return False
        return self._answered is None or tick - self._answered >= (self.ask_every or 1)

    def asked(self, tick: int) -> None:
        """See `Schedule.asked`."""
        self._question.ask(tick)

    def lost(self, tick: int) -> None:
        """Ask again at once: the next question was due when this one was."""
        self._question.close(tick)

    def accept(self, chunk: ActionChunk, *, asked: int, now: int) -> None:
        """See `Schedule.accept`; rows meant for ticks before ``now`` are dropped."""
        self._question.close(asked)
        require_valid_chunk(chunk, self.spec)
        self._answered = asked
        old, self._plan = self._plan, {}
        for tick, row in enumerate(chunk.actions, start=asked):
            if tick >= now:
                self._plan[tick] = self._blended(old.get(tick), row)

    def next(self, tick: int) -> NDArray[np.float32] | None:
        """See `Schedule.next`."""
        return self._plan.get(tick)

    def _blended(
        self, old: NDArray[np.float32] | None, new: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        if old is None or self.blend == 1:
            return new
        row = (1 - self.blend) * old + self.blend * new
        row[-1] = new[-1]
        return row.astype(np.float32, copy=False)


@dataclass(eq=False, kw_only=True)
class Ensemble:
    """Ask at every tick and apply the mean of all that was ever predicted for it.

    ACT's temporal ensembling (arXiv:2304.13705, Algorithm 2): the i-th prediction for a tick, the
    oldest first, weighs ``exp(-decay i)``. As published but for two things: an answer may take
    its time (the next question waits for it), and the gripper is a weighted vote, open or closed,
    never a mean. A tick with one prediction applies it as it is.
    """

    spec: ActionSpec
    decay: float = 0.01
    """0 is a plain mean; the larger, the more the oldest prediction counts."""
    _question: _Question = field(init=False, repr=False, default_factory=_Question)
    _chunks: dict[int, NDArray[np.float32]] = field(init=False, repr=False, default_factory=dict)
    """By the tick they were asked at, the oldest first."""

    def __post_init__(self) -> None:
        """Refuse a controller whose commands have no mean."""
        if not 0 <= self.decay < np.inf:
            raise ContractError(
                f"ensembling decay is {self.decay}; choose 0 (a plain mean) or more"
            )
        require_delta(self.spec, what="ensembling")

    def reset(self) -> None:
        """See `Schedule.reset`."""
        self._question = _Question()
        self._chunks = {}

    def should_ask(self, tick: int) -> bool:
        """Ask once at every tick, unless an answer is under way."""
        return self._question.open is None and tick not in self._chunks

    def asked(self, tick: int) -> None:
        """See `Schedule.asked`."""
        self._question.ask(tick)

    def lost(self, tick: int) -> None:
        """See `Schedule.lost`."""
        self._question.close(tick)

    def accept(self, chunk: ActionChunk, *, asked: int, now: int) -> None:
        """See `Schedule.accept`."""
        self._question.close(asked)
        require_valid_chunk(chunk, self.spec)
        self._chunks[asked] = chunk.actions
        self._chunks = {t: a for t, a in self._chunks.items() if now - t < len(a)}

    def next(self, tick: int) -> NDArray[np.float32] | None:
        """See `Schedule.next`."""
        rows = [a[tick - t] for t, a in self._chunks.items() if 0 <= tick - t < len(a)]
        if len(rows) < 2:
            return rows[0] if rows else None
        weights = np.exp(-self.decay * np.arange(len(rows)))
        mean = np.average(rows, axis=0, weights=weights)
        vote = float(weights @ np.sign([row[-1] for row in rows]))
        mean[-1] = np.sign(vote) if vote else rows[-1][-1]
        return mean.astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """Which schedule, and what it can be told; a setting of another schedule is refused."""

    name: ScheduleName = "open_loop"
    n_execute: int | None = None
    """Of `OpenLoop`."""
    ask_every: int | None = None
    """Of `Asynchronous`."""
    blend: float = 1.0
    """Of `Asynchronous`."""
    decay: float = 0.01
    """Of `Ensemble`."""


_USES: dict[ScheduleName, tuple[str, ...]] = {
    "open_loop": ("n_execute",),
    "asynchronous": ("ask_every", "blend"),
    "ensemble": ("decay",),
}


def build_schedule(settings: ScheduleSettings, spec: ActionSpec) -> Schedule:
    """Build the schedule.

    Raises:
        ContractError: There is none of this name, a setting belongs to another one, or cannot be
            meant.
    """
    require_name(settings.name, get_args(ScheduleName), what="schedule")
    given, default = asdict(settings), asdict(ScheduleSettings())
    uses = _USES[settings.name]
    idle = [n for n in given if n not in ("name", *uses) and given[n] != default[n]]
    if idle:
        raise ContractError(
            f"schedule {settings.name} has no {', '.join(idle)}; it has {', '.join(uses)}"
        )
    match settings.name:
        case "open_loop":
            return OpenLoop(spec=spec, n_execute=settings.n_execute)
        case "asynchronous":
            return Asynchronous(spec=spec, ask_every=settings.ask_every, blend=settings.blend)
        case "ensemble":
            return Ensemble(spec=spec, decay=settings.decay)


def require_valid_chunk(chunk: ActionChunk, spec: ActionSpec) -> None:
    """Refuse a chunk that must not reach a motor: wrong shape, NaN or infinite.

    Values outside the bounds are left alone, since the environment clips them.

    Raises:
        PolicyFault: The chunk is invalid; the message says how.
    """
    actions = np.asarray(chunk.actions)
    expected = (spec.horizon, spec.size)
    if actions.shape != expected:
        raise PolicyFault(f"chunk has shape {actions.shape}, the environment expects {expected}")
    if not np.issubdtype(actions.dtype, np.floating):
        raise PolicyFault(f"chunk has dtype {actions.dtype}, the environment expects floats")
    bad = ~np.isfinite(actions)
    if bad.any():
        step, number = (int(i[0]) for i in np.nonzero(bad))
        raise PolicyFault(
            f"chunk has {int(bad.sum())} values that are not finite, "
            f"the first is {actions[step, number]} at action {step}, number {number}"
        )
