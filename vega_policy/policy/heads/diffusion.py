"""Diffusion: actions from noise, one pass of the language model per step of the chain.

Shape legend: ``b`` batch, ``t`` steps of a chunk, ``a`` numbers of an action, ``d`` width of the
language model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vega_policy.policy.heads.l1 import L1Head
from vega_policy.policy.token_projector import TokenProjector
from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    from vega_policy.policy.heads.reading import Read

_SALT = 0x64646D
"""Keeps the chain's noise apart from the prior's, which is drawn from the same keys."""


@dataclass(frozen=True, eq=False)
class Draws:
    """All that chance decides about a diffusion answer."""

    noise: Tensor
    """(b, t, a) standard normal: start of the chain, or what a training target is mixed with."""
    levels: Tensor
    """(b,) int64 noise level of each training target; not looked at without targets."""


class DiffusionHead(nn.Module):
    """OpenVLA-OFT's diffusion variant: DDIM (arXiv:2010.02502) over the chunk.

    Each number of the noisy chunk is a token in the place of a slot; a token that tells the noise
    level follows the proprioception. The noise is predicted by the same MLP as the L1 head's.
    The noise is not computed anew when the estimate of the actions is clipped to [-1, 1].
    """

    def __init__(
        self,
        *,
        source: int,
        width: int,
        n_blocks: int,
        action_size: int,
        horizon: int,
        diffusion_steps: int,
        inference_steps: int,
    ) -> None:
        super().__init__()
        if not 1 <= inference_steps <= diffusion_steps:
            raise ContractError(
                f"head.inference_steps is {inference_steps}, expected 1 to {diffusion_steps}, the "
                "number of noise levels (head.diffusion_steps)"
            )
        self.source = source
        self.shape = (horizon, action_size)
        self.diffusion_steps = diffusion_steps
        self.inference_steps = inference_steps
        """Passes per answer; may be changed on a trained model."""
        self.noise_predictor = L1Head(
            source=source, width=width, n_blocks=n_blocks, action_size=action_size
        )
        self.noisy_action = TokenProjector(size=1, width=source)

    def draw(self, keys: Sequence[int], *, step: int = 0) -> Draws:
        """Draw on the CPU, so that every device answers alike.

        Args:
            keys: One integer per observation.
            step: Of the training, so that an observation gets other noise every time.
        """
        noise, levels = [], []
        for key in keys:
            entropy = [_SALT, int(key) % 2**64, step]
            seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
            generator = torch.Generator().manual_seed(seed)
            noise.append(torch.randn(self.shape, generator=generator))
            levels.append(torch.randint(self.diffusion_steps, (), generator=generator))
        return Draws(noise=torch.stack(noise), levels=torch.stack(levels))

    def answer(
        self, read: Read, *, targets: Tensor | None = None, draws: Draws | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Run the chain, or with targets one step of it.

        Returns:
            Actions (b, t, a), with targets the estimate from a single step; and with targets the
            mean squared error of the predicted noise.

        Raises:
            ValueError: There are no draws.
        """
        if draws is None:
            raise ValueError(
                "a diffusion head starts from noise and has no keys to draw it from; pass one key "
                "per observation"
            )
        scheduler = self.scheduler()
        if targets is None:
            return self._chain(read, draws.noise, scheduler), None
        noise, levels = draws.noise.to(targets), draws.levels.to(targets.device)
        noisy = scheduler.add_noise(targets, noise, levels)  # pyright: ignore[reportArgumentType]
        predicted = self._noise(read, noisy, levels)
        kept = scheduler.alphas_cumprod.to(targets.device)[levels].view(-1, 1, 1)
        estimate = ((noisy - (1 - kept).sqrt() * predicted) / kept.sqrt()).clamp(-1, 1)
        return estimate.detach(), functional.mse_loss(predicted, noise)

    def scheduler(self) -> DDIMScheduler:
        """Return the noise schedule, on the CPU; its numbers must not be cast with the model."""
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        scheduler = DDIMScheduler(
            num_train_timesteps=self.diffusion_steps,
            beta_schedule="squaredcos_cap_v2",
            prediction_type="epsilon",
            clip_sample=True,
            clip_sample_range=1.0,
            set_alpha_to_one=True,
            timestep_spacing="leading",
            steps_offset=0,
        )
        scheduler.set_timesteps(self.inference_steps)
        return scheduler

    def _chain(self, read: Read, start: Tensor, scheduler: DDIMScheduler) -> Tensor:
        device = self.noisy_action.fc1.weight.device
        actions = start.to(device)
        for level in scheduler.timesteps.tolist():
            levels = torch.full((1,), level, device=device)
            predicted = self._noise(read, actions, levels)
            actions = scheduler.step(predicted, level, actions, eta=0.0, return_dict=False)[0]
        return actions

    def _noise(self, read: Read, noisy: Tensor, levels: Tensor) -> Tensor:
        """Predict the noise in noisy actions (b, t, a) of levels (b,) or (1,)."""
        slots = self.noisy_action(noisy.flatten(1).unsqueeze(-1))
        return self.noise_predictor(read(slots=slots, time=time_token(levels, width=self.source)))


def time_token(levels: Tensor, *, width: int) -> Tensor:
    """Return (b, width) float32: sines, then cosines, of levels (b,) at falling frequencies."""
    half = width // 2
    places = torch.arange(half, dtype=torch.float32, device=levels.device)
    exponents = places * (-math.log(10000) / (half - 1))
    angles = levels.float().unsqueeze(-1) * exponents.exp()
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
