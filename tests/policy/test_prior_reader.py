"""With a cadence an answer is a function of its episode; with a store it is what it was without."""

import dataclasses

import pytest
import torch

from vega_policy.policy.prior_reader import PriorReader
from vega_policy.rollout.engine import answer_arms
from vega_policy.rollout.messages import Ask
from vega_policy.rollout.plan import Job
from vega_policy.spec import ContractError, EnvFault, EpisodeKey
from vega_policy.testing.tiny_policy import tiny_config, tiny_observation, tiny_policy
from vega_policy.vision.prior import PriorConfig
from vega_policy.vision.prior.store import FeatureStore, PriorIdentity


@pytest.fixture(scope="module")
def policy():
    return tiny_policy()


@pytest.fixture
def reader(policy):
    """Return a function that makes a reader which notes every pass of the prior."""

    def make(**settings):
        made = PriorReader(policy.model, **settings)
        compute, made.passes = made._compute, []

        def noted(pixels, keys):
            made.passes.append(len(pixels))
            return compute(pixels, keys)

        made._compute = noted
        return made

    return make


def seen(episode, inference):
    moment = tiny_observation(1000 * (episode or 0) + inference)
    return dataclasses.replace(moment, episode=episode, inference=inference)


def pixels_of(policy, batch):
    return policy.processor(batch).pixels


def live(policy, *moments):
    """Return the features of the moments named (episode, inference), each computed alone."""
    rows = [policy.model.prior_features(pixels_of(policy, [seen(*m)]), keys=[0]) for m in moments]
    return torch.cat(rows)


def ask(policy, reader, *moments):
    batch = [seen(*m) for m in moments]
    return reader(pixels_of(policy, batch), batch, keys=[0] * len(batch))


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)  # passes of unequal sizes
    return True


def test_cadence_one_is_the_model_itself(policy, reader):
    batch = [seen(0, i) for i in range(3)]
    pixels = pixels_of(policy, batch)
    answer = reader()(pixels, batch, keys=[0] * 3)
    assert torch.equal(answer, policy.model.prior_features(pixels, keys=[0] * 3))


def test_cadence_two_equals_a_loop_by_hand(policy, reader):
    every_other = reader(cadence=2)
    kept = None
    for i in range(7):
        if i % 2 == 0:
            kept = live(policy, (0, i))
        assert torch.equal(ask(policy, every_other, (0, i)), kept)
    assert every_other.passes == [1] * 4


def test_episodes_of_one_batch_do_not_mix(policy, reader):
    mixed = reader(cadence=2)
    ask(policy, mixed, (1, 0), (2, 0))
    ask(policy, mixed, (2, 1))
    answer = ask(policy, mixed, (2, 2), (1, 1), (None, 5), (3, 0))
    assert close(answer, live(policy, (2, 2), (1, 0), (None, 5), (3, 0)))
    answer = ask(policy, mixed, (1, 2), (3, 1), (2, 3))
    assert close(answer, live(policy, (1, 2), (3, 0), (2, 2)))
    assert mixed.passes == [2, 3, 1]


def test_without_an_episode_the_prior_always_runs(policy, reader):
    alone = reader(cadence=3)
    for i in range(3):
        assert torch.equal(ask(policy, alone, (None, i)), live(policy, (None, i)))
    assert not alone._kept


def test_an_inference_that_is_asked_for_again_gets_the_same_answer(policy, reader):
    again = reader(cadence=3)
    for i in (0, 1, 1, 0, 1, 2, 3, 3, 4):
        assert torch.equal(ask(policy, again, (0, i)), live(policy, (0, i - i % 3)))


@pytest.mark.parametrize("inference", [1, 5])
def test_features_that_should_be_here_and_are_not_never_become_others(policy, reader, inference):
    restarted = reader(cadence=4)
    if inference == 5:
        ask(policy, restarted, (0, 0))  # of an earlier period
    with pytest.raises(EnvFault, match="played again from its start"):
        ask(policy, restarted, (0, inference))


def test_a_restarted_policy_breaks_the_episode_and_never_counts_it(policy, reader):
    slow = policy.arm("full")
    slow.prior_reader = reader(cadence=2)
    job = Job(EpisodeKey("fake_reach", 0, 0))
    with pytest.raises(EnvFault):
        answer_arms({"full": slow}, [(job, Ask(seen(0, 1), 1))])


def test_memory_is_bounded_and_keeps_the_episodes_that_go_on(policy, reader):
    small = reader(cadence=2, max_episodes=2)
    for episode in (0, 1):
        ask(policy, small, (episode, 0))
    ask(policy, small, (0, 1))
    ask(policy, small, (2, 0))
    assert list(small._kept) == [0, 2]
    assert torch.equal(ask(policy, small, (0, 1)), live(policy, (0, 0)))


def test_what_is_kept_holds_no_memory_of_its_batch(policy, reader):
    lean = reader(cadence=2)
    ask(policy, lean, (0, 0), (1, 0))
    [(_, row), _] = lean._kept.values()
    assert row.untyped_storage().nbytes() == row.numel() * row.element_size()


@pytest.mark.parametrize("cadence", [1, 2])
def test_a_store_changes_no_bit_of_an_answer(policy, reader, tmp_path, cadence):
    identity = PriorIdentity.of(policy.model.prior)
    episode = [seen(7, i) for i in range(4)]
    answers = []
    for store in (None, *(FeatureStore(tmp_path, identity) for _ in ("cold", "warm"))):
        made = policy.arm("full")
        made.prior_reader = reader(cadence=cadence, store=store)
        answers.append([made.act([moment], keys=[0])[0].actions for moment in episode])
    assert made.prior_reader.passes == []
    for without, cold, warm in zip(*answers, strict=True):
        assert (without == cold).all()
        assert (without == warm).all()


def test_the_shut_out_prior_asks_for_nothing(policy, reader):
    clamped = policy.arm("gate_clamped")
    clamped.prior_reader = reader()
    clamped.act([seen(0, 0)], keys=[0])
    assert clamped.prior_reader.passes == []


def test_the_configuration_says_the_cadence_and_a_setting_overrides_it():
    config = tiny_config()
    slow = dataclasses.replace(config, prior=dataclasses.replace(config.prior, cadence=3))
    model = tiny_policy(config=slow).model
    assert PriorReader(model).cadence == 3
    assert PriorReader(model, cadence=1).cadence == 1


@pytest.mark.parametrize("cadence", [0, -1, 1.5, True])
def test_a_cadence_that_cannot_be_meant_is_refused(policy, cadence):
    with pytest.raises(ContractError, match="whole number of at least 1"):
        PriorReader(policy.model, cadence=cadence)


def test_without_a_prior_there_are_no_features_and_no_cadence():
    config = tiny_config()
    prior = PriorConfig(name="layer_norm", width=32, grid=2)
    model = tiny_policy(config=dataclasses.replace(config, prior=prior)).model
    assert PriorReader(model)(torch.zeros(1, 2, 3, 32, 32), [seen(0, 0)], keys=[0]) is None
    with pytest.raises(ContractError, match="set it to 1"):
        PriorReader(model, cadence=2)
