"""Preparing the next items in a thread while the current one is used."""

from __future__ import annotations

import queue
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Failed:
    error: BaseException


@contextmanager
def prefetched(
    make: Callable[[int], Item], *, first: int, last: int, depth: int = 2
) -> Iterator[Iterator[Item]]:
    """Iterate over ``make(first) .. make(last - 1)``, made in order by one thread.

    A thread rather than processes: an item is a few memory copies, which release the interpreter, and
    two cores have none to spare for pickling. What ``make`` raises is raised to the consumer.
    """
    ready: queue.Queue[Item | _Failed] = queue.Queue(maxsize=depth)
    leave = threading.Event()

    def offer(entry: Item | _Failed) -> None:
        while not leave.is_set():
            try:
                ready.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            for k in range(first, last):
                if leave.is_set():
                    return
                offer(make(k))
        except BaseException as error:  # noqa: BLE001
            offer(_Failed(error))

    def items() -> Iterator[Item]:
        for _ in range(first, last):
            item = ready.get()
            if isinstance(item, _Failed):
                raise item.error
            yield item

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        yield items()
    finally:
        leave.set()
        thread.join()
