"""The policy server: openpi's websocket protocol, many robots, one policy.

Everything but the policy runs in one event loop; a robot that is slow, silent or gone delays no
other. The same port answers plain HTTP: health, metrics, the page, the emergency stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import logging
import signal
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import parse_qs, urlsplit

import numpy as np

from vega_policy.control.estop import EmergencyStop
from vega_policy.deploy.auth import ApiKeys, is_foreign_page, is_loopback, require_safe_bind, tls
from vega_policy.deploy.batcher import Batcher, QueueFull
from vega_policy.deploy.codec import Limits, WireError, pack, unpack
from vega_policy.deploy.metrics import CONTENT_TYPE, Metrics
from vega_policy.deploy.wire import (
    CLOSE_CODES,
    DEFAULT_PORT,
    ESTOP_PATH,
    EXTRAS_KEY,
    HEALTH_PATH,
    METRICS_PATH,
    PROTOCOL,
    RELEASE_PATH,
    Refusal,
    RefusalKind,
    RequestExtras,
    read_request,
    to_refusal,
)
from vega_policy.spec import CAMERAS, ContractError, EnvFault, Observation, VegaError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from websockets.asyncio.server import Server, ServerConnection
    from websockets.http11 import Request, Response

    from vega_policy.deploy.batcher import Answered
    from vega_policy.spec import ActionChunk, Policy

log = logging.getLogger(__name__)

ImageFit = Literal["refuse", "resize"]
_LOG_EVERY_S = 1.0


class Watcher(Protocol):
    """Is told what the server does, and returns at once (`vega_policy.deploy.feed.Feed`)."""

    def answered(
        self,
        observation: Observation,
        chunk: ActionChunk,
        *,
        robot: str,
        latency_ms: float,
        report: Mapping[str, Any],
    ) -> None:
        """Note an answer that was sent."""
        ...

    def refused(
        self, reason: str, robot: str = "", *, report: Mapping[str, Any] | None = None
    ) -> None:
        """Note a request that was not answered."""
        ...

    def event(self, kind: str, text: str) -> None:
        """Note anything else."""
        ...


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How to serve."""

    host: str = "127.0.0.1"
    """Another than loopback needs a key."""
    port: int = DEFAULT_PORT
    """0 takes a free one."""
    max_batch: int = 16
    max_delay_ms: float = 2.0
    """Longest an observation waits for others to join its batch."""
    max_waiting: int = 64
    """Requests that may wait for the policy; more are refused."""
    max_connections: int = 256
    max_message_bytes: int = 8 * 2**20
    """Of one frame; a larger one closes its connection (1009) before it is read."""
    send_timeout_s: float = 5.0
    """A client that does not take its answer for so long is dropped."""
    drain_s: float = 10.0
    """How long requests under way may take once the server is told to end."""
    image_px: int | None = None
    """Side of the square images the policy takes; None: any size."""
    image_fit: ImageFit = "refuse"
    """What is done with images of another size."""
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    tls_cert: str | None = None
    tls_key: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("max_batch", "max_waiting", "max_connections", "max_message_bytes"):
            if getattr(self, name) < 1:
                raise ContractError(f"serve.{name} is {getattr(self, name)}; use at least 1")
        for name in ("send_timeout_s", "drain_s"):
            if not getattr(self, name) > 0:
                raise ContractError(f"serve.{name} is {getattr(self, name)}; use more than 0")
        if not 0 <= self.port < 65536:
            raise ContractError(f"serve.port is {self.port}; use 0 to 65535")
        if self.image_fit not in ("refuse", "resize"):
            raise ContractError(f"serve.image_fit is {self.image_fit!r}; use refuse or resize")


@dataclass(frozen=True, kw_only=True)
class ServerSummary:
    """What a server did in its life."""

    outcomes: Mapping[str, int]
    """Requests by outcome."""
    request_ms: tuple[float, float] | None
    """Median and 99th percentile of the last requests, from request to reply sent."""


