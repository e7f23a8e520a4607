"""Evaluate a policy on a suite: ledger, one video per episode, table and report.html.

python scripts/rollout.py suite=libero_object rollout.init_states=20
python scripts/rollout.py checkpoint=path/to/directory name=mine     # again: continues it
python scripts/rollout.py policy=remote policy.url=ws://127.0.0.1:8000    # a server answers
"""

from __future__ import annotations

import json
import logging
import os
import re
from contextlib import closing
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra_cli import run

from vega_policy.rollout.doctor import Needs, Verdict, preflight
from vega_policy.rollout.doctor.machine import SIMULATOR_GB, TOY_GB
from vega_policy.rollout.evaluate import RolloutSettings, default_workers, evaluate, prepare
from vega_policy.rollout.ledger import job_of, read_rows
from vega_policy.rollout.plan import SuiteInfo, TaskInfo
from vega_policy.rollout.provenance import checkpoint_sha256
from vega_policy.rollout.statistics import Tally, summarise
from vega_policy.rollout.table import table
from vega_policy.spec import FULL_ARM, ActionSpec, ContractError, EnvFault

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vega_policy.deploy.client import RemotePolicy
    from vega_policy.spec import Policy, Simulator

log = logging.getLogger("scripts")

PUBLISHED_CAMERA_PX = 256
"""Side of the images in the published OpenVLA-OFT evaluation."""
ARMS = ("full", "gate_clamped")
API_KEY = "VEGA_API_KEY"
"""Environment variable with the key of the server that is asked."""
FAKE_CHECKPOINT = "fake"
"""A policy without weights, for the suites of `vega_policy.testing`."""


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Run the rollout the configuration describes."""
    config = with_served_checkpoint(config)
    suite, make_simulator = build_suite(config["suite"])
    settings = build_settings(config)
    plan = prepare(settings, suite=suite, action_spec=suite.action_spec)
    make_policies, defines = policy_recipe(config, suite)
    policies = make_policies() if settings.engine == "local" else {}
    verdict = look_first(
        config,
        settings,
        policies=policies,
        camera_px=defines["camera_px"],
        make=make_simulator,
        n_episodes=len(plan.remaining(map(job_of, read_rows(settings.run_dir)))),
    )
    result = evaluate(
        settings,
        suite=suite,
        policies=policies,
        verdict=verdict,
        make_policies=make_policies,
        make_simulator=partial(make_simulator, camera_px=defines["camera_px"]),
        defines=defines,
        configuration=config,
    )
    names = {task.task_id: task.name.replace("_", " ") for task in suite.tasks}
    groups = [
        {"arm": arm, "perturbation": perturbation, **_numbers(summary.total)}
        for (arm, perturbation), summary in result.summaries.items()
    ]
    for (arm, perturbation), summary in result.summaries.items():
        if len(groups) > 1:
            print(f"\narm {arm}, perturbation {perturbation}")
        print(table(summary, names), flush=True)
    answer = {
        **_numbers(next(iter(result.summaries.values()), summarise([])).total),
        **({"groups": groups} if len(groups) > 1 else {}),
        "missing": len(result.missing),
        "run_dir": str(result.run_dir),
        "report": str(result.report),
    }
    if result.missing:
        print(json.dumps(answer), flush=True)
        names = ", ".join(m.job.name for m in result.missing)
        raise EnvFault(
            f"{len(result.missing)} episodes are missing, their simulator broke every time: "
            f"{names}; last: {result.missing[-1].detail}; try them again with "
            f"name={result.run_dir.name}"
        )
    return answer


def look_first(
    config: dict[str, Any],
    settings: RolloutSettings,
    *,
    policies: Mapping[str, Policy],
    camera_px: int,
    make: Callable[..., Simulator],
    n_episodes: int,
) -> Verdict | None:
    """Make the cheap part of the doctor's checks; None where the user does without.

    Raises:
        ContractError: One failed, and rollout.force is not set.
    """
    from preflight import cheap_checks

    if not config["rollout"]["preflight"]:
        log.warning("no preflight: nothing was checked, and the report will say so")
        return None
    is_toy = config["suite"]["simulator"] == "fake"
    checks = cheap_checks(
        policies.get(FULL_ARM) or next(iter(policies.values()), None),
        suite=config["suite"]["name"],
        camera_px=camera_px,
        needs=Needs(
            run_dir=settings.run_dir,
            n_workers=settings.workers or default_workers(settings.engine),
            simulator_gb=TOY_GB if is_toy else SIMULATOR_GB,
            device=config["device"],
            torch_threads=config["rollout"]["torch_threads"],
            n_episodes=n_episodes,
            has_video=settings.video != "none",
        ),
        make_simulator=make,
        max_batch=settings.max_batch,
    )
    return preflight(checks, force=config["rollout"]["force"])


def _numbers(total: Tally) -> dict[str, Any]:
    return {
        "episodes": total.episodes,
        "successes": total.successes,
        "success_rate": total.rate,
        "interval": list(total.interval),
    }


def build_settings(config: dict[str, Any]) -> RolloutSettings:
    """Read the user's choices."""
    chosen = config["rollout"]
    checkpoint = Path(config["checkpoint"]).name or "checkpoint"
    made_up = f"{config['suite']['name']}-{checkpoint}-{datetime.now():%Y%m%d-%H%M%S}"
    name = config["name"] if config["name"] is not None else made_up
    if not re.fullmatch(r"[\w.+=-]+", str(name)) or str(name).startswith("."):
        raise ContractError(
            f"name is {name!r}; use letters, digits and - _ . + = only, it becomes a folder"
        )
    ids = chosen["init_state_ids"]
    workers = chosen["workers"]
    return RolloutSettings(
        run_dir=Path(config["out_dir"]) / str(name),
        tasks="all" if chosen["tasks"] is None else chosen["tasks"],
        init_states=chosen["init_states"] if ids is None else ids,
        workers=None if workers == "auto" else workers,
        video="none" if chosen["video"] == "false" else chosen["video"],
        cameras=tuple(chosen["cameras"]),
        perturbations=_names(chosen["perturbations"] or config["suite"]["perturbation"]),
        arms=tuple(chosen["arms"]),
        show_progress=chosen["progress"],
        **{
            key: chosen[key]
            for key in (
                "seed",
                "repetitions",
                "starts",
                "max_steps",
                "schedule",
                "n_execute",
                "ask_every",
                "blend",
                "decay",
                "latency_ms",
                "max_batch",
                "max_delay_ms",
                "max_restarts",
                "timeout_s",
                "draw_gate",
                "engine",
                "ray_address",
                "inference_actors",
                "shard",
            )
        },
    )


