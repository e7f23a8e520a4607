"""What a server counts, in Prometheus' text format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vega_policy.deploy.batcher import Answered

_SECONDS = (
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.035,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    1.0,
    2.0,
    5.0,
)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters and histograms of one server; names begin with ``vega_``."""

    def __init__(self, *, n_waiting: Callable[[], int], is_stopped: Callable[[], bool]) -> None:
        """Register them.

        Args:
            n_waiting: Asked when the page is read.
            is_stopped: Whether the emergency stop is pressed; likewise.

        Raises:
            ContractError: prometheus_client is not installed.
        """
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        except ImportError as error:
            raise ContractError(
                "the server needs prometheus-client; pip install 'vega-policy[serve]'"
            ) from error
        self._registry = of = CollectorRegistry()

        def seconds(name: str, what: str) -> Histogram:
            return Histogram(f"vega_{name}_seconds", what, buckets=_SECONDS, registry=of)

        self.requests = Counter("vega_requests", "Requests by outcome.", ["outcome"], registry=of)
        """Outcomes: ``answered``, ``gone`` (the client left), and the kinds of refusals."""
        self._queue = seconds("queue", "From request to the start of its inference.")
        self._infer = seconds("inference", "The policy's call, of the whole batch.")
        self._total = seconds("request", "From request to reply sent.")
        self._batch = Histogram(
            "vega_batch_size",
            "Observations per call of the policy, by request.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=of,
        )
        self.connections = Gauge("vega_connections", "Open connections.", registry=of)
        Gauge("vega_waiting", "Requests that wait for the policy.", registry=of).set_function(
            n_waiting
        )
        Gauge("vega_stopped", "1 while the emergency stop is pressed.", registry=of).set_function(
            lambda: float(is_stopped())
        )

    def answered(self, answered: Answered, *, total_s: float) -> None:
        """Count an answer that was sent."""
        self.requests.labels("answered").inc()
        self._queue.observe(answered.queue_s)
        self._infer.observe(answered.infer_s)
        self._batch.observe(answered.batch)
        self._total.observe(total_s)

    def text(self) -> bytes:
        """Return the page."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)
