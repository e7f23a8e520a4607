"""The environment is the official protocol, bit for bit, whatever ran before in the process."""

import contextlib
import io

import numpy as np
import pytest

from vega_policy.spec import ContractError

pytestmark = pytest.mark.sim

SETTLE = [0, 0, 0, 0, 0, 0, -1]
CHUNK = 6


def pseudo_random_actions(n: int) -> np.ndarray:
    rng = np.random.RandomState(3)
    actions = np.clip(np.sin(np.cumsum(rng.uniform(-0.5, 0.5, (n, 7)), axis=0)), -1, 1)
    actions[:, 2] -= 0.3
    actions[:, 6] = np.sign(actions[:, 6])
    return actions


def official_episodes(suite: str, task_id: int, n_episodes: int, actions: np.ndarray) -> list:
    from envs.installed import libero_module
    from envs.suites import get_task, init_states

    with contextlib.redirect_stdout(io.StringIO()):
        env = libero_module("libero.libero.envs").OffScreenRenderEnv(
            bddl_file_name=str(get_task(suite, task_id).bddl_file),
            camera_heights=128,
            camera_widths=128,
        )
        env.seed(0)
        episodes = []
        for k in range(n_episodes):
            env.reset()
            env.set_init_state(init_states(suite, task_id)[k])
            for _ in range(10):
                obs, *_ = env.step(SETTLE)
            seen = [(env.get_sim_state(), obs)]
            for i, action in enumerate(actions):
                obs, *_ = env.step(action)
                if (i + 1) % CHUNK == 0:
                    seen.append((env.get_sim_state(), obs))
            episodes.append(seen)
        env.close()
    return episodes


@pytest.mark.parametrize(
    ("suite", "task_id"), [("libero_object", 3), ("libero_goal", 4), ("libero_spatial", 4)]
)
def test_states_and_images_equal_the_official_protocol_in_any_order(suite, task_id):
    from envs import LiberoEnv

    actions = pseudo_random_actions(2 * CHUNK)
    official = official_episodes(suite, task_id, 2, actions)
    env = LiberoEnv(suite=suite, task_id=task_id)
    for k in (1, 0, 1):
        obs, _ = env.reset(seed=0, options={"init_state_id": k})
        seen = [(env.sim_state(), obs)]
        for start in range(0, len(actions), CHUNK):
            obs, *_ = env.step_chunk(actions[start : start + CHUNK])
            seen.append((env.sim_state(), obs))
        for (state, mine), (their_state, theirs) in zip(seen, official[k], strict=True):
            assert np.array_equal(state, their_state)
            assert np.array_equal(mine["agentview"], theirs["agentview_image"][::-1, ::-1])
            assert np.array_equal(mine["wrist"], theirs["robot0_eye_in_hand_image"][::-1, ::-1])
            assert np.array_equal(mine["proprio"][:3], theirs["robot0_eef_pos"].astype(np.float32))
            gripper = theirs["robot0_gripper_qpos"].astype(np.float32)
            assert np.array_equal(mine["proprio"][6:], gripper)
    env.close()


@pytest.fixture(scope="module")
def env():
    from envs import LiberoEnv

    made = LiberoEnv(suite="libero_object", task_id=0)
    yield made
    made.close()


def test_a_chunk_ends_where_single_steps_end(env):
    actions = pseudo_random_actions(5)
    env.reset(options={"init_state_id": 2})
    chunked, *_ = env.step_chunk(actions)
    state = env.sim_state()
    env.reset(options={"init_state_id": 2})
    for action in actions:
        single, *_ = env.step(action)
    assert np.array_equal(env.sim_state(), state)
    for name, value in chunked.items():
        assert np.array_equal(single[name], value)


def test_reset_leaves_the_global_random_state_alone(env):
    np.random.seed(123)  # noqa: NPY002
    expected = np.random.RandomState(123).rand()
    env.reset(options={"init_state_id": 1})
    assert np.random.rand() == expected  # noqa: NPY002


def test_truncated_at_the_step_limit_of_the_suite(env):
    env.reset(options={"init_state_id": 0})
    env._n_steps = env.max_steps - 3
    _, reward, terminated, truncated, info = env.step_chunk(np.zeros((8, 7)))
    assert (reward, terminated, truncated, info["n_steps"]) == (0.0, False, True, 3)


def test_sampled_starts_are_not_evaluation_states_and_follow_their_seed(env):
    from envs.expert.demonstrate import evaluation_distance

    states = []
    for seed in (5, 6, 5):
        env.reset(seed=seed, options={"init_state": "sampled"})
        assert evaluation_distance(env) > 1e-3
        states.append(env.sim_state())
    assert np.array_equal(states[0], states[2])
    assert not np.array_equal(states[0], states[1])
    env.reset(options={"init_state_id": 7})
    assert evaluation_distance(env) == 0.0


def test_gymnasium_accepts_the_environment(env):
    from gymnasium.utils.env_checker import check_env

    check_env(env, skip_render_check=True)


@pytest.mark.parametrize(
    ("actions", "advice"),
    [
        (np.zeros((8, 6)), r"expected \(n, 7\)"),
        (np.full((1, 7), np.nan), "NaN or infinity"),
    ],
)
def test_bad_actions_name_what_is_expected(env, actions, advice):
    with pytest.raises(ContractError, match=advice):
        env.step_chunk(actions)


def test_unknown_reset_option_and_initial_state_name_the_valid_ones(env):
    with pytest.raises(ContractError, match="init_state_id"):
        env.reset(options={"initial_state": 3})
    with pytest.raises(ContractError, match="0 to 49"):
        env.reset(options={"init_state_id": 50})
