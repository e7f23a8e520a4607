"""Settings of prior pre-training, as frozen dataclasses built from a plain dictionary."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vega_policy.spec import ContractError
from vega_policy.spec.settings import build
from vega_policy.vision.prior.config import WanDims

if TYPE_CHECKING:
    from collections.abc import Mapping

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class StageConfig:
    """One stage of training: AdamW, linear warm-up, cosine to ``final``, an average of the weights."""

    steps: int = 4000
    """Updates of the weights."""
    max_minutes: float | None = None
    """Time the updates may take in all, over every restart; None is no limit. A stage with a limit
    follows its learning rate to the end in that time, so how many updates it makes, and its result,
    depend on the machine. Without one, a resumed run equals an uninterrupted one bit by bit."""
    batch_size: int = 16
    peak: float = 1e-3
    """Learning rate after the warm-up."""
    final: float = 0.02
    """Share of the peak at the end."""
    warmup_steps: int = 100
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    precision: Precision = "float32"
    """Arithmetic of the passes; weights and moments are float32."""
    clip_every: int = 0
    """Every how many updates short clips are seen in place of single frames; 0 is never."""
    clip_batch_size: int = 2
    """Clips in such an update."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """The VAE: loss = L1 + ``edge_weight`` * L1 of image gradients + ``kl_weight`` * KL."""

    stage: StageConfig = field(default_factory=StageConfig)
    n_res_blocks: int = 1
    """Residual blocks of a level; the published VAE has 2, which costs the encoder 60 % more time."""
    crop_px: int = 64
    """Side of the square crops an update sees; the network is convolutional."""
    whole_every: int = 8
    """Every how many updates whole frames are seen instead, as many as make up the same area; 0 is
    never."""
    edge_weight: float = 0.5
    kl_weight: float = 1e-4
    """Of the mean over latent elements, in nats."""


@dataclass(frozen=True)
class FlowConfig:
    """The transformer: rectified flow on the frozen VAE's latents."""

    stage: StageConfig = field(
        default_factory=lambda: StageConfig(batch_size=64, clip_batch_size=32, precision="bfloat16")
    )
    times: Literal["logit_normal", "uniform"] = "logit_normal"
    """How ``t`` is drawn."""
    shift: float = 1.0
    """``t`` becomes ``shift t / (1 + (shift - 1) t)``; above 1 there is more noise."""
    sample_steps: int = 30
    """Euler steps of the pictures."""


@dataclass(frozen=True)
class VideoConfig:
    """Which frames are seen."""

    dir: str = "data/nano"
    """Folder with one folder of videos per suite."""
    suites: tuple[str, ...] = ()
    """Suites whose videos are seen together; empty: the one of the run."""
    n_frames: int = 6000
    """Single frames kept in memory at most."""
    n_clips: int = 400
    """Clips kept in memory at most, where a stage uses them."""
    clip_frames: int = 5
    """Frames of a clip, 1 + 4 k as the VAE groups them."""
    frame_stride: int = 2
    """Every how many recorded frames a clip takes one."""
    held_out: float = 0.05
    """Share of the episodes that only the reported numbers see."""
    n_held_out_frames: int = 256


@dataclass(frozen=True)
class PretrainConfig:
    """One run: the VAE, the statistics of its latents, the transformer, the pictures."""

    suite: str = "libero_object"
    out: str = "runs/prior"
    """Folder of the run; the prior itself is written to ``prior`` in it."""
    image_px: int = 128
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    """CPU threads; None leaves torch's choice."""
    log_every_s: float = 10.0
    checkpoint_every_s: float = 30.0
    data: VideoConfig = field(default_factory=VideoConfig)
    dims: WanDims = field(default_factory=WanDims)
    vae: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)

    @property
    def out_dir(self) -> Path:
        """Folder of the run."""
        return Path(self.out)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PretrainConfig:
        """Build the settings.

        Raises:
            ContractError: Unknown keys, values of the wrong kind or out of range; all are listed.
        """
        problems: list[str] = []
        config = build(cls, values, problems=problems)
        if not problems:
            problems = _out_of_range(config)
        if problems:
            raise ContractError("prior settings: " + "; ".join(problems))
        return config


def _out_of_range(config: PretrainConfig) -> list[str]:
    """List settings that no run could have."""
    stages = {"vae.stage": config.vae.stage, "flow.stage": config.flow.stage}
    least = {"steps": 1, "batch_size": 1, "warmup_steps": 0, "clip_every": 0, "clip_batch_size": 1}
    values = [
        (f"{where}.{key}", getattr(stage, key), bound)
        for where, stage in stages.items()
        for key, bound in least.items()
    ]
    values += [
        ("data.n_frames", config.data.n_frames, 1),
        ("data.n_held_out_frames", config.data.n_held_out_frames, 1),
        ("data.frame_stride", config.data.frame_stride, 1),
        ("vae.n_res_blocks", config.vae.n_res_blocks, 1),
        ("vae.whole_every", config.vae.whole_every, 0),
        ("flow.sample_steps", config.flow.sample_steps, 1),
    ]
    problems = [
        f"{name} is {value}, expected at least {bound}"
        for name, value, bound in values
        if value < bound
    ]
    for name, px in (("image_px", config.image_px), ("vae.crop_px", config.vae.crop_px)):
        if px < 16 or px % 16:
            problems.append(f"{name} is {px}, expected a multiple of 16")
    if config.vae.crop_px > config.image_px:
        problems.append(f"vae.crop_px is {config.vae.crop_px}, expected at most image_px")
    if config.data.clip_frames % 4 != 1:
        problems.append(f"data.clip_frames is {config.data.clip_frames}, expected 1 + 4 k")
    for name, share in (("held_out", config.data.held_out),):
        if not 0 < share < 1:
            problems.append(f"data.{name} is {share}, expected a share between 0 and 1")
    if config.flow.shift <= 0:
        problems.append(f"flow.shift is {config.flow.shift}, expected a positive number")
    problems += [
        f"{where}.max_minutes is {stage.max_minutes}, expected a positive number, or 0 for none"
        for where, stage in stages.items()
        if stage.max_minutes is not None and stage.max_minutes < 0
    ]
    return problems
