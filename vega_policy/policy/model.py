"""The trainable core: one pass of a bidirectional Llama over vision, proprio and prompt.

Shape legend: ``b`` batch, ``v`` views (cameras), ``n`` tokens of one view, ``l`` prompt tokens,
``s`` tokens of the whole sequence, ``t`` steps of a chunk, ``a`` numbers of an action, ``c`` width
of the prior, ``d`` width of the language model.
"""

# pyright: reportCallIssue=false
# ruff: noqa: ANN401
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vega_policy.policy.head import L1Head, ProprioProjector
from vega_policy.vision.attention import use_our_attention
from vega_policy.vision.stream import VisionStream

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from vega_policy.policy.config import LanguageConfig, PolicyConfig
    from vega_policy.vision.prior import WanPrior, ZeroPrior

BOS, EOS, PAD = 1, 2, 0
"""Ids of our own tokenizer; a published checkpoint brings its own padding id, which is never read."""

PRIOR_PREFIX = "vision.prior."


@dataclass(frozen=True, eq=False)
class ModelOutput:
    """What one pass gives."""

    actions: Tensor
    """(b, t, a) normalised actions: six numbers in about [-1, 1], the gripper in about [0, 1]."""
    gate: Tensor | None
    """(b, v * n) weight of the semantic stream per vision token, in [0, 1]; None where the fusion
    rule has no gate."""
    loss: Tensor | None = None
    """Scalar float32 training loss; only where targets were given."""


