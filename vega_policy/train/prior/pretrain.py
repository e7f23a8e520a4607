"""From rollout videos to the directory of a frozen prior.

Four steps: train the VAE, put the statistics of its latents into its configuration, train the
transformer on the frozen latents, draw pictures. Each training stage continues after a kill.
"""

# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vega_policy.data.video import Video, hold_out, list_videos, read_clips
from vega_policy.policy.device import choose_device
from vega_policy.spec.files import write_atomic
from vega_policy.train.prior.autoencoder import (
    autoencoder_loss,
    decode,
    denormalised,
    encode_all,
    latent_statistics,
    new_autoencoder,
    normalised,
    reconstruct,
    reconstruction_quality,
    to_bytes,
)
from vega_policy.train.prior.flow_matching import flow_loss, held_out_flow_loss, sample
from vega_policy.train.prior.pictures import interleaved, plot_stages, write_tiles
from vega_policy.train.prior.stage import Surroundings, refuse_foreign, run_stage
from vega_policy.vision.prior.wan import new_wan, save_wan

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    from vega_policy.train.prior.settings import PretrainConfig

log = logging.getLogger(__name__)

N_PICTURED = 16
STAGES = {"vae": ("vae",), "flow": ("vae", "flow")}
"""The stages, and the groups of settings that each depends on."""
FREE_STAGE_SETTINGS = ("max_minutes",)
"""Settings of a stage that may change between a run and its continuation."""


@dataclass(frozen=True, eq=False)
class Frames:
    """What the run sees, in memory."""

    stills: Tensor
    """(n, 1, p, p, 3) uint8, training."""
    clips: Tensor | None
    """(n, t, p, p, 3) uint8, training; None where no stage uses clips."""
    held_out: Tensor
    """(n, 1, p, p, 3) uint8 of episodes that training never sees."""
    n_episodes: int
    n_video_frames: int
    """Frames the training videos hold, seen or not."""


def pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Train a prior and write it, with pictures and numbers, below ``config.out_dir``.

    Returns:
        JSON values: ``vae_l1`` (mean distance on the scale of [-1, 1]), ``vae_psnr_db`` and
        ``flow_loss``, all on held-out episodes with the averaged weights; ``prior_dir``; ``pictures``.

    Raises:
        ContractError: There are no usable videos.
        CheckpointError: The folder holds a run with other settings.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    device = choose_device(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    suites = config.data.suites or (config.suite,)
    videos = [video for suite in suites for video in list_videos(config.data.dir, suite)]
    frames = _read(videos, config)
    out = config.out_dir
    for name, groups in STAGES.items():
        refuse_foreign(_surroundings(name, config, frames, groups))
    write_atomic(out / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")
    _, transformer, prompt = new_wan(config.dims, seed=config.seed)
    vae = new_autoencoder(config.dims, config.vae, seed=config.seed)

    _train_vae(vae, frames, config, device)
    # One forward pass for all: batched differently, a latent may differ in its last bits.
    stills = encode_all(vae, frames.stills, device=device)
    clips = None
    if config.flow.stage.clip_every and frames.clips is not None:
        clips = encode_all(vae, frames.clips, device=device, batch_size=4)
    mean, std = latent_statistics(stills)
    vae.register_to_config(latents_mean=mean, latents_std=std)
    _train_flow(
        transformer,
        stills=normalised(vae, stills),
        clips=None if clips is None else normalised(vae, clips),
        prompt=prompt,
        frames=frames,
        config=config,
        device=device,
    )

    prior_dir = out / "prior"
    save_wan(prior_dir, vae=vae, transformer=transformer, prompt=prompt)
    FlowMatchEulerDiscreteScheduler(shift=config.flow.shift).save_pretrained(
        prior_dir / "scheduler"
    )
    metrics = _measure(vae, transformer, prompt, frames, config, device)
    pictures = _draw(vae, transformer, prompt, frames, config, device)
    numbers = {
        **metrics,
        "n_episodes": frames.n_episodes,
        "n_frames_seen": len(frames.stills),
        "n_frames_held_out": len(frames.held_out),
    }
    text = json.dumps({**numbers, "config": config.to_dict()}, indent=2) + "\n"
    write_atomic(prior_dir / "metrics.json", text)
    return {**numbers, "prior_dir": str(prior_dir), "pictures": [str(path) for path in pictures]}


def _read(videos: list[Video], config: PretrainConfig) -> Frames:
    data = config.data
    seen, unseen = hold_out(videos, fraction=data.held_out, seed=config.seed)
    read: Callable[..., Any] = lambda *a, **k: torch.from_numpy(  # noqa: E731
        read_clips(*a, image_px=config.image_px, seed=config.seed, **k)
    )
    needs_clips = bool(config.vae.stage.clip_every or config.flow.stage.clip_every)
    stride = data.frame_stride
    frames = Frames(
        stills=read(seen, n_clips=data.n_frames),
        clips=read(seen, n_clips=data.n_clips, clip_frames=data.clip_frames, frame_stride=stride)
        if needs_clips
        else None,
        held_out=read(unseen, n_clips=data.n_held_out_frames),
        n_episodes=len({video.episode for video in videos}),
        n_video_frames=sum(video.n_frames for video in seen),
    )
    log.info(
        "%d episodes: %d frames and %d clips to train on, %d frames held out",
        *(frames.n_episodes, len(frames.stills)),
        *(0 if frames.clips is None else len(frames.clips), len(frames.held_out)),
    )
    return frames


def _train_vae(
    vae: AutoencoderKLWan, frames: Frames, config: PretrainConfig, device: torch.device
) -> None:
    vae.to(device)
    loss = autoencoder_loss(
        vae,
        stills=frames.stills.squeeze(1),
        clips=frames.clips,
        config=config.vae,
        seed=config.seed,
        device=device,
    )
    around = _surroundings("vae", config, frames, STAGES["vae"])
    run_stage(vae, loss, config=config.vae.stage, around=around)
    vae.requires_grad_(requires_grad=False)


def _train_flow(
    transformer: WanTransformer3DModel,
    *,
    stills: Tensor,
    clips: Tensor | None,
    prompt: Tensor,
    frames: Frames,
    config: PretrainConfig,
    device: torch.device,
) -> None:
    transformer.to(device)
    loss = flow_loss(
        transformer,
        stills=stills,
        clips=clips,
        prompt=prompt,
        config=config.flow,
        seed=config.seed,
        device=device,
    )
    around = _surroundings("flow", config, frames, STAGES["flow"])
    run_stage(transformer, loss, config=config.flow.stage, around=around)
    transformer.requires_grad_(requires_grad=False)


def _surroundings(
    name: str, config: PretrainConfig, frames: Frames, groups: tuple[str, ...]
) -> Surroundings:
    values = config.to_dict()
    made_with: dict[str, Any] = {
        "suite": config.suite,
        "image_px": config.image_px,
        "seed": config.seed,
        "n_episodes": frames.n_episodes,
        "n_video_frames": frames.n_video_frames,
    }
    for group in ("data", "dims", *groups):
        made_with |= _flat(values[group], f"{group}.")
    del made_with["data.dir"]
    return Surroundings(
        name=name,
        folder=config.out_dir,
        log_every_s=config.log_every_s,
        checkpoint_every_s=config.checkpoint_every_s,
        made_with=made_with,
    )


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif key not in FREE_STAGE_SETTINGS:
            flat[f"{prefix}{key}"] = value
    return flat


def _measure(
    vae: AutoencoderKLWan,
    transformer: WanTransformer3DModel,
    prompt: Tensor,
    frames: Frames,
    config: PretrainConfig,
    device: torch.device,
) -> dict[str, float]:
    again = reconstruct(vae, frames.held_out, device=device)
    l1, psnr_db = reconstruction_quality(frames.held_out, again)
    latents = normalised(vae, encode_all(vae, frames.held_out, device=device))
    flow = held_out_flow_loss(
        transformer, latents, prompt=prompt, config=config.flow, seed=config.seed, device=device
    )
    numbers = {"vae_l1": l1, "vae_psnr_db": psnr_db, **flow}
    return {name: round(value, 5) for name, value in numbers.items()}


def _draw(
    vae: AutoencoderKLWan,
    transformer: WanTransformer3DModel,
    prompt: Tensor,
    frames: Frames,
    config: PretrainConfig,
    device: torch.device,
) -> list[Path]:
    folder = config.out_dir / "pictures"
    files = {name: config.out_dir / f"{name}_metrics.jsonl" for name in STAGES}
    plot_stages(files, folder / "losses.png")

    at = np.linspace(0, len(frames.held_out) - 1, min(N_PICTURED, len(frames.held_out))).round()
    originals = frames.held_out[torch.from_numpy(at).long()]
    again = reconstruct(vae, originals, device=device)
    rows = interleaved(originals.squeeze(1).numpy(), again.squeeze(1).numpy(), columns=8)
    write_tiles(rows, folder / "reconstructions.png")

    def draw(n: int, latent_frames: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        side = config.image_px // 8
        latents = sample(
            transformer,
            shape=(n, latent_frames, config.dims.latent_channels, side, side),
            prompt=prompt,
            n_steps=config.flow.sample_steps,
            seed=config.seed,
            device=device,
            shift=config.flow.shift,
        )
        with torch.no_grad():
            return to_bytes(decode(vae, denormalised(vae, latents.cpu()).to(device))).cpu().numpy()

    stills = draw(2 * N_PICTURED, 1)[:, 0]
    write_tiles([stills[i : i + 8] for i in range(0, len(stills), 8)], folder / "samples.png")
    pictures = [folder / f"{name}.png" for name in ("reconstructions", "samples", "losses")]
    if config.flow.stage.clip_every:
        clips = draw(6, 1 + (config.data.clip_frames - 1) // 4)
        write_tiles(list(clips), folder / "sample_clips.png")
        pictures.append(folder / "sample_clips.png")
    return pictures
