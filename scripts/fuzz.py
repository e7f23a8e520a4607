"""Send damaged frames to the decoder and to a server process; nothing may crash, hang or grow.

python scripts/fuzz.py                       # 100,000 frames to each
python scripts/fuzz.py fuzz.frames=5000 fuzz.seed=1

Exit code 1 where something else than a refusal was raised, the server logged a failed handler, its
memory grew, a frame got no reply, or something was unpickled. The frames are those of a seed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from hydra_cli import run
from server_process import ServerProcess, started
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from vega_policy.deploy.codec import WireError, unpack
from vega_policy.deploy.wire import read_request
from vega_policy.spec import CAMERAS, ContractError, PolicyFault
from vega_policy.spec.files import write_atomic
from vega_policy.testing.fake_policy import FakePolicy
from vega_policy.testing.fuzz_frames import fuzz_frames, valid_request

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("scripts")
REPLY_S = 60.0
_HANDSHAKES = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 300 + b"\r\n",
    b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n\r\n",
    b"POST /estop HTTP/1.1\r\nHost: evil\r\nContent-Length: 5\r\n\r\nhello",
    b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"\x00" * 500,
)


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Fuzz as the configuration says."""
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    chosen = config["fuzz"]
    if chosen["frames"] < 100 or chosen["connections"] < 1:
        raise ContractError("fuzz needs at least 100 frames and 1 connection")
    with TemporaryDirectory() as folder:
        marker = Path(folder, "unpickled")
        decoder = fuzz_decoder(chosen, marker)
        log.info("decoder: %s", decoder)
        with started(["checkpoint=fake"]) as server:
            server_found = asyncio.run(fuzz_server(server, chosen, marker))
            server_found["failed_handlers"] = server.log.read_text(errors="replace").count(
                "handler failed"
            )
            server_found["outcomes"] = server.end()["outcomes"]
        found = {
            "frames": chosen["frames"],
            "decoder": decoder,
            "server": server_found,
            "unpickled": marker.exists(),
        }
    found["problems"] = problems(found, chosen)
    if chosen["out"] is not None:
        write_atomic(Path(chosen["out"]), json.dumps(found, indent=1) + "\n")
    if found["problems"]:
        print(json.dumps(found), flush=True)
        raise PolicyFault("; ".join(found["problems"]))
    return found


def fuzz_decoder(chosen: dict[str, Any], marker: Path) -> dict[str, Any]:
    """Decode every frame as a server does; return how that ended."""
    ends: Counter[str] = Counter()
    crashes: list[str] = []
    slowest_s = 0.0
    for frame in fuzz_frames(chosen["frames"], seed=chosen["seed"], marker=marker):
        started_s = time.perf_counter()
        try:
            read_request(unpack(frame), cameras=CAMERAS)
            ends["read"] += 1
        except WireError:
            ends["refused"] += 1
        except Exception as error:  # noqa: BLE001 - what is looked for
            ends["crashed"] += 1
            crashes.append(f"{error!r} from {frame[:200].hex()}")
        slowest_s = max(slowest_s, time.perf_counter() - started_s)
    return {**ends, "slowest_ms": round(1000 * slowest_s, 1), "crashes": crashes[:5]}


