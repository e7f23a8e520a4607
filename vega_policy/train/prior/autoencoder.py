"""Training the Wan VAE on single frames and, less often, on short clips.

No perceptual loss: its weights would have to be downloaded. Sharpness comes from the L1 of image
gradients instead.

Shape legend: ``n`` frames or clips, ``t`` frames of a clip, ``z`` latent channels, ``h, w`` latent size,
``p`` image size.
"""

# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vega_policy.train.prior.stage import Loss, draw_generator
from vega_policy.vision.prior.still_vae import decode_stills, encode_stills, still_moments

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

    from vega_policy.train.prior.settings import AutoencoderConfig
    from vega_policy.vision.prior.config import WanDims


def new_autoencoder(dims: WanDims, config: AutoencoderConfig, *, seed: int) -> AutoencoderKLWan:
    """Make a VAE with random weights, which treats every frame of a clip like a still image."""
    from diffusers import AutoencoderKLWan

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKLWan(
            base_dim=dims.vae_width, z_dim=dims.latent_channels, num_res_blocks=config.n_res_blocks
        )
    forget_the_past(vae)
    return vae


@torch.no_grad()
def forget_the_past(vae: AutoencoderKLWan) -> None:
    """Make a new VAE treat every frame of a clip like a still image.

    The time slices of the convolutions that see earlier frames start at zero, and re-sampling in time
    starts as picking and repeating frames. A VAE that has seen only single frames then codes the last
    frame of each group of four, instead of mixing frames with random weights.
    """
    for module in vae.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[0] > 1:
            module.weight[:, :, :-1] = 0
        if hasattr(module, "time_conv"):
            weight = module.time_conv.weight
            weight.zero_()
            weight[:, :, -1, 0, 0] = torch.eye(weight.shape[1]).repeat(
                weight.shape[0] // weight.shape[1], 1
            )
            module.time_conv.bias.zero_()


def autoencoder_loss(
    vae: AutoencoderKLWan,
    *,
    stills: Tensor,
    clips: Tensor | None,
    config: AutoencoderConfig,
    seed: int,
    device: torch.device,
) -> Loss:
    """Return the loss of update ``k``.

    Args:
        vae: In training.
        stills: (n, p, p, 3) uint8, on the CPU.
        clips: (n, t, p, p, 3) uint8, on the CPU; needed where the stage uses clips.
        config: Settings.
        seed: Of frames, crops and the posterior's noise.
        device: Where the VAE is.
    """
    stage = config.stage

    def loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        generator = draw_generator(seed, "vae", step)
        if clips is not None and stage.clip_every and step % stage.clip_every == 0:
            videos = _crops(clips, stage.clip_batch_size, config.crop_px, generator)
        else:
            videos = _still_batch(stills, config, step, generator).unsqueeze(1)
        videos = to_signed(videos).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=stage.precision == "bfloat16"):
            moments = encode_moments(vae, videos)
            mean, log_variance = moments.float().chunk(2, dim=2)
            log_variance = log_variance.clamp(-30, 20)
            noise = torch.randn(mean.shape, generator=generator).to(device)
            again = decode(vae, mean + (0.5 * log_variance).exp() * noise).float()
        l1 = (again - videos).abs().mean()
        edges = _edge_distance(again, videos)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        total = l1 + config.edge_weight * edges + config.kl_weight * kl
        return total, {"l1": l1, "edges": edges, "kl": kl}

    return loss


def to_signed(frames: Tensor) -> Tensor:
    """Turn uint8 frames (..., p, p, 3) into float32 (..., 3, p, p) in [-1, 1]."""
    return frames.movedim(-1, -3).float() / 127.5 - 1


