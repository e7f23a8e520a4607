"""What is skipped or shortened in a Wan prior changes no number beyond rounding."""

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional

from vega_policy.policy.config import PolicyConfig
from vega_policy.spec import CheckpointError
from vega_policy.vision.prior.config import PriorConfig, WanDims
from vega_policy.vision.prior.framing import whole_frame
from vega_policy.vision.prior.frozen import pool
from vega_policy.vision.prior.still_vae import encode_stills
from vega_policy.vision.prior.text_padding import padding_scores
from vega_policy.vision.prior.vace import VacePrior
from vega_policy.vision.prior.wan import WanPrior, latent_frame_of, new_wan
from vega_policy.vision.prior.wan_cost import tokens_of, transformer_tflop
from vega_policy.vision.prior.wan_schedule import nearest_timestep

PRIORS = Path(__file__).parents[2] / "configs" / "prior"
DIMS = WanDims(heads=2, head_dim=16, n_blocks=4, ffn_width=64, text_width=16, vae_width=4)
CONFIG = PriorConfig(
    width=32, image_px=64, grid=4, block_index=2, timestep=299.0, prompt_tokens=512, dims=DIMS
)


def video(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(a, b, tolerance=2e-5):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def pair(config, kind, *, seed=1):
    """A prior, and the library's full transformer with the same weights."""
    vae, transformer, prompt = new_wan(config.dims, seed=seed, is_vace=kind.is_vace)
    full = new_wan(config.dims, seed=seed, is_vace=kind.is_vace)[1].eval()
    return kind(config, vae=vae, transformer=transformer, prompt=prompt), full


@pytest.mark.parametrize("shape", [(2, 16, 8, 8), (1, 16, 2, 6, 8)])
@pytest.mark.parametrize("prompt_tokens", [1, 2, 512])
def test_the_block_equals_a_hook_on_the_librarys_full_forward(shape, prompt_tokens):
    prior, full = pair(dataclasses.replace(CONFIG, prompt_tokens=prompt_tokens), WanPrior)
    noisy = video(*shape)
    read = []
    full.blocks[CONFIG.block_index].register_forward_hook(lambda _m, _i, out: read.append(out))
    text = functional.pad(prior.prompt, (0, 0, 0, prompt_tokens - 1)).unsqueeze(0)
    with torch.no_grad():
        stills = noisy if noisy.ndim == 5 else noisy.unsqueeze(2)
        full(stills, torch.full((shape[0],), 299.0), text.expand(shape[0], -1, -1))
        tokens, grid = prior.block_output(noisy)
    assert grid == (shape[-2] // 2, shape[-1] // 2)
    close(tokens, read[0])


def test_with_all_rows_of_the_padding_the_block_is_the_librarys_bit_for_bit():
    prior, full = pair(CONFIG, WanPrior)
    noisy = video(2, 16, 1, 8, 8)
    read = []
    full.blocks[CONFIG.block_index].register_forward_hook(lambda _m, _i, out: read.append(out))
    text = functional.pad(prior.prompt, (0, 0, 0, 511)).unsqueeze(0)
    with torch.no_grad():
        full(noisy, torch.full((2,), 299.0), text.expand(2, -1, -1))
        _, time, rows, _ = full.condition_embedder(torch.full((2,), 299.0), text.expand(2, -1, -1))
        prior._constants = (rows, time.unflatten(1, (6, -1)))
        tokens, _ = prior.block_output(noisy)
    assert torch.equal(tokens, read[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_three_rows_weigh_as_much_as_all_the_padding(dtype):
    scores = padding_scores(511, dtype=dtype).double()
    assert scores.exp().sum().item() == pytest.approx(511, rel=1e-5)
    rounded = torch.tensor(511.0).log().to(dtype).double().exp().item()
    assert dtype == torch.float32 or rounded != pytest.approx(511, rel=0.005)


def test_in_bfloat16_the_block_is_as_exact_as_the_librarys():
    exact, _ = pair(CONFIG, WanPrior)
    ours, _ = pair(CONFIG, WanPrior)
    ours.to(torch.bfloat16)
    noisy = video(2, 16, 1, 8, 8)
    library, _ = pair(CONFIG, WanPrior)
    library.to(torch.bfloat16)
    text = functional.pad(library.prompt, (0, 0, 0, 511)).unsqueeze(0).bfloat16()
    with torch.no_grad():
        _, time, rows, _ = library.transformer.condition_embedder(torch.tensor([299.0]), text)
        library._constants = (rows, time.unflatten(1, (6, -1)))
        a, b, c = (p.block_output(noisy)[0].float() for p in (exact, ours, library))
    assert (b - a).square().mean() < 1.5 * (c - a).square().mean()


def test_padding_without_its_weight_is_another_number():
    prior, _ = pair(CONFIG, WanPrior)
    short, _ = pair(dataclasses.replace(CONFIG, prompt_tokens=2), WanPrior)
    noisy = video(1, 16, 8, 8)
    with torch.no_grad():
        a, b = prior.block_output(noisy)[0], short.block_output(noisy)[0]
    assert (a - b).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(32, 32), (48, 80)])
def test_stills_equal_the_librarys_encoder(size):
    vae = new_wan(DIMS, seed=0)[0].eval()
    frames = video(3, 3, *size).clamp(-1, 1)
    with torch.no_grad():
        expected = vae.encode(frames.unsqueeze(2)).latent_dist.mode().squeeze(2)
        close(encode_stills(vae, frames), expected)


def test_frames_of_a_clip_are_covered_by_the_latent_frame_the_vae_puts_them_in():
    assert latent_frame_of(10) == [0, 1, 1, 1, 1, 2, 2, 2, 2, 3]
    prior = WanPrior.from_config(dataclasses.replace(CONFIG, frames="clip"))
    frames = video(1, 6, 3, 64, 64).clamp(-1, 1)
    latents = prior.clip_latents(frames)
    assert latents.shape == (1, 16, 3, 8, 8)
    for i, latent_frame in enumerate(latent_frame_of(6)):
        changed = frames.clone()
        changed[:, i] = 0
        moved = (prior.clip_latents(changed) - latents).abs().amax((0, 1, 3, 4)) > 1e-5
        assert moved.tolist().index(True) == latent_frame


def test_a_clip_of_one_frame_is_a_still():
    still = WanPrior.from_config(CONFIG)
    clip = WanPrior.from_config(dataclasses.replace(CONFIG, frames="clip"))
    frames = video(2, 1, 3, 64, 64).clamp(-1, 1)
    close(clip.features(frames, keys=[0, 0]), still.features(frames, keys=[0, 0]))


def test_the_frames_of_a_clip_see_each_other_and_stills_do_not():
    frames = video(1, 3, 3, 64, 64).clamp(-1, 1)
    other = frames.clone()
    other[:, 0] = 0
    for kind, moves in (("clip", True), ("still", False)):
        prior = WanPrior.from_config(dataclasses.replace(CONFIG, frames=kind))
        a, b = prior.features(frames, keys=[0]), prior.features(other, keys=[0])
        assert a.shape == (1, 3, 16, 32)
        assert ((a - b)[:, 2].abs().max() > 1e-3) == moves


class Brightness(nn.Module):
    """A network whose tokens say how bright their part of the picture is."""

    def forward(self, frames, *, patch=16):
        grid = (frames.shape[-2] // patch, frames.shape[-1] // patch)
        mean = functional.avg_pool2d(frames.mean(1, keepdim=True), patch)
        return mean.flatten(2).transpose(1, 2), grid


@pytest.mark.parametrize("size", [(224, 224), (240, 320), (480, 640), (320, 240), (180, 320)])
@pytest.mark.parametrize("cell", [(0, 0), (3, 12), (15, 7), (8, 15)])
def test_a_bright_spot_lies_in_the_cell_that_covers_it_whatever_the_aspect(size, cell):
    grid = 16
    frame = torch.full((1, 3, *size), -1.0)
    top, left = (round(c * side / grid) for c, side in zip(cell, size, strict=True))
    bottom, right = (round((c + 1) * side / grid) for c, side in zip(cell, size, strict=True))
    frame[..., top:bottom, left:right] = 1.0
    picture = whole_frame(frame, side=256, multiple=16)
    tokens, found = Brightness()(picture)
    assert min(found) == 16
    brightest = pool(tokens, found, grid)[0, :, 0].argmax().item()
    assert divmod(brightest, grid) == cell


def test_the_picture_keeps_the_aspect_of_the_camera():
    def size(height, width):
        return tuple(whole_frame(torch.zeros(1, 3, height, width), side=256, multiple=16).shape[2:])

    assert size(224, 224) == size(256, 256) == (256, 256)
    assert size(480, 640) == (256, 336)
    assert size(720, 1280) == (256, 448)
    assert size(640, 480) == (336, 256)
    square = torch.rand(1, 3, 256, 256)
    assert torch.equal(whole_frame(square, side=256, multiple=16), square)


def test_the_released_crop_shifts_the_grids_against_each_other():
    """A spot in the first row of a square frame is cropped away: that is what align=camera mends."""
    prior = WanPrior.from_config(
        dataclasses.replace(CONFIG, align="upstream", frame_size=(64, 112))
    )
    frame = torch.full((1, 3, 64, 64), -1.0)
    frame[..., :8, :] = 1.0
    assert prior.picture(frame).shape[2:] == (64, 112)
    assert prior.picture(frame).max() < -0.999
    centred = torch.full((1, 3, 64, 64), -1.0)
    centred[..., 16:20, :] = 1.0  # cell 4 of 16 for the semantic tokens
    tokens, grid = Brightness()(prior.picture(centred))
    assert pool(tokens, grid, 4)[0, :, 0].argmax().item() // 4 == 0


def test_a_frame_that_is_not_square_gives_the_square_grid():
    prior = WanPrior.from_config(CONFIG)
    assert prior.features(video(1, 2, 3, 60, 100), keys=[0]).shape == (1, 2, 16, 32)


def test_steps_of_the_released_schedule():
    timestep, level = nearest_timestep(300)
    assert timestep == 299
    assert level == pytest.approx(0.299923837, abs=1e-9)
    timestep, level = nearest_timestep(0)
    assert timestep == 4
    assert level == pytest.approx(0.005, abs=5e-5)
    timestep, level = nearest_timestep(1000)
    assert timestep == 999
    assert level == pytest.approx(0.9996, abs=5e-5)
    assert nearest_timestep(300, shift=1.0)[0] == 300


def test_levels_are_those_of_the_librarys_scheduler():
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    scheduler.set_timesteps(1000)
    for k in (100, 300, 500, 700):
        timestep, level = nearest_timestep(k)
        nearest = (scheduler.sigmas - level).abs().argmin()
        assert abs(scheduler.timesteps[nearest] - timestep) <= 1
        assert scheduler.sigmas[nearest] == pytest.approx(level, abs=2e-3)


@pytest.mark.parametrize(
    ("size", "tokens", "all_blocks", "read_blocks"),
    [
        ((256, 256), 256, 0.82, 0.57),
        ((480, 480), 900, 2.63, 1.84),
        ((480, 832), 1560, 4.64, 3.25),
        ((720, 1280), 3600, 11.88, 8.31),
    ],
)
def test_the_cost_of_a_picture(size, tokens, all_blocks, read_blocks):
    dims = WanDims(heads=12, head_dim=128, n_blocks=30, ffn_width=8960, text_width=4096)
    assert tokens_of(*size) == tokens
    for n_blocks, expected in ((30, all_blocks), (21, read_blocks)):
        found = transformer_tflop(dims, tokens=tokens, n_blocks=n_blocks)
        assert found == pytest.approx(expected, rel=0.01)


def test_the_count_is_that_of_the_matrix_products_that_run():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    _, transformer, prompt = new_wan(DIMS)
    text = functional.pad(prompt, (0, 0, 0, 511)).unsqueeze(0)
    # Only the attention written as products is counted on a CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        transformer(video(1, 16, 1, 16, 16), torch.tensor([300.0]), text)
    blocks = sum(
        sum(v.values())
        for k, v in counter.flop_counts.items()
        if k.count(".") == 2 and ".blocks." in k
    )
    expected = transformer_tflop(DIMS, tokens=64, n_blocks=DIMS.n_blocks) * 1e12
    assert blocks == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("block_index", [0, 1, 2])
@pytest.mark.parametrize("frames", ["still", "clip"])
def test_vace_reads_what_the_librarys_next_block_is_given(block_index, frames):
    config = dataclasses.replace(CONFIG, name="vace", block_index=block_index, frames=frames)
    prior, full = pair(config, VacePrior)
    assert len(prior.transformer.vace_blocks) == block_index // 2 + 1
    given = []
    full.blocks[block_index + 1].register_forward_pre_hook(lambda _m, args: given.append(args[0]))
    pictures = video(1, 2, 3, 64, 64).clamp(-1, 1)
    seen = prior.clip_latents(pictures) if frames == "clip" else prior.latents(pictures[0])
    latents = seen if frames == "clip" else seen.unsqueeze(2)
    noise = prior.noise([0], views=1, grid=latents.shape[-3:])
    noisy = 0.7 * latents + 0.3 * noise
    grey = prior.clip_latents(torch.zeros(1, 4 * latents.shape[2] - 3, 3, 64, 64))
    mask = torch.ones(latents.shape[0], 64, *latents.shape[2:])
    control = torch.cat([grey.expand_as(latents), latents, mask], dim=1)
    text = functional.pad(prior.prompt, (0, 0, 0, 511)).unsqueeze(0)
    with torch.no_grad():
        full(
            noisy,
            torch.full((len(noisy),), 299.0),
            text.expand(len(noisy), -1, -1),
            control_hidden_states=control,
        )
    features = prior.features(pictures, keys=[0])[0]
    expected = given[0] if frames == "still" else given[0].unflatten(1, (2, -1))[0]
    close(features, expected)


def test_the_control_branch_of_vace_matters():
    prior, _ = pair(dataclasses.replace(CONFIG, name="vace"), VacePrior)
    noisy = video(1, 16, 1, 8, 8)
    with torch.no_grad():
        plain = prior.block_output(noisy)[0]
        shown = prior.read_block(noisy, video(1, 16, 1, 8, 8, seed=1))[0]
    assert (plain - shown).abs().max() > 1e-3


def test_vace_survives_a_round_trip_and_is_not_read_as_text_to_video(tmp_path):
    config = dataclasses.replace(CONFIG, name="vace")
    prior = VacePrior.from_config(config)
    prior.save(tmp_path)
    frames = video(1, 1, 3, 64, 64).clamp(-1, 1)
    again = VacePrior.load(tmp_path, config)
    assert torch.equal(again.features(frames, keys=[0]), prior.features(frames, keys=[0]))
    with pytest.raises(CheckpointError, match=r"that of prior\.name=vace"):
        WanPrior.load(tmp_path, CONFIG)


@pytest.mark.parametrize(
    ("name", "differs"),
    [
        ("vace", {"name"}),
        ("wan2_1_upstream", {"noise_level", "timestep", "noise", "align", "frame_size"}),
        ("wan2_1_upstream_vsi", {"block_index", "noise_level", "timestep", "noise", "align"}),
    ],
)
def test_a_variant_differs_from_the_paper_only_in_what_it_names(name, differs):
    values = yaml.safe_load((PRIORS / f"{name}.yaml").read_text())
    paper = PolicyConfig.preset("7b").prior
    variant = PolicyConfig.from_dict({"preset": "7b", "prior": values}).prior
    fields = {f.name for f in dataclasses.fields(paper)}
    assert values.keys() == fields
    assert {f for f in fields if getattr(variant, f) != getattr(paper, f)} == differs
    if "timestep" in differs:
        assert (variant.timestep, variant.noise_level) == nearest_timestep(300)
