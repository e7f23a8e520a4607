"""Observations become the tensors the published policies were trained on, or one sentence says why not."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from vega_policy.policy import image_path
from vega_policy.policy.processor import Processor
from vega_policy.policy.tokenizer import train_tokenizer
from vega_policy.spec import ContractError
from vega_policy.testing.tiny_policy import INSTRUCTIONS, tiny_config, tiny_observation

SPACE = 29871
"""Llama's token of a lone space, with which every published prompt ends."""


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(INSTRUCTIONS, vocab_size=320)


@pytest.fixture
def processor(tokenizer):
    return Processor(tiny_config(), tokenizer)


def changed(observation, **fields):
    return dataclasses.replace(observation, **fields)


def refusal(processor, observation):
    with pytest.raises(ContractError) as error:
        processor.check([tiny_observation(0), observation])
    assert "observation 0" not in str(error.value)
    return str(error.value)


def test_exact_is_the_image_path(tokenizer):
    processor = Processor(tiny_config(), tokenizer, image_transform="exact")
    batch = [tiny_observation(i, image_px=48) for i in range(2)]
    pixels = processor(batch).pixels
    images = [o.images[c] for o in batch for c in processor.config.cameras]
    assert torch.equal(pixels.flatten(0, 1), image_path.exact(images, px=32))


@pytest.mark.parametrize("crop", [False, True])
def test_fast_crops_where_the_configuration_says_so(tokenizer, crop):
    config = dataclasses.replace(tiny_config(), image_transform="fast", centre_crop=crop)
    seen = tiny_observation(0, image_px=48)
    found = Processor(config, tokenizer).images(seen.images)
    images = [seen.images[c] for c in config.cameras]
    assert torch.equal(found, image_path.fast(images, px=32, crop=crop))


def test_none_leaves_every_value(processor):
    seen = tiny_observation(0)
    found = processor.images(seen.images)
    assert np.array_equal(found[0].permute(1, 2, 0).numpy(), seen.images["agentview"])


def test_an_unknown_transform_is_named(tokenizer):
    with pytest.raises(ContractError, match="image_transform"):
        Processor(tiny_config(), tokenizer, image_transform="exakt")


def test_a_prompt_is_tokenised_once(processor, monkeypatch):
    before = processor.tokenise(INSTRUCTIONS)
    monkeypatch.setattr(processor, "tokenizer", None)
    after = processor.tokenise(INSTRUCTIONS)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_cache_of_prompts_is_bounded(processor):
    for i in range(1500):
        processor.tokenise([f"task {i}"])
    assert len(processor._prompts) <= 1024


def test_prompts_equal_the_tokenizers_own(processor, tokenizer):
    from vega_policy.policy.tokenizer import prompt_of

    own = tokenizer(
        [prompt_of(i) for i in INSTRUCTIONS],
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    ids, mask = processor.tokenise(INSTRUCTIONS)
    assert torch.equal(ids, own["input_ids"])
    assert torch.equal(mask, own["attention_mask"])


def test_prompts_are_padded_to_the_lengths_asked_for(processor):
    processor.prompt_lengths = (4, 64)
    ids, mask = processor.tokenise(INSTRUCTIONS)
    assert ids.shape == (3, 64)
    processor.prompt_lengths = (4,)
    short = processor.tokenise(INSTRUCTIONS)
    assert torch.equal(mask.sum(1), short[1].sum(1))
    assert ids[:, : short[0].shape[1]].equal(short[0])


def test_a_missing_camera_and_a_foreign_one_are_two_sentences(processor):
    seen = tiny_observation(1)
    images = {"agentview": seen.images["agentview"], "front": seen.images["wrist"]}
    message = refusal(processor, changed(seen, images=images))
    assert "observation 1 has no camera 'wrist' (it has agentview, front)" in message
    assert "observation 1 has an image 'front', which is no camera of this policy" in message


def test_a_camera_the_policy_does_without_may_be_there(tokenizer):
    alone = dataclasses.replace(tiny_config(), cameras=("agentview",))
    Processor(alone, tokenizer).check([tiny_observation(0)])


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((32, 32, 3), np.float32),
        np.zeros((3, 32, 32), np.uint8),
        np.zeros((32, 32), np.uint8),
        np.zeros((32, 32, 4), np.uint8),
        np.zeros((0, 32, 3), np.uint8),
        [[0]],
    ],
)
@pytest.mark.parametrize("transform", ["none", "fast", "exact"])
def test_what_is_no_picture_is_refused(tokenizer, image, transform):
    processor = Processor(tiny_config(), tokenizer, image_transform=transform)
    seen = tiny_observation(1)
    message = refusal(processor, changed(seen, images={**seen.images, "wrist": image}))
    assert "observation 1, camera 'wrist': image is" in message
    assert "expected uint8 (h, w, 3)" in message


