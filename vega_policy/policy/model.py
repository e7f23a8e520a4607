"""The trainable core: one pass of a bidirectional Llama over vision, proprio and prompt.

Shape legend: ``b`` batch, ``v`` views (cameras), ``n`` tokens of one view, ``l`` prompt tokens,
``s`` tokens of the whole sequence, ``t`` steps of a chunk, ``a`` numbers of an action, ``c`` width
of the prior, ``d`` width of the language model.
"""

# pyright: reportCallIssue=false
# ruff: noqa: ANN401
from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vega_policy.policy.heads import DiffusionHead, Draws, build_head
from vega_policy.policy.token_projector import TokenProjector
from vega_policy.vision.attention import use_our_attention
from vega_policy.vision.stream import VisionStream

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from vega_policy.policy.config import LanguageConfig, PolicyConfig
    from vega_policy.vision.prior import AnyPrior

BOS, EOS, PAD = 1, 2, 0
"""Ids of our own tokenizer; a published checkpoint brings its own padding id, which is never read."""

PRIOR_PREFIX = "vision.prior."


@dataclass(frozen=True, eq=False)
class ModelOutput:
    """What one pass gives."""

    actions: Tensor
    """(b, t, a) float32 normalised actions: six numbers in about [-1, 1], the gripper in about
    [0, 1]. Of a diffusion head with targets, the estimate from a single step of the chain."""
    gate: Tensor | None
    """(b, v * n) weight of the semantic stream per vision token, in [0, 1]; None where the fusion
    rule has no gate."""
    loss: Tensor | None = None
    """Scalar float32 training loss; only where targets were given."""


@dataclass(frozen=True, eq=False)
class _Asked:
    """What stays the same in every pass of the language model over one batch."""

    front: Tensor
    """(b, f, d) BOS, vision and proprio."""
    prompt: Tensor
    """(b, l - 1, d) the prompt without BOS."""
    end: Tensor
    """(b, 1, d) EOS."""
    mask: Tensor | None
    """(b, l) True for prompt tokens, BOS included; None where nothing is padding."""


