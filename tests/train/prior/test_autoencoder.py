"""The VAE's losses and statistics, and what a VAE that saw only stills does with a clip."""

import pytest
import torch

from vega_policy.train.prior.autoencoder import (
    autoencoder_loss,
    decode,
    denormalised,
    encode_moments,
    latent_statistics,
    new_autoencoder,
    normalised,
    reconstruction_quality,
    to_bytes,
    to_signed,
)
from vega_policy.train.prior.settings import AutoencoderConfig, StageConfig
from vega_policy.vision.prior.config import WanDims

CPU = torch.device("cpu")


@pytest.fixture
def vae():
    return new_autoencoder(WanDims(vae_width=2, latent_channels=4), AutoencoderConfig(), seed=0)


def test_normalised_latents_have_mean_zero_and_deviation_one(vae):
    g = torch.Generator().manual_seed(0)
    latents = torch.randn(50, 1, 4, 4, 4, generator=g) * 3 + torch.arange(4).view(1, 1, 4, 1, 1)
    mean, std = latent_statistics(latents)
    vae.register_to_config(latents_mean=mean, latents_std=std)
    found = normalised(vae, latents)
    again_mean, again_std = latent_statistics(found)
    assert torch.allclose(torch.tensor(again_mean), torch.zeros(4), atol=1e-5)
    assert torch.allclose(torch.tensor(again_std), torch.ones(4), atol=1e-5)
    assert torch.allclose(denormalised(vae, found), latents, atol=1e-5)


def test_a_clip_is_coded_as_its_first_and_then_every_fourth_frame_until_trained_otherwise(vae):
    clip = torch.rand(1, 5, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        moments = encode_moments(vae, clip)
        stills = [encode_moments(vae, clip[:, t : t + 1])[:, 0] for t in (0, 4)]
        video = decode(vae, moments[:, :, :4])
        last = decode(vae, moments[:, 1:, :4])
    assert torch.allclose(moments, torch.stack(stills, dim=1), atol=1e-5)
    assert video.shape == clip.shape
    assert torch.allclose(video[:, 1:], last.clamp(-1, 1).expand(-1, 4, -1, -1, -1), atol=1e-5)


def test_bytes_survive_the_way_to_floats_and_back():
    frames = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    signed = to_signed(frames)
    assert (signed.min(), signed.max()) == (-1, 1)
    assert torch.equal(to_bytes(signed), frames)


def test_quality_of_one_grey_level_off():
    frames = torch.zeros(1, 1, 4, 4, 3, dtype=torch.uint8)
    l1, psnr_db = reconstruction_quality(frames, frames + 1)
    assert l1 == pytest.approx(1 / 127.5)
    assert psnr_db == pytest.approx(48.13, abs=0.01)


def test_batch_is_a_function_of_seed_and_update(vae):
    g = torch.Generator().manual_seed(0)
    stills = torch.randint(256, (6, 32, 32, 3), generator=g).byte()
    config = AutoencoderConfig(crop_px=16, whole_every=2, stage=StageConfig(batch_size=4))

    def value(step, seed=0):
        loss = autoencoder_loss(
            vae, stills=stills, clips=None, config=config, seed=seed, device=CPU
        )
        return loss(step)[0].item()

    first = value(3)
    value(4)
    assert value(3) == first
    assert len({first, value(4), value(5), value(3, seed=1)}) == 4