def test_the_wrong_size_matters_only_without_a_resize(processor, tokenizer):
    large = tiny_observation(1, image_px=48)
    assert "image is (48, 48), the model's size is (32, 32)" in refusal(processor, large)
    Processor(tiny_config(), tokenizer, image_transform="exact").check([large])


@pytest.mark.parametrize("instruction", ["", "  \n", None, 3])
def test_an_empty_instruction_is_refused(processor, instruction):
    message = refusal(processor, changed(tiny_observation(1), instruction=instruction))
    assert f"instruction is {instruction!r}, expected the task in words" in message


def test_an_instruction_longer_than_the_context_is_refused(processor):
    most = processor.config.max_prompt_tokens
    seen = tiny_observation(1)
    message = refusal(processor, changed(seen, instruction="drawer " * most))
    assert f"has room for {most} beside images and actions" in message


def test_the_longest_prompt_fills_the_context(processor):
    """BOS, vision, proprio, prompt, slots and EOS: the sequence the model builds."""
    config = processor.config
    n_slots = config.action.horizon * config.action.size
    sequence = config.n_vision_tokens + 1 + config.max_prompt_tokens + n_slots + 1
    assert sequence == config.language.max_positions


def test_a_policy_without_proprio_asks_for_none(tokenizer):
    blind = dataclasses.replace(tiny_config(), proprio_size=0)
    Processor(blind, tokenizer).check([changed(tiny_observation(0), proprio=np.zeros(3))])


@pytest.fixture(scope="module")
def llama_processor():
    path = os.environ.get("VEGA_LLAMA_TOKENIZER")
    if path is None:
        pytest.skip("VEGA_LLAMA_TOKENIZER names no Llama tokenizer.json (its licence keeps it out)")
    llama = PreTrainedTokenizerFast(tokenizer_file=path)
    llama.add_special_tokens({"pad_token": "<PAD>"})
    return Processor(tiny_config(), llama)


def test_published_prompts_tokenise_as_published(llama_processor):
    with np.load(Path(__file__).parents[1] / "data" / "oft_tiny_io.npz") as arrays:
        instructions = [str(i) for i in arrays["instruction"]]
        expected, lengths = arrays["input_ids"], arrays["prompt_len"]
    ids, mask = llama_processor.tokenise(instructions)
    assert mask.sum(1).tolist() == lengths.tolist()
    for row, right, n in zip(ids.numpy(), expected, lengths, strict=True):
        assert row[:n].tolist() == right[:n].tolist()
        assert row[n - 1] == SPACE
        assert set(row[n:]) <= {32000}
    raw = [i for i in instructions if i != i.lower()]
    assert raw  # one has capitals, or lower-casing would not be tested
    tokens = llama_processor.tokenizer(f"In: What action should the robot take to {raw[0]}?\nOut: ")
    assert (
        tokens["input_ids"]
        != expected[instructions.index(raw[0])][: len(tokens["input_ids"])].tolist()
    )
