"""The same objects in simulator and on a robot: an episode through the pilot is the rollout's."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from vega_policy.control import OpenLoop
from vega_policy.control.estop import EmergencyStop
from vega_policy.control.link import Seen
from vega_policy.control.pilot import Pilot
from vega_policy.control.profile import RobotProfile
from vega_policy.spec import CAMERAS, Observation
from vega_policy.testing.fake_env import FakeEnv
from vega_policy.testing.fake_link import FakeClock, FakeLink
from vega_policy.testing.fake_policy import FakePolicy

LIBERO = Path(__file__).parents[2] / "configs" / "robot" / "libero.yaml"
N_STEPS = 20


def observation_of(values, env):
    return Observation(
        images={c: values[c] for c in CAMERAS},
        proprio=values["proprio"],
        instruction=env.instruction,
    )


def rolled_out(policy, n_execute):
    """States of an episode in which whole chunks are applied."""
    env = FakeEnv(suite="fake_reach", task_id=0)
    values, _ = env.reset(seed=0)
    states, n_steps = [], 0
    while n_steps < N_STEPS:
        (chunk,) = policy.act([observation_of(values, env)], keys=[n_steps])
        actions = chunk.actions[: min(n_execute, N_STEPS - n_steps)]
        values, _, _, _, info = env.step_chunk(actions)
        states += list(info["states"])
        n_steps += len(actions)
    return np.array(states)


def piloted(policy, n_execute):
    """States of the same episode, one control step after the other, through everything."""
    env = FakeEnv(suite="fake_reach", task_id=0)
    values, _ = env.reset(seed=0)
    clock = FakeClock()
    link = FakeLink(
        clock=clock,
        answer=lambda tick: policy.act([observation_of(values, env)], keys=[tick])[0].actions,
    )
    pilot = Pilot(
        profile=RobotProfile.from_dict(yaml.safe_load(LIBERO.read_text())),
        schedule=OpenLoop(spec=policy.action_spec, n_execute=n_execute),
        link=link,
        estop=EmergencyStop(),
        clock=clock,
    )
    pilot.arm()
    states = []
    for _ in range(N_STEPS):
        stamps_s = dict.fromkeys((*CAMERAS, "proprio"), clock.now_s)
        command = pilot.tick(Seen(observation=observation_of(values, env), stamps_s=stamps_s))
        values, _, _, _, info = env.step_chunk(command.action[None])
        states += list(info["states"])
        clock.now_s += 0.05
    return np.array(states), pilot


@pytest.mark.parametrize("n_execute", [8, 5, 1])
def test_an_episode_through_the_pilot_is_the_rollouts_to_the_bit(n_execute):
    policy = FakePolicy()
    states, pilot = piloted(policy, n_execute)
    assert np.array_equal(states, rolled_out(policy, n_execute))
    assert pilot.stats.n_actions == N_STEPS
    assert not pilot.stats.interventions