def to_bytes(frames: Tensor) -> Tensor:
    """Turn (..., 3, p, p) around [-1, 1] into uint8 (..., p, p, 3)."""
    return ((frames.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(-3, -1)


def encode_moments(vae: AutoencoderKLWan, videos: Tensor) -> Tensor:
    """Return mean and log-variance (n, t', 2 z, h, w) of videos (n, t, 3, p, p), t' = 1 + (t - 1) / 4."""
    if videos.shape[1] == 1:
        return still_moments(vae, videos.squeeze(1)).unsqueeze(1)
    return vae.encode(videos.transpose(1, 2)).latent_dist.parameters.transpose(1, 2)


def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Return videos (n, t, 3, p, p) of latents (n, t', z, h, w); a still is not clipped to [-1, 1]."""
    if latents.shape[1] == 1:
        return decode_stills(vae, latents.squeeze(1)).unsqueeze(1)
    return vae.decode(latents.transpose(1, 2)).sample.transpose(1, 2)


@torch.no_grad()
def encode_all(
    vae: AutoencoderKLWan, videos: Tensor, *, device: torch.device, batch_size: int = 16
) -> Tensor:
    """Return the posterior modes (n, t', z, h, w) of uint8 videos (n, t, p, p, 3), on the CPU."""
    modes: list[Tensor] = []
    for batch in videos.split(batch_size):
        signed = to_signed(batch).to(device)
        if signed.shape[1] == 1:
            modes.append(encode_stills(vae, signed.squeeze(1)).unsqueeze(1).contiguous().cpu())
        else:
            modes.append(encode_moments(vae, signed).chunk(2, dim=2)[0].contiguous().cpu())
    return torch.cat(modes)


def latent_statistics(latents: Tensor) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel of latents (n, t', z, h, w)."""
    channels = latents.double().movedim(2, 0).flatten(1)
    return channels.mean(1).tolist(), channels.std(1).clamp_min(1e-6).tolist()


def normalised(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Return latents (n, t', z, h, w) with the statistics in the VAE's configuration taken off."""
    return (latents - _per_channel(vae.config.latents_mean)) / _per_channel(vae.config.latents_std)


def denormalised(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Undo `normalised`."""
    return latents * _per_channel(vae.config.latents_std) + _per_channel(vae.config.latents_mean)


@torch.no_grad()
def reconstruct(
    vae: AutoencoderKLWan, videos: Tensor, *, device: torch.device, batch_size: int = 16
) -> Tensor:
    """Return uint8 reconstructions of uint8 videos (n, t, p, p, 3), both on the CPU."""
    again: list[Tensor] = []
    for batch in videos.split(batch_size):
        modes = encode_moments(vae, to_signed(batch).to(device)).chunk(2, dim=2)[0]
        again.append(to_bytes(decode(vae, modes)).cpu())
    return torch.cat(again)


def reconstruction_quality(videos: Tensor, again: Tensor) -> tuple[float, float]:
    """Return the L1 distance on the scale of [-1, 1] and the PSNR in decibels of uint8 videos."""
    difference = videos.float() - again.float()
    mse = difference.square().mean().item()
    psnr_db = 10 * math.log10(255**2 / max(mse, 1e-12))
    return difference.abs().mean().item() / 127.5, psnr_db


def _per_channel(values: list[float]) -> Tensor:
    return torch.tensor(values).view(1, 1, -1, 1, 1)


def _still_batch(
    stills: Tensor, config: AutoencoderConfig, step: int, generator: torch.Generator
) -> Tensor:
    size = stills.shape[1]
    is_whole = bool(config.whole_every) and step % config.whole_every == 0
    side = size if is_whole else config.crop_px
    n = max(1, round(config.stage.batch_size * (config.crop_px / side) ** 2))
    return _crops(stills.unsqueeze(1), n, side, generator).squeeze(1)


def _crops(videos: Tensor, n: int, side: int, generator: torch.Generator) -> Tensor:
    """Draw ``n`` random crops (n, t, side, side, 3) of random videos (m, t, p, p, 3)."""
    indices = torch.randint(len(videos), (n,), generator=generator).tolist()
    corners = torch.randint(videos.shape[2] - side + 1, (n, 2), generator=generator).tolist()
    return torch.stack(
        [
            videos[index, :, top : top + side, left : left + side]
            for index, (top, left) in zip(indices, corners, strict=True)
        ]
    )


def _edge_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the L1 distance of the differences between neighbouring pixels."""
    difference = a - b
    return difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
