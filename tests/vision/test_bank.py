"""The control of shuffled frames: real features, but not of what the camera sees."""

from dataclasses import replace

import pytest
import torch

from vega_policy.policy import VegaPolicy, from_pretrained
from vega_policy.spec import ContractError
from vega_policy.testing.demos import write_suite
from vega_policy.testing.tiny_policy import tiny_config, tiny_observation
from vega_policy.train.config import TrainConfig
from vega_policy.train.imitation import train
from vega_policy.vision.prior import build_prior
from vega_policy.vision.prior.bank import from_bank
from vega_policy.vision.prior.store import PriorIdentity


def frames(n, *, views=2, px=32, seed=0):
    return torch.randint(
        0, 256, (n, views, 3, px, px), dtype=torch.uint8, generator=torch.manual_seed(seed)
    )


def as_seen(pixels):
    return pixels.float() / 127.5 - 1.0


def test_what_is_shown_depends_on_the_frame_alone_and_is_never_the_frame():
    bank, seen = frames(7), frames(20, seed=1)
    together = from_bank(as_seen(seen), bank)
    for b in range(20):
        alone = from_bank(as_seen(seen[b : b + 1]), bank)
        assert torch.equal(alone[0], together[b])
    shown = from_bank(as_seen(bank), bank)
    assert not any(
        torch.equal(shown[k, v], as_seen(bank)[k, v]) for k in range(7) for v in range(2)
    )
    used = {
        int(((together[b, 0] == as_seen(bank)[:, 0]).flatten(1).all(1)).nonzero())
        for b in range(20)
    }
    assert len(used) >= 4


def test_its_features_are_those_of_the_frame_that_was_shown():
    config = replace(tiny_config().prior, sees="other")
    shuffled, plain = build_prior(config), build_prior(replace(config, sees="camera"))
    plain.load_state_dict(shuffled.state_dict())
    shuffled.bank = frames(5)
    seen = as_seen(frames(3, seed=2))
    expected = plain.features(from_bank(seen, shuffled.bank), keys=[0, 0, 0])
    assert torch.equal(shuffled.features(seen, keys=[0, 0, 0]), expected)
    assert not torch.equal(expected, plain.features(seen, keys=[0, 0, 0]))


def test_without_a_bank_or_with_another_camera_it_refuses():
    prior = build_prior(replace(tiny_config().prior, sees="other"))
    with pytest.raises(ContractError, match="there is none"):
        prior.features(as_seen(frames(1)), keys=[0])
    prior.bank = frames(5, px=16)
    with pytest.raises(ContractError, match=r"the bank of prior\.sees=other holds"):
        prior.features(as_seen(frames(1)), keys=[0])


def test_another_bank_is_another_prior_for_the_cache():
    prior = build_prior(replace(tiny_config().prior, sees="other"))
    prior.bank = frames(5)
    before = PriorIdentity.of(prior)
    prior.bank = frames(5, seed=3)
    assert PriorIdentity.of(prior) != before


def test_training_draws_the_bank_and_the_policy_keeps_it(tmp_path):
    torch.set_num_threads(1)
    data = write_suite(tmp_path / "data", n_demos=4, px=32)
    policy = tiny_config().to_dict()
    policy["prior"]["sees"] = "other"
    config = TrainConfig.from_dict(
        {
            "name": "run",
            "run_root": str(tmp_path / "runs"),
            "steps": 2,
            "batch_size": 4,
            "prior_path": "random",
            "device": "cpu",
            "data": {"dirs": [str(data)]},
            "policy": policy,
        }
    )
    train(config)
    loaded = from_pretrained(config.run_dir / "policy")
    assert isinstance(loaded, VegaPolicy)
    prior = loaded.model.prior
    assert prior is not None
    assert prior.bank is not None
    again = loaded.save_pretrained(tmp_path / "copy") or from_pretrained(tmp_path / "copy")
    observation = tiny_observation(seed=0)
    first, second = (p.act([observation], keys=[0])[0].actions for p in (loaded, again))
    assert (first == second).all()
