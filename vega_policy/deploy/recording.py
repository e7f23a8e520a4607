"""What a server did, as a file for the rerun viewer (https://rerun.io)."""

from __future__ import annotations

import importlib.util
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vega_policy.spec import ActionChunk, ContractError, Observation

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from vega_policy.deploy.feed import Feed

log = logging.getLogger(__name__)

_MAX_WAITING = 64
_TELL_EVERY_S = 5.0
_NO_NAME = "robot"


@dataclass(frozen=True, eq=False, kw_only=True)
class _Answer:
    observation: Observation
    chunk: ActionChunk
    robot: str
    latency_ms: float
    report: Mapping[str, Any]


class Recording:
    """A feed that also writes an .rrd file; stands wherever the feed does.

    A thread of its own writes. Where it cannot follow, answers are left out of the file and counted:
    the inference never waits for a disk.

    In the file, by robot: ``camera/*``, ``gate/*``, ``chunk`` (horizon, size), ``action`` (the rows at
    their times, of which a later chunk may replace some), ``proprio``, ``latency_ms``, the counts
    ``interventions/*`` and ``holds/*``, ``instruction``; of the server: ``events``.
    """

    def __init__(
        self,
        feed: Feed,
        path: Path,
        *,
        rate_hz: float = 20.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open the file.

        Args:
            feed: Is told everything first.
            path: Of the file; ends in .rrd.
            rate_hz: Control rate of the chunks.
            clock: Seconds since 1970.

        Raises:
            ContractError: rerun is not installed, or the file cannot be written.
        """
        if importlib.util.find_spec("rerun") is None:
            raise ContractError("a recording needs rerun; pip install 'vega-policy[rerun]'")
        import rerun  # pyright: ignore[reportMissingImports]

        if path.suffix != ".rrd":
            raise ContractError(f"the recording is {path.name!r}; name it so that it ends in .rrd")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise ContractError(f"the recording cannot be written: {error}") from error
        self._feed = feed
        self._rr = rerun
        self._rate_hz = rate_hz
        self._clock = clock
        self._stream = rerun.RecordingStream("vega_policy")
        self._stream.save(path)
        self._waiting: queue.Queue[tuple[float, _Answer | tuple[str, str]] | None] = queue.Queue(
            _MAX_WAITING
        )
        self._instructions: dict[str, str] = {}
        self.n_left_out = 0
        """Answers and events that are not in the file, since the disk was slow."""
        self._told_s = -_TELL_EVERY_S
        self._is_closed = False
        self._thread = threading.Thread(target=self._write_all, name="recording", daemon=True)
        self._thread.start()

    def answered(
        self,
        observation: Observation,
        chunk: ActionChunk,
        *,
        robot: str = "",
        latency_ms: float = 0.0,
        report: Mapping[str, Any] | None = None,
    ) -> None:
        """See `vega_policy.deploy.feed.Feed.answered`."""
        self._feed.answered(observation, chunk, robot=robot, latency_ms=latency_ms, report=report)
        self._put(
            _Answer(
                observation=observation,
                chunk=chunk,
                robot=robot or _NO_NAME,
                latency_ms=latency_ms,
                report=report or {},
            )
        )

    def refused(
        self, reason: str, robot: str = "", *, report: Mapping[str, Any] | None = None
    ) -> None:
        """See `vega_policy.deploy.feed.Feed.refused`."""
        self._feed.refused(reason, robot, report=report)
        self._put(("refused", f"{robot}: {reason}" if robot else reason))

    def event(self, kind: str, text: str) -> None:
        """See `vega_policy.deploy.feed.Feed.event`."""
        self._feed.event(kind, text)
        self._put((kind, text))

    def snapshot(self, since: int = 0, robot: str | None = None) -> dict[str, Any]:
        """See `vega_policy.deploy.feed.Feed.snapshot`."""
        return self._feed.snapshot(since, robot)

    def close(self) -> None:
        """Write what waits and end the file."""
        if self._is_closed:
            return
        self._is_closed = True
        self._waiting.put(None)
        self._thread.join()
        if self.n_left_out:
            log.warning("%d entries are not in the recording: too slow a disk", self.n_left_out)

    def __enter__(self) -> Recording:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def _put(self, what: _Answer | tuple[str, str]) -> None:
        if self._is_closed:
            return
        try:
            self._waiting.put_nowait((self._clock(), what))
        except queue.Full:
            self.n_left_out += 1

    def _write_all(self) -> None:
        while (entry := self._waiting.get()) is not None:
            at_s, what = entry
            try:
                if isinstance(what, _Answer):
                    self._write_answer(what, at_s)
                else:
                    self._stream.set_time("time", timestamp=at_s)
                    self._stream.log("events", self._rr.TextLog(f"{what[0]}: {what[1]}"))
            except Exception:  # a recording must not end a server
                self.n_left_out += 1
                if time.monotonic() - self._told_s >= _TELL_EVERY_S:
                    self._told_s = time.monotonic()
                    log.exception("an entry could not be recorded")
        self._stream.flush(blocking=True)
        self._stream.disconnect()

    def _write_answer(self, answer: _Answer, at_s: float) -> None:
        rr, stream = self._rr, self._stream

        def write(*parts: str, value: Any) -> None:  # noqa: ANN401 - an archetype of rerun
            stream.log([answer.robot, *parts], value)

        stream.set_time("time", timestamp=at_s)
        for name, image in answer.observation.images.items():
            write("camera", name, value=rr.Image(image).compress(jpeg_quality=85))
        for name, gate in (answer.chunk.gate or {}).items():
            write(
                "gate", name, value=rr.DepthImage(gate, colormap="viridis", depth_range=(0.0, 1.0))
            )
        write("chunk", value=rr.Tensor(answer.chunk.actions, dim_names=("step", "number")))
        write("proprio", value=rr.Scalars(answer.observation.proprio))
        write("latency_ms", value=rr.Scalars(answer.latency_ms))
        for group in ("interventions", "holds"):
            counts = answer.report.get(group)
            for name, count in counts.items() if isinstance(counts, Mapping) else ():
                if isinstance(count, int | float):
                    write(group, str(name)[:80], value=rr.Scalars(count))
        instruction = answer.observation.instruction
        if self._instructions.get(answer.robot) != instruction:
            self._instructions[answer.robot] = instruction
            write("instruction", value=rr.TextDocument(instruction))
        for step, row in enumerate(answer.chunk.actions):
            stream.set_time("time", timestamp=at_s + step / self._rate_hz)
            write("action", value=rr.Scalars(row))
