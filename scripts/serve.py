"""Serve a policy to robots over a websocket; openpi's client works against it.

python scripts/serve.py                                   # the nano policy at ws://127.0.0.1:8000
python scripts/serve.py checkpoint=path/to/directory serve.port=9000
VEGA_API_KEYS=... python scripts/serve.py serve.host=0.0.0.0    # for other machines: with a key only
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra_cli import run

from vega_policy.spec import CAMERAS, ContractError
from vega_policy.spec.files import write_atomic

if TYPE_CHECKING:
    from vega_policy.spec import Policy

KEYS = "VEGA_API_KEYS"
FAKE_CHECKPOINT = "fake"
log = logging.getLogger("serve")


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Serve until told to end."""
    try:  # all of the extra, before weights are read
        import prometheus_client  # noqa: F401
        import websockets.asyncio.server  # noqa: F401

        from vega_policy.deploy.server import PolicyServer, ServerSettings
    except ImportError as error:
        raise ContractError(
            f"the server needs {error.name}; pip install 'vega-policy[serve]'"
        ) from error
    from vega_policy.control.estop import EmergencyStop
    from vega_policy.deploy.feed import Feed
    from vega_policy.deploy.live import live_response

    chosen = dict(config["serve"])
    port_file, has_page, record = (chosen.pop(k) for k in ("port_file", "page", "record"))
    keys = api_keys(chosen.pop("api_keys_file"))
    max_batch = chosen.pop("max_batch")
    # All that can be wrong with the settings, before weights are read.
    ServerSettings(**chosen, api_keys=keys, max_batch=16 if max_batch is None else max_batch)
    logging.getLogger("websockets").setLevel(logging.WARNING)  # a page asks every second
    policy, served = load(config)
    estop = EmergencyStop()
    feed: Any = Feed(action_spec=policy.action_spec, about=served.metadata)
    if record is not None:
        from vega_policy.deploy.recording import Recording

        feed = Recording(feed, Path(record), rate_hz=policy.action_spec.rate_hz)
    server = PolicyServer(
        policy,
        settings=ServerSettings(
            **chosen,
            api_keys=keys,
            max_batch=served.max_batch if max_batch is None else max_batch,
            image_px=served.image_px,
        ),
        cameras=served.cameras,
        metadata=served.metadata,
        estop=estop,
        watcher=feed,
        page=partial(live_response, feed=feed, estop=estop) if has_page else None,
    )
    log.info("warming up")
    server.warm_up()

    def ready(url: str) -> None:
        if port_file is not None:
            write_atomic(port_file, url + "\n")
        page = f", page at http{url[2:]}/" if has_page else ""
        log.info("serving %s at %s%s", config["checkpoint"], url, page)

    summary = server.run(ready=ready)
    if record is not None:
        feed.close()
    times = summary.request_ms
    return {
        "requests": sum(summary.outcomes.values()),
        "outcomes": dict(summary.outcomes),
        "p50_ms": None if times is None else round(times[0], 2),
        "p99_ms": None if times is None else round(times[1], 2),
    }


def api_keys(path: str | None) -> tuple[str, ...]:
    """Return the keys of the file and of the environment."""
    from vega_policy.deploy.auth import ApiKeys, read_keys

    keys = tuple(read_keys(Path(path))) if path is not None else ()
    keys += tuple(key for key in os.environ.get(KEYS, "").split(",") if key)
    if path is not None and not keys:
        raise ContractError(f"{path} holds no key; write one a line")
    ApiKeys(keys)
    return keys


@dataclass(frozen=True, kw_only=True)
class Served:
    """What the server has to know of a policy, and its clients too."""

    cameras: tuple[str, ...] = CAMERAS
    image_px: int | None = None
    """Side of its images where it is fixed."""
    max_batch: int = 16
    """Observations that are quicker together than one after the other."""
    metadata: dict[str, Any]


def load(config: dict[str, Any]) -> tuple[Policy, Served]:
    """Return the policy and what is to be known of it."""
    from vega_policy.rollout.provenance import checkpoint_sha256, versions

    name = config["checkpoint"]
    if name == FAKE_CHECKPOINT:
        from vega_policy.testing.fake_policy import FakePolicy

        return FakePolicy(), Served(metadata={"model": name, "checkpoint_sha256": name})
    import torch

    from vega_policy.policy import choose_device, from_pretrained
    from vega_policy.policy.pretrained import resolve

    torch.set_num_threads(config["torch_threads"])
    folder = resolve(name)
    policy = from_pretrained(
        folder, device=choose_device(config["device"]), unnorm_key=config["unnorm_key"]
    )
    settings = policy.config
    statistics = json.dumps(policy.statistics[policy.unnorm_key].to_dict(), sort_keys=True)
    served = Served(
        cameras=tuple(settings.cameras),
        image_px=settings.image_px if settings.image_transform == "none" else None,
        # A CPU computes them one by one, and the first would wait for the last.
        max_batch=1 if policy.device.type == "cpu" else 16,
        metadata={
            "model": Path(name).name,
            "checkpoint_sha256": checkpoint_sha256(folder),
            "image_transform": settings.image_transform,
            "statistics": policy.unnorm_key,
            "statistics_sha256": hashlib.sha256(statistics.encode()).hexdigest(),
            "device": policy.device.type,
            "versions": versions(),
        },
    )
    return policy, served


if __name__ == "__main__":
    run("serve", main)
