"""The tokenizer of nano scene models, and the special tokens every scene model needs.

Byte-level pair encoding trained on the texts of a data set: a few hundred merges make most words one
token, and no text is unknown. Nothing is downloaded.
"""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from vega_policy.scene.heads.prompts import COORD, GROUND, IMAGE

if TYPE_CHECKING:
    from collections.abc import Iterable

VISION_START, VISION_END, QWEN_IMAGE = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"
"""Qwen's own tokens; a nano model has the first two, and `IMAGE` for the third."""
SPECIAL = (IMAGE, COORD, GROUND)
_PLAIN = ("</s>", "<s>", *SPECIAL, VISION_START, VISION_END)


def train_scene_tokenizer(
    texts: Iterable[str], *, vocab_size: int = 1024
) -> PreTrainedTokenizerFast:
    """Train a tokenizer on prompts and answers; equal texts give equal tokenizers, in any order.

    Args:
        texts: At least the words that are to be single tokens.
        vocab_size: Limit, special tokens and the 256 bytes included.
    """
    core = Tokenizer(models.BPE())
    untyped: Any = core
    untyped.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    untyped.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_PLAIN),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(sorted(set(texts)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        pad_token="</s>",  # noqa: S106
        padding_side="left",
        additional_special_tokens=[*SPECIAL, VISION_START, VISION_END],
    )


def name_tokens(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Add the scene models' tokens to a published tokenizer, where it lacks them.

    They take the ids behind the last one; the published embeddings have spare rows for them.
    """
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([t for t in SPECIAL if t not in known], special_tokens=True)
    return tokenizer
