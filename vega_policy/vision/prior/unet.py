"""Reading one block of a diffusion UNet, without running or keeping the blocks behind it.

Blocks count in the order they run: down 0 .. n-1, middle n, up n+1 .. 2n. The paper's code reads the
input of the middle block, which is the output of down block n-1 (index 3 of the published models).

Shape legend: ``f`` frames, ``c`` channels of a block, ``h``/``w`` latent height and width.
"""

# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false
# ruff: noqa: ANN401
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vega_policy.spec.errors import ContractError
from vega_policy.vision.prior.parts import refuse_disagreements, require_multiple

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vega_policy.vision.prior.config import PriorConfig, UNetDims


def block_output(
    unet: Any, sample: Tensor, *, time: Tensor, index: int, **context: Tensor
) -> Tensor:
    """Run the UNet up to a block.

    Args:
        unet: A ``UNet2DConditionModel`` or ``UNetSpatioTemporalConditionModel``.
        sample: (f, channels, h, w) noisy latents; a video's frames follow each other.
        time: (f, t) embedding of the timestep and of what is added to it.
        index: Which block.
        context: What the blocks read besides; ``encoder_hidden_states`` reaches only those with
            cross-attention.

    Returns:
        (f, c, rows, columns), re-sampling at the end of the block included.
    """
    down = len(unet.down_blocks) if index >= len(unet.down_blocks) else index + 1
    sample = unet.conv_in(sample)
    skips = (sample,)
    for block in unet.down_blocks[:down]:
        sample, kept = block(hidden_states=sample, temb=time, **_read_by(block, context))
        skips += kept
    if index < down:
        return sample
    sample = unet.mid_block(hidden_states=sample, temb=time, **context)
    for block in unet.up_blocks[: index - down]:
        n = len(block.resnets)
        sample = block(
            hidden_states=sample,
            temb=time,
            res_hidden_states_tuple=skips[-n:],
            **_read_by(block, context),
        )
        skips = skips[:-n]
    return sample


def prepare_unet(config: PriorConfig, unet: Any, *, heads: Any) -> None:
    """Check a UNet against the settings and drop what lies behind the block that is read.

    Args:
        config: Settings.
        unet: The UNet.
        heads: Attention heads of its levels; the two classes name them differently.

    Raises:
        CheckpointError: The sizes differ; every point is listed.
        ContractError: There is no such block, or the image does not fit the levels.
    """
    dims, found, index = config.unet, unet.config, config.block_index
    levels = len(dims.widths)
    if not 0 <= index <= 2 * levels:
        raise ContractError(
            f"prior.block_index is {index}, this UNet has blocks 0 to {2 * levels}: "
            f"{levels} down, one middle, {levels} up"
        )
    factor = picture_multiple(config)
    require_multiple(config, factor, why=f"VAE and UNet halve it down to 1/{factor}")
    refuse_disagreements(
        "the UNet",
        {
            "unet.widths": (tuple(found.block_out_channels), dims.widths),
            "unet.heads": (_per_level(heads, levels), dims.heads),
            "unet.n_layers": (_one(found.layers_per_block), dims.n_layers),
            "unet.text_width": (_one(found.cross_attention_dim), dims.text_width),
            "width": (block_width(dims, index), config.width),
        },
    )
    if index < levels:
        del unet.down_blocks[index + 1 :]
        unet.mid_block = None
    del unet.up_blocks[max(0, index - levels) :]
    unet.conv_norm_out = unet.conv_act = unet.conv_out = None


def picture_multiple(config: PriorConfig) -> int:
    """Pixels that one place of the coarsest level covers along a side."""
    return 2 ** (len(config.vae.widths) + len(config.unet.widths) - 2)


def block_width(dims: UNetDims, index: int) -> int:
    """Channels of a block's output."""
    levels = len(dims.widths)
    widths = (*dims.widths, dims.widths[-1], *reversed(dims.widths))
    return widths[index] if index <= 2 * levels else 0


def block_types(levels: int, *, spatio_temporal: bool = False) -> dict[str, tuple[str, ...]]:
    """Return the names the library has for the blocks of such a UNet."""
    kind = "SpatioTemporal" if spatio_temporal else "2D"
    return {
        "down_block_types": (f"CrossAttnDownBlock{kind}",) * (levels - 1) + (f"DownBlock{kind}",),
        "up_block_types": (f"UpBlock{kind}",) + (f"CrossAttnUpBlock{kind}",) * (levels - 1),
    }


def _read_by(block: nn.Module, context: dict[str, Tensor]) -> dict[str, Tensor]:
    if getattr(block, "has_cross_attention", False):
        return context
    return {k: v for k, v in context.items() if k != "encoder_hidden_states"}


def _per_level(value: Any, levels: int) -> tuple[int, ...]:
    return (value,) * levels if isinstance(value, int) else tuple(value)


def _one(value: Any) -> Any:
    """Return the one value of all levels, or all values where they differ."""
    if isinstance(value, int) or not value:
        return value
    return value[0] if len(set(value)) == 1 else tuple(value)
