"""Measure how fast rollouts, answers and training are, each beside a loop in the original's manner.

python scripts/benchmark.py target=rollout
python scripts/benchmark.py target=rollout benchmark.suite=libero_spatial benchmark.episodes=3
python scripts/benchmark.py target=inference policy=oft_7b     # random weights, made on the GPU
python scripts/benchmark.py target=train policy=oft_7b
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
from hydra_cli import run

from vega_policy.rollout.benchmark import Measured, WatchedPolicy, official_key, play
from vega_policy.rollout.provenance import host
from vega_policy.rollout.trace import state_digest
from vega_policy.spec import ContractError, EnvFault, EpisodeKey
from vega_policy.spec.files import write_atomic
from vega_policy.spec.names import require_name
from vega_policy.spec.processes import (
    end_with_parent,
    keep_freed_memory,
    worker_environment,
)

if TYPE_CHECKING:
    from envs.baseline import TimedEpisode
    from vega_policy.policy import PolicyConfig

TARGETS = ("rollout", "inference", "train")
log = logging.getLogger("benchmark")


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Run the benchmark the configuration names."""
    target = require_name(config["target"], TARGETS, what="target")
    work = {"rollout": rollout, "inference": inference, "train": training}[target]
    return work(config)


def inference(config: dict[str, Any]) -> dict[str, Any]:
    """Measure a policy's answers; see `vega_policy.policy.benchmark`."""
    from vega_policy.policy import choose_device
    from vega_policy.policy.benchmark import (
        InferenceSettings,
        headline,
        measure_inference,
        require_dtype,
        text,
    )

    chosen = config["inference"]
    device = choose_device(config["device"])
    dtype = require_dtype(chosen["dtype"], device)
    mode = chosen["compile"] or ("reduce-overhead" if device.type == "cuda" else "none")
    require_name(mode, ("none", "default", "reduce-overhead", "max-autotune"), what="compile")
    hardware, rows = measure_inference(
        policy_config(config),
        InferenceSettings(
            batches=tuple(chosen["batches"]),
            fusions=tuple(chosen["fusions"]),
            seconds=chosen["seconds"],
            dtype=dtype,
            compile_mode=None if mode == "none" else mode,
            camera_px=chosen["camera_px"],
            prompt_tokens=chosen["prompt_tokens"],
        ),
        device=device,
    )
    print(text(hardware, rows))
    tolerance = chosen["tolerance"] or (0.05 if dtype.itemsize == 2 else 1e-4)
    found = {"target": "inference", **headline(rows, tolerance=tolerance), "host": host()}
    found["device"] = hardware.name
    if config["out"] is not None:
        write_atomic(Path(config["out"]), json.dumps(found, indent=2) + "\n")
    if not found["agrees"]:
        log.warning("answers differ by %.1e, more than %.1e", found["largest_deviation"], tolerance)
    del found["rows"]  # they are in the table and in the file
    return found


def training(config: dict[str, Any]) -> dict[str, Any]:
    """Measure training updates; see `vega_policy.train.benchmark`."""
    from vega_policy.policy import choose_device
    from vega_policy.policy.benchmark import InferenceSettings, random_policy, require_dtype
    from vega_policy.policy.benchmark import require_memory as require_room
    from vega_policy.train.benchmark import measure_training
    from vega_policy.train.lora import LoraConfig, prepare_weights

    chosen = config["train"]
    device = choose_device(config["device"])
    dtype = require_dtype(None, device)
    sizes = policy_config(config)
    require_room(sizes, dtype, device)
    policy = random_policy(sizes, InferenceSettings(dtype=dtype), device=device)
    prepare_weights(policy.model, tune=chosen.pop("tune"), lora=LoraConfig(), base_dtype=dtype)
    speed = measure_training(policy, precision=dtype, **chosen)
    found: dict[str, Any] = {}
    if device.type == "cpu":
        # As scripts/train.py does; the rest of this process keeps its memory.
        found["samples_per_s_before_keeping_memory"] = speed.samples_per_s
        found["keeps_memory"] = keep_freed_memory()
        speed = measure_training(policy, precision=dtype, **chosen)
        found["ratio"] = speed.samples_per_s / found["samples_per_s_before_keeping_memory"]
    return {"target": "train", **dataclasses.asdict(speed), **found, "host": host()}


