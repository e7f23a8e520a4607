"""Play a recorded episode again and check the simulator's state after every control step.

python scripts/replay.py runs/mine libero_object-task00-init003-seed0-rep0
python scripts/replay.py runs/mine libero_object-task00-init003-seed0-rep0 mode=policy
python scripts/replay.py runs/mine libero_object-task00-init003-seed0-rep0 video=episode.mp4

Exit code 0 where everything is as recorded, 1 where something is not.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, get_args

from hydra_cli import run
from rollout import build_policy, build_suite

from vega_policy.rollout.ledger import read_header
from vega_policy.rollout.replay import Mode, find_episode, replay
from vega_policy.spec import FULL_ARM, VegaError
from vega_policy.spec.names import require_name


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Replay the episode the configuration names."""
    require_name(config["mode"], get_args(Mode), what="mode")
    run_dir = Path(config["run"])
    header = read_header(run_dir)
    row, _ = find_episode(run_dir, config["episode"])
    made_by = dict(header.configuration)
    suite, make_simulator = build_suite(made_by["suite"])
    policy, defines = None, {}
    if config["mode"] == "policy":
        policy, defines = build_policy(made_by, suite)
        if (arm := row.arm) != FULL_ARM:
            policy = policy.arm(arm)  # pyright: ignore[reportAttributeAccessIssue] - only ours has arms
    result = replay(
        run_dir,
        row.name,
        make_simulator=partial(make_simulator, camera_px=header.defines["camera_px"]),
        action_spec=suite.action_spec,
        policy=policy,
        checkpoint_sha256=defines.get("checkpoint_sha256"),
        video=None if config["video"] is None else Path(config["video"]),
        timeout_s=config["timeout_s"],
    )
    answer = result.to_json()
    if result.first_difference is not None:
        print(json.dumps(answer), flush=True)
        raise VegaError(f"{row.name}: {result.first_difference}")
    return answer


if __name__ == "__main__":
    run("replay", main, positional=("run", "episode"))
