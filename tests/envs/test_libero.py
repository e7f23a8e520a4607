"""The environment is the official protocol, bit for bit, whatever ran before in the process."""

import numpy as np
import pytest

from vega_policy.spec import ContractError

pytestmark = pytest.mark.sim

CHUNK = 4
CAMERA_PX = 64


def pseudo_random_actions(n: int, *, seed: int = 3) -> np.ndarray:
    """Wander about, downwards on the whole, opening and closing the gripper."""
    rng = np.random.RandomState(seed)
    actions = np.clip(np.sin(np.cumsum(rng.uniform(-0.5, 0.5, (n, 7)), axis=0)), -1, 1)
    actions[:, 2] -= 0.3
    actions[:, 6] = np.sign(actions[:, 6])
    return actions


def plunging_actions(n: int) -> np.ndarray:
    """Straight down into whatever lies there: contact within twenty steps."""
    actions = 0.2 * pseudo_random_actions(n)
    actions[:, 2] = -1.0
    return actions


def draw_only_what_is_compared(monkeypatch):
    """Leave out the official pictures nobody looks at, which are half of its time.

    What is drawn changes no state: the test in contact and the slow ones draw everything.
    """
    from robosuite.utils.binding_utils import MjSim

    from envs.official import OfficialEnv

    draw, start, step = MjSim.render, OfficialEnv.start, OfficialEnv.step
    n_steps, is_looked_at = 0, False

    def drawn(sim, **options):
        if is_looked_at:
            return draw(sim, **options)
        return np.zeros((options["height"], options["width"], 3), np.uint8)

    def started(official):
        nonlocal n_steps
        n_steps = 0
        return start(official)

    def stepped(official, action):
        nonlocal n_steps, is_looked_at
        is_looked_at = n_steps % CHUNK == 0
        moment = step(official, action)
        n_steps, is_looked_at = n_steps + 1, False
        return moment

    monkeypatch.setattr(MjSim, "render", drawn)
    monkeypatch.setattr(OfficialEnv, "start", started)
    monkeypatch.setattr(OfficialEnv, "step", stepped)


def assert_equals_official(
    suite: str, task_id: int, plans: dict[int, np.ndarray], order: tuple[int, ...]
) -> int:
    """Play ``plans`` (episode to actions) officially in sequence, and here in ``order``.

    States are compared at every control step, pixels and proprioception at every chunk. Returns
    in how many of the official steps a finger touched something.
    """
    from envs import LiberoEnv
    from envs.fidelity.scene import is_touched_by_finger
    from envs.official import OfficialEnv

    official: dict[int, list] = {}
    n_touched = 0
    with OfficialEnv(suite=suite, task_id=task_id, camera_px=CAMERA_PX) as reference:
        for k in range(max(plans) + 1):
            if k not in plans:
                reference.start()
                continue
            official[k] = []
            for moment in reference.episode(lambda _, k=k: plans[k], max_steps=len(plans[k])):
                official[k].append(moment)
                n_touched += is_touched_by_finger(reference.handle)
    env = LiberoEnv(suite=suite, task_id=task_id, camera_px=CAMERA_PX)
    try:
        for k in order:
            seen, _ = env.reset(seed=0, options={"init_state_id": k})
            for step, theirs in enumerate(official[k]):
                is_success = bool(step) and env.simulation.step(plans[k][step - 1])
                where = f"{suite} task {task_id}, episode {k}, step {step}"
                assert np.array_equal(env.sim_state(), theirs.state), where
                assert step == 0 or is_success == theirs.is_success, where
                if step % CHUNK:
                    continue
                seen = env._observe()
                for camera in ("agentview", "wrist"):
                    assert np.array_equal(seen[camera], theirs.images[camera]), (camera, where)
                assert np.array_equal(seen["proprio"], theirs.proprio.astype(np.float32)), where
    finally:
        env.close()
    return n_touched


