"""A policy server in a thread, one request at a time: openpi's reference behaviour, and misbehaviour on request."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve

from vega_policy.deploy.codec import pack, unpack
from vega_policy.deploy.wire import EXTRAS_KEY, PROTOCOL, read_request
from vega_policy.spec import CAMERAS

if TYPE_CHECKING:
    from collections.abc import Callable

    from websockets.http11 import Request, Response

    from vega_policy.spec import Policy


class FakeServer:
    """Answers the requests of each connection in its own thread.

    Args:
        policy: Computes the answers.
        is_vega: Whether it sends this project's metadata and request numbers, or is a plain server of openpi's
            protocol.
        api_key: Refuses a connection without it.
        port: Its port; 0 takes a free one.
        before_reply: Called with the number of the request (from 0) before it is answered; may
            wait, or return bytes or a text to send instead.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        is_vega: bool = True,
        api_key: str | None = None,
        port: int = 0,
        before_reply: Callable[[int], bytes | str | None] | None = None,
    ) -> None:
        self.n_connections = 0
        self.requests: list[dict[str, Any]] = []
        """Every request so far, decoded."""
        self._policy = policy
        self._is_vega = is_vega
        self._key = api_key
        self._before_reply = before_reply
        self._server: Server = serve(
            self._talk,
            "127.0.0.1",
            port,
            compression=None,
            max_size=None,
            process_request=self._check_key,
        )
        self._connections: set[ServerConnection] = set()
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.socket.getsockname()[1])

    @property
    def url(self) -> str:
        """Where it listens, as an address."""
        return f"ws://127.0.0.1:{self.port}"

    def metadata(self) -> dict[str, Any]:
        """Return what it says about itself."""
        if not self._is_vega:
            return {}
        return {
            EXTRAS_KEY: {
                "protocol": PROTOCOL,
                "action": asdict(self._policy.action_spec),
                "cameras": list(CAMERAS),
                "image_px": None,
            }
        }

    def close(self) -> None:
        """Stop listening and cut every connection."""
        self._server.shutdown()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.socket.shutdown(2)
        self._thread.join()

    def _check_key(self, connection: ServerConnection, request: Request) -> Response | None:
        if self._key and request.headers.get("Authorization") != f"Api-Key {self._key}":
            return connection.respond(401, "this server wants an API key\n")
        return None

    def _talk(self, connection: ServerConnection) -> None:
        self.n_connections += 1
        self._connections.add(connection)
        with suppress(ConnectionClosed, OSError):
            connection.send(pack(self.metadata()))
            for frame in connection:
                try:
                    connection.send(self._answer(frame))
                except Exception as error:  # noqa: BLE001 - the request is the boundary
                    connection.send(f"Traceback (most recent call last):\n{error!r}\n")
                    connection.close(1011, "Internal server error.")
        self._connections.discard(connection)

    def _answer(self, frame: str | bytes) -> bytes | str:
        if isinstance(frame, str):
            raise TypeError("a request is binary")
        request = unpack(frame)
        number = len(self.requests)
        self.requests.append(request)
        observation, extras = read_request(request, cameras=CAMERAS)
        instead = self._before_reply(number) if self._before_reply else None
        if instead is not None:
            return instead
        chunk = self._policy.act([observation], keys=[extras.key or 0])[0]
        reply: dict[str, Any] = {"actions": chunk.actions, "server_timing": {"infer_ms": 0.0}}
        if extras.request_id is not None:
            reply[EXTRAS_KEY] = {"request_id": extras.request_id}
            if extras.want_gate and chunk.gate is not None:
                reply[EXTRAS_KEY]["gate"] = dict(chunk.gate)
        return pack(reply)
