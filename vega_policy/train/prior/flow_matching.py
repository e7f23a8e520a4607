"""Rectified flow on latents, in the convention of Wan2.1.

``z_t = (1 - t) z_0 + t eps`` with ``t`` in [0, 1] and unit noise ``eps``; the transformer is told ``1000 t``
and predicts the velocity ``eps - z_0``. So do the Wan pipelines of diffusers
(``prediction_type="flow_prediction"``), and the features of a policy are read at ``t = 0.3``.

Shape legend: ``n`` videos, ``t'`` latent frames, ``z`` latent channels, ``h, w`` latent size, ``l`` prompt
tokens, ``e`` width of the prompt embedding.
"""

# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vega_policy.train.prior.stage import Loss, draw_generator

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel

    from vega_policy.train.prior.settings import FlowConfig

TIMESTEPS = 1000
"""The timestep that means pure noise."""


def noised(latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """Return ``(1 - t) z_0 + t eps`` (n, t', z, h, w) for times (n,)."""
    t = times.view(-1, 1, 1, 1, 1)
    return (1 - t) * latents + t * noise


def velocity_target(latents: Tensor, noise: Tensor) -> Tensor:
    """Return ``d z_t / d t = eps - z_0``."""
    return noise - latents


def draw_times(n: int, config: FlowConfig, generator: torch.Generator) -> Tensor:
    """Draw times (n,) in (0, 1)."""
    if config.times == "uniform":
        times = torch.rand(n, generator=generator)
    else:
        times = torch.randn(n, generator=generator).sigmoid()
    return config.shift * times / (1 + (config.shift - 1) * times)


def velocity(
    transformer: WanTransformer3DModel, noisy: Tensor, times: Tensor, prompt: Tensor
) -> Tensor:
    """Return the predicted velocity (n, t', z, h, w).

    Args:
        transformer: In the layout of diffusers (channels before time).
        noisy: (n, t', z, h, w).
        times: (n,) in [0, 1].
        prompt: (l, e) embedding of the empty prompt.
    """
    return transformer(
        hidden_states=noisy.transpose(1, 2),
        timestep=TIMESTEPS * times,
        encoder_hidden_states=prompt.expand(len(noisy), -1, -1),
        return_dict=False,
    )[0].transpose(1, 2)


def flow_loss(
    transformer: WanTransformer3DModel,
    *,
    stills: Tensor,
    clips: Tensor | None,
    prompt: Tensor,
    config: FlowConfig,
    seed: int,
    device: torch.device,
) -> Loss:
    """Return the loss of update ``k``: the mean squared error of the velocity.

    Args:
        transformer: In training.
        stills: (n, 1, z, h, w) normalised latents, on the CPU.
        clips: (n, t', z, h, w) normalised latents, on the CPU; needed where the stage uses clips.
        prompt: (l, e) embedding of the empty prompt.
        config: Settings.
        seed: Of latents, times and noise.
        device: Where the transformer is.
    """
    stage = config.stage
    prompt = prompt.to(device)

    def loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        generator = draw_generator(seed, "flow", step)
        is_clip = clips is not None and bool(stage.clip_every) and step % stage.clip_every == 0
        pool = clips if clips is not None and is_clip else stills
        n = stage.clip_batch_size if is_clip else stage.batch_size
        latents = pool[torch.randint(len(pool), (n,), generator=generator)]
        noise = torch.randn(latents.shape, generator=generator)
        times = draw_times(n, config, generator).to(device)
        latents, noise = latents.to(device), noise.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=stage.precision == "bfloat16"):
            predicted = velocity(transformer, noised(latents, noise, times), times, prompt)
        return (predicted.float() - velocity_target(latents, noise)).square().mean(), {}

    return loss


@torch.no_grad()
def held_out_flow_loss(
    transformer: WanTransformer3DModel,
    latents: Tensor,
    *,
    prompt: Tensor,
    config: FlowConfig,
    seed: int,
    device: torch.device,
    batch_size: int = 64,
) -> dict[str, float]:
    """Return the loss over latents (n, 1, z, h, w) never seen, at drawn times and at ``t = 0.3``.

    Predicting zero costs about 2; predicting the noise and the mean latent, about 1 + the rest.
    """
    totals = {"flow_loss": 0.0, "flow_loss_at_0.3": 0.0}
    generator = draw_generator(seed, "held out")
    for batch in latents.split(batch_size):
        noise = torch.randn(batch.shape, generator=generator)
        drawn = draw_times(len(batch), config, generator)
        batch, noise = batch.to(device), noise.to(device)  # noqa: PLW2901 - same data, other place
        for name, times in (
            ("flow_loss", drawn),
            ("flow_loss_at_0.3", torch.full_like(drawn, 0.3)),
        ):
            at = times.to(device)
            predicted = velocity(transformer, noised(batch, noise, at), at, prompt.to(device))
            error = (predicted - velocity_target(batch, noise)).square().mean()
            totals[name] += error.item() * len(batch) / len(latents)
    return totals


@torch.no_grad()
def sample(
    transformer: WanTransformer3DModel,
    *,
    shape: tuple[int, ...],
    prompt: Tensor,
    n_steps: int,
    seed: int,
    device: torch.device,
    shift: float = 1.0,
) -> Tensor:
    """Draw normalised latents by Euler integration from ``t = 1`` to ``t = 0``.

    Args:
        transformer: Trained.
        shape: (n, t', z, h, w).
        prompt: (l, e) embedding of the empty prompt.
        n_steps: Steps of equal length before the shift.
        seed: Of the noise.
        device: Where the transformer is.
        shift: As in training.

    Returns:
        Latents of that shape, on the device.
    """
    latents = torch.randn(shape, generator=draw_generator(seed, "sample")).to(device)
    grid = torch.linspace(1, 0, n_steps + 1)
    grid = (shift * grid / (1 + (shift - 1) * grid)).tolist()
    for now, then in pairwise(grid):
        times = torch.full((shape[0],), now, device=device)
        latents = latents + (then - now) * velocity(transformer, latents, times, prompt.to(device))
    return latents
