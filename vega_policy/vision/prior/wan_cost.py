"""What one picture costs in a Wan transformer, counted from its sizes.

A multiplication and an addition are two operations; the VAE, norms and activations are not counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vega_policy.vision.prior.config import WanDims

PIXELS_PER_TOKEN = 16
"""Along one side: the VAE divides by 8, a patch by 2."""


def tokens_of(height: int, width: int) -> int:
    """Return the tokens of a still picture of this size in pixels."""
    return (height // PIXELS_PER_TOKEN) * (width // PIXELS_PER_TOKEN)


def transformer_tflop(
    dims: WanDims, *, tokens: int, n_blocks: int, text_tokens: int = 512
) -> float:
    """Return 10**12 operations of the first ``n_blocks`` blocks on one still picture.

    Args:
        dims: Sizes of the transformer.
        tokens: Of `tokens_of`.
        n_blocks: Blocks that run.
        text_tokens: Rows that cross-attention reads: 512 in the released code, 4 here (the end token
            and three rows that stand for all padding).
    """
    width = dims.width
    self_attention = 4 * tokens * width**2 + 2 * tokens**2 * width
    cross_attention = 2 * (tokens + text_tokens) * width**2 + 2 * tokens * text_tokens * width
    feed_forward = 2 * tokens * width * dims.ffn_width
    return 2 * n_blocks * (self_attention + cross_attention + feed_forward) / 1e12
