"""A small tokenizer for models that are trained here; published ones bring Llama's.

Byte-level pair encoding, so no sentence is unknown; a few hundred merges make most words of the
training sentences one token each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from vega_policy.policy.model import BOS, EOS, PAD

if TYPE_CHECKING:
    from collections.abc import Iterable

_SPECIAL = {PAD: "<pad>", BOS: "<s>", EOS: "</s>"}


def prompt_of(instruction: str) -> str:
    """Return OpenVLA-OFT's prompt; the trailing space is part of it."""
    return f"In: What action should the robot take to {instruction.lower()}?\nOut: "


def train_tokenizer(
    instructions: Iterable[str], *, vocab_size: int = 512
) -> PreTrainedTokenizerFast:
    """Train a tokenizer on the prompts of these instructions.

    The same instructions give the same tokenizer, in whatever order. BOS is added in front, EOS is
    not, padding goes to the right.
    """
    core = Tokenizer(models.BPE())
    untyped: Any = core
    untyped.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    untyped.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_SPECIAL[i] for i in sorted(_SPECIAL)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(sorted({prompt_of(i) for i in instructions}), trainer)
    untyped.post_processor = processors.TemplateProcessing(
        single=f"{_SPECIAL[BOS]} $A", special_tokens=[(_SPECIAL[BOS], BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=_SPECIAL[BOS],
        eos_token=_SPECIAL[EOS],
        pad_token=_SPECIAL[PAD],
        padding_side="right",
        model_max_length=1024,
    )