def policy_config(config: dict[str, Any]) -> PolicyConfig:
    """Return the policy that the groups policy, prior and fusion describe."""
    from vega_policy.policy import PolicyConfig

    return PolicyConfig.from_dict(config["policy"])


def rollout(config: dict[str, Any]) -> dict[str, Any]:
    """Play the same episodes with the official loop and with ours."""
    chosen = config["benchmark"]
    n_cores = len(os.sched_getaffinity(0))
    if not chosen["workers"] or min(chosen["workers"]) < 1 or not chosen["tasks"]:
        raise ContractError(
            "benchmark.workers and benchmark.tasks are lists of at least one number"
        )
    n_episodes, most = len(chosen["tasks"]) * chosen["episodes"], max(chosen["workers"])
    if n_episodes < 2 * most:
        raise ContractError(
            f"{n_episodes} episodes for {most} workers: each has to play two at least, or there is "
            f"no time in which all play; use benchmark.episodes={-(-2 * most // len(chosen['tasks']))}"
        )
    require_multiple(config)
    log.info(
        "the official loop: %d tasks, %d episodes each", len(chosen["tasks"]), chosen["episodes"]
    )
    official = play_officially(config, n_threads=n_cores)
    ours = [play_ours(config, n_workers=n) for n in chosen["workers"]]
    steps = sum(len(e.digests) for e in official.values())
    rate = steps / sum(e.wall_s for e in official.values())
    headline = max(ours, key=lambda m: m.steps_per_s)
    agrees = all(agree(official, m) for m in ours)
    print(text(official, rate, ours))
    result = {
        "target": "rollout",
        "suite": chosen["suite"],
        "episodes": len(official),
        "control_steps": steps,
        "unit": "control steps per second",
        "baseline": round(rate, 2),
        "ours": round(headline.steps_per_s, 2),
        "workers": headline.n_workers,
        "ratio": round(headline.steps_per_s / rate, 2),
        "ratios": {str(m.n_workers): round(m.steps_per_s / rate, 2) for m in ours},
        "agrees": agrees,
        "successes": sum(e.is_success for e in official.values()),
        "host": host(),
    }
    if config["out"] is not None:
        write_atomic(Path(config["out"]), json.dumps(result, indent=2) + "\n")
    if not agrees:
        print(json.dumps(result), flush=True)
        raise EnvFault(
            "the states differ from the official loop's, so the ratio compares nothing; "
            "see python scripts/doctor.py areas=[simulator] depth=full"
        )
    return result


def require_multiple(config: dict[str, Any]) -> None:
    """Refuse pictures that cannot be averaged down to the policy's size.

    Raises:
        ContractError: The size is no multiple.
    """
    from vega_policy.policy.pretrained import load_config, resolve

    trained, px = load_config(resolve(config["checkpoint"])), config["benchmark"]["camera_px"]
    if trained.image_transform == "none" and px % trained.image_px:
        raise ContractError(
            f"benchmark.camera_px is {px}, the policy looks at {trained.image_px} px; use a multiple"
        )


def make_policy(checkpoint: str, device: str | None, suite: str, n_threads: int) -> WatchedPolicy:
    """Load the policy; a checkpoint with images of a fixed size gets them averaged down."""
    import torch

    from vega_policy.policy import choose_device, from_pretrained
    from vega_policy.policy.pretrained import load_config, resolve, statistics_key

    torch.set_num_threads(n_threads)
    folder = resolve(checkpoint)
    trained = load_config(folder)
    try:
        key = statistics_key(folder, suite=suite)
    except ContractError as error:
        key = None  # a suite it was not trained on: slower to fail, but no slower to compute
        log.warning("%s", error)
    policy = from_pretrained(folder, device=choose_device(device), unnorm_key=key)
    return WatchedPolicy(policy, trained.image_px if trained.image_transform == "none" else None)