class VegaModel(nn.Module):
    """OpenVLA-OFT's parallel decoding (arXiv:2502.19645) over fused vision tokens.

    Sequence: ``BOS | vision tokens, camera by camera | proprio | prompt | t * a slots | EOS``; a
    slot is a zero vector, as in OpenVLA-OFT, or a learned one. Every token attends to every other
    one that is not padding. The head reads the hidden states one place to the left of the slots, a
    habit the checkpoints keep from autoregression: the last prompt token's first, the last slot's
    never.

    Prompts of a batch are padded on the right; padding is masked and takes no position, so it does
    not change the answer.
    """

    def __init__(self, config: PolicyConfig, *, prior: WanPrior | ZeroPrior | None = None) -> None:
        """Build the model.

        Args:
            config: Sizes and rules.
            prior: A frozen prior; None makes one with random weights.
        """
        super().__init__()
        self.config = config
        width = config.language.width
        self.vision = VisionStream(config.vision, width=width, prior=prior)
        self.proprio = ProprioProjector(size=config.proprio_size, width=width)
        self.language = LlamaModel(_llama(config.language))
        self.slots: nn.Parameter | None = None
        if config.language.slots == "learned":
            self.slots = nn.Parameter(torch.randn(self.n_slots, width) * config.language.init_std)
        self.head = L1Head(
            source=width,
            width=config.head.width,
            n_blocks=config.head.n_blocks,
            action_size=config.action.size,
        )

    def _apply(self, fn: Any, recurse: bool = True) -> Self:  # noqa: FBT001, FBT002
        super()._apply(fn, recurse)
        self._restore_frequencies()
        return self

    def cast(self, dtype: torch.dtype) -> None:
        """Cast every weight but the frozen prior's, whose features must not change."""
        parts: list[nn.Module] = [self.proprio, self.language, self.head]
        parts += [m for name, m in self.vision.named_children() if name != "prior"]
        for module in parts:
            module.to(dtype)
        if self.slots is not None:
            self.slots.data = self.slots.data.to(dtype)
        self._restore_frequencies()

    def _restore_frequencies(self) -> None:
        """Undo what a cast does to the rotary frequencies: at late positions it costs 0.6 rad."""
        rotary = self.language.rotary_emb
        if rotary.inv_freq.dtype != torch.float32:
            fresh = LlamaRotaryEmbedding(self.language.config)
            self.language.rotary_emb = fresh.to(rotary.inv_freq.device)

    @property
    def n_slots(self) -> int:
        """Places where actions are read: one per number of a chunk."""
        return self.config.action.horizon * self.config.action.size

    @property
    def prior(self) -> WanPrior | ZeroPrior:
        """The frozen prior."""
        return self.vision.prior

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """Return every weight but the frozen prior's."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith(PRIOR_PREFIX)}

    def prior_features(self, pixels: Tensor, *, keys: Sequence[int] | None = None) -> Tensor:
        """Return what `forward` takes as ``prior_features``, for a cache.

        Args:
            pixels: (b, v, 3, h, w) RGB in [0, 255], uint8 or float.
            keys: As in `forward`.

        Returns:
            (b, v, n, c) float32.
        """
        return self.vision.prior_features(pixels, keys=keys)

    def forward(
        self,
        pixels: Tensor,
        proprio: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        prior_features: Tensor | None = None,
        keys: Sequence[int] | None = None,
        *,
        targets: Tensor | None = None,
        shut_out_prior: bool = False,
    ) -> ModelOutput:
        """Predict one chunk per observation.

        Args:
            pixels: (b, v, 3, h, w) RGB in [0, 255], uint8 or float, of the model's size.
            proprio: (b, proprio_size) normalised.
            input_ids: (b, l) prompt, BOS first, padded on the right, without EOS.
            attention_mask: (b, l) 1 for prompt tokens, 0 for padding.
            prior_features: (b, v, n, c) from `prior_features`; None runs the prior.
            keys: One integer per observation, for a prior with keyed noise.
            targets: (b, t, a) normalised expert actions; given, the output carries the loss. Inside
                `forward`, since a distributed wrapper only sees what passes through it.
            shut_out_prior: Clamp the gate to the semantic side.
        """
        fused = self.vision(
            pixels, prior_features=prior_features, keys=keys, shut_out_prior=shut_out_prior
        )
        embedded = self.language.embed_tokens(input_ids)
        b, _, d = embedded.shape
        n_slots = self.n_slots
        dtype = embedded.dtype
        slots = embedded.new_zeros(n_slots, d) if self.slots is None else self.slots.to(dtype)
        end = torch.full((b, 1), EOS, device=input_ids.device)
        sequence = torch.cat(
            [
                embedded[:, :1],
                fused.tokens.to(dtype),
                self.proprio(proprio.to(dtype)).to(dtype),
                embedded[:, 1:],
                slots.expand(b, n_slots, d),
                self.language.embed_tokens(end),
            ],
            dim=1,
        )
        n_front = 1 + fused.tokens.shape[1] + 1
        hidden = self._attend(sequence, attention_mask.bool(), n_front=n_front, n_back=n_slots + 1)
        # The prompt's tail (padding included) starts at n_front; the slots end one before EOS.
        last = n_front - 2 + attention_mask.sum(1, keepdim=True)
        first = hidden.gather(1, last.unsqueeze(-1).expand(b, 1, d))
        start = hidden.shape[1] - n_slots - 1
        read = torch.cat([first, hidden[:, start : start + n_slots - 1]], dim=1)
        # In the head's own precision even under autocast: bfloat16 has 8 bits for an action.
        with torch.autocast(read.device.type, enabled=False):
            actions = self.head(read.to(self.head.fc_out.weight.dtype))
        gate = None if fused.gate is None else fused.gate.squeeze(-1).float()
        actions = actions.float()
        loss = None if targets is None else (actions - targets).abs().mean()
        return ModelOutput(actions=actions, gate=gate, loss=loss)

    def _attend(self, sequence: Tensor, prompt: Tensor, *, n_front: int, n_back: int) -> Tensor:
        """Return hidden states (b, s, d) after the final norm.

        Args:
            sequence: (b, s, d) embedded tokens.
            prompt: (b, l) True for prompt tokens; the first is BOS.
            n_front: Tokens before the prompt's second one.
            n_back: Tokens behind the prompt.
        """
        b, s, _ = sequence.shape
        if bool(prompt.all()):
            mask = None
            positions = torch.arange(s, device=sequence.device).unsqueeze(0)
        else:
            front, back = prompt.new_ones(b, n_front), prompt.new_ones(b, n_back)
            real = torch.cat([front, prompt[:, 1:], back], dim=1)
            mask = real[:, None, None, :].expand(b, 1, s, s)
            positions = real.long().cumsum(1) - 1
        return self.language(
            inputs_embeds=sequence, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state


def _llama(config: LanguageConfig) -> LlamaConfig:
    llama = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        intermediate_size=config.mlp_width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        rms_norm_eps=config.rms_norm_eps,
        max_position_embeddings=config.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        initializer_range=config.init_std,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=None,
        use_cache=False,
        attn_implementation=use_our_attention(),
    )
    # Reaches the mask builder and the kernel alike; without it attention is silently causal.
    llama.is_causal = False
    return llama