class VegaModel(nn.Module):
    """OpenVLA-OFT's parallel decoding (arXiv:2502.19645) over fused vision tokens.

    Sequence: ``BOS | vision tokens, camera by camera | proprio | prompt | t * a slots | EOS``; a
    slot is a zero vector, as in OpenVLA-OFT, or a learned one. Every token attends to every other
    one that is not padding. The head reads the hidden states one place to the left of the slots, a
    habit the checkpoints keep from autoregression: the last prompt token's first, the last slot's
    never.

    Variants change single places of it. Without proprioception its token is absent. A diffusion
    head puts a token for the noise level behind proprio and noisy actions into the slots, and asks
    once per step of its chain. A discrete head reads words. With FiLM the towers see the prompt.

    Prompts of a batch are padded on the right; padding is masked and takes no position, so it does
    not change the answer.
    """

    def __init__(self, config: PolicyConfig, *, prior: AnyPrior | None = None) -> None:
        """Build the model.

        Args:
            config: Sizes and rules.
            prior: A frozen prior; None makes one with random weights.
        """
        super().__init__()
        self.config = config
        width = config.language.width
        self.vision = VisionStream(config.vision, width=width, prior=prior)
        self.proprio: TokenProjector | None = None
        if config.proprio_size:
            self.proprio = TokenProjector(size=config.proprio_size, width=width)
        self.language = LlamaModel(_llama(config.language))
        self.lm_head: nn.Linear | None = None
        if config.head.kind == "discrete":
            self.lm_head = nn.Linear(width, config.language.vocab_size, bias=False)
            nn.init.normal_(self.lm_head.weight, std=config.language.init_std)
        self.slots: nn.Parameter | None = None
        # Noisy actions take the slots' places.
        if config.language.slots == "learned" and config.head.kind != "diffusion":
            self.slots = nn.Parameter(torch.randn(self.n_slots, width) * config.language.init_std)
        self.head = build_head(
            config.head, source=width, action=config.action, vocab_size=config.language.vocab_size
        )

    def _apply(self, fn: Any, recurse: bool = True) -> Self:  # noqa: FBT001, FBT002
        super()._apply(fn, recurse)
        self._restore_frequencies()
        return self

    def cast(self, dtype: torch.dtype) -> None:
        """Cast every weight but the frozen prior's, whose features must not change."""
        parts = [m for name, m in self.named_children() if name != "vision"]
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
    def prior(self) -> AnyPrior | None:
        """The frozen prior; None with fusion ``none``."""
        return self.vision.prior

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """Return every weight but the frozen prior's."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith(PRIOR_PREFIX)}

    def prior_features(self, pixels: Tensor, *, keys: Sequence[int] | None = None) -> Tensor | None:
        """Return what `forward` takes as ``prior_features``, for a cache.

        Args:
            pixels: (b, v, 3, h, w) RGB in [0, 255], uint8 or float.
            keys: As in `forward`.

        Returns:
            (b, v, n, c) float32; None where frames have no features: without a prior, or with the
            control that reads semantic tokens.
        """
        return self.vision.prior_features(pixels, keys=keys)

    def gradient_checkpointing_enable(self) -> None:
        """Recompute the blocks of the language model and both towers in the backward pass.

        Costs about a third more time, saves most of the memory of a training step. Only in training
        mode.
        """
        for part in (self.language, *self.vision.semantic.towers):
            part.activation_checkpointing_enable({"use_reentrant": False})

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations again."""
        for part in (self.language, *self.vision.semantic.towers):
            part.activation_checkpointing_disable()

    def forward(
        self,
        pixels: Tensor,
        proprio: Tensor | None,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        prior_features: Tensor | None = None,
        keys: Sequence[int] | None = None,
        *,
        targets: Tensor | None = None,
        step: int = 0,
        draws: Draws | None = None,
        shut_out_prior: bool | Tensor = False,
    ) -> ModelOutput:
        """Predict one chunk per observation.

        Args:
            pixels: (b, v, 3, h, w) RGB in [0, 255], uint8 or float, of the model's size.
            proprio: (b, proprio_size) normalised; not looked at by a model without proprioception.
            input_ids: (b, l) prompt, BOS first, padded on the right, without EOS.
            attention_mask: (b, l) 1 for prompt tokens, 0 for padding; None where nothing is padding,
                which is faster. Leave it on the CPU: whether it holds padding is then known without
                waiting for the GPU.
            prior_features: (b, v, n, c) from `prior_features`; None runs the prior.
            keys: One integer per observation, for a prior with keyed noise and a diffusion head.
            targets: (b, t, a) normalised expert actions; given, the output carries the loss. Inside
                `forward`, since a distributed wrapper only sees what passes through it.
            step: Of the training; gives a diffusion head other noise for the same keys.
            draws: Noise of a diffusion head; None draws it from keys and step.
            shut_out_prior: Leave the semantic tokens alone; a (b,) bool tensor does so for single
                observations.

        Raises:
            ValueError: The number of images is not that of the policy's cameras, or keys or
                proprioception are missing.
        """
        if pixels.shape[1] != len(self.config.cameras):
            raise ValueError(
                f"there are {pixels.shape[1]} images per observation, the policy sees "
                f"{len(self.config.cameras)} ({', '.join(self.config.cameras)}); pass these"
            )
        if isinstance(self.head, DiffusionHead) and draws is None and keys is not None:
            draws = self.head.draw(keys, step=step)
        return self.core(
            pixels,
            proprio,
            input_ids,
            _padding(attention_mask, device=input_ids.device),
            prior_features,
            keys,
            targets=targets,
            draws=draws,
            shut_out_prior=shut_out_prior,
        )

    def core(
        self,
        pixels: Tensor,
        proprio: Tensor | None,
        input_ids: Tensor,
        mask: Tensor | None,
        prior_features: Tensor | None = None,
        keys: Sequence[int] | None = None,
        *,
        targets: Tensor | None = None,
        draws: Draws | None = None,
        shut_out_prior: bool | Tensor = False,
    ) -> ModelOutput:
        """Do the work of `forward`; the part to compile or to capture in a CUDA graph.

        Shapes alone decide what happens, and nothing waits for the device, provided that the prior's
        features are given. The prompt's length is a shape: pad to a few lengths to compile for few.
        The chain of a diffusion head repeats the language model; compile ``language`` there.

        Args:
            pixels: See `forward`; so are the arguments without a line here.
            proprio: See `forward`.
            input_ids: See `forward`.
            mask: (b, l) bool, True for prompt tokens; None where nothing is padding.
            prior_features: See `forward`.
            keys: For a prior with keyed noise that has yet to run.
            targets: See `forward`.
            draws: Noise of a diffusion head.
            shut_out_prior: See `forward`.
        """
        embedded = self.language.embed_tokens(functional.pad(input_ids, (0, 1), value=EOS))
        fused = self.vision(
            pixels,
            prior_features=prior_features,
            keys=keys,
            shut_out_prior=shut_out_prior,
            condition=_mean(embedded, mask) if self.config.semantic.film else None,
        )
        front = [embedded[:, :1], fused.tokens]
        if self.proprio is not None:
            if proprio is None:
                raise ValueError(
                    f"the policy was trained with {self.config.proprio_size} numbers of "
                    "proprioception and got none; pass them"
                )
            front.append(self.proprio(proprio).unsqueeze(1))
        asked = _Asked(
            front=torch.cat([x.to(embedded.dtype) for x in front], dim=1),
            prompt=embedded[:, 1:-1],
            end=embedded[:, -1:],
            mask=mask,
        )
        actions, loss = self.head.answer(partial(self._read, asked), targets=targets, draws=draws)
        gate = None if fused.gate is None else fused.gate.squeeze(-1).float()
        return ModelOutput(actions=actions, gate=gate, loss=loss)

    def _read(
        self,
        asked: _Asked,
        *,
        slots: Tensor | None = None,
        time: Tensor | None = None,
        n_more: int = 0,
    ) -> Tensor:
        """Run the language model once; see `heads.Read`."""
        b, _, d = asked.front.shape
        if slots is None:
            slots = asked.end.new_zeros(self.n_slots, d) if self.slots is None else self.slots
        front = [asked.front] if time is None else [asked.front, time.unsqueeze(1).expand(b, 1, d)]
        sequence = torch.cat(
            [
                *(x.to(asked.end.dtype) for x in front),
                asked.prompt,
                slots.to(asked.end.dtype).expand(b, self.n_slots, d),
                asked.end,
            ],
            dim=1,
        )
        n_front = sum(x.shape[1] for x in front)
        hidden = self._attend(sequence, asked.mask, n_front=n_front, n_back=self.n_slots + 1)
        # EOS is last and the slots come before it; read from one place to the left of them.
        start = hidden.shape[1] - self.n_slots - 2
        read = hidden[:, start : start + self.n_slots + n_more]
        if asked.mask is not None:
            # Padding may lie between the last prompt token and the slots.
            last = n_front - 2 + asked.mask.sum(1).view(b, 1, 1)
            read = torch.cat([hidden.gather(1, last.expand(b, 1, d)), read[:, 1:]], dim=1)
        return read if self.lm_head is None else self.lm_head(read)

    def _attend(
        self, sequence: Tensor, prompt: Tensor | None, *, n_front: int, n_back: int
    ) -> Tensor:
        """Return hidden states (b, s, d) after the final norm.

        Args:
            sequence: (b, s, d) embedded tokens.
            prompt: (b, l) True for prompt tokens, the first is BOS; None where nothing is padding.
            n_front: Tokens before the prompt's second one.
            n_back: Tokens behind the prompt.
        """
        b, s, _ = sequence.shape
        if prompt is None:
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


def _padding(attention_mask: Tensor | None, *, device: torch.device) -> Tensor | None:
    """Return the mask as bool on the device, or None where it is known to hide nothing."""
    if attention_mask is None:
        return None
    if attention_mask.device.type == "cpu" and bool(attention_mask.all()):
        return None
    return attention_mask.to(device, torch.bool, non_blocking=True)


def _mean(embedded: Tensor, mask: Tensor | None) -> Tensor:
    """Return (b, d), the mean embedding of BOS, prompt and EOS, of (b, l + 1, d).

    Padding does not count. OpenVLA-OFT averages it in when it trains on batches with padding, and
    never meets any at evaluation.
    """
    if mask is None:
        return embedded.mean(1)
    real = functional.pad(mask, (0, 1), value=True).unsqueeze(-1)
    return (embedded * real).sum(1) / real.sum(1)


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
