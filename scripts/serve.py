"""Serve a policy to robots over a websocket; openpi's client works against it.

python scripts/serve.py                                   # the nano policy at ws://127.0.0.1:8000
python scripts/serve.py checkpoint=path/to/directory serve.port=9000
VEGA_API_KEYS=... python scripts/serve.py serve.host=0.0.0.0    # for other machines: with a key only
"""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra_cli import run

from vega_policy.spec import ContractError
from vega_policy.spec.files import write_atomic

if TYPE_CHECKING:
    from vega_policy.spec import Policy

KEYS = "VEGA_API_KEYS"
FAKE_CHECKPOINT = "fake"
log = logging.getLogger("serve")


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Serve until told to end."""
    try:
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
    # All that can be wrong with the settings, before weights are read.
    ServerSettings(**chosen, api_keys=keys)
    policy, image_px, metadata = load(config)
    estop = EmergencyStop()
    feed: Any = Feed(action_spec=policy.action_spec, about=metadata)
    if record is not None:
        from vega_policy.deploy.recording import Recording

        feed = Recording(feed, Path(record))
    server = PolicyServer(
        policy,
        settings=ServerSettings(**chosen, api_keys=keys, image_px=image_px),
        metadata=metadata,
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


def load(config: dict[str, Any]) -> tuple[Policy, int | None, dict[str, Any]]:
    """Return the policy, the side of its images where it is fixed, and what clients are told of it."""
    from vega_policy.rollout.provenance import checkpoint_sha256, versions

    name = config["checkpoint"]
    if name == FAKE_CHECKPOINT:
        from vega_policy.testing.fake_policy import FakePolicy

        return FakePolicy(), None, {"model": name, "checkpoint_sha256": name}
    import torch

    from vega_policy.policy import choose_device, from_pretrained
    from vega_policy.policy.pretrained import resolve

    torch.set_num_threads(config["torch_threads"])
    folder = resolve(name)
    policy = from_pretrained(
        folder, device=choose_device(config["device"]), unnorm_key=config["unnorm_key"]
    )
    settings = policy.config
    is_fixed = settings.image_transform == "none"
    return (
        policy,
        settings.image_px if is_fixed else None,
        {
            "model": Path(name).name,
            "checkpoint_sha256": checkpoint_sha256(folder),
            "image_transform": settings.image_transform,
            "statistics": policy.unnorm_key,
            "device": policy.device.type,
            "versions": versions(),
        },
    )


if __name__ == "__main__":
    run("serve", main)