def _names(chosen: str | list[str]) -> tuple[str, ...]:
    return (chosen,) if isinstance(chosen, str) else tuple(chosen)


def build_suite(config: dict[str, Any]) -> tuple[SuiteInfo, Callable[..., Simulator]]:
    """Return what there is to run and what makes a simulator of it, without making one."""
    name = config["name"]
    if config["simulator"] == "fake":
        from vega_policy.testing import fake_env

        tasks = tuple(
            TaskInfo(task_id=i, name=f"reach_the_{colour}_block", n_init_states=50)
            for i, colour in enumerate(fake_env.TASKS[: fake_env.SUITES[name]])
        )
        make: Callable[..., Simulator] = partial(fake_env.FakeEnv, step_s=config["step_s"])
        perturbations = fake_env.PERTURBATIONS
    else:
        from envs import LiberoEnv, suites
        from envs import perturbations as changes

        tasks = tuple(
            TaskInfo(task_id=i, name=task, n_init_states=suites.n_init_states(name, i))
            for i, task in enumerate(suites.task_names(name))
        )
        make = LiberoEnv
        is_pro_there = any(name == stock for stock, _ in suites.PRO_SUITES.values())
        perturbations = tuple(p for p in changes.names() if is_pro_there or not changes.is_pro(p))
    info = SuiteInfo(
        name=name,
        tasks=tasks,
        action_spec=ActionSpec(),
        perturbations=perturbations,
        arms=ARMS,
    )
    return info, make


def build_policy(config: dict[str, Any], suite: SuiteInfo) -> tuple[Policy, dict[str, Any]]:
    """Load the checkpoint; also return what about it decides the results."""
    alone = {"arms": [FULL_ARM], "feature_store": None}
    whole = {**config, "rollout": {**config["rollout"], **alone}}
    make_policies, defines = policy_recipe(whole, suite)
    return make_policies()[FULL_ARM], defines


