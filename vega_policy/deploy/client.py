"""The robot's end of the websocket: NumPy, msgpack and websockets are all it needs.

`Client` is one connection, `RemotePolicy` makes a policy of several, `remote_link` makes of one what
`vega_policy.control.Pilot` asks. All of them speak to this project's server and, where the caller says what
its actions mean, to any server of openpi's protocol.
"""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import connect

from vega_policy.control.thread_link import ThreadLink
from vega_policy.deploy.codec import Limits, WireError, pack, unpack
from vega_policy.deploy.wire import (
    DEFAULT_PORT,
    EXTRAS_KEY,
    IMAGE_KEYS,
    PROTOCOL,
    Refusal,
    RequestExtras,
    read_chunk,
    require_answer,
    to_request,
)
from vega_policy.spec import (
    ActionChunk,
    ActionSpec,
    ContractError,
    EnvFault,
    Observation,
    PolicyFault,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Sequence

    from websockets.sync.client import ClientConnection

    from vega_policy.deploy.wire import RefusalKind

DEFAULT_URL = f"ws://127.0.0.1:{DEFAULT_PORT}"
_MAX_SENTENCE = 500
"""Characters of a server's sentence that are passed on."""

log = logging.getLogger(__name__)


class Refused(EnvFault):
    """The server did not take the request; the next one may be taken."""

    def __init__(self, sentence: str, kind: RefusalKind) -> None:
        super().__init__(sentence)
        self.kind: RefusalKind = kind
        """``busy``, ``draining``, or ``stopped``: the server's emergency stop is pressed."""


@dataclass(frozen=True, kw_only=True)
class ServerInfo:
    """What a server says about itself before the first request."""

    url: str
    action_spec: ActionSpec
    """What the numbers of its chunks mean; the caller's word where the server says nothing."""
    is_vega: bool
    """Whether it is this project's server, or only speaks openpi's protocol."""
    cameras: tuple[str, ...] = ()
    """Cameras it looks at; empty where it says nothing."""
    image_px: int | None = None
    """Side of the images it takes; None: any."""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """All of it, as it came."""

    def about(self, name: str) -> str:
        """Return what the server says of its policy under this name, "" where it says nothing."""
        ours = self.metadata.get(EXTRAS_KEY)
        said = ours.get(name) if isinstance(ours, dict) else None
        return said if isinstance(said, str) else ""


class Client:
    """One connection to a policy server, one request at a time.

    A request that was not answered in time closes the connection, since the protocol of openpi has
    no request numbers: the late answer would be taken for that of the next request. The next
    request opens another connection. With this project's server the answer's number is compared too.

    One thread at a time may ask; `close` may come from any.

    Args:
        url: ``ws://`` or ``wss://`` address.
        action_spec: What the actions must mean; None takes this project's server at its word.
            A server that says nothing needs it.
        api_key: Sent as ``Authorization: Api-Key ...``.
        timeout_s: For connecting, and for an answer.
        ssl: Certificates for ``wss://``; None: those of the system.
        limits: What is accepted from the server.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        action_spec: ActionSpec | None = None,
        api_key: str | None = None,
        timeout_s: float = 10.0,
        ssl: ssl.SSLContext | None = None,
        limits: Limits | None = None,
    ) -> None:
        if not url.startswith(("ws://", "wss://")):
            raise ContractError(
                f"the server's address is {url!r}; write ws://HOST:{DEFAULT_PORT}, or wss:// with TLS"
            )
        if not timeout_s > 0:
            raise ContractError(f"timeout_s is {timeout_s}; use a number above zero")
        self.url = url
        self._expected = action_spec
        self._headers = {} if api_key is None else {"Authorization": f"Api-Key {api_key}"}
        self._timeout_s = timeout_s
        self._ssl = ssl
        self._limits = limits or Limits()
        self._connection: ClientConnection | None = None
        self._info: ServerInfo | None = None
        self._n_requests = 0
        self._lock = threading.Lock()
        self._is_closed = False

    def __enter__(self) -> Client:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def info(self) -> ServerInfo:
        """What the server said about itself; connects if that did not happen yet."""
        return self._info or self.connect()

    def connect(self, *, wait_s: float = 0.0) -> ServerInfo:
        """Open the connection and compare what the server says with what is expected.

        Args:
            wait_s: How long a server that is not there yet is waited for.

        Raises:
            ContractError: It wants another key, speaks another protocol, or its actions mean
                something else; the message lists every difference.
            EnvFault: It cannot be reached, or did not answer in time.
        """
        give_up = time.monotonic() + wait_s
        is_told = False
        while True:
            try:
                return self._open(time.monotonic() + self._timeout_s)
            except EnvFault as fault:
                left_s = give_up - time.monotonic()
                if left_s <= 0:
                    raise
                if not is_told:
                    log.info("waiting up to %g s: %s", wait_s, fault)
                is_told = True
                time.sleep(min(1.0, left_s))

    def infer(self, observation: Observation, extras: RequestExtras | None = None) -> ActionChunk:
        """Return the answer to an observation.

        Raises:
            PolicyFault: The policy failed, or answered with what must not reach a motor.
            Refused: The server did not take the request.
            EnvFault: The connection broke or no answer came in time; the next request connects
                again.
            ContractError: The request is at fault, or another server answers than before.
        """
        deadline = time.monotonic() + self._timeout_s
        if self._connection is None or self._has_unasked_message(self._connection):
            self._drop()
            self._open(deadline)
        info, connection = self._info, self._connection
        if info is None or connection is None:
            raise EnvFault(f"the connection to {self.url} was closed; make another client")
        self._n_requests += 1
        wanted = str(self._n_requests) if info.is_vega else None
        sent = replace(extras or RequestExtras(), request_id=wanted) if info.is_vega else None
        request = pack(to_request(observation, sent))
        with self._broken_connections_are_dropped("an answer"):
            connection.send(request)
            while True:
                reply = self._receive(connection, deadline)
                if wanted is None or _request_id(reply) == wanted:
                    break
                log.warning("%s answered another request than the open one; skipped", self.url)
        try:
            require_answer(reply)
            spec = info.action_spec
            return read_chunk(reply, horizon=spec.horizon, size=spec.size)
        except WireError as error:
            raise PolicyFault(f"{self.url} sent {error}") from error
        except Refusal as refusal:
            raise _refused(refusal, self.url) from None

    def close(self) -> None:
        """Close the connection for good."""
        self._is_closed = True
        self._drop()

    def _open(self, deadline: float) -> ServerInfo:
        self._drop()
        if self._is_closed:
            raise EnvFault(f"the connection to {self.url} was closed; make another client")
        with self._broken_connections_are_dropped("the handshake"):
            opening = connect(
                self.url,
                additional_headers=self._headers,
                compression=None,
                proxy=None,  # else HTTP_PROXY catches even ws://127.0.0.1
                ssl=self._ssl,
                max_size=self._limits.max_bytes,
                open_timeout=max(0.001, deadline - time.monotonic()),
                close_timeout=0.2,
            )
            # From 17.1 on a warning unless it is entered; `_drop` closes it.
            self._connection = connection = ExitStack().enter_context(opening)
            _bound_sending(connection.socket, self._timeout_s)
            metadata = self._receive(connection, deadline)
        try:
            info = read_info(metadata, url=self.url, expected=self._expected)
            if self._info is not None and info.action_spec != self._info.action_spec:
                raise ContractError(
                    f"the server at {self.url} changed: "
                    + "; ".join(
                        info.action_spec.disagreements(
                            self._info.action_spec, ours="now it", theirs="before it"
                        )
                    )
                )
        except ContractError:
            self._drop()
            raise
        self._info = info
        return info

    def _receive(self, connection: ClientConnection, deadline: float) -> Any:  # noqa: ANN401
        """Return the next message, decoded; a text is the server's way to say what went wrong."""
        frame = connection.recv(timeout=max(0.0, deadline - time.monotonic()))
        if isinstance(frame, str):
            self._drop()
            raise PolicyFault(f"the policy at {self.url} failed: {_sentence(frame)}")
        return unpack(frame, limits=self._limits)

    @staticmethod
    def _has_unasked_message(connection: ClientConnection) -> bool:
        """Look for an answer that nobody waits for, and for a connection that is gone."""
        try:
            connection.recv(timeout=0)
        except TimeoutError:
            return False
        except ConnectionClosed:
            return True
        log.warning("the server sent a message that nobody asked for; connecting again")
        return True

    @contextmanager
    def _broken_connections_are_dropped(self, what: str) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            self._drop()
            raise EnvFault(
                f"{self.url} did not send {what} within {self._timeout_s:g} s; see whether the "
                "server is busy or stopped"
            ) from error
        except InvalidStatus as error:
            self._drop()
            raise _refused_handshake(error, self.url, has_key=bool(self._headers)) from error
        except WireError as error:
            self._drop()
            raise EnvFault(f"{self.url} sent {error}") from error
        except ConnectionClosed as error:
            self._drop()
            raise _closed(error, self.url) from error
        except InvalidURI as error:
            raise ContractError(f"{error}; write ws://HOST:{DEFAULT_PORT}") from error
        except (InvalidHandshake, OSError) as error:
            self._drop()
            raise EnvFault(
                f"{self.url} cannot be reached ({_sentence(str(error))}); start it with "
                "scripts/serve.py, or correct the address"
            ) from error

    def _drop(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            # Not the closing handshake first: whoever did not answer will not answer it either.
            with suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)
            connection.close()


class RemotePolicy:
    """A `vega_policy.spec.Policy` at the other end of a websocket.

    A batch travels over several connections at once, so that the server can compute it as one. Each
    observation's key travels with it: the answers are those of the same policy in this process, and
    asking again after a fault changes none.

    Args:
        url: Address of the server.
        action_spec: What the actions must mean; see `Client`.
        api_key: See `Client`.
        timeout_s: For each answer.
        connections: How many requests may be open at once.
        patience_s: How long a server that is lost or busy is asked again.
        want_gate: Have the gate maps sent too.
        ssl: See `Client`.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        action_spec: ActionSpec | None = None,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        connections: int = 1,
        patience_s: float = 0.0,
        want_gate: bool = False,
        ssl: ssl.SSLContext | None = None,
    ) -> None:
        if connections < 1:
            raise ContractError(f"connections is {connections}; use at least 1")
        self._clients = [
            Client(url, action_spec=action_spec, api_key=api_key, timeout_s=timeout_s, ssl=ssl)
            for _ in range(connections)
        ]
        self._free: SimpleQueue[Client] = SimpleQueue()
        for client in self._clients:
            self._free.put(client)
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix="remote-policy")
        self._patience_s = patience_s
        self._want_gate = want_gate
        self._checkpoint: str | None = None
        """What the server said it serves, the first time."""

    def __enter__(self) -> RemotePolicy:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self, *, wait_s: float = 0.0) -> ServerInfo:
        """Open the first connection; see `Client.connect`."""
        info = self._clients[0].connect(wait_s=wait_s)
        self._require_same(info)
        return info

    @property
    def info(self) -> ServerInfo:
        """What the server said about itself; connects if that did not happen yet."""
        return self._clients[0].info

    @property
    def action_spec(self) -> ActionSpec:
        """What the returned numbers mean; connects if that did not happen yet."""
        return self.info.action_spec

    @property
    def ignores(self) -> tuple[str, ...]:
        """Inputs the policy is made without, so that a preflight does not miss them."""
        said = self.info.metadata.get(EXTRAS_KEY)
        named = said.get("ignores") if isinstance(said, dict) else None
        return tuple(str(name) for name in named) if isinstance(named, list) else ()

    def act(self, batch: Sequence[Observation], *, keys: Sequence[int]) -> list[ActionChunk]:
        """Answer each observation; see `vega_policy.spec.Policy` and, for errors, `Client.infer`.

        Raises:
            ContractError: Also where the server has another checkpoint than before.
        """
        if len(batch) != len(keys):
            raise ContractError(f"{len(batch)} observations with {len(keys)} keys; pass one each")
        return list(self._threads.map(self._ask, batch, keys))

    def close(self) -> None:
        """Close the connections."""
        for client in self._clients:
            client.close()
        self._threads.shutdown()

    def _ask(self, observation: Observation, key: int) -> ActionChunk:
        extras = RequestExtras(
            key=key,
            episode=observation.episode,
            inference=observation.inference,
            want_gate=self._want_gate,
        )
        client = self._free.get()
        try:
            chunk = self._infer(client, observation, extras)
            self._require_same(client.info)
        finally:
            self._free.put(client)
        return chunk

    def _infer(
        self, client: Client, observation: Observation, extras: RequestExtras
    ) -> ActionChunk:
        give_up = time.monotonic() + self._patience_s
        is_told = False
        while True:
            try:
                return client.infer(observation, extras)
            except EnvFault as fault:
                left_s = give_up - time.monotonic()
                if left_s <= 0:
                    raise
                if not is_told:
                    log.warning("asking again for up to %g s: %s", self._patience_s, fault)
                is_told = True
                time.sleep(min(1.0, left_s))

    def _require_same(self, info: ServerInfo) -> None:
        served = info.about("checkpoint_sha256")
        if self._checkpoint is None:
            self._checkpoint = served
        if served != self._checkpoint:
            raise ContractError(
                f"{info.url} has another checkpoint than before ({served[:12] or 'unknown'}, it was "
                f"{self._checkpoint[:12] or 'unknown'}); serve the same one, or start anew"
            )


def read_info(metadata: Any, *, url: str, expected: ActionSpec | None) -> ServerInfo:  # noqa: ANN401
    """Read a server's first frame and compare it with what is expected.

    Raises:
        ContractError: It speaks another protocol, says nothing where nothing is expected either,
            or its actions mean something else.
    """
    if not isinstance(metadata, dict):
        raise ContractError(f"{url} sent a {type(metadata).__name__} for metadata; it is no policy")
    ours = metadata.get(EXTRAS_KEY)
    if ours is None:
        if expected is None:
            raise ContractError(
                f"{url} does not say what its actions mean; pass the action_spec that its policy "
                "was trained with"
            )
        return ServerInfo(url=url, action_spec=expected, is_vega=False, metadata=metadata)
    if not isinstance(ours, dict) or ours.get("protocol") != PROTOCOL:
        spoken = ours.get("protocol") if isinstance(ours, dict) else ours
        raise ContractError(
            f"{url} speaks protocol {spoken!r}, this client {PROTOCOL}; use the same version of the "
            "package on both sides"
        )
    try:
        spec = ActionSpec.from_dict(ours["action"])
        image_px = ours.get("image_px")
        cameras = tuple(str(name) for name in ours.get("cameras", ()))
        if image_px is not None and type(image_px) is not int:
            raise TypeError(f"image_px is {image_px!r}")
    except (KeyError, TypeError, ContractError) as error:
        raise ContractError(f"{url} sent metadata that cannot be read: {error!r}") from error
    problems = (
        [] if expected is None else spec.disagreements(expected, ours=url, theirs="this side")
    )
    problems += [f"it looks at camera {name!r}" for name in cameras if name not in IMAGE_KEYS]
    if problems:
        raise ContractError(
            f"{url} has another policy than expected: {'; '.join(problems)}; serve a checkpoint "
            "that was trained for this robot, or correct the robot's action specification"
        )
    return ServerInfo(
        url=url,
        action_spec=spec,
        is_vega=True,
        cameras=cameras,
        image_px=image_px,
        metadata=metadata,
    )


def _request_id(reply: Any) -> str | None:  # noqa: ANN401
    ours = reply.get(EXTRAS_KEY) if isinstance(reply, dict) else None
    return ours.get("request_id") if isinstance(ours, dict) else None


def _bound_sending(of: socket.socket, timeout_s: float) -> None:
    """Keep a server that does not read from blocking a large request for ever."""
    if hasattr(socket, "SO_SNDTIMEO") and struct.calcsize("l") == 8:
        seconds = int(timeout_s)
        value = struct.pack("ll", seconds, int((timeout_s - seconds) * 1e6) or 1)
        with suppress(OSError):
            of.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)


def _sentence(text: str) -> str:
    """Return the line of a server's message that says what happened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return "no reason given"
    # openpi sends a Python traceback, whose last line is the error.
    return lines[-1 if lines[0].startswith("Traceback") else 0][:_MAX_SENTENCE]


def _refused(refusal: Refusal, url: str) -> PolicyFault | EnvFault | ContractError:
    said = _sentence(str(refusal))
    match refusal.kind:
        case "request":
            return ContractError(f"{url} cannot use the request: {said}")
        case "policy":
            return PolicyFault(f"the policy at {url} failed: {said}")
        case "busy" | "stopped" | "draining":
            return Refused(f"{url} refused ({refusal.kind}): {said}", refusal.kind)


def _closed(error: ConnectionClosed, url: str) -> EnvFault | ContractError:
    code = error.rcvd.code if error.rcvd else None
    reason = _sentence(error.rcvd.reason) if error.rcvd and error.rcvd.reason else ""
    if code in (1012, 1013):
        kind = "draining" if code == 1012 else "busy"
        return Refused(f"{url} takes no requests now: {reason or 'try again'}", kind)
    if code == 1009:
        return ContractError(f"{url} takes no message of this size; send smaller images")
    why = f" ({code} {reason})".rstrip() if code else ""
    return EnvFault(f"the connection to {url} was lost{why}; the next request connects again")


def _refused_handshake(
    error: InvalidStatus, url: str, *, has_key: bool
) -> ContractError | EnvFault:
    status = error.response.status_code
    said = _sentence((error.response.body or b"").decode("utf-8", "replace"))
    if status in (401, 403):
        do = "correct the api_key" if has_key else "pass its api_key"
        return ContractError(f"{url} refused the connection (HTTP {status}, {said}); {do}")
    if status in (429, 503):
        return Refused(f"{url} takes no connections now (HTTP {status}, {said}); try again", "busy")
    return EnvFault(f"{url} is no policy server (HTTP {status}, {said}); correct the address")


def remote_link(
    client: Client,
    *,
    timeout_s: float,
    robot: str = "",
    report: Callable[[], Mapping[str, Any]] = dict,
    on_stopped: Callable[[str], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> ThreadLink:
    """Return the link of a robot's pilot to a policy server.

    Args:
        client: Its connection.
        timeout_s: After how long an answer is given up.
        robot: Name for the server's page.
        report: What the robot did since, for the same page; called in the link's thread.
        on_stopped: Told when the server's emergency stop keeps it from answering; likewise.
        clock: The loop's.
    """

    def ask(observation: Observation, key: int) -> ActionChunk:
        extras = RequestExtras(
            key=key,
            episode=observation.episode,
            inference=observation.inference,
            robot=robot,
            report=dict(report()),
        )
        try:
            return client.infer(observation, extras)
        except Refused as refused:
            if refused.kind == "stopped" and on_stopped is not None:
                on_stopped(str(refused))
            raise

    return ThreadLink(ask, action_spec=client.info.action_spec, timeout_s=timeout_s, clock=clock)
