"""The arithmetic of the heads, apart from any language model."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from vega_policy.policy.heads import DiffusionHead, DiscreteHead, Draws, HeadConfig, L1Head
from vega_policy.policy.heads import build_head as build
from vega_policy.policy.heads.diffusion import time_token
from vega_policy.spec import ActionSpec, ContractError

WIDTH, VOCAB = 16, 32064


def head(kind, *, vocab_size=VOCAB, **settings):
    torch.manual_seed(0)
    config = HeadConfig(kind=kind, width=12, **settings)
    return build(config, source=WIDTH, action=ActionSpec(), vocab_size=vocab_size)


def test_each_kind_builds_its_head():
    kinds = {"l1": L1Head, "diffusion": DiffusionHead, "discrete": DiscreteHead}
    assert {kind: type(head(kind)) for kind in kinds} == kinds
    assert list(head("discrete").parameters()) == []


def test_a_head_keeps_its_precision_under_autocast():
    l1, hidden = head("l1"), torch.randn(2, 56, WIDTH)
    plain = l1(hidden)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(l1(hidden), plain)
    assert l1.to(torch.bfloat16)(hidden).dtype == torch.float32


# Words


def test_words_of_actions_are_those_of_openvla():
    edges = np.linspace(-1, 1, 256)
    actions = np.concatenate([edges, np.linspace(-1.5, 1.5, 4001)]).astype(np.float32)
    expected = 32000 - np.digitize(np.clip(actions, -1, 1).astype(np.float64), edges)
    words = head("discrete").encode(torch.from_numpy(actions))
    assert torch.equal(words, torch.from_numpy(expected))
    assert (words.min(), words.max()) == (31744, 31999)


def test_values_of_words():
    discrete = head("discrete")
    centres = (np.linspace(-1, 1, 256)[:-1] + np.linspace(-1, 1, 256)[1:]) / 2
    words = torch.arange(31745, 32000)
    np.testing.assert_allclose(discrete.decode(words).numpy(), centres[::-1], atol=1e-15)
    # The edge at 1 and every word that stands for no action count as the nearest that does.
    assert torch.equal(
        discrete.decode(torch.tensor([31744, 5])), discrete.decode(words[:1].expand(2))
    )
    assert torch.equal(discrete.decode(torch.tensor([32063])), discrete.decode(words[-1:]))


def test_an_action_comes_back_to_within_half_a_bin():
    actions = torch.linspace(-1, 1, 999)
    discrete = head("discrete")
    assert (discrete.decode(discrete.encode(actions)) - actions).abs().max() <= 1 / 255 + 1e-7


def test_the_loss_of_words_counts_the_end_of_the_sentence():
    discrete = head("discrete", vocab_size=400)
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 57, 400, generator=g)
    targets = torch.rand(2, 8, 7, generator=g) * 2 - 1
    actions, loss = discrete.answer(lambda n_more: logits[:, : 56 + n_more], targets=targets)
    wanted = torch.cat([discrete.encode(targets).flatten(1), torch.full((2, 1), 2)], dim=1)
    expected = -logits.log_softmax(-1).gather(-1, wanted.unsqueeze(-1)).mean()
    torch.testing.assert_close(loss, expected)
    assert torch.equal(actions, discrete.answer(lambda: logits[:, :56])[0])


def test_a_vocabulary_without_room_for_action_words_is_refused():
    head("discrete", vocab_size=323)
    with pytest.raises(ContractError, match="set at least 323"):
        head("discrete", vocab_size=322)


# Diffusion


def test_draws_depend_on_key_and_step_alone():
    diffusion = head("diffusion")
    two = diffusion.draw([7, -3], step=4)
    one = diffusion.draw([-3], step=4)
    assert torch.equal(two.noise[1:], one.noise)
    assert torch.equal(two.levels[1:], one.levels)
    assert not torch.equal(diffusion.draw([7], step=5).noise, two.noise[:1])
    levels = diffusion.draw(range(400)).levels
    assert (levels.min(), levels.max()) == (0, 49)


def test_without_keys_a_chain_is_refused():
    with pytest.raises(ValueError, match="pass one key per observation"):
        head("diffusion").answer(lambda **_: torch.zeros(1, 56, WIDTH))


def test_a_perfect_prediction_has_no_loss_and_finds_the_actions(monkeypatch):
    diffusion = head("diffusion")
    draws = diffusion.draw([1, 2, 3])
    targets = torch.rand(3, 8, 7, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9
    monkeypatch.setattr(diffusion, "_noise", lambda _read, _noisy, _levels: draws.noise)
    actions, loss = diffusion.answer(None, targets=targets, draws=draws)
    assert loss == 0
    torch.testing.assert_close(actions, targets, atol=1e-4, rtol=1e-4)


def test_training_mixes_actions_and_noise_by_the_cosine_schedule(monkeypatch):
    diffusion = head("diffusion")
    draws = diffusion.draw([1, 2])
    targets = torch.rand(2, 8, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen = {}

    def noise(_read, noisy, levels):
        seen.update(noisy=noisy, levels=levels)
        return torch.zeros_like(noisy)

    monkeypatch.setattr(diffusion, "_noise", noise)
    _, loss = diffusion.answer(None, targets=targets, draws=draws)

    def cosine(t):
        return np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2

    betas = [min(1 - cosine((i + 1) / 50) / cosine(i / 50), 0.999) for i in range(50)]
    kept = torch.tensor(np.cumprod(1 - np.array(betas)), dtype=torch.float32)
    a = kept[draws.levels].view(2, 1, 1)
    torch.testing.assert_close(seen["noisy"], a.sqrt() * targets + (1 - a).sqrt() * draws.noise)
    assert torch.equal(seen["levels"], draws.levels)
    torch.testing.assert_close(loss, draws.noise.square().mean())


@pytest.mark.parametrize("n", [0, 51])
def test_a_chain_has_no_more_steps_than_noise_levels(n):
    with pytest.raises(ContractError, match=f"inference_steps is {n}, expected 1 to 50"):
        head("diffusion", inference_steps=n)


def test_the_chain_follows_ddim(monkeypatch):
    """The update of arXiv:2502.19645's code, written out: the noise is not corrected by clipping."""
    diffusion = head("diffusion", inference_steps=10)
    kept = [*diffusion.scheduler().alphas_cumprod.double().tolist(), 1.0]
    noise = torch.randn(2, 8, 7, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(
        diffusion, "_noise", lambda _read, noisy, levels: (noisy + levels / 50).sin()
    )
    draws = Draws(noise=noise, levels=torch.zeros(2, dtype=torch.int64))
    actions, loss = diffusion.answer(None, draws=draws)
    x = noise.double()
    for level in range(45, -1, -5):
        predicted = (x + level / 50).sin()
        a, b = kept[level], kept[level - 5] if level else 1.0
        start = ((x - (1 - a) ** 0.5 * predicted) / a**0.5).clamp(-1, 1)
        x = b**0.5 * start + (1 - b) ** 0.5 * predicted
    torch.testing.assert_close(actions.double(), x, atol=1e-5, rtol=1e-5)
    assert loss is None


def test_the_time_token_is_sines_then_cosines():
    token = time_token(torch.tensor([0, 3]), width=6)
    frequencies = 10000.0 ** -(torch.arange(3) / 2)
    expected = torch.cat([(3 * frequencies).sin(), (3 * frequencies).cos()])
    torch.testing.assert_close(token[1], expected)
    assert token[0].tolist() == [0, 0, 0, 1, 1, 1]


def test_noisy_actions_and_noise_level_reach_the_language_model():
    diffusion = head("diffusion", inference_steps=5)
    asked = []

    def read(*, slots, time):
        asked.append((slots, time))
        return slots

    noise = torch.randn(2, 8, 7, generator=torch.Generator().manual_seed(0))
    diffusion.answer(read, draws=Draws(noise=noise, levels=torch.zeros(2, dtype=torch.int64)))
    slots, time = asked[0]
    assert len(asked) == 5
    first = diffusion.noisy_action.fc1(noise.flatten(1)[0, :1])
    torch.testing.assert_close(slots[0, 0], diffusion.noisy_action.fc2(functional.gelu(first)))
    assert torch.equal(time, time_token(torch.tensor([40]), width=WIDTH))
