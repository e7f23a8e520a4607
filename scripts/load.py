"""Ask a server with many clients at once and check every answer against its observation.

python scripts/load.py                                          # 32 clients, 60 s, a policy without weights
python scripts/load.py checkpoint=nano-libero-object load.seconds=10
python scripts/load.py url=ws://127.0.0.1:8000 checkpoint=...   # a server that runs already

Exit code 1 where an answer was lost, refused, or belonged to another observation.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra_cli import run
from numpy.typing import NDArray
from server_process import started
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from vega_policy.deploy.codec import pack, unpack
from vega_policy.deploy.wire import EXTRAS_KEY, RequestExtras, to_request
from vega_policy.spec import AGENTVIEW, CAMERAS, ContractError, Observation, PolicyFault
from vega_policy.spec.files import write_atomic
from vega_policy.testing.fake_env import BLOCK_RGB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vega_policy.spec import Policy

log = logging.getLogger("scripts")
KEY = "VEGA_API_KEY"
START_S = 60.0
"""For all connections."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Case:
    """An observation and its one right answer."""

    observation: Observation
    key: int
    actions: NDArray[np.float32]


@dataclass(kw_only=True)
class Tally:
    """What became of the requests."""

    ends: Counter[str] = field(default_factory=Counter[str])
    """``right``, ``crossed`` (another observation's answer), ``wrong``, ``refused``, ``lost``."""
    latencies_s: list[float] = field(default_factory=list[float])
    batches: Counter[int] = field(default_factory=Counter[int])
    first_problem: str = ""


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Load the server the configuration describes."""
    logging.getLogger("websockets").setLevel(logging.WARNING)
    chosen, checkpoint = config["load"], config["checkpoint"]
    if chosen["clients"] < 1 or chosen["observations"] < 2 or not chosen["seconds"] > 0:
        raise ContractError("load needs at least 1 client, 2 observations and some seconds")
    cases = make_cases(load_policy(checkpoint), chosen)
    server_said: dict[str, Any] = {}
    if config["url"] is not None:
        tally, took_s = asyncio.run(ask_all(config["url"], cases, chosen))
    else:
        settings = {"checkpoint": checkpoint, "device": config["device"]}
        settings |= {f"serve.{name}": value for name, value in config["serve"].items()}
        given = [f"{name}={'null' if value is None else value}" for name, value in settings.items()]
        with started(given) as server:
            tally, took_s = asyncio.run(ask_all(server.url, cases, chosen))
            server_said = server.end()
    answer = summary(tally, took_s, chosen) | {"checkpoint": checkpoint, "server": server_said}
    print(table(answer), flush=True)
    if chosen["out"] is not None:
        write_atomic(Path(chosen["out"]), json.dumps(answer, indent=1) + "\n")
    if tally.ends["right"] != sum(tally.ends.values()) or not tally.ends:
        print(json.dumps(answer), flush=True)
        raise PolicyFault(f"not every answer was right: {tally.first_problem or dict(tally.ends)}")
    return answer


def load_policy(checkpoint: str) -> Policy:
    """Return the policy that knows the right answers."""
    if checkpoint == "fake":
        from vega_policy.testing.fake_policy import FakePolicy

        return FakePolicy()
    import torch

    from vega_policy.policy import from_pretrained

    torch.set_num_threads(1)
    return from_pretrained(checkpoint)


def make_cases(policy: Policy, chosen: dict[str, Any]) -> list[Case]:
    """Make observations whose answers all differ.

    Raises:
        ContractError: Two have the same answer, so a crossed one could not be told.
    """
    rng, px = np.random.default_rng(chosen["seed"]), chosen["image_px"]
    cases: list[Case] = []
    for key in range(chosen["observations"]):
        images = {name: rng.integers(0, 255, (px, px, 3), np.uint8) for name in CAMERAS}
        # Something to look at for a policy that looks for a block.
        row, column = rng.integers(0, px - 8, 2)
        images[AGENTVIEW][row : row + 8, column : column + 8] = BLOCK_RGB
        proprio = rng.normal(0, 0.05, 8).astype(np.float32)
        observation = Observation(images, proprio, "pick up the milk and place it in the basket")
        [chunk] = policy.act([observation], keys=[key])
        cases.append(Case(observation=observation, key=key, actions=chunk.actions))
    if len({case.actions.tobytes() for case in cases}) < len(cases):
        raise ContractError("two observations have the same answer; change load.seed")
    return cases


async def ask_all(url: str, cases: Sequence[Case], chosen: dict[str, Any]) -> tuple[Tally, float]:
    """Ask with every client until the time is over; return what came and the seconds it took."""
    tally, go = Tally(), asyncio.Event()
    n_ready = asyncio.Semaphore(0)
    clients = [
        asyncio.create_task(one_client(number, url, cases, chosen, tally, n_ready, go))
        for number in range(chosen["clients"])
    ]
    try:
        async with asyncio.timeout(START_S):
            for _ in clients:
                await n_ready.acquire()
    except TimeoutError as error:
        raise ContractError(f"{url} did not take {len(clients)} connections") from error
    started_s = time.perf_counter()
    go.set()
    await asyncio.gather(*clients)
    return tally, time.perf_counter() - started_s


async def one_client(
    number: int,
    url: str,
    cases: Sequence[Case],
    chosen: dict[str, Any],
    tally: Tally,
    n_ready: asyncio.Semaphore,
    go: asyncio.Event,
) -> None:
    """Ask one request after the other."""
    rng = random.Random(f"{chosen['seed']} {number}")  # noqa: S311 - reproducible on purpose
    key = os.environ.get(KEY)
    headers = {"Authorization": f"Api-Key {key}"} if key else {}
    period_s = 0.0 if chosen["rate_hz"] is None else 1.0 / chosen["rate_hz"]
    async with connect(
        url, compression=None, max_size=2**25, proxy=None, additional_headers=headers
    ) as connection:
        await connection.recv()
        n_ready.release()
        await go.wait()
        # Clients with a rate do not all ask at once.
        due_s = time.perf_counter() + rng.random() * period_s
        end_s = time.perf_counter() + chosen["seconds"]
        n = 0
        while time.perf_counter() < end_s:
            if period_s:
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                due_s += period_s
            case, n = rng.choice(cases), n + 1
            name = f"{number}-{n}"
            frame = pack(to_request(case.observation, RequestExtras(request_id=name, key=case.key)))
            asked_s = time.perf_counter()
            try:
                async with asyncio.timeout(chosen["timeout_s"]):
                    await connection.send(frame)
                    reply = await connection.recv()
            except (TimeoutError, WebSocketException) as error:
                tally.ends["lost"] += 1
                tally.first_problem = tally.first_problem or f"client {number}: {error!r}"
                return
            tally.latencies_s.append(time.perf_counter() - asked_s)
            end = judge(reply, name, case, cases, tally)
            tally.ends[end] += 1
            if end != "right" and not tally.first_problem:
                tally.first_problem = f"client {number}, request {n}: {end}, {str(reply)[:200]}"


def judge(reply: str | bytes, name: str, case: Case, cases: Sequence[Case], tally: Tally) -> str:
    """Say whether a reply is the answer to its observation."""
    message = {} if isinstance(reply, str) else unpack(reply)
    if "actions" not in message:
        return "refused"
    with contextlib.suppress(KeyError):
        tally.batches[message["server_timing"]["batch"]] += 1
    if message[EXTRAS_KEY]["request_id"] != name:
        return "crossed"
    if np.array_equal(message["actions"], case.actions):
        return "right"
    # The last bits may differ between devices; other observations' answers differ in the first.
    near = [np.abs(message["actions"] - other.actions).max() for other in cases]
    found = int(np.argmin(near))
    if near[found] > 1e-3:
        return "wrong"
    return "right" if cases[found] is case else "crossed"


def summary(tally: Tally, took_s: float, chosen: dict[str, Any]) -> dict[str, Any]:
    """Return the figures."""
    times_ms = 1000 * np.asarray(tally.latencies_s or [np.nan])
    p50, p99 = (float(x) for x in np.percentile(times_ms, [50, 99]))
    n = sum(size * count for size, count in tally.batches.items())
    return {
        "clients": chosen["clients"],
        "seconds": round(took_s, 2),
        "requests": sum(tally.ends.values()),
        "requests_per_s": round(sum(tally.ends.values()) / took_s, 1),
        "p50_ms": round(p50, 2),
        "p99_ms": round(p99, 2),
        "max_ms": round(float(times_ms.max()), 2),
        "mean_batch": round(n / max(1, sum(tally.batches.values())), 2),
        **{end: tally.ends[end] for end in ("right", "refused", "lost", "crossed", "wrong")},
    }


def table(answer: dict[str, Any]) -> str:
    """Return the figures as two lines of Markdown under a head."""
    names = [name for name in answer if name not in ("checkpoint", "server")]
    rows = [names, ["---:"] * len(names), [f"{answer[name]:g}" for name in names]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    run("load", main)
