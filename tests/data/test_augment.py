"""OpenVLA-OFT's augmentation: its formulas, and identities of its colour space."""

import colorsys

import numpy as np
import pytest
import torch

from vega_policy.data.augment import (
    AugmentConfig,
    centre_cropped,
    coloured,
    cropped,
    from_hsv,
    moved,
    openvla_colours,
    photometric,
    to_hsv,
)
from vega_policy.data.part import Part
from vega_policy.policy import image_path

RECIPE = AugmentConfig(
    style="openvla", brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05, crop=0.1
)


@pytest.fixture
def pixels():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (4, 2, 3, 24, 24), dtype=torch.uint8, generator=generator)


def test_the_colour_space_is_the_usual_one(pixels):
    images = pixels.float() / 255
    hsv = torch.stack(to_hsv(images), dim=-3)
    for index in range(0, 24, 5):
        expected = colorsys.rgb_to_hsv(*images[0, 0, :, index, index].tolist())
        assert hsv[0, 0, :, index, index].tolist() == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(from_hsv(*to_hsv(images)), images, rtol=0, atol=1e-6)


def test_a_third_of_a_turn_exchanges_the_channels(pixels):
    images = pixels.float() / 255
    hue, saturation, value = to_hsv(images)
    turned = from_hsv((hue + 1 / 3) % 1, saturation, value)
    torch.testing.assert_close(turned, images.roll(1, dims=-3), rtol=0, atol=2e-6)


def test_without_strength_only_the_rounding_is_left(pixels):
    still = openvla_colours(pixels, AugmentConfig(style="openvla"), seed=(0, 0))
    assert torch.equal(still, pixels.float())
    assert torch.equal(cropped(pixels, side=1.0, offset=torch.zeros(4, 2)), pixels.float())


def test_contrast_keeps_each_channels_mean_and_brightness_moves_all():
    grey = torch.randint(90, 160, (1, 1, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    steep = coloured(grey, AugmentConfig(style="openvla", contrast=0.2), seed=(0, 1))
    torch.testing.assert_close(steep.mean((-2, -1)), grey.float().mean((-2, -1)), rtol=0, atol=0.6)
    ratio = (steep - steep.mean((-2, -1), keepdim=True)).std() / grey.float().std(
        dim=(-2, -1)
    ).mean()
    assert abs(ratio - 1) > 0.01
    bright = coloured(grey, AugmentConfig(style="openvla", brightness=0.2), seed=(0, 1))
    change = bright - grey
    assert change.max() - change.min() <= 1
    assert 1 < change.abs().max() <= 52


def test_the_centre_crop_is_the_one_of_the_image_path():
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=generator)
    ours = centre_cropped(images[:, None], side=RECIPE.crop_side)[:, 0]
    theirs = image_path.centre_crop(images).float()
    assert (ours - theirs).abs().max() <= 1
    assert (ours != theirs).float().mean() < 1e-3


def test_crops_slide_along_the_diagonal_and_differ_between_cameras():
    ramp = torch.arange(64.0).expand(1, 2, 3, 64, 64)
    still = AugmentConfig(style="openvla", crop=0.1)
    for number in range(5):
        across = moved(ramp, still, seed=(0, number))
        down = moved(ramp.transpose(-1, -2), still, seed=(0, number))
        assert torch.equal(across, down.transpose(-1, -2))
        first, last = across[0, :, 0, 0, 0], across[0, :, 0, 0, -1]
        assert ((first >= 0) & (last <= 63)).all()
        assert (last - first - 63 * RECIPE.crop_side).abs().max() <= 1
    many = moved(torch.arange(64.0).expand(50, 2, 3, 64, 64), still, seed=(0, 0))
    assert not torch.equal(many[:, 0], many[:, 1])


@pytest.mark.parametrize("change", [openvla_colours, photometric, moved])
def test_a_part_of_a_batch_is_changed_as_in_the_whole(pixels, change):
    whole = change(pixels, RECIPE, seed=(3, 4))
    parts = [change(pixels[2 * i :][:2], RECIPE, seed=(3, 4), part=Part(i, 2)) for i in (0, 1)]
    assert torch.equal(whole, torch.cat(parts))
    assert not np.array_equal(whole.numpy(), change(pixels, RECIPE, seed=(3, 5)).numpy())
