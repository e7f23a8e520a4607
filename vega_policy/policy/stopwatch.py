"""Times of stages that follow each other on a device."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Marks on a time line.

    On a GPU the marks are events in its queue: nothing waits for them, so the CPU goes on handing out
    work while the GPU is still busy with the stage before.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._events: list[torch.cuda.Event] = []
        self._seconds: list[float] = []
        self.mark()

    def mark(self) -> None:
        """End a stage and begin the next."""
        if self._is_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append(event)
        else:
            self._seconds.append(time.perf_counter())

    def laps_ms(self) -> list[float]:
        """Return the milliseconds between marks; waits until the device has passed the last."""
        if self._is_cuda:
            self._events[-1].synchronize()
            pairs = zip(self._events[:-1], self._events[1:], strict=True)
            return [float(begin.elapsed_time(end)) for begin, end in pairs]
        pairs = zip(self._seconds[:-1], self._seconds[1:], strict=True)
        return [(end - begin) * 1e3 for begin, end in pairs]