@pytest.mark.parametrize(
    ("suite", "task_id"),
    # The bottle of the last one lies in a drawer and amplifies any difference within ten steps.
    [("libero_spatial", 4), ("libero_goal", 4), ("libero_10", 8), ("libero_90", 26)],
)
def test_states_and_images_equal_the_official_protocol_in_any_order(suite, task_id, monkeypatch):
    draw_only_what_is_compared(monkeypatch)
    plans = {0: pseudo_random_actions(CHUNK), 1: pseudo_random_actions(2 * CHUNK, seed=4)}
    assert_equals_official(suite, task_id, plans, order=(1, 0))


def test_states_and_images_equal_the_official_protocol_in_contact():
    plans = {0: plunging_actions(20)}
    n_touched = assert_equals_official("libero_object", 3, plans, order=(0,))
    assert n_touched > 3


@pytest.mark.slow
@pytest.mark.parametrize("task_id", range(10))
@pytest.mark.parametrize("suite", ["libero_spatial", "libero_object", "libero_goal", "libero_10"])
def test_every_task_equals_the_official_protocol(suite, task_id):
    """About half a minute a task."""
    plans = {0: plunging_actions(40), 1: pseudo_random_actions(40)}
    assert_equals_official(suite, task_id, plans, order=(1, 0))


@pytest.fixture(scope="module")
def env():
    from envs import LiberoEnv

    made = LiberoEnv(suite="libero_object", task_id=0)
    yield made
    made.close()


@pytest.fixture(scope="module")
def scene_with_fixtures():
    """Fixtures are placed at random, and nothing is drawn by a renderer."""
    from envs import LiberoEnv

    made = LiberoEnv(suite="libero_spatial", task_id=4, render=False)
    yield made
    made.close()


def test_pictures_survive_other_environments_made_and_closed_in_the_process(env):
    from envs import LiberoEnv

    expected, _ = env.reset(options={"init_state_id": 0})
    other = LiberoEnv(suite="libero_object", task_id=1, camera_px=64)
    other.reset()
    beside, _ = env.reset(options={"init_state_id": 0})
    other.close()
    # ``other`` is still referred to while the next one is built.
    again = LiberoEnv(suite="libero_object", task_id=0)
    after_another, _ = again.reset(options={"init_state_id": 0})
    old, _ = env.reset(options={"init_state_id": 0})
    again.close()
    assert other is not None
    for seen in (beside, after_another, old):
        for camera in ("agentview", "wrist"):
            assert np.array_equal(seen[camera], expected[camera])


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


@pytest.mark.parametrize("index", [4, 1, 0])
def test_reset_leaves_the_global_random_state_alone(scene_with_fixtures, index):
    np.random.seed(123)  # noqa: NPY002
    before = np.random.get_state()  # noqa: NPY002
    scene_with_fixtures.reset(options={"init_state_id": index})
    scene_with_fixtures.step_chunk(pseudo_random_actions(3))
    after = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_episodes_do_not_depend_on_the_global_random_state_or_on_their_order(scene_with_fixtures):
    env = scene_with_fixtures
    states: dict[int, list[np.ndarray]] = {0: [], 2: [], 3: []}
    for noise, k in enumerate((3, 0, 2, 3, 2, 0)):
        np.random.seed(noise)  # noqa: NPY002
        env.reset(seed=0, options={"init_state_id": k})
        np.random.random(7)  # noqa: NPY002
        env.step_chunk(pseudo_random_actions(CHUNK))
        cabinet = env.simulation.model.body("wooden_cabinet_1_main").id
        states[k].append(np.r_[env.sim_state(), env.simulation.model.body_pos[cabinet]])
    for first, second in states.values():
        assert np.array_equal(first, second)
    assert len({pair[0][-3:].tobytes() for pair in states.values()}) == len(states)


def test_building_a_scene_leaves_the_global_random_state_alone():
    from envs import LiberoEnv

    np.random.seed(123)  # noqa: NPY002
    before = np.random.get_state()  # noqa: NPY002
    LiberoEnv(suite="libero_object", task_id=1, render=False).close()
    after = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


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