async def fuzz_server(
    server: ServerProcess, chosen: dict[str, Any], marker: Path
) -> dict[str, Any]:
    """Send every frame, the connections taking them in turn, and ask properly in between."""
    ends: Counter[str] = Counter()
    frames = fuzz_frames(chosen["frames"], seed=chosen["seed"] + 1, marker=marker)
    ready_mb, warm_mb = server.memory_mb(), None
    started_s = time.perf_counter()
    warm_at = chosen["frames"] // 10
    latencies_s: list[float] = []

    async def work(number: int) -> None:
        nonlocal warm_mb
        while await one_connection(server.url, frames, ends, chosen["raw_every"], number):
            if warm_mb is None and sum(ends.values()) >= warm_at:
                warm_mb = server.memory_mb()

    async def ask() -> None:
        """Be the robot whose answers must keep coming."""
        async with connect(server.url, compression=None, proxy=None) as robot:
            await robot.recv()
            request = valid_request(7)
            observation, _ = read_request(unpack(request), cameras=CAMERAS)
            expected = FakePolicy().act([observation], keys=[0])[0].actions
            while True:
                asked_s = time.perf_counter()
                await robot.send(request)
                answer = unpack(bytes(await robot.recv(decode=False)))
                latencies_s.append(time.perf_counter() - asked_s)
                if not np.array_equal(answer["actions"], expected):
                    raise PolicyFault("the robot beside the fuzzer got a wrong answer")
                await asyncio.sleep(0.05)

    robot = asyncio.create_task(ask())
    await asyncio.gather(*(work(number) for number in range(chosen["connections"])))
    if robot.done():
        robot.result()  # it ends by an error only
    robot.cancel()
    end_mb, peak_mb = server.memory_mb(), server.memory_mb("VmHWM")
    p50, p99 = (float(x) for x in np.percentile(latencies_s, [50, 99]))
    return {
        **ends,
        "seconds": round(time.perf_counter() - started_s, 1),
        "growth_mb": None if end_mb is None or warm_mb is None else round(end_mb - warm_mb, 1),
        "peak_mb": None if peak_mb is None or ready_mb is None else round(peak_mb - ready_mb, 1),
        "robot_answers": len(latencies_s),
        "robot_p50_ms": round(1000 * p50, 1),
        "robot_p99_ms": round(1000 * p99, 1),
        "robot_max_ms": round(1000 * max(latencies_s), 1),
    }


async def one_connection(
    url: str, frames: Iterator[bytes], ends: Counter[str], raw_every: int, number: int
) -> bool:
    """Send frames until the server closes the connection; return whether any are left."""
    async with connect(url, compression=None, proxy=None, open_timeout=REPLY_S) as robot:
        await robot.recv()
        for frame in frames:
            if raw_every and sum(ends.values()) % raw_every == 0:
                await speak_no_websocket(url, random.Random(sum(ends.values()) + number))  # noqa: S311
            try:
                async with asyncio.timeout(REPLY_S):
                    await robot.send(frame)
                    reply = await robot.recv()
            except TimeoutError:
                ends["unanswered"] += 1
                return True
            except ConnectionClosed:
                ends["closed without a sentence"] += 1
                return True
            if isinstance(reply, str):
                ends["refused and closed"] += 1
                return True
            ends["answered" if "actions" in unpack(reply) else "refused"] += 1
    return False


async def speak_no_websocket(url: str, rng: random.Random) -> None:
    """Send bytes that are no handshake, or no frame after one, and leave."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        if rng.random() < 0.5:
            writer.write(rng.choice(_HANDSHAKES))
        else:
            writer.write(
                f"GET / HTTP/1.1\r\nHost: {address.netloc}\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
                "Sec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            writer.write(rng.randbytes(rng.choice((2, 20, 2000))))
        async with asyncio.timeout(0.05):
            await reader.read(4096)
    except (TimeoutError, OSError):
        pass
    finally:
        writer.transport.abort()  # half of them in the middle of something


def problems(found: dict[str, Any], chosen: dict[str, Any]) -> list[str]:
    """List what must not have happened."""
    decoder, server = found["decoder"], found["server"]
    wrong = [f"the decoder raised {crash}" for crash in decoder["crashes"]]
    wrong += [
        f"{server[what]} frames {what}"
        for what in ("unanswered", "closed without a sentence")
        if server.get(what)
    ]
    if server["failed_handlers"]:
        wrong.append(f"{server['failed_handlers']} handlers of the server failed")
    if found["unpickled"]:
        wrong.append("something was unpickled")
    wrong += [
        f"the server's {what} is {server[f'{what}_mb']} MB"
        for what in ("growth", "peak")
        if (server[f"{what}_mb"] or 0) > chosen[f"max_{what}_mb"]
    ]
    return wrong


if __name__ == "__main__":
    run("fuzz", main)
