"""Wan2.1's numbers, from a tiny random model run by the code VEGA-3D released.

Every equality has beside it the mistakes that must not pass it.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from vega_policy.vision.prior.config import PriorConfig, WanDims
from vega_policy.vision.prior.frozen import pool
from vega_policy.vision.prior.wan import WanPrior, load_wan
from vega_policy.vision.prior.wan_prompt import PROMPT_KEY

DATA = Path(__file__).parents[1] / "data"
LAYOUTS = {"diffusers": DATA / "wan_tiny", "original": DATA / "wan_tiny" / "original"}
GOLDEN = {
    name: torch.from_numpy(values)
    for name, values in np.load(DATA / "wan_tiny_io.npz").items()
    if values.dtype != object
}
LATENTS, NOISY, BLOCK, CHAIN, VIDEO = 2e-4, 1e-6, 1e-4, 3e-4, 3e-4
BLOCK_INDEX = int(GOLDEN["block_index"])
CONFIG = PriorConfig(
    width=48,
    image_px=256,
    grid=14,
    block_index=BLOCK_INDEX,
    noise_level=float(GOLDEN["sigma"]),
    timestep=float(GOLDEN["timestep"]),
    prompt_tokens=512,
    dims=WanDims(
        heads=3, head_dim=16, n_blocks=4, ffn_width=112, text_width=24, frequencies=256, vae_width=2
    ),
)
KEYS = [0, 0]


def error(a, b):
    return (a.double() - b.double()).abs().max().item()


def signed(name):
    """Return frames (f, 3, H, W) in [-1, 1]."""
    return GOLDEN[name].permute(0, 3, 1, 2).float() / 255 * 2 - 1


def given_noise(prior, name):
    """Let the prior draw the noise of the file."""
    noise = GOLDEN[name].float()
    prior.noise = lambda _keys, *, grid, **_: noise.squeeze(2) if len(grid) == 2 else noise


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompt") / "prompt.safetensors"
    save_file({PROMPT_KEY: GOLDEN["prompt_embedding"]}, file)
    return str(file)


@pytest.fixture(scope="module")
def load(prompt_file):
    def build(layout="diffusers", **changes):
        config = dataclasses.replace(CONFIG, prompt_file=prompt_file, **changes)
        return WanPrior.load(LAYOUTS[layout], config)

    return build


@pytest.fixture(scope="module", params=sorted(LAYOUTS))
def prior(request, load):
    return load(request.param)


@pytest.fixture
def altered(load):
    """A prior of one's own, to make a mistake in."""
    return load()


def test_both_layouts_hold_the_same_bits(load):
    diffusers, original = (load(layout).state_dict() for layout in LAYOUTS)
    assert diffusers.keys() == original.keys()
    assert all(torch.equal(diffusers[key], original[key]) for key in diffusers)


def test_features_of_both_layouts_are_the_same_bits(load):
    frames = signed("square.frames").unsqueeze(0)
    a, b = (load(layout).features(frames, keys=[0]) for layout in LAYOUTS)
    assert torch.equal(a, b)


def test_latents(prior):
    found = prior.latents(signed("square.frames"))
    assert error(found, GOLDEN["square.latents"].squeeze(2)) < LATENTS


def test_latents_of_wrong_pictures_and_scalings_do_not_pass(prior):
    frames, expected = signed("square.frames"), GOLDEN["square.latents"].squeeze(2)
    mean = torch.tensor(prior.vae.config.latents_mean).view(-1, 1, 1)
    std = torch.tensor(prior.vae.config.latents_std).view(-1, 1, 1)
    mode = prior.latents(frames) * std + mean
    with torch.no_grad():
        posterior = prior.vae.encode(frames.unsqueeze(2)).latent_dist
    sample = posterior.sample(torch.Generator().manual_seed(0)).squeeze(2)
    mistakes = {
        "not normalised": mode,
        "sampled": (sample - mean) / std,
        "0..1": prior.latents((frames + 1) / 2),
        "times std": (mode - mean) * std,
        "bgr": prior.latents(frames.flip(1)),
    }
    for name, found in mistakes.items():
        assert error(found, expected) > 1000 * LATENTS, name


