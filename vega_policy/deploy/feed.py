"""What a server did lately, for whoever looks: the live page and a recording."""

from __future__ import annotations

import base64
import math
import secrets
import threading
import time
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vega_policy.spec import Observation

if TYPE_CHECKING:
    from vega_policy.spec import ActionChunk, ActionSpec

LATENCY_BINS_MS = (5, 10, 20, 30, 40, 50, 75, 100, 125, 150, 175, 200, 250, 300, 400, 500, 1000)
"""Upper edges of the histogram's bins; the last bin has none."""
IMAGE_PX = 384
"""Longer side of a picture in a snapshot; larger ones are thinned out."""
MAX_ROBOTS = 32
"""Robots remembered; the one silent longest is forgotten first."""
_WINDOW = 1000
_MAX_TEXT = 300
_MAX_ENTRIES = 32


@dataclass(eq=False)
class _Robot:
    """What is remembered of one robot."""

    n_answered: int = 0
    seen_s: float = 0.0
    """When its last request was answered or refused."""
    reported_s: float = 0.0
    answered_s: float = 0.0
    observation: Observation | None = None
    gate: Mapping[str, NDArray[np.float32]] | None = None
    looked: int = 0
    """Number of the answer that ``observation`` and ``gate`` belong to."""
    report: dict[str, Any] = field(default_factory=dict[str, Any])
    chunks: deque[dict[str, Any]] = field(default_factory=deque[dict[str, Any]])
    pictures: tuple[int, dict[str, str]] = (0, {})
    """Encoded when a page asks, kept for the next page that does."""


