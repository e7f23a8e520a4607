"""Train a policy by imitation; the same command continues a run that was stopped.

python scripts/train.py data_dir=data/demonstrations
python scripts/train.py name=round2 init_from=runs/nano/policy 'data.dirs=[data/a,data/b]'   # DAgger
torchrun --nproc-per-node 8 scripts/train.py policy=oft_7b data_dir=data/demonstrations      # LoRA on 7B
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from typing import Any

from hydra_cli import run

WORLD_SIZE = "WORLD_SIZE"
"""What torchrun tells each process."""


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Train what the configuration describes."""
    import torch

    from vega_policy.policy import choose_device
    from vega_policy.spec.processes import keep_freed_memory
    from vega_policy.train.config import TrainConfig
    from vega_policy.train.imitation import train

    if config["threads"]:
        torch.set_num_threads(config["threads"])
    settings = TrainConfig.from_dict(train_settings(config))
    if choose_device(settings.device).type == "cpu":
        keep_freed_memory()
    asked = threading.Event()
    # A scheduler's SIGTERM means: save and go. Ctrl-C keeps its usual meaning.
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    ranks = None
    if int(os.environ.get(WORLD_SIZE, "1")) > 1:
        from vega_policy.train.ranks import join

        ranks = join(settings.device, parallel=settings.parallel)
        if not ranks.is_main:
            logging.getLogger().setLevel(logging.WARNING)
    result = train(settings, should_stop=asked.is_set, ranks=ranks)
    if ranks is not None:
        ranks.leave()
        if not ranks.is_main:
            sys.exit(0)  # one process reports
    return {
        "steps": result.steps,
        "loss": result.loss,
        "checkpoint": str(result.checkpoint),
        "ending": result.ending,
        "validation": result.validation,
        "trained_weights": result.trained_weights,
        "samples_per_s": round(result.samples_per_s, 1),
    }


def train_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Turn the composed YAML into what `TrainConfig.from_dict` takes."""
    settings = {
        k: v for k, v in config.items() if k not in ("suite", "data_dir", "out_dir", "threads")
    }
    data = config["data"]
    return {
        **settings,
        "run_root": config["out_dir"],
        "data": {
            **data,
            "dirs": data["dirs"] or [config["data_dir"]],
            "suites": data["suites"] or [config["suite"]["name"]],
        },
    }


if __name__ == "__main__":
    run("train", main)
