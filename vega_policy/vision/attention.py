"""The attention kernel our transformers use.

Shape legend: ``b`` batch, ``h`` heads, ``q``/``k`` tokens, ``e`` channels of a head.
"""

# pyright: basic
# ruff: noqa: ANN401
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "vega"


def use_our_attention() -> str:
    """Make the kernel known to transformers and return the name it is asked for by."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend with torch's fused kernel, or with plain products where those are faster.

    On a CPU in bfloat16, a few hundred tokens and heads of 32 to 64 channels, two matrix products
    and a softmax take less than half the time of the fused kernel, forward and backward; in
    float32 it is the other way round.

    Args:
        module: The attention layer; its ``is_causal`` is ignored unless a mask says the same.
        query: (b, h, q, e).
        key: (b, h, k, e).
        value: (b, h, k, e); its dtype decides, since rotary embeddings leave the others in float32
            under autocast.
        attention_mask: (b, 1, q, k) True where attending is allowed; None allows everything.
        scaling: Factor on the scores; None is ``e ** -0.5``.
        dropout: Must be zero for the plain products.
        **kwargs: Passed on to the fused kernel.

    Returns:
        (b, q, h, e) and None.
    """
    plain = value.device.type == "cpu" and value.dtype == torch.bfloat16 and dropout == 0.0
    if not plain or key.shape[1] != query.shape[1]:
        # An explicit False: the fused kernel would otherwise ask the layer, which may say causal.
        kwargs["is_causal"] = False
        output, _ = sdpa_attention_forward(
            module,
            query.to(value.dtype),
            key.to(value.dtype),
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            **kwargs,
        )
        return output, None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query.to(value.dtype) * scale, key.to(value.dtype).transpose(2, 3))
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    return torch.matmul(scores.softmax(-1), value).transpose(1, 2).contiguous(), None
