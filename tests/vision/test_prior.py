"""The frozen prior: a pure function of frame and key that costs only what is read."""

import dataclasses

import pytest
import torch

from vega_policy.spec import CheckpointError, ContractError
from vega_policy.testing.tiny_policy import tiny_config
from vega_policy.vision.prior import WanPrior, build_prior
from vega_policy.vision.prior.wan import load_wan, new_wan, save_wan

CONFIG = tiny_config().prior


@pytest.fixture(scope="module")
def prior():
    return WanPrior.from_config(CONFIG)


@pytest.fixture(scope="module")
def frames():
    return torch.rand(3, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_still_encoder_equals_the_library_on_a_one_frame_video(prior, frames):
    flat = frames.flatten(0, 1)
    with torch.no_grad():
        mode = prior.vae.encode(flat.unsqueeze(2)).latent_dist.mode().squeeze(2)
        mean = torch.tensor(prior.vae.config.latents_mean).view(-1, 1, 1)
        std = torch.tensor(prior.vae.config.latents_std).view(-1, 1, 1)
        torch.testing.assert_close(prior.latents(flat), (mode - mean) / std, atol=1e-5, rtol=1e-5)


def test_truncated_transformer_equals_the_full_one_read_at_that_block(frames):
    vae, full, prompt = new_wan(CONFIG.dims, seed=3)
    prior = WanPrior(CONFIG, vae=vae, transformer=new_wan(CONFIG.dims, seed=3)[1], prompt=prompt)
    assert len(prior.transformer.blocks) == 2
    assert len(full.blocks) == 3
    read = []
    full.blocks[CONFIG.block_index].register_forward_hook(lambda _m, _i, out: read.append(out))
    with torch.no_grad():
        z = prior.latents(frames.flatten(0, 1))
        noisy = 0.7 * z + 0.3 * prior.noise([0] * 3, views=2, grid=tuple(z.shape[-2:]))
        text = prompt.unsqueeze(0).expand(6, -1, -1)
        full(noisy.unsqueeze(2), torch.full((6,), 300.0), text)
    features = prior.features(frames, keys=[0] * 3).flatten(0, 1)
    torch.testing.assert_close(features, read[0], atol=1e-5, rtol=1e-5)


def test_features_do_not_depend_on_the_rest_of_the_batch(prior, frames):
    together = prior.features(frames, keys=[1, 2, 3])
    alone = torch.cat([prior.features(frames[i : i + 1], keys=[i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_constant_noise_ignores_the_key_and_the_view(prior, frames):
    same = frames[:1].clone()
    same[:, 1] = same[:, 0]
    a, b = prior.features(same, keys=[1]), prior.features(same, keys=[2])
    assert torch.equal(a, b)
    torch.testing.assert_close(a[:, 0], a[:, 1], atol=1e-5, rtol=1e-5)


def test_keyed_noise_is_a_function_of_the_key_alone(frames):
    prior = WanPrior.from_config(dataclasses.replace(CONFIG, noise="keyed"))
    torch.manual_seed(0)
    first = prior.features(frames[:1], keys=[7])
    torch.manual_seed(1)
    assert torch.equal(prior.features(frames[:1], keys=[7]), first)
    assert not torch.allclose(prior.features(frames[:1], keys=[8]), first)


def test_the_seed_of_the_noise_changes_it(prior):
    other = WanPrior.from_config(dataclasses.replace(CONFIG, noise_seed=1))
    grid = (4, 4)
    assert not torch.equal(
        prior.noise([0], views=1, grid=grid), other.noise([0], views=1, grid=grid)
    )


def test_training_mode_and_autocast_of_the_model_around_change_nothing(prior, frames):
    before = prior.features(frames, keys=[0] * 3)
    prior.train()
    with torch.autocast("cpu", torch.bfloat16):
        after = prior.features(frames, keys=[0] * 3)
    assert torch.equal(before, after)
    assert not any(m.training for m in prior.modules())
    assert not any(p.requires_grad for p in prior.parameters())


def test_features_are_pooled_to_a_coarser_grid(prior, frames):
    coarse = WanPrior.from_config(dataclasses.replace(CONFIG, grid=1))
    mean = prior.features(frames, keys=[0] * 3).mean(2, keepdim=True)
    torch.testing.assert_close(coarse.features(frames, keys=[0] * 3), mean, atol=1e-5, rtol=1e-5)


def test_other_frame_sizes_are_resized(prior):
    frames = torch.full((1, 2, 3, 48, 48), 0.5)
    flat = torch.full((1, 2, 3, 32, 32), 0.5)
    torch.testing.assert_close(
        prior.features(frames, keys=[0]), prior.features(flat, keys=[0]), atol=1e-4, rtol=1e-4
    )


def test_casting_leaves_the_rotary_tables_in_float32():
    prior = WanPrior.from_config(CONFIG)
    before = prior.transformer.rope.freqs_cos.clone()
    prior.to(torch.bfloat16)
    assert torch.equal(prior.transformer.rope.freqs_cos, before)


def test_saved_and_loaded_prior_gives_the_same_bits(prior, frames, tmp_path):
    prior.save(tmp_path)
    loaded = build_prior(CONFIG, path=tmp_path)
    keys = [0] * 3
    assert torch.equal(loaded.features(frames, keys=keys), prior.features(frames, keys=keys))


def test_a_full_directory_loads_the_blocks_that_are_read(prior, frames, tmp_path):
    vae, transformer, prompt = new_wan(CONFIG.dims)
    save_wan(tmp_path, vae=vae, transformer=transformer, prompt=prompt)
    assert len(load_wan(tmp_path)[1].blocks) == 3
    loaded = WanPrior.load(tmp_path, CONFIG)
    assert len(loaded.transformer.blocks) == 2
    keys = [0] * 3
    assert torch.equal(loaded.features(frames, keys=keys), prior.features(frames, keys=keys))


def test_making_or_loading_a_prior_leaves_the_global_random_state_alone(tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    WanPrior.from_config(CONFIG).save(tmp_path)
    WanPrior.load(tmp_path, CONFIG)
    assert torch.equal(torch.rand(1), expected)


def test_a_prior_that_does_not_fit_lists_every_disagreement(tmp_path):
    dims = dataclasses.replace(CONFIG.dims, heads=1, vae_width=8)
    vae, transformer, prompt = new_wan(dims)
    save_wan(tmp_path, vae=vae, transformer=transformer, prompt=prompt)
    with pytest.raises(CheckpointError) as error:
        WanPrior.load(tmp_path, CONFIG)
    for words in ("width is 16, settings say 32", "heads is 1", "vae_width is 8"):
        assert words in str(error.value)


def test_a_shallow_prior_and_a_missing_part_name_the_fix(prior, tmp_path):
    prior.save(tmp_path)
    with pytest.raises(CheckpointError, match=r"lower prior\.block_index"):
        WanPrior.load(tmp_path, dataclasses.replace(CONFIG, block_index=2))
    (tmp_path / "vae" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"vae/config\.json missing"):
        WanPrior.load(tmp_path, CONFIG)


def test_the_zero_prior_has_the_shape_and_no_image(frames):
    prior = build_prior(dataclasses.replace(CONFIG, name="zero"))
    assert torch.equal(prior.features(frames, keys=[0] * 3), torch.zeros(3, 2, 4, 32))


def test_unknown_prior_is_answered_with_the_nearest():
    with pytest.raises(ContractError, match="did you mean 'wan'"):
        build_prior(dataclasses.replace(CONFIG, name="wan2"))
