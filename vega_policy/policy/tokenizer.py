"""The prompt and its tokenizers: Llama's, of published checkpoints, and a small one of our own.

Ours is for models that are trained here. Byte-level pair encoding, so no sentence is unknown; a few hundred merges make most words of the
training sentences one token each.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from vega_policy.policy.model import BOS, EOS, PAD
from vega_policy.spec import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_SPECIAL = {PAD: "<pad>", BOS: "<s>", EOS: "</s>"}


def prompt_of(instruction: str) -> str:
    """Return OpenVLA-OFT's prompt.

    The trailing space is part of it: Llama's tokenizer makes it token 29871, which OpenVLA-OFT
    appends by hand.
    """
    return f"In: What action should the robot take to {instruction.lower()}?\nOut: "


def load_llama_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """Read the ``tokenizer.json`` of a published checkpoint, and nothing it says about code.

    `AutoTokenizer` would ask whether to run the Python files the directory names.

    Raises:
        CheckpointError: It is no tokenizer, or one that does not put BOS first.
    """
    named = file.with_name("tokenizer_config.json")
    try:
        config = json.loads(named.read_text()) if named.is_file() else {}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(file),
            bos_token=_content(config.get("bos_token", "<s>")),
            eos_token=_content(config.get("eos_token", "</s>")),
            pad_token=_content(config.get("pad_token", "<PAD>")),
            padding_side="right",
            model_max_length=2048,
        )
        ids = tokenizer(prompt_of("move"))["input_ids"]
    except Exception as error:  # the library raises bare Exceptions
        raise CheckpointError(
            f"{file} cannot be read as a tokenizer ({error}); download it again"
        ) from error
    if ids[0] != BOS or tokenizer.eos_token_id != EOS:
        raise CheckpointError(
            f"{file}: a prompt starts with token {ids[0]} and EOS is {tokenizer.eos_token_id}, "
            f"expected {BOS} and {EOS} as in Llama-2; use the tokenizer of the checkpoint"
        )
    return tokenizer


def _content(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


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
