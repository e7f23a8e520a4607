"""The nano model of an arm: equal weights at the start, one branch or none."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from vega_policy.scene.heads.presets import nano_scannet, nano_vsi, scannet_config, vsi_config
from vega_policy.scene.heads.scannet_model import ScanNetModel
from vega_policy.scene.heads.vsi_model import MergedBranch
from vega_policy.scene.train.eyes import load_towers
from vega_policy.scene.train.features import RememberedTowers
from vega_policy.vision.fusion import FusionConfig
from vega_policy.vision.stream import VisionStream

CodeOn = Literal["all", "objects", "none"]
ObjectsFrom = Literal["semantic", "fused"]

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from vega_policy.scene.heads.vsi_model import VsiModel
    from vega_policy.scene.train.arms import Arm, Wiring


_WIRINGS: dict[str, tuple[CodeOn, ObjectsFrom]] = {
    "fused": ("none", "fused"),
    "published": ("objects", "semantic"),
    "coded": ("all", "semantic"),
}


def new_scannet(
    arm: Arm,
    texts: Sequence[str],
    *,
    policy: str,
    fusion: str,
    wiring: Wiring,
    seed: int,
    eyes: Path | None = None,
) -> ScanNetModel:
    """Make a model with a policy's towers, frozen, and its prior; projector and fusion are new.

    Args:
        arm: Says whether there is a prior and a position code.
        texts: What the tokenizer is trained on.
        policy: See `nano_scannet`.
        fusion: Rule of the arms that have a prior.
        wiring: Of all arms but ``coded``; see `arms`.
        seed: Of all new weights; what arms have in common starts equal.
        eyes: Folder of trained towers; None: they are the policy's.
    """
    config = scannet_config()
    # Made with a prior in every arm, so that equal draws make equal weights.
    model = nano_scannet(texts, config=config, policy=policy, seed=seed)
    vision = dataclasses.replace(config.vision, fusion=_fusion(arm, fusion))
    code_on, objects_from = _WIRINGS["coded" if arm.is_coded else wiring]
    model.config = dataclasses.replace(
        config, vision=vision, code_on=code_on, objects_from=objects_from
    )
    with torch.random.fork_rng(devices=[]):
        # What the policy learnt of its own prior would favour that prior over what stands in for it.
        torch.manual_seed(seed)
        model.branch.set_branch(vision, prior=model.branch.prior)
    if isinstance(model.branch, VisionStream):
        if eyes is not None:
            load_towers(model.branch.semantic, eyes)
        towers: Any = RememberedTowers(model.branch.semantic)
        model.branch.semantic = towers
    return model


def new_vsi(arm: Arm, texts: Sequence[str], *, policy: str, fusion: str, seed: int) -> VsiModel:
    """Make a model with a policy's prior; see `new_scannet`. Its vision tower is trained with it."""
    config = vsi_config()
    model = nano_vsi(texts, config=config, policy=policy, seed=seed)
    vision = dataclasses.replace(config.vision, fusion=_fusion(arm, fusion))
    model.config = dataclasses.replace(config, vision=vision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.branch = MergedBranch(model.config, width=model.width, prior=model.branch.prior)
    return model


@torch.no_grad()
def centre(model: ScanNetModel | VsiModel, frames: Tensor, features: Tensor | None) -> None:
    """Give both projectors mean 0, channel by channel, and the spread of the position code over some frames.

    Tokens of a policy's projector have a cosine of 0.94 with each other and those of a new one of nearly as
    much: what all of them share hides the rest, and learning to tell objects apart takes many times
    as long. A data-dependent start is that of Mishkin and Matas 2016 (arXiv:1511.06422), for two layers.

    Args:
        model: New; only a `ScanNetModel` with the policy's towers is changed.
        frames: (v, 3, h, w) uint8 of training scenes.
        features: (v, n, c) that stand for the prior's in this arm; None without a branch.
    """
    branch = model.branch
    if not isinstance(model, ScanNetModel) or not isinstance(branch, VisionStream):
        return
    _centre(branch.semantic_projector.fc3, model.semantic_tokens(frames)[0])
    if branch.prior_projector is not None and features is not None:
        last: Any = branch.prior_projector[-1]
        _centre(last, branch.prior_projector(features))


SPREAD = math.sqrt(0.5)
"""Root mean square of the sines and cosines of the position code."""


def _centre(last: nn.Linear, tokens: Tensor) -> None:
    tokens = tokens.flatten(0, 1)
    mean = tokens.mean(0)
    spread = float((tokens - mean).square().mean().sqrt())
    # Zeros in place of features have no spread, and keep their weights.
    scale = SPREAD / spread if spread > 1e-3 * SPREAD else 1.0
    last.weight.mul_(scale)
    last.bias.sub_(mean).mul_(scale)


def save(model: ScanNetModel | VsiModel, path: Path) -> None:
    """Write a model that ``from_pretrained`` reads."""
    branch = model.branch
    towers: Any = getattr(branch, "semantic", None)
    if isinstance(branch, VisionStream) and isinstance(towers, RememberedTowers):
        plain: Any = towers.towers
        branch.semantic = plain
        try:
            model.save_pretrained(path)
        finally:
            kept: Any = towers
            branch.semantic = kept
    else:
        model.save_pretrained(path)


def _fusion(arm: Arm, name: str) -> FusionConfig:
    return FusionConfig(name="none" if arm.features is None else name)