class Feed:
    """A bounded record of answers, refusals and events; every method may be called from every thread.

    Telling it something costs microseconds: references are kept, pictures are encoded when a page asks
    for them, outside the lock. What a robot says about itself comes from a network and is cut to a bounded
    number of short entries.
    """

    def __init__(
        self,
        *,
        action_spec: ActionSpec | None = None,
        about: Mapping[str, Any] | None = None,
        capacity: int = 200,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Start empty.

        Args:
            action_spec: Meaning of the chunks, for the axes of the page.
            about: What serves, for its head: ``model``, ``checkpoint_sha256``, ``device``.
            capacity: Chunks remembered per robot, and events.
            clock: Seconds since 1970.
        """
        self._capacity = capacity
        self._clock = clock
        self._about = _plain(about or {}, depth=2)
        self._about["action"] = None if action_spec is None else asdict(action_spec)
        self._lock = threading.Lock()
        self._run = secrets.token_hex(8)
        self._n = 0
        self._robots: OrderedDict[str, _Robot] = OrderedDict()
        self._events: deque[dict[str, Any]] = deque(maxlen=capacity)
        self._latencies_ms: deque[float] = deque(maxlen=_WINDOW)
        self._answered_s: deque[float] = deque(maxlen=_WINDOW)
        self._n_answered = 0
        self._n_refused = 0

    def answered(
        self,
        observation: Observation,
        chunk: ActionChunk,
        *,
        robot: str = "",
        latency_ms: float = 0.0,
        report: Mapping[str, Any] | None = None,
    ) -> None:
        """Note an answer.

        Args:
            observation: What the robot saw; not to be written to afterwards.
            chunk: What it was answered.
            robot: Its name; robots without one are one robot here.
            latency_ms: From the request's arrival to its answer.
            report: What the robot said about itself, see `vega_policy.control.Pilot.report`.
        """
        now_s = self._clock()
        with self._lock:
            self._n_answered += 1
            self._answered_s.append(now_s)
            self._latencies_ms.append(float(latency_ms))
            of = self._hear(robot, now_s, report)
            self._n += 1
            of.n_answered += 1
            of.answered_s = now_s
            of.observation, of.gate, of.looked = observation, chunk.gate, self._n
            of.chunks.append(
                {
                    "n": self._n,
                    "t": round(now_s, 3),
                    "latency_ms": _number(latency_ms),
                    "instruction": observation.instruction[:_MAX_TEXT],
                    "actions": chunk.actions,
                }
            )

    def refused(
        self, reason: str, robot: str = "", *, report: Mapping[str, Any] | None = None
    ) -> None:
        """Note a request that was not answered."""
        now_s = self._clock()
        with self._lock:
            self._n_refused += 1
            if robot:
                self._hear(robot, now_s, report)
            self._happened(now_s, "refused", f"{robot}: {reason}" if robot else reason)

    def event(self, kind: str, text: str) -> None:
        """Note something else: a connection, a press of the emergency stop, a drain."""
        with self._lock:
            self._happened(self._clock(), kind, text)

    def snapshot(self, since: int = 0, robot: str | None = None) -> dict[str, Any]:
        """Return what a page shows, JSON-ready.

        Args:
            since: ``n`` of the snapshot before: chunks, events and pictures known by then are left out.
            robot: Whose pictures and chunks; None or an unknown name: of the one heard last.
        """
        with self._lock:
            if since > self._n:
                since = 0
            name = robot if robot in self._robots else next(reversed(self._robots), None)
            of = self._robots[name] if name is not None else _Robot()
            latencies = list(self._latencies_ms)
            now_s = self._clock()
            found: dict[str, Any] = {
                "run": self._run,
                "n": self._n,
                "now": round(now_s, 3),
                "about": self._about,
                "answered": self._n_answered,
                "refused": self._n_refused,
                "per_s": self._rate(now_s),
                "robot": name,
                "robots": {
                    key: {
                        "answered": value.n_answered,
                        "seen": round(value.seen_s, 3),
                        "report": value.report,
                        "reported": round(value.reported_s, 3),
                    }
                    for key, value in sorted(self._robots.items())
                },
                "events": [dict(event) for event in self._events if event["n"] > since],
            }
            chunks = [dict(chunk) for chunk in of.chunks if chunk["n"] > since]
            observation, gate, looked, at_s = of.observation, of.gate, of.looked, of.answered_s
        for chunk in chunks:
            chunk["actions"] = _rounded(chunk["actions"], 4)
        found["chunks"] = chunks
        found["latency"] = _histogram(latencies)
        found["views"] = None
        if observation is not None and looked > since:
            if of.pictures[0] != looked:
                of.pictures = (looked, {k: _data_url(v) for k, v in observation.images.items()})
            found["views"] = {
                "n": looked,
                "t": round(at_s, 3),
                "instruction": observation.instruction[:_MAX_TEXT],
                "images": of.pictures[1],
                "gates": {k: _rounded(v, 4) for k, v in (gate or {}).items()},
            }
        return found

    def _hear(self, name: str, now_s: float, report: Mapping[str, Any] | None) -> _Robot:
        of = self._robots.get(name)
        if of is None:
            if len(self._robots) >= MAX_ROBOTS:
                self._robots.popitem(last=False)
            of = self._robots[name] = _Robot(chunks=deque(maxlen=self._capacity))
            self._happened(now_s, "robot", f"{name or 'one without a name'}: first request")
        self._robots.move_to_end(name)
        of.seen_s = now_s
        if report:
            before = of.report.get("state")
            of.report, of.reported_s = _plain(report, depth=2), now_s
            state, why = of.report.get("state"), of.report.get("reason")
            # Between these two a robot may change with every chunk; the rest is news.
            if before is not None and state != before and {before, state} != {"running", "holding"}:
                self._happened(
                    now_s, "robot", f"{name or 'robot'}: {state}" + (f", {why}" if why else "")
                )
        return of

    def _happened(self, now_s: float, kind: str, text: str) -> None:
        """Append to the log; what repeats is counted, so that a flood does not wash it away."""
        self._n += 1
        kind, text = kind[:40], text[:_MAX_TEXT]
        last = self._events[-1] if self._events else None
        if last is not None and last["kind"] == kind and last["text"] == text:
            last.update(n=self._n, t=round(now_s, 3), times=last["times"] + 1)
            return
        self._events.append(
            {
                "id": self._n,
                "n": self._n,
                "t": round(now_s, 3),
                "kind": kind,
                "text": text,
                "times": 1,
            }
        )

    def _rate(self, now_s: float, over_s: float = 5.0) -> float:
        """Answers per second, of the last seconds or of what is remembered of them."""
        recent = [t for t in self._answered_s if t > now_s - over_s]
        if len(recent) == _WINDOW:
            over_s = max(now_s - recent[0], 1e-3)
        return round(len(recent) / over_s, 1)


def _histogram(latencies_ms: list[float]) -> dict[str, Any]:
    """Bins, median and 99th percentile of the same answers."""
    counts = [0] * (len(LATENCY_BINS_MS) + 1)
    for value in latencies_ms:
        counts[bisect_right(LATENCY_BINS_MS, value)] += 1
    p50, p99 = np.percentile(latencies_ms, (50, 99)) if latencies_ms else (math.nan, math.nan)
    return {
        "bins_ms": LATENCY_BINS_MS,
        "counts": counts,
        "p50": _number(p50),
        "p99": _number(p99),
        "of": len(latencies_ms),
    }


def _data_url(image: NDArray[np.uint8]) -> str:
    import simplejpeg

    step = -(-max(image.shape[:2]) // IMAGE_PX)
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(image[::step, ::step]), quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")


def _plain(value: Any, *, depth: int) -> Any:  # noqa: ANN401 - whatever a robot sent
    """Cut to what JSON can say, and to a bounded size."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float | np.number):
        return _number(value)
    if isinstance(value, str):
        return value[:_MAX_TEXT]
    if isinstance(value, Mapping):
        if depth == 0:
            return {}
        first = list(value.items())[:_MAX_ENTRIES]
        return {str(key)[:80]: _plain(entry, depth=depth - 1) for key, entry in first}
    if isinstance(value, list | tuple):
        return [_plain(entry, depth=depth - 1) for entry in value[:_MAX_ENTRIES]] if depth else []
    return type(value).__name__


def _rounded(array: NDArray[np.floating[Any]], digits: int) -> list[Any]:
    return np.round(np.asarray(array, dtype=np.float64), digits).tolist()


def _number(value: float | np.number[Any]) -> float | None:
    """JSON has no NaN."""
    number = float(value)
    return round(number, 3) if math.isfinite(number) else None
