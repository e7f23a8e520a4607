"""The towers: DINO first, before the final norm, exact GELU, the constants they were trained with."""

import dataclasses

import pytest
import torch

from vega_policy.testing.tiny_policy import tiny_config
from vega_policy.vision.attention import attention
from vega_policy.vision.semantic import SemanticTowers

CONFIG = tiny_config().semantic


@pytest.fixture(scope="module")
def towers():
    torch.manual_seed(0)
    return SemanticTowers(CONFIG).eval()


@pytest.fixture(scope="module")
def pixels():
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 2, 3, 32, 32), generator=g, dtype=torch.uint8)


def test_dino_comes_first_and_is_read_before_the_final_norm(towers, pixels):
    tokens = towers(pixels)
    assert tokens.shape == (2, 2, 4, 32)
    for_dino, for_siglip = towers.normalise(pixels.flatten(0, 1))
    dino = towers.dino(for_dino, output_hidden_states=True).hidden_states[-1][:, 5:]
    siglip = towers.siglip(for_siglip).last_hidden_state
    torch.testing.assert_close(tokens.flatten(0, 1), torch.cat([dino, siglip], dim=-1))


def test_float_and_integer_pixels_give_the_same_tokens(towers, pixels):
    assert torch.equal(towers(pixels), towers(pixels.float()))


def test_pixel_constants_survive_a_cast(pixels):
    towers = SemanticTowers(CONFIG)
    before = towers.normalise(pixels)[0]
    assert torch.equal(towers.to(torch.bfloat16).normalise(pixels)[0], before)
    grey = torch.full((1, 3, 1, 1), 255.0)
    expected = (1 - 0.484375) / 0.228515625
    assert towers.normalise(grey)[0][0, 0].item() == pytest.approx(expected)


def test_the_activation_is_the_exact_gelu_unless_asked_otherwise():
    config = dataclasses.replace(
        CONFIG, siglip=dataclasses.replace(CONFIG.siglip, hidden_act="gelu_pytorch_tanh")
    )
    x = torch.linspace(-3, 3, 50)
    for towers, approximate in ((SemanticTowers(CONFIG), "none"), (SemanticTowers(config), "tanh")):
        act = towers.siglip.encoder.layers[0].mlp.activation_fn
        torch.testing.assert_close(act(x), torch.nn.functional.gelu(x, approximate=approximate))


def test_every_weight_is_used(towers, pixels):
    towers(pixels).square().sum().backward()
    assert [n for n, p in towers.named_parameters() if p.grad is None] == []
    towers.zero_grad(set_to_none=True)


def with_film(init):
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, film=True, film_init=init)
    return SemanticTowers(config, condition_width=24).eval()


@torch.no_grad()
def test_a_fresh_modulation_changes_nothing_unless_it_starts_like_openvla_oft(towers, pixels):
    """Also proves that calling the parts of a block one by one is calling the block."""
    condition = torch.randn(2, 24, generator=torch.Generator().manual_seed(0))
    fresh, default = with_film("identity"), with_film("torch")
    for film in (fresh, default):
        film.load_state_dict(towers.state_dict(), strict=False)
    assert torch.equal(fresh(pixels, condition), towers(pixels))
    assert (default(pixels, condition) - towers(pixels)).abs().max() > 0.01


@torch.no_grad()
def test_every_camera_of_an_observation_is_modulated_by_its_own_instruction(pixels):
    film = with_film("torch")
    condition = torch.randn(2, 24, generator=torch.Generator().manual_seed(0))
    together = film(pixels, condition)
    for i in range(2):
        alone = film(pixels[i : i + 1], condition[i : i + 1])[0]
        torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=1e-5)
    swapped = film(pixels, condition.flip(0))
    assert (swapped - together).abs().amax((2, 3)).min() > 1e-3


def test_a_modulation_without_an_instruction_is_refused(pixels):
    with pytest.raises(ValueError, match="pass condition_width"):
        SemanticTowers(dataclasses.replace(CONFIG, film=True))
    with pytest.raises(ValueError, match="pass condition"):
        with_film("identity")(pixels)


def test_images_of_another_size_are_refused(towers):
    with pytest.raises(ValueError, match="resize them with the policy's processor"):
        towers(torch.zeros(1, 2, 3, 64, 64))


@pytest.mark.parametrize("masked", [False, True])
def test_plain_products_equal_the_fused_kernel(masked):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 9, 16, generator=g) for _ in range(3))
    mask = torch.ones(2, 1, 9, 9, dtype=torch.bool) if masked else None
    if mask is not None:
        mask[:, :, :, 6:] = False
    fused, _ = attention(torch.nn.Module(), q, k, v, mask)
    plain, _ = attention(torch.nn.Module(), q, k, v.bfloat16(), mask)
    torch.testing.assert_close(plain.float(), fused, atol=0.03, rtol=0.03)
