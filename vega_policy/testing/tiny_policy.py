"""A real policy that is small enough for a unit test: random weights, all the parts."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from vega_policy.policy.config import LanguageConfig, PolicyConfig
from vega_policy.policy.heads import HeadConfig
from vega_policy.policy.policy import VegaPolicy
from vega_policy.policy.statistics import Bounds, DatasetStatistics
from vega_policy.spec import Observation
from vega_policy.vision.prior import PriorConfig, WanDims
from vega_policy.vision.semantic import SemanticConfig
from vega_policy.vision.stream import ProjectorConfig

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

INSTRUCTIONS = (
    "pick up the milk and place it in the basket",
    "pick up the alphabet soup and place it in the basket",
    "open the middle drawer",
)


def tiny_config() -> PolicyConfig:
    """Return the sizes: 32 px images, 2 x 2 tokens per camera, about 60,000 weights."""
    base = SemanticConfig()
    dino, siglip = (
        dataclasses.replace(tower, width=16, depth=1, heads=2, mlp_width=32)
        for tower in (base.dino, base.siglip)
    )
    return PolicyConfig(
        semantic=SemanticConfig(image_px=32, patch_px=16, dino=dino, siglip=siglip),
        prior=PriorConfig(
            width=32,
            image_px=32,
            grid=2,
            block_index=1,
            dims=WanDims(
                heads=2,
                head_dim=16,
                n_blocks=3,
                ffn_width=64,
                text_width=8,
                frequencies=32,
                vae_width=4,
                latent_channels=16,
            ),
        ),
        projector=ProjectorConfig(semantic_hidden=32, prior_hidden=32),
        language=LanguageConfig(width=32, depth=2, heads=2, mlp_width=64, vocab_size=320),
        head=HeadConfig(width=32),
    )


def tiny_statistics() -> DatasetStatistics:
    """Return plausible statistics of a data set like ``libero_object``, with its table at the floor."""
    action = np.array([0.9, 0.9, 0.9, 0.2, 0.2, 0.3, 1.0], dtype=np.float64)
    lowest = -action * np.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0], dtype=np.float64)
    centre = np.array([-0.1, 0.0, 0.3, 3.1, 0.0, 0.0, 0.03, -0.03], dtype=np.float64)
    reach = np.array([0.3, 0.3, 0.25, 0.3, 0.4, 0.4, 0.02, 0.02], dtype=np.float64)
    return DatasetStatistics(
        action=_bounds(lowest, action, masked_out=6),
        proprio=_bounds(centre - reach, centre + reach),
        num_transitions=100,
        num_trajectories=2,
    )


def tiny_policy(
    tmp_path: Path | None = None, seed: int = 0, *, config: PolicyConfig | None = None
) -> VegaPolicy:
    """Make a policy with random weights.

    Args:
        tmp_path: Also save it there as a checkpoint.
        seed: Of the weights.
        config: Other sizes or rules than `tiny_config`.
    """
    policy = VegaPolicy.create(
        config or tiny_config(),
        statistics={"libero_object": tiny_statistics()},
        instructions=INSTRUCTIONS,
        seed=seed,
    )
    if tmp_path is not None:
        policy.save_pretrained(tmp_path)
    return policy


def tiny_observation(seed: int = 0, *, image_px: int = 32, instruction: str = "") -> Observation:
    """Return a random observation of both cameras."""
    rng = np.random.default_rng(seed)
    bounds = tiny_statistics().proprio
    return Observation(
        images={
            camera: rng.integers(0, 256, (image_px, image_px, 3), dtype=np.uint8)
            for camera in tiny_config().cameras
        },
        proprio=rng.uniform(bounds.q01, bounds.q99).astype(np.float32),
        instruction=instruction or INSTRUCTIONS[seed % len(INSTRUCTIONS)],
    )


def _bounds(
    low: NDArray[np.float64], high: NDArray[np.float64], masked_out: int | None = None
) -> Bounds:
    mask = np.arange(len(low)) != (-1 if masked_out is None else masked_out)
    return Bounds(
        mean=(low + high) / 2,
        std=(high - low) / 4,
        min=low - 0.01,
        max=high + 0.01,
        q01=low,
        q99=high,
        mask=mask,
    )
