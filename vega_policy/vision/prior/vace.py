"""Frozen features of Wan2.1-VACE: the video generator with a branch that is shown what to keep.

Shape legend: as in `wan`.
"""

# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vega_policy.vision.prior.still_vae import encode_stills
from vega_policy.vision.prior.wan import WanPrior

if TYPE_CHECKING:
    from torch import Tensor


class VacePrior(WanPrior):
    """VACE as VEGA-3D's ``WanVaceOnlineEncoder`` runs it without a reference frame.

    The control branch gets the latent of a grey picture ("inactive"), the clean latent of the frame
    ("reactive") and a mask of ones: all of the frame is to be made anew. The transformer itself gets
    the noisy latent. What is read is the block's output with its control hint added, which is what
    the next block is given.

    The released default also puts the first frame of a scan in front as a reference, which a camera
    of a robot does not have: see docs/priors.md.
    """

    is_vace = True

    def read_block(self, noisy: Tensor, latents: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Read the block with the control branch on; see `WanPrior.read_block`."""
        return self.block_output_with_control(noisy, self.control(latents))

    def control(self, latents: Tensor) -> Tensor:
        """Return the control input (f, 2 z + 64, t, h, w) for clean latents (f, z, t, h, w)."""
        _, _, t, h, w = latents.shape
        stride = self.vae.config.scale_factor_spatial
        grey = torch.zeros(1, 3, 4 * t - 3, h * stride, w * stride).to(latents).to(self.vae.dtype)
        if t == 1:
            mode = encode_stills(self.vae, grey.squeeze(2)).unsqueeze(2)
        else:
            mode = self.vae.encode(grey).latent_dist.mode()
        inactive = self._normalised(mode).expand_as(latents)
        mask = latents.new_ones(latents.shape[0], stride**2, t, h, w)
        return torch.cat([inactive, latents, mask], dim=1)

    def block_output_with_control(
        self, noisy: Tensor, control: Tensor
    ) -> tuple[Tensor, tuple[int, int]]:
        """Run the first ``block_index + 1`` blocks and the control blocks they have.

        Args:
            noisy: (f, z, t, h, w) noisy latents.
            control: Of `control`.

        Returns:
            As `WanPrior.block_output`.
        """
        model: Any = self.transformer
        hidden, text, time, rotary, grid = self.block_inputs(noisy)
        state = model.vace_patch_embedding(control.to(hidden.dtype)).flatten(2).transpose(1, 2)
        hints: dict[int, Tensor] = {}
        for layer, block in zip(model.config.vace_layers, model.vace_blocks, strict=True):
            hints[layer], state = block(hidden, text, state, time, rotary)
        for i, block in enumerate(model.blocks):
            hidden = block(hidden, text, time, rotary)
            if i in hints:
                hidden = hidden + hints[i]
        return hidden, grid
