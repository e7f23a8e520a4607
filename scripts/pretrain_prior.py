"""Train the nano prior, a Wan VAE and a Wan transformer, on rollout videos without action labels.

python scripts/pretrain_prior.py data.dir=data/demonstrations suite=libero_object out=runs/prior

Writes ``<out>/prior`` (a diffusers directory that policies read), pictures and metrics; continues after
a kill. Ends with one JSON line.
"""

from __future__ import annotations

from typing import Any

from hydra_cli import run

from vega_policy.policy import choose_device
from vega_policy.spec.processes import keep_freed_memory
from vega_policy.train.prior import PretrainConfig, pretrain


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Build the settings and train."""
    if choose_device(config["device"]).type == "cpu":
        keep_freed_memory()
    prior = config.pop("policy")["prior"]
    sizes = {"dims": prior["dims"], "image_px": prior["image_px"]}
    return pretrain(PretrainConfig.from_dict({**config, **sizes}))


if __name__ == "__main__":
    run("pretrain_prior", main)
