"""Priors and towers give what the policy would get of the same frames."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vega_policy.scene.correspondence import CorrespondenceSettings, measure
from vega_policy.scene.correspondence.sources import PriorSource, TowerSource, crop_window
from vega_policy.spec import ContractError
from vega_policy.testing.box_room import box_room
from vega_policy.vision.prior import PriorConfig, UNetDims, VaeDims, VitDims, WanDims, build_prior
from vega_policy.vision.prior.framing import cover_and_crop
from vega_policy.vision.prior.precomputed import write_features
from vega_policy.vision.semantic import SemanticConfig, SemanticTowers

SMALL = PriorConfig(
    width=32,
    image_px=32,
    grid=2,
    block_index=0,
    dims=WanDims(
        heads=1, head_dim=32, n_blocks=2, ffn_width=32, text_width=8, frequencies=32, vae_width=8
    ),
    unet=UNetDims(text_width=16),
    vae=VaeDims(widths=(32, 32)),
    vit=VitDims(width=32, depth=1, heads=2, mlp_width=32, image_px=32),
)


@pytest.fixture(scope="module")
def room():
    return box_room(seed=1, n_frames=3, height=24, width=32)


@pytest.mark.parametrize("name", ["wan", "vae", "dinov3", "zero", "noise"])
def test_any_prior_is_a_source(room, name):
    width = 4 if name == "vae" else 32
    prior = build_prior(replace(SMALL, name=name, width=width))
    found = PriorSource(prior, name=name)(room)
    assert found.tokens.shape == (3, 2, 2, width)
    assert np.isfinite(found.tokens).all()


def test_prior_source_gives_the_policy_s_features(room):
    prior = build_prior(SMALL)
    images = torch.stack([torch.from_numpy(f.image).permute(2, 0, 1) for f in room.frames])
    expected = prior.features(images[None].float() / 127.5 - 1.0, keys=[0])[0]
    found = PriorSource(prior, name="wan")(room)
    np.testing.assert_allclose(found.tokens.reshape(3, 4, 32), expected, atol=1e-5)


def test_keyed_noise_depends_on_the_frame_and_not_on_its_place(room):
    source = PriorSource(build_prior(replace(SMALL, name="noise", noise="keyed")), name="noise")
    found = source(room).tokens
    back = source(replace(room, frames=room.frames[::-1])).tokens
    np.testing.assert_array_equal(found, back[::-1])
    assert not np.array_equal(found[0], found[1])


def test_crop_window_is_what_the_released_crop_keeps():
    height, width = 48, 64
    ramp = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    kept = cover_and_crop(ramp[None].float(), size=(90, 160))[0]
    top, left, bottom, right = crop_window((height, width), (90, 160))
    assert (left, right) == (0.0, 1.0)
    assert kept[0, 0, 0].item() == pytest.approx(top * height - 0.5 + 0.2, abs=0.01)
    assert kept[0, -1, 0].item() == pytest.approx(bottom * height - 0.5 - 0.2, abs=0.01)


def test_prior_that_crops_is_scored_on_what_it_saw(room):
    prior = build_prior(replace(SMALL, name="vae", width=4, align="upstream", frame_size=(16, 32)))
    assert PriorSource(prior, name="vae")(room).window == pytest.approx(
        (1 / 6, 0, 5 / 6, 1), abs=0.03
    )


def test_precomputed_features_are_found_by_the_frame(room, tmp_path):
    images = np.stack([f.image for f in room.frames]).transpose(0, 3, 1, 2)
    stored = torch.randn(3, 2, 2, 6, generator=torch.Generator().manual_seed(0))
    write_features(tmp_path, images, stored, backbone="test")
    config = PriorConfig(name="precomputed", width=6, grid=2, features_dir=str(tmp_path))
    found = PriorSource(build_prior(config), name="stored")(room)
    np.testing.assert_array_equal(found.tokens, stored.numpy())


def test_layer_norm_prior_sends_to_the_towers():
    with pytest.raises(ContractError, match="score the towers"):
        PriorSource(build_prior(replace(SMALL, name="layer_norm")), name="x")


def test_towers_are_a_source_and_need_no_instruction(room):
    config = SemanticConfig(image_px=32)
    towers = SemanticTowers(config).eval()
    found = TowerSource(towers, name="towers")(room)
    assert found.tokens.shape == (3, 2, 2, config.width)
    film = SemanticTowers(replace(config, film=True), condition_width=8)
    with pytest.raises(ContractError, match="without FiLM"):
        TowerSource(film, name="towers")


def test_zero_prior_has_no_score_beside_controls_that_have(room):
    source = PriorSource(build_prior(replace(SMALL, name="zero", grid=4)), name="zero")
    found = measure([room], [source], settings=CorrespondenceSettings(voxel_m=0.5))
    zero, *controls = found.scores
    assert np.isnan(zero.mvcs)
    assert all(np.isfinite(score.mvcs) for score in controls)
    assert found.to_json()["rows"][0]["mvcs"] is None
