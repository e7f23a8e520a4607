"""Cross-attention over a padded prompt, at the price of the prompt.

Wan pads every prompt with zero rows to 512 and attends to all of them without a mask. Equal rows stay
equal keys and values, so ``m`` of them weigh as much as one whose score is raised by ``log m``. For the
empty prompt two rows give what 512 give, up to rounding, and a fifth of the work on a 16x16 grid is gone.
"""

# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false
# ruff: noqa: ANN401
from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor


def read_padding_once(transformer: Any, *, n_text: int) -> None:
    """Let a transformer take the prompt and one row of padding in place of ``n_text`` rows.

    It still takes all ``n_text`` rows, and then computes what the library computes.

    Args:
        transformer: A Wan or VACE transformer; the processors of its cross-attentions are replaced.
        n_text: Rows of a padded prompt.
    """
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor

    class OnePaddingRow(WanAttnProcessor):
        """The library's attention, with the weight of the missing rows on the last one."""

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
                bias = hidden_states.new_full((1, 1, 1, 1), math.log(n_text - n + 1))
                attention_mask = functional.pad(bias, (n - 1, 0))
            return super().__call__(
                attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb
            )

    for block in (*transformer.blocks, *getattr(transformer, "vace_blocks", ())):
        block.attn2.set_processor(OnePaddingRow())
