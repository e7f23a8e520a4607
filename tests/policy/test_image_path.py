"""The image path equals TensorFlow's, and every shortcut is far outside the tolerance."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vega_policy.policy import image_path
from vega_policy.policy.image_path import CROP_SIDE, centre_crop, decode_jpeg, exact, fast, lanczos
from vega_policy.spec import ContractError

PX = 224
MOST_LEVELS, MOST_SHARE = 1, 0.002
STORED = ("real_primary", "edges")


@pytest.fixture(scope="module")
def reference():
    with np.load(Path(__file__).parents[1] / "data" / "image_path.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture
def frames(reference):
    return list(reference["input"])


def channels_last(images):
    return images.permute(0, 2, 3, 1).numpy()


def levels(images, reference):
    """Return the largest difference, and the share of values that differ, per image."""
    off = np.abs(channels_last(images).astype(int) - reference["output"][: len(images)])
    return off.max(axis=(1, 2, 3)), (off > 0).mean(axis=(1, 2, 3))


def index_of(reference, name):
    return list(reference["names"]).index(name)


def test_end_to_end_at_most_one_grey_level_in_a_few_values(reference, frames):
    largest, share = levels(exact(frames, px=PX), reference)
    assert largest.max() <= MOST_LEVELS
    assert share.max() <= MOST_SHARE


@pytest.mark.parametrize("name", STORED)
def test_the_decoder_gives_the_same_pixels(reference, frames, name):
    decoded = reference[f"{name}.jpeg_decoded"]
    assert np.array_equal(decode_jpeg(reference[f"{name}.jpeg_bytes"].tobytes()), decoded)
    ours = image_path.through_jpeg(frames[index_of(reference, name)])
    assert np.array_equal(ours, decoded)


@pytest.mark.parametrize("name", STORED)
def test_the_resize_before_and_after_rounding(reference, name):
    decoded = image_path.planes([reference[f"{name}.jpeg_decoded"]])
    patch = image_path.lanczos_float(decoded, px=PX)[:, :, 80:144, 80:144]
    np.testing.assert_allclose(
        channels_last(patch)[0], reference[f"{name}.lanczos_float_patch"], atol=5e-4
    )
    found, expected = channels_last(lanczos(decoded, px=PX))[0], reference[f"{name}.lanczos_uint8"]
    off = np.abs(found.astype(int) - expected)
    assert off.max() <= MOST_LEVELS
    assert (off > 0).mean() <= MOST_SHARE


@pytest.mark.parametrize("name", STORED)
def test_the_crop_is_exact(reference, name):
    resized = image_path.planes([reference[f"{name}.lanczos_uint8"]])
    cropped = channels_last(centre_crop(resized))[0]
    assert np.array_equal(cropped, reference["output"][index_of(reference, name)])
    patch = image_path.centre_crop_float(resized)[:, :, 80:144, 80:144]
    np.testing.assert_allclose(
        channels_last(patch)[0], reference[f"{name}.crop_float_patch"], atol=1e-6
    )


def jpeg(image, *, subsampling=2):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95, subsampling=subsampling)
    return file


def pillow_resize(images, filter_):
    return image_path.planes(
        [np.asarray(Image.fromarray(i).resize((PX, PX), filter_)) for i in images]
    )


def decoded_accurately(frames):
    return [np.asarray(Image.open(jpeg(f))) for f in frames]


def published(frames):
    return [image_path.through_jpeg(f) for f in frames]


def box_crop(images):
    low = (1 - float(CROP_SIDE)) / 2 * PX
    box = (low, low, PX - low, PX - low)
    rows = channels_last(images)
    bilinear = Image.Resampling.BILINEAR
    return image_path.planes(
        [np.asarray(Image.fromarray(i).resize((PX, PX), bilinear, box=box)) for i in rows]
    )


def integer_crop(images):
    low = round((1 - float(CROP_SIDE)) / 2 * PX)
    inner = [i[low:-low, low:-low] for i in channels_last(images)]
    return pillow_resize([np.ascontiguousarray(i) for i in inner], Image.Resampling.BILINEAR)


def rounded_crop(images):
    return (image_path.centre_crop_float(images) * 255).round().to(torch.uint8)


def resized(frames):
    return lanczos(image_path.planes(frames), px=PX)


def full_chroma(frames):
    return [decode_jpeg(jpeg(f, subsampling=0).getvalue()) for f in frames]


MISTAKES = {
    "accurate inverse transform": lambda f: centre_crop(resized(decoded_accurately(f))),
    "no JPEG": lambda f: centre_crop(resized(f)),
    "Pillow's Lanczos": lambda f: centre_crop(
        pillow_resize(published(f), Image.Resampling.LANCZOS)
    ),
    "Pillow's bicubic": lambda f: centre_crop(
        pillow_resize(published(f), Image.Resampling.BICUBIC)
    ),
    "rounding instead of floor(255.5 x)": lambda f: rounded_crop(resized(published(f))),
    "box crop between pixel borders": lambda f: box_crop(resized(published(f))),
    "crop of whole pixels": lambda f: integer_crop(resized(published(f))),
    "no crop": lambda f: resized(published(f)),
    "full chroma": lambda f: centre_crop(resized(full_chroma(f))),
    "the fast path": lambda f: fast(f, px=PX, crop=True),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_shortcut_is_seen(reference, frames, mistake):
    """In the worst image each changes at least fifty times as many values as are allowed."""
    _, share = levels(MISTAKES[mistake](frames), reference)
    assert share.max() > 50 * MOST_SHARE


def test_an_image_of_the_models_size_goes_straight_to_the_crop(reference):
    ready = reference["real_primary.lanczos_uint8"]
    expected = reference["output"][index_of(reference, "real_primary")]
    assert np.array_equal(channels_last(exact([ready], px=PX))[0], expected)


@pytest.mark.parametrize("size", [(256, 256), (480, 640), (100, 90), (224, 256), (224, 224)])
def test_any_size_becomes_the_models_size(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert exact([image], px=64).shape == (1, 3, 64, 64)
    assert fast([image], px=64, crop=True).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("size", [(256, 256), (480, 640), (100, 90)])
def test_a_grey_image_stays_grey(size):
    grey = np.full((*size, 3), 137, np.uint8)
    assert set(exact([grey], px=PX).unique().tolist()) == {137}
    assert set(fast([grey], px=PX, crop=True).unique().tolist()) == {137}


def test_several_images_at_once_equal_one_by_one(frames):
    mixed = [frames[0], frames[1][:, :200].copy(), frames[2][:PX, :PX].copy(), frames[3]]
    single = torch.cat([exact([f], px=PX) for f in mixed])
    assert torch.equal(exact(mixed, px=PX), single)


def test_rows_and_columns_are_not_exchanged():
    wide = np.zeros((100, 300, 3), np.uint8)
    wide[:50] = 255
    seen = exact([wide], px=64)[0, 0].float()
    assert seen[:28].min() > 240
    assert seen[36:].max() < 15


def test_the_fast_path_crops_only_where_told(frames):
    whole = fast(frames[:1], px=PX, crop=False)
    assert torch.equal(fast(frames[:1], px=PX, crop=True), centre_crop(whole))
    assert not torch.equal(whole, centre_crop(whole))


def test_a_missing_decoder_is_one_sentence(frames, monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    with pytest.raises(ContractError, match="pip install simplejpeg"):
        exact(frames[:1], px=PX)
