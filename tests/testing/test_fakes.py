"""The doubles keep the promises of what they stand for."""

import numpy as np

from vega_policy.spec import CAMERAS, Observation, Policy
from vega_policy.testing.fake_env import FakeEnv
from vega_policy.testing.fake_policy import FakePolicy


def observe(env, init_state_id=0):
    seen, _ = env.reset(seed=0, options={"init_state_id": init_state_id})
    return Observation(
        images={c: seen[c] for c in CAMERAS}, proprio=seen["proprio"], instruction=env.instruction
    )


def test_an_initial_state_is_the_same_in_any_order():
    env = FakeEnv(suite="fake_reach", task_id=3)
    first = [observe(env, i) for i in (0, 1)]
    again = [observe(FakeEnv(suite="fake_reach", task_id=3), i) for i in (1, 0)][::-1]
    for a, b in zip(first, again, strict=True):
        assert all(np.array_equal(a.images[c], b.images[c]) for c in CAMERAS)


def test_a_chunk_moves_the_hand_as_its_actions_do_one_by_one():
    whole, single = (FakeEnv(suite="fake_reach", task_id=1) for _ in range(2))
    actions = np.random.default_rng(0).normal(size=(8, 7))
    for env in (whole, single):
        env.reset()
    whole.step_chunk(actions)
    for action in actions:
        single.step_chunk(action[None])
    assert np.array_equal(whole.sim_state(), single.sim_state())


def test_the_fake_policy_answers_by_key_and_not_by_batch():
    policy = FakePolicy()
    assert isinstance(policy, Policy)
    seen = [observe(FakeEnv(suite="fake_reach", task_id=t)) for t in (0, 1)]
    together = policy.act(seen, keys=[5, 6])
    alone = [policy.act([o], keys=[k])[0] for o, k in zip(seen, (5, 6), strict=True)]
    for a, b in zip(together, alone, strict=True):
        assert np.array_equal(a.actions, b.actions)
    other = policy.act(seen[:1], keys=[7])[0]
    assert not np.array_equal(other.actions, together[0].actions)
