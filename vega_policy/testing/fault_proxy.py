"""A websocket proxy between robot and server that does to messages what networks and bugs do."""

from __future__ import annotations

import random
import threading
from contextlib import suppress
from typing import Literal, get_args

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import Server, ServerConnection, serve

from vega_policy.deploy.codec import WireError, pack, unpack

MessageFault = Literal[
    "none",
    "drop",
    "duplicate",
    "delay",
    "reorder",
    "corrupt",
    "garble",
    "cut",
    "stall",
    "nan",
    "jump",
]
"""``drop``: a message never arrives. ``duplicate``: it arrives twice. ``delay``: it arrives late.
``reorder``: an older message arrives in its place, on whatever connection there is by then.
``corrupt``: some of its bytes are others. ``garble``: bytes arrive that are no websocket frame.
``cut``: the connection ends instead. ``stall``: nothing arrives while this lasts. ``nan``: actions that are no numbers.
``jump``: actions at full scale, of random sign."""
MESSAGE_FAULTS: tuple[MessageFault, ...] = get_args(MessageFault)

_Peer = ServerConnection | ClientConnection


class FaultProxy:
    """Forwards between clients and one server, and breaks messages while `fault` says so.

    Args:
        upstream: Address of the server.
        seed: Of all that is random.
        probability: Of breaking a message, in either direction; the metadata included.
        delay_s: Longest delay of one message.
    """

    def __init__(
        self, upstream: str, *, seed: int = 0, probability: float = 0.3, delay_s: float = 0.3
    ) -> None:
        self.fault: MessageFault = "none"
        """What happens to messages from now on."""
        self.n_broken = 0
        """Messages broken so far."""
        self._upstream = upstream
        self._random = random.Random(seed)  # noqa: S311 - reproducible on purpose
        self._probability = probability
        self._delay_s = delay_s
        self._lock = threading.Lock()
        self._held: dict[str, str | bytes] = {}
        self._closing = threading.Event()
        self._server: Server = serve(
            self._forward, "127.0.0.1", 0, compression=None, max_size=None, ping_interval=None
        )
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"ws://127.0.0.1:{self._server.socket.getsockname()[1]}"

    def close(self) -> None:
        """Stop forwarding."""
        self._closing.set()
        self._server.shutdown()
        self._thread.join()

    def _forward(self, client: ServerConnection) -> None:
        try:
            upstream = connect(
                self._upstream, compression=None, proxy=None, max_size=None, open_timeout=5
            )
            with upstream as server:
                up = threading.Thread(target=self._pump, args=(client, server, "up"), daemon=True)
                up.start()
                self._pump(server, client, "down")
                client.close()
                up.join()
        except (OSError, InvalidHandshake, ConnectionClosed):
            client.close(1011, "the server is not there")

    def _pump(self, source: _Peer, target: _Peer, direction: str) -> None:
        with suppress(ConnectionClosed, OSError):
            for message in source:
                while self.fault == "stall" and not self._closing.wait(0.01):
                    pass
                for sent in self._broken(message, target, direction):
                    target.send(sent)
        with suppress(ConnectionClosed, OSError):
            target.close()

    def _broken(self, message: str | bytes, target: _Peer, direction: str) -> list[str | bytes]:
        """Return what arrives instead of a message."""
        with self._lock:
            fault = self.fault
            if fault in ("none", "stall") or self._random.random() >= self._probability:
                return [message]
            self.n_broken += 1
            pause_s = self._random.uniform(0, self._delay_s)
            held = self._held.get(direction)
            if fault == "reorder":
                self._held[direction] = message
        match fault:
            case "drop":
                return []
            case "duplicate":
                return [message, message]
            case "delay":
                self._closing.wait(pause_s)
                return [message]
            case "reorder":
                return [] if held is None else [held]
            case "corrupt":
                return [self._corrupted(message)]
            case "garble":
                target.socket.sendall(self._random.randbytes(64))
                return []
            case "cut":
                target.close()
                return []
            case "nan" | "jump":
                return [self._rewritten(message, fault)]
        return [message]

    def _corrupted(self, message: str | bytes) -> str | bytes:
        data = bytearray(message.encode() if isinstance(message, str) else message)
        for _ in range(self._random.randint(1, 8) if data else 0):
            data[self._random.randrange(len(data))] = self._random.randrange(256)
        return bytes(data)

    def _rewritten(self, message: str | bytes, fault: str) -> str | bytes:
        if isinstance(message, str):
            return message
        try:
            tree = unpack(message)
        except WireError:
            return message
        if not isinstance(tree, dict) or "actions" not in tree:
            return message
        shape = tree["actions"].shape
        signs = [self._random.choice([-1.0, 1.0]) for _ in range(int(np.prod(shape)))]
        full = np.array(signs, dtype=np.float32).reshape(shape)
        tree["actions"] = np.full(shape, np.nan, np.float32) if fault == "nan" else full
        return pack(tree)