def play_officially(config: dict[str, Any], *, n_threads: int) -> dict[EpisodeKey, TimedEpisode]:
    """Play in a process of its own, with the environment variables our workers have."""
    from envs.baseline import play_official

    chosen = config["benchmark"]
    suite = chosen["suite"]
    found: dict[EpisodeKey, TimedEpisode] = {}
    with (
        mock.patch.dict(os.environ, worker_environment(os.environ)),
        ProcessPoolExecutor(
            1,
            mp_context=get_context("spawn"),
            initializer=end_with_parent,
            initargs=(os.getpid(),),
        ) as alone,
    ):
        for task_id in chosen["tasks"]:
            built_s, episodes = alone.submit(
                play_official,
                suite=suite,
                task_id=task_id,
                n_episodes=chosen["episodes"],
                camera_px=chosen["camera_px"],
                make_policy=partial(
                    make_policy, config["checkpoint"], config["device"], suite, n_threads
                ),
                key_of=partial(official_key, suite, task_id),
                digest=state_digest,
            ).result()
            log.info("task %d: scene built in %.1f s, %d episodes", task_id, built_s, len(episodes))
            found |= {EpisodeKey(suite, task_id, i): e for i, e in enumerate(episodes)}
    return found


def play_ours(config: dict[str, Any], *, n_workers: int) -> Measured:
    """Play the same episodes with our engine."""
    from envs import LiberoEnv

    chosen = config["benchmark"]
    policy = make_policy(
        config["checkpoint"], config["device"], chosen["suite"], chosen["torch_threads"]
    )
    keys = [
        EpisodeKey(chosen["suite"], t, i)
        for t in chosen["tasks"]
        for i in range(chosen["episodes"])
    ]
    with tempfile.TemporaryDirectory() as folder:
        measured = play(
            policy=policy,
            make_simulator=partial(LiberoEnv, camera_px=chosen["camera_px"]),
            keys=keys,
            n_workers=n_workers,
            run_dir=Path(folder),
        )
    log.info("%d workers: %.1f control steps/s", n_workers, measured.steps_per_s)
    return measured


def agree(official: dict[EpisodeKey, TimedEpisode], ours: Measured) -> bool:
    """Whether every episode ended alike, with the same state after every control step."""
    return all(
        np.array_equal(official[row.key].digests, ours.digests[row.key])
        and official[row.key].is_success == (row.outcome == "success")
        for row in ours.rows
    ) and len(ours.rows) == len(official)


def text(official: dict[EpisodeKey, TimedEpisode], rate: float, ours: list[Measured]) -> str:
    """Lay out both throughputs and where the time goes, in milliseconds per control step."""
    episodes = list(official.values())
    steps = sum(len(e.digests) for e in episodes)
    parts = {
        "reset and settling": sum(e.reset_s for e in episodes),
        "waiting for the policy": sum(e.policy_s for e in episodes),
    }
    whole = sum(e.wall_s for e in episodes)
    drawn = sum(e.render_s for e in episodes)
    lines = [
        f"{'':32}{'steps/s':>9}{'ratio':>8}   equal states",
        f"{'official loop, one process':32}{rate:>9.1f}{1:>8.1f}",
    ]
    lines += [
        f"{f'ours, {m.n_workers} workers':32}{m.steps_per_s:>9.1f}{m.steps_per_s / rate:>8.1f}"
        f"   {'all' if agree(official, m) else 'NOT ALL'}"
        for m in ours
    ]
    names = list(ours[0].seconds)
    head = "".join(f"{f'{m.n_workers} workers':>12}" for m in ours)
    lines += ["", f"{'ms per control step, per worker':32}{'official':>12}{head}"]
    for name in names:
        theirs = {
            **parts,
            "physics and drawing": whole - sum(parts.values()),
            "rest": 0.0,
        }[name]
        cells = "".join(f"{1000 * m.seconds[name]:>12.1f}" for m in ours)
        lines.append(f"{name:32}{1000 * theirs / steps:>12.1f}{cells}")
    cells = "".join(f"{1000 * sum(m.seconds.values()):>12.1f}" for m in ours)
    lines.append(f"{'all':32}{1000 * whole / steps:>12.1f}{cells}")
    lines.append(
        f"of the official loop's time {100 * drawn / whole:.0f} % is drawing; "
        f"{len(episodes)} episodes, {steps} control steps, building scenes not counted"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    run("benchmark", main)