def test_noisy_latents():
    t, noise = CONFIG.noise_level, GOLDEN["square.noise"].float()
    expected, latents = GOLDEN["square.noisy_latents"], GOLDEN["square.latents"]
    assert error((1 - t) * latents + t * noise, expected) < NOISY
    assert error(0.7 * latents + 0.3 * noise, expected) > 100 * NOISY
    assert error(latents, expected) > 1000 * NOISY


def test_block_output_and_pooling(prior):
    tokens, grid = prior.block_output(GOLDEN["square.noisy_latents"])
    assert error(tokens, GOLDEN["square.block_output"]) < BLOCK
    pooled = pool(tokens, grid, 14).transpose(1, 2).unflatten(2, (14, 14))
    assert error(pooled, GOLDEN["square.pooled"]) < BLOCK
    image = tokens.transpose(1, 2).unflatten(2, grid)
    bilinear = functional.interpolate(image, (14, 14), mode="bilinear", align_corners=False)
    assert error(bilinear, GOLDEN["square.pooled"]) > 1000 * BLOCK
    assert error(pooled.mT, GOLDEN["square.pooled"]) > 1000 * BLOCK


@pytest.mark.parametrize(
    ("changes", "at_least"),
    [
        ({"timestep": 300.0}, 0.1),
        ({"timestep": 0.0}, 0.1),
        ({"prompt_tokens": 1}, 0.1),
        ({"block_index": BLOCK_INDEX - 1}, 0.1),
        ({"block_index": BLOCK_INDEX + 1}, 0.1),
    ],
)
def test_block_outputs_of_other_settings_do_not_pass(load, changes, at_least):
    tokens, _ = load(**changes).block_output(GOLDEN["square.noisy_latents"])
    assert error(tokens, GOLDEN["square.block_output"]) > at_least


def zero_prompt(prior):
    prior.prompt.zero_()


def exact_gelu(prior):
    for block in prior.transformer.blocks:
        block.ffn.net[0].approximate = "none"


def no_cross_attention_norm(prior):
    for block in prior.transformer.blocks:
        block.norm2 = nn.Identity()


def rounded_rope(prior):
    rope = prior.transformer.rope
    rope.freqs_cos, rope.freqs_sin = (
        x.bfloat16().float() for x in (rope.freqs_cos, rope.freqs_sin)
    )


def no_rope(prior):
    rope = prior.transformer.rope
    rope.freqs_cos, rope.freqs_sin = (
        torch.ones_like(rope.freqs_cos),
        torch.zeros_like(rope.freqs_sin),
    )


