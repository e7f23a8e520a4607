"""Cross-attention over a padded prompt, at the price of the prompt.

Wan pads every prompt with zero rows to 512 and attends to all of them without a mask. Equal rows stay
equal keys and values, so ``m`` of them weigh as much as one whose score is raised by ``log m``. For the
empty prompt four rows give what 512 give, up to rounding, and a fifth of the work on a 16x16 grid is
gone.
"""

# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false
# ruff: noqa: ANN401
from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

PADDING_ROWS = 3
"""Rows that stand for the padding. One would do, were ``log 511`` a bfloat16 number: rounded, it is off
by 1 %. Three add up to 511 to a millionth."""


def read_padding_once(transformer: Any, *, n_text: int) -> None:
    """Let a transformer take the prompt and a few rows of padding in place of ``n_text`` rows.

    It still takes all ``n_text`` rows, and then computes what the library computes.

    Args:
        transformer: A Wan or VACE transformer; the processors of its cross-attentions are replaced.
        n_text: Rows of a padded prompt.
    """
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor

    class FewPaddingRows(WanAttnProcessor):
        """The library's attention, with the weight of the missing rows on the last ones."""

        def __init__(self) -> None:
            super().__init__()
            self.raised: Tensor | None = None

        def __call__(
            self,
            attn: Any,
            hidden_states: Tensor,
            encoder_hidden_states: Tensor,
            attention_mask: Tensor | None = None,
            rotary_emb: Any = None,
        ) -> Tensor:
            n = encoder_hidden_states.shape[1]
            if attention_mask is None and n < n_text:
                attention_mask = self.raised
                if (
                    attention_mask is None
                    or attention_mask.device != hidden_states.device
                    or attention_mask.dtype != hidden_states.dtype
                ):
                    scores = padding_scores(n_text - n + PADDING_ROWS, dtype=hidden_states.dtype)
                    plain = torch.zeros(n - PADDING_ROWS, dtype=hidden_states.dtype)
                    attention_mask = torch.cat([plain, scores]).to(hidden_states.device)
                    attention_mask = attention_mask.view(1, 1, 1, n)
                    self.raised = attention_mask
            return super().__call__(
                attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb
            )

    for block in (*transformer.blocks, *getattr(transformer, "vace_blocks", ())):
        block.attn2.set_processor(FewPaddingRows())


def padding_scores(n_rows: int, *, dtype: torch.dtype) -> Tensor:
    """Return what to add to the scores of `PADDING_ROWS` rows, so that they weigh as ``n_rows``.

    The numbers are exact in ``dtype``: each row takes what the ones before it left.
    """
    scores: list[float] = []
    left = float(n_rows)
    for _ in range(PADDING_ROWS):
        score = torch.tensor(math.log(left) if left > 0 else -math.inf, dtype=dtype)
        if left > 0 and math.exp(score.item()) > left:
            score = torch.nextafter(score, torch.tensor(-math.inf, dtype=dtype))
        scores.append(score.item())
        left -= math.exp(scores[-1])
    return torch.tensor(scores, dtype=dtype)