class PolicyServer:
    """Serves one policy; `run` blocks until it is told to end."""

    def __init__(
        self,
        policy: Policy,
        *,
        settings: ServerSettings,
        cameras: Sequence[str] = CAMERAS,
        metadata: Mapping[str, Any] | None = None,
        estop: EmergencyStop | None = None,
        watcher: Watcher | None = None,
        page: Callable[[str], tuple[int, list[tuple[str, str]], bytes] | None] | None = None,
    ) -> None:
        """Set up; nothing listens yet.

        Args:
            policy: Asked in a thread of its own, never by two at once.
            settings: How to serve.
            cameras: Those that the policy looks at; a request has to have them.
            metadata: Joins what is said of the policy to every client, under ``vega``.
            estop: While it is pressed no action leaves.
            watcher: Is told what happens.
            page: Answers GET of a path with status, headers and body; None: there is none.

        Raises:
            ContractError: The settings do not fit, or would let anybody drive the robot.
        """
        self._policy = policy
        self._settings = settings
        self._keys = ApiKeys(settings.api_keys)
        require_safe_bind(settings.host, has_keys=bool(self._keys))
        self._ssl = tls(settings.tls_cert, settings.tls_key)
        self._estop = estop or EmergencyStop()
        self._watcher = watcher
        self._page = page
        self._cameras = tuple(cameras)
        spec = policy.action_spec
        self._metadata = {
            EXTRAS_KEY: {
                "protocol": PROTOCOL,
                "action": {f: getattr(spec, f) for f in spec.__dataclass_fields__},
                "cameras": list(self._cameras),
                "image_px": settings.image_px if settings.image_fit == "refuse" else None,
                "ignores": list(getattr(policy, "ignores", ())),
                "orientation": "upright",
                "state": "end-effector position (3) m, axis-angle (3) rad, two fingers (2) m",
                **(metadata or {}),
            }
        }
        self._batcher = Batcher(
            policy,
            max_batch=settings.max_batch,
            max_delay_s=settings.max_delay_ms / 1000,
            max_waiting=settings.max_waiting,
            n_askers=lambda: self._n_connected,
        )
        self._metrics = Metrics(
            n_waiting=lambda: self._batcher.n_waiting, is_stopped=lambda: self._estop.is_pressed
        )
        self._outcomes: Counter[str] = Counter()
        self._request_s: deque[float] = deque(maxlen=10_000)
        self._limits = Limits(max_bytes=settings.max_message_bytes)
        self._n_busy = self._n_connected = 0
        self._is_draining = False
        self._stopping: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._logged_s = 0.0

    @property
    def estop(self) -> EmergencyStop:
        """The server's emergency stop."""
        return self._estop

    def warm_up(self, n: int = 2) -> None:
        """Have the policy compute before anybody waits for it."""
        px = self._settings.image_px or 256
        blank = Observation(
            images={camera: np.zeros((px, px, 3), np.uint8) for camera in self._cameras},
            proprio=np.zeros(8, np.float32),
            instruction="pick up the milk and place it in the basket",
        )
        for key in range(n):
            self._policy.act([blank], keys=[key])

    def run(self, *, ready: Callable[[str], None] | None = None) -> ServerSummary:
        """Serve until SIGTERM, SIGINT or `stop`; a second signal ends at once.

        Args:
            ready: Called with the address once clients may connect.

        Raises:
            ContractError: The address cannot be listened at.
        """
        return asyncio.run(self.serve(ready=ready))

    def stop(self) -> None:
        """Have `run` drain and return; from any thread, also when it has ended already."""
        if self._loop is not None and self._stopping is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._stopping.set)

    async def serve(self, *, ready: Callable[[str], None] | None = None) -> ServerSummary:
        """Do what `run` does, within an event loop that is there."""
        from websockets.asyncio.server import serve

        settings = self._settings
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._handle_signals(self._stopping)
        try:
            server = await serve(
                self._connected,
                settings.host,
                settings.port,
                process_request=self._handshake,
                origins=[None],  # no web page speaks to a robot through its visitor
                compression=None,
                max_size=settings.max_message_bytes,
                max_queue=1,  # frames kept of a client that does not wait for its answers
                open_timeout=10,
                close_timeout=2,
                ssl=self._ssl,
                server_header=None,
            )
        except OSError as error:
            raise ContractError(
                f"{settings.host}:{settings.port} cannot be listened at ({error.strerror or error}); "
                "choose another serve.port, or end what uses it"
            ) from error
        self._batcher.start()
        port = next(iter(server.sockets)).getsockname()[1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        if ready is not None:
            ready(f"{'wss' if self._ssl else 'ws'}://{host}:{port}")
        await self._stopping.wait()
        await self._drain(server)
        return self.summary()

    def summary(self) -> ServerSummary:
        """Return what was done so far."""
        times = [1000 * s for s in self._request_s]
        median_p99 = tuple(float(x) for x in np.percentile(times, [50, 99])) if times else None
        return ServerSummary(outcomes=dict(self._outcomes), request_ms=median_p99)  # pyright: ignore[reportArgumentType]

    def _handle_signals(self, stopping: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()

        def told(number: int) -> None:
            if stopping.is_set():
                log.warning("a second signal: ending at once")
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            log.info("ending: requests under way are answered first")
            stopping.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            # A server in a thread has no signals of its own.
            with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
                loop.add_signal_handler(number, told, number)

    async def _drain(self, server: Server) -> None:
        self._is_draining = True
        server.close(close_connections=False)
        deadline = time.monotonic() + self._settings.drain_s
        while self._n_busy and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        if self._n_busy:
            log.warning(
                "%d requests were still under way after %g s", self._n_busy, self._settings.drain_s
            )
        for connection in list(server.connections):
            # What robots are told: the server goes, come back later.
            asyncio.ensure_future(connection.close(1012, "the server is ending"))  # noqa: RUF006
        server.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(server.wait_closed(), 5)
        await self._batcher.close()

    # -- plain HTTP, and who may connect -----------------------------------------------------------

    async def _handshake(self, connection: ServerConnection, request: Request) -> Response | None:
        url = urlsplit(request.path)
        is_local = is_loopback(str((connection.remote_address or ("",))[0]))
        has_key = self._keys.accept(request.headers.get("Authorization"))
        if "websocket" in request.headers.get("Upgrade", "").lower():
            return self._refuse_websocket(connection, has_key=has_key)
        if url.path == HEALTH_PATH:
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if not has_key and not (is_local and not is_foreign_page(request.headers)):
            return connection.respond(
                http.HTTPStatus.FORBIDDEN,
                "from this machine under its own name, or with an API key, only\n",
            )
        if url.path in (ESTOP_PATH, RELEASE_PATH):
            return self._press(connection, request, url.path, parse_qs(url.query))
        if request.method != "GET":
            return connection.respond(http.HTTPStatus.METHOD_NOT_ALLOWED, "GET only\n")
        if url.path == METRICS_PATH:
            return _response(
                connection, 200, [("Content-Type", CONTENT_TYPE)], self._metrics.text()
            )
        found = self._page(request.path) if self._page is not None else None
        if found is None:
            return connection.respond(http.HTTPStatus.NOT_FOUND, f"there is no {url.path}\n")
        return _response(connection, *found)

    def _refuse_websocket(self, connection: ServerConnection, *, has_key: bool) -> Response | None:
        if self._keys and not has_key:
            self._count("unauthorised")
            return connection.respond(
                http.HTTPStatus.UNAUTHORIZED, "a valid key is needed: Authorization: Api-Key ...\n"
            )
        if self._is_draining:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "the server is ending\n")
        if len(connection.server.connections) > self._settings.max_connections:
            return connection.respond(
                http.HTTPStatus.SERVICE_UNAVAILABLE,
                f"{self._settings.max_connections} connections are open already\n",
            )
        return None

    def _press(
        self,
        connection: ServerConnection,
        request: Request,
        path: str,
        query: Mapping[str, list[str]],
    ) -> Response:
        """Press or release the emergency stop.

        The extra header keeps pages of other sites out: a browser asks before it sends one.
        """
        if request.method != "POST" or "X-Vega" not in request.headers:
            return connection.respond(
                http.HTTPStatus.METHOD_NOT_ALLOWED,
                f"POST {path}?by=NAME with the header X-Vega: 1\n",
            )
        by = query.get("by", [""])[0].strip()[:100]
        if not by:
            return connection.respond(http.HTTPStatus.BAD_REQUEST, "say who: ?by=NAME\n")
        if path == ESTOP_PATH:
            reason = query.get("reason", ["asked for"])[0].strip()[:200] or "asked for"
            self._estop.press(reason, by)
        else:
            self._estop.release(by)
        state = "pressed" if self._estop.is_pressed else "released"
        if self._watcher is not None:
            self._watcher.event("estop", f"{state} by {by}")
        return connection.respond(http.HTTPStatus.OK, f"{state}\n")

    # -- requests -----------------------------------------------------------------------------------

    async def _connected(self, connection: ServerConnection) -> None:
        from websockets.exceptions import ConnectionClosed

        peer = str(connection.remote_address)
        self._n_connected += 1
        self._metrics.connections.set(self._n_connected)
        log.info("%s connected", peer)
        try:
            await connection.send(pack(self._metadata))
            last_s: float | None = None
            async for frame in connection:
                started_s = time.perf_counter()
                self._n_busy += 1
                try:
                    if not await self._respond(connection, frame, started_s, last_s):
                        return
                finally:
                    self._n_busy -= 1
                last_s = time.perf_counter() - started_s
        except ConnectionClosed:
            pass
        finally:
            self._n_connected -= 1
            self._metrics.connections.set(self._n_connected)
            log.info("%s left", peer)

    async def _respond(
        self,
        connection: ServerConnection,
        frame: str | bytes,
        started_s: float,
        last_s: float | None,
    ) -> bool:
        """Answer or refuse a request; return whether the connection goes on."""
        extras = RequestExtras()
        try:
            observation, extras = self._read(frame)
            answered = await self._asked(connection, observation, key=extras.key or 0)
        except Refusal as refusal:
            return await self._refuse(connection, refusal, extras)
        if answered is None:
            self._count("gone")
            return False
        chunk = answered.chunk
        reply: dict[str, Any] = {
            "actions": np.asarray(chunk.actions, dtype=np.float32),
            "policy_timing": {
                "infer_ms": 1000 * answered.infer_s,
                **{f"{stage}_ms": float(ms) for stage, ms in chunk.timing_ms.items()},
            },
            "server_timing": {
                "infer_ms": 1000 * answered.infer_s,
                "queue_ms": 1000 * answered.queue_s,
                "batch": answered.batch,
                **({} if last_s is None else {"prev_total_ms": 1000 * last_s}),
            },
        }
        if extras.request_id is not None:
            reply[EXTRAS_KEY] = {"protocol": PROTOCOL, "request_id": extras.request_id}
            if extras.want_gate and chunk.gate is not None:
                reply[EXTRAS_KEY]["gate"] = dict(chunk.gate)
        if self._estop.is_pressed:  # while the policy computed
            return await self._refuse(connection, self._stopped(), extras)
        if not await self._sent(connection, pack(reply)):
            return False
        total_s = time.perf_counter() - started_s
        self._request_s.append(total_s)
        self._outcomes["answered"] += 1
        self._metrics.answered(answered, total_s=total_s)
        if self._watcher is not None:
            self._watcher.answered(
                observation,
                chunk,
                robot=extras.robot or str(connection.remote_address[1]),
                latency_ms=1000 * total_s,
                report=extras.report,
            )
        return True

    def _read(self, frame: str | bytes) -> tuple[Observation, RequestExtras]:
        """Decode and check a request.

        Raises:
            Refusal: It cannot be used, or nothing is answered now.
        """
        if isinstance(frame, str):
            raise Refusal("a request is a binary frame of msgpack, got text", "request")
        try:
            message = unpack(frame, limits=self._limits)
        except WireError as error:
            raise Refusal(str(error), "request") from error
        # The number first: whoever sent one is answered with it, whatever else is wrong.
        try:
            observation, extras = read_request(message, cameras=self._cameras)
            observation = self._fitted(observation)
        except WireError as error:
            known = RequestExtras(request_id=_request_id(message))
            raise _Numbered(str(error), "request", known) from error
        if self._estop.is_pressed:
            raise _Numbered(str(self._stopped()), "stopped", extras)
        if self._is_draining:
            raise _Numbered("the server is ending; connect again later", "draining", extras)
        return observation, extras

    def _fitted(self, observation: Observation) -> Observation:
        px = self._settings.image_px
        if px is None:
            return observation
        images = dict(observation.images)
        for name, image in images.items():
            if image.shape[:2] == (px, px):
                continue
            if self._settings.image_fit == "refuse" or image.shape[0] != image.shape[1]:
                raise WireError(
                    f"{name} is {image.shape[1]} x {image.shape[0]} px, the policy takes {px} x {px}; "
                    "send that, or start the server with serve.image_fit=resize (square images)"
                )
            from PIL import Image

            resized = Image.fromarray(image).resize((px, px), Image.Resampling.LANCZOS)
            images[name] = np.asarray(resized)
        return replace(observation, images=images)

    async def _asked(
        self, connection: ServerConnection, observation: Observation, *, key: int
    ) -> Answered | None:
        """Have the policy answer; None where the client left meanwhile.

        Raises:
            Refusal: There is no answer.
        """
        question = asyncio.ensure_future(self._batcher.ask(observation, key=key))
        leaving = asyncio.ensure_future(connection.wait_closed())
        try:
            await asyncio.wait({question, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not question.done():
                return None
            return question.result()
        except QueueFull as error:
            raise Refusal(str(error), "busy") from error
        except ContractError as error:
            raise Refusal(str(error), "request") from error
        except (VegaError, EnvFault) as error:
            raise Refusal(str(error), "policy") from error
        except asyncio.CancelledError as error:
            if question.cancelled():  # the batcher closed
                raise Refusal("the server is ending; connect again later", "draining") from error
            raise
        finally:
            question.cancel()
            leaving.cancel()

    async def _refuse(
        self, connection: ServerConnection, refusal: Refusal, extras: RequestExtras
    ) -> bool:
        if isinstance(refusal, _Numbered):
            extras = refusal.extras
        self._count(refusal.kind)
        if self._watcher is not None:
            self._watcher.refused(str(refusal), extras.robot, report=extras.report)
        now_s = time.monotonic()
        if now_s - self._logged_s >= _LOG_EVERY_S:
            self._logged_s = now_s
            log.warning("refused (%s): %s", refusal.kind, refusal)
        if extras.request_id is not None:
            return await self._sent(connection, pack(to_refusal(refusal, extras.request_id)))
        if await self._sent(connection, str(refusal)):
            reason = "Internal server error. Message included in previous frame."
            code = CLOSE_CODES[refusal.kind]
            await connection.close(code, reason if code == 1011 else _close_reason(str(refusal)))
        return False

    async def _sent(self, connection: ServerConnection, frame: str | bytes) -> bool:
        """Send; drop a client that does not take it."""
        try:
            async with asyncio.timeout(self._settings.send_timeout_s):
                await connection.send(frame)
        except TimeoutError:
            self._count("slow")
            connection.transport.abort()
            return False
        return True

    def _stopped(self) -> Refusal:
        return Refusal(f"no actions: {self._estop.reason}; a person has to release it", "stopped")

    def _count(self, outcome: str) -> None:
        self._outcomes[outcome] += 1
        self._metrics.requests.labels(outcome).inc()


class _Numbered(Refusal):
    """A refusal of a request whose number could be read although it could not be used."""

    def __init__(self, sentence: str, kind: RefusalKind, extras: RequestExtras) -> None:
        super().__init__(sentence, kind)
        self.extras = extras


def _close_reason(sentence: str) -> str:
    """Cut to what a closing frame holds: 123 bytes, whole characters."""
    return sentence.encode()[:120].decode(errors="ignore")


def _request_id(message: Any) -> str | None:  # noqa: ANN401 - whatever was sent
    ours = message.get(EXTRAS_KEY) if isinstance(message, dict) else None
    number = ours.get("request_id") if isinstance(ours, dict) else None
    return number if isinstance(number, str) and len(number) <= 256 else None


def _response(
    connection: ServerConnection, status: int, headers: list[tuple[str, str]], body: bytes
) -> Response:
    response = connection.respond(http.HTTPStatus(status), "")
    response.body = body
    for name in ("Content-Type", "Content-Length"):
        del response.headers[name]
    response.headers["Content-Length"] = str(len(body))
    for name, value in headers:
        response.headers[name] = value
    return response