def policy_recipe(
    config: dict[str, Any], suite: SuiteInfo
) -> tuple[Callable[[], Mapping[str, Policy]], dict[str, Any]]:
    """Return what loads the checkpoint, here or elsewhere, and what of it decides the results."""
    checkpoint, camera_px = config["checkpoint"], config["rollout"]["camera_px"]
    arms = tuple(config["rollout"]["arms"])
    # Runs of older versions, which a replay reads, lack these.
    cadence, store, wanted = (
        config["rollout"].get(name) for name in ("prior_cadence", "feature_store", "unnorm_key")
    )
    if is_remote(config):
        return remote_recipe(config)
    if checkpoint == FAKE_CHECKPOINT:
        if cadence is not None or store is not None:
            raise ContractError(
                "the made-up policy has no prior; set rollout.prior_cadence=null and "
                "rollout.feature_store=null"
            )
        from vega_policy.testing.fake_policy import fake_arms

        defines = {"checkpoint_sha256": checkpoint, "camera_px": camera_px or 128}
        return partial(fake_arms, arms), defines
    from vega_policy.policy import choose_device
    from vega_policy.policy.pretrained import load_config, resolve, statistics_key, statistics_of
    from vega_policy.policy.prior_reader import require_cadence
    from vega_policy.policy.recipe import Recipe
    from vega_policy.policy.statistics import choose_key

    folder = resolve(checkpoint)
    if store is not None and Path(store).resolve().is_relative_to(folder.resolve()):
        raise ContractError(
            f"rollout.feature_store is {store}, inside the checkpoint; name a folder outside of it"
        )
    trained = load_config(folder)
    is_fixed = trained.image_transform == "none"
    camera_px = camera_px or (trained.image_px if is_fixed else PUBLISHED_CAMERA_PX)
    if is_fixed and camera_px != trained.image_px:
        raise ContractError(
            f"rollout.camera_px is {camera_px}, the checkpoint takes images of {trained.image_px} "
            "px as they are; leave rollout.camera_px=null"
        )
    device = config["device"]
    if device is None or config["rollout"].get("engine") != "ray":
        device = choose_device(device).type  # a cluster may have the GPU that is missing here
    recipe = Recipe(
        folder=folder,
        device=device,
        unnorm_key=choose_key(
            statistics_of(folder), wanted or statistics_key(folder, suite=suite.name)
        ),
        expected=suite.action_spec,
        arms=arms,
        n_threads=config["rollout"]["torch_threads"],
        prior_cadence=cadence,
        feature_store=None if store is None else Path(store).resolve(),
        feature_store_gb=config["rollout"].get("feature_store_gb"),
    )
    defines = {
        "checkpoint_sha256": checkpoint_sha256(folder),
        "camera_px": camera_px,
        "device": recipe.device,
        "unnorm_key": recipe.unnorm_key,
    }
    cadence = require_cadence(trained.prior.cadence if cadence is None else cadence)
    if cadence > 1:  # absent where there is none, as in runs that know of no cadence
        defines["prior_cadence"] = cadence
    return recipe, defines


def is_remote(config: dict[str, Any]) -> bool:
    """Whether a server answers; runs of older versions, which a replay reads, do not say."""
    return (config.get("policy") or {}).get("kind") == "remote"


def with_served_checkpoint(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with the name of the checkpoint that a server has, where one answers.

    Raises:
        ContractError: It cannot be reached.
    """
    if not is_remote(config):
        return config
    with closing(remote_policy(config)) as policy:
        return {**config, "checkpoint": policy.info.about("model") or "remote"}


def remote_policy(config: dict[str, Any]) -> RemotePolicy:
    """Connect to the server.

    Raises:
        ContractError: It cannot be reached, or what is asked for needs the policy here.
    """
    from vega_policy.deploy.client import RemotePolicy

    source, chosen = config["policy"], config["rollout"]
    not_here = [
        name
        for name in ("prior_cadence", "feature_store", "unnorm_key")
        if chosen[name] is not None
    ]
    if list(chosen["arms"]) != [FULL_ARM]:
        not_here.append("arms")
    if not_here:
        raise ContractError(
            f"rollout.{not_here[0]} is decided where the policy is; leave it out, or play with "
            "policy=checkpoint"
        )
    if chosen["engine"] == "ray":
        raise ContractError("a remote policy needs no cluster; set rollout.engine=local")
    n_workers = chosen["workers"]
    if not isinstance(n_workers, int):
        n_workers = default_workers("local")
    policy = RemotePolicy(
        source["url"],
        action_spec=ActionSpec(),
        api_key=os.environ.get(API_KEY) or None,
        connections=max(1, min(n_workers, chosen["max_batch"])),
        timeout_s=source["timeout_s"],
        patience_s=source["patience_s"],
        want_gate=True,
    )
    try:
        policy.connect()
    except EnvFault as error:
        raise ContractError(str(error)) from error
    return policy


def remote_recipe(
    config: dict[str, Any],
) -> tuple[Callable[[], Mapping[str, Policy]], dict[str, Any]]:
    """Connect to a server; return its policy, and what it says of it that decides the results.

    Raises:
        ContractError: It cannot be reached, or what is asked for needs the policy here.
    """
    policy = remote_policy(config)
    info, wanted_px = policy.info, config["rollout"]["camera_px"]
    camera_px = wanted_px or info.image_px or PUBLISHED_CAMERA_PX
    if info.image_px is not None and camera_px != info.image_px:
        raise ContractError(
            f"rollout.camera_px is {camera_px}, the server takes images of {info.image_px} px; leave "
            "rollout.camera_px=null"
        )
    # Under the names of a policy in this process: the rows are the same.
    said = {"device": info.about("device"), "unnorm_key": info.about("statistics")}
    defines = {
        "checkpoint_sha256": info.about("checkpoint_sha256") or info.url,
        "camera_px": camera_px,
        **{name: value for name, value in said.items() if value},
    }
    return lambda: {FULL_ARM: policy}, defines


if __name__ == "__main__":
    run("rollout", main)