class PerHead(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        heads = x.unflatten(-1, (3, 16))
        return functional.rms_norm(heads, (16,), eps=1e-6).flatten(-2) * self.norm.weight


def norm_per_head(prior):
    for block in prior.transformer.blocks:
        for attention in (block.attn1, block.attn2):
            attention.norm_q = PerHead(attention.norm_q)
            attention.norm_k = PerHead(attention.norm_k)


@pytest.mark.parametrize(
    ("mistake", "at_least"),
    [
        (zero_prompt, 0.1),
        (exact_gelu, 10 * BLOCK),
        (no_cross_attention_norm, 0.05),
        (rounded_rope, 10 * BLOCK),
        (no_rope, 0.1),
        (norm_per_head, 0.1),
    ],
)
def test_block_outputs_of_wrong_networks_do_not_pass(altered, mistake, at_least):
    mistake(altered)
    with torch.no_grad():
        tokens, _ = altered.block_output(GOLDEN["square.noisy_latents"])
    assert error(tokens, GOLDEN["square.block_output"]) > at_least


def test_frames_read_as_one_video_or_turned_do_not_pass(prior):
    noisy, expected = GOLDEN["square.noisy_latents"], GOLDEN["square.block_output"]
    joined = noisy.squeeze(2).transpose(0, 1).unsqueeze(0)
    tokens, _ = prior.block_output(joined)
    assert error(tokens.unflatten(1, (2, -1))[0], expected) > 0.1
    turned, _ = prior.block_output(noisy.mT)
    assert error(turned, expected) > 0.1


def test_the_whole_chain_from_frames(load):
    prior = load()
    given_noise(prior, "square.noise")
    features = prior.features(signed("square.frames").unsqueeze(0), keys=[0])[0]
    found = features.transpose(1, 2).unflatten(2, (14, 14))
    assert error(found, GOLDEN["square.pooled"]) < CHAIN


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_velocity_of_the_full_transformer(layout, prompt_file):
    _, transformer, prompt = load_wan(LAYOUTS[layout], prompt_file=prompt_file)
    text = functional.pad(prompt, (0, 0, 0, 511)).unsqueeze(0)
    with torch.no_grad():
        found = transformer(
            GOLDEN["square.noisy_latents"][:1], torch.tensor([CONFIG.timestep]), text
        ).sample
    assert error(found, GOLDEN["square.velocity_frame0"]) < BLOCK


def test_the_released_crop(load):
    prior = load(align="upstream", frame_size=(256, 448))
    given_noise(prior, "crop.noise")
    frame = signed("crop.frame")
    corner = prior.picture(frame)[0, :, :64:16, ::16]
    assert error(corner, GOLDEN["crop.vae_input_rows_0_64"]) < 1e-6
    assert error(prior.latents(frame), GOLDEN["crop.latents"].squeeze(2)) < LATENTS
    features = prior.features(frame.unsqueeze(0), keys=[0])[0]
    found = features.transpose(1, 2).unflatten(2, (14, 14))
    assert error(found, GOLDEN["crop.pooled"]) < CHAIN


def test_stretched_or_corner_aligned_crops_do_not_pass(load):
    frame, expected = signed("crop.frame"), GOLDEN["crop.vae_input_rows_0_64"]
    stretched = functional.interpolate(frame, (256, 448), mode="bilinear")
    assert error(stretched[0, :, :64:16, ::16], expected) > 1
    corners = functional.interpolate(frame, (448, 448), mode="bilinear", align_corners=True)
    assert error(corners[0, :, 96:160:16, ::16], expected) > 1e-3
    prior = load(align="upstream", frame_size=(256, 448))
    given_noise(prior, "crop.noise")
    features = prior.features(stretched.unsqueeze(0), keys=[0])[0]
    found = features.transpose(1, 2).unflatten(2, (14, 14))
    assert error(found, GOLDEN["crop.pooled"]) > 1


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_a_clip_is_one_video(load, layout):
    prior = load(layout, frames="clip", image_px=64, grid=4)
    given_noise(prior, "video.noise")
    frames = signed("video.frames").unsqueeze(0)
    latents = prior.clip_latents(frames)
    assert error(latents, GOLDEN["video.latents"]) < LATENTS
    features = prior.features(frames, keys=[0])[0]
    expected = GOLDEN["video.block_output"].unflatten(1, (2, 16))[0]
    for i, latent_frame in enumerate((0, 1, 1, 1, 1)):
        assert error(features[i], expected[latent_frame]) < VIDEO
    stills = load(layout, image_px=64, grid=4)
    assert error(stills.latents(frames[0])[1], latents[0, :, 1]) > 0.1


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_velocity_and_decoding_of_a_clip(layout, prompt_file):
    vae, transformer, prompt = load_wan(LAYOUTS[layout], prompt_file=prompt_file)
    t, latents = CONFIG.noise_level, GOLDEN["video.latents"]
    noisy = (1 - t) * latents + t * GOLDEN["video.noise"].float()
    text = functional.pad(prompt, (0, 0, 0, 511)).unsqueeze(0)
    with torch.no_grad():
        found = transformer(noisy, torch.tensor([CONFIG.timestep]), text).sample
        mean = torch.tensor(vae.config.latents_mean).view(-1, 1, 1, 1)
        std = torch.tensor(vae.config.latents_std).view(-1, 1, 1, 1)
        decoded = vae.decode(latents * std + mean).sample[0, :, 4]
    assert error(found, GOLDEN["video.velocity"]) < VIDEO
    assert error(decoded, GOLDEN["video.decoded_frame4"]) < LATENTS
