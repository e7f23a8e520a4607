"""A published demonstration is replayed as the official evaluation would start it."""

import json

import numpy as np
import pytest

from vega_policy.data.episodes import open_episodes
from vega_policy.data.libero_hdf5 import list_demos, read_demo, write_demo
from vega_policy.data.regenerate import SETTLING_ACTION, SETTLING_STEPS, replay
from vega_policy.spec import CAMERAS, ContractError
from vega_policy.testing.demos import make_demo, write_task

pytestmark = pytest.mark.sim

SUITE, TASK_ID, PX = "libero_object", 0, 32


@pytest.fixture(scope="module")
def env():
    from envs.libero import LiberoEnv

    env = LiberoEnv(suite=SUITE, task_id=TASK_ID, camera_px=PX)
    yield env
    env.close()


def test_a_replay_begins_as_the_evaluation_of_the_same_state_does(env):
    from envs.regenerate import LiberoReplayer
    from envs.suites import init_states

    replayer = LiberoReplayer(env)
    for index in (2, 0):
        expected, _ = env.reset(seed=0, options={"init_state_id": index})
        state = env.sim_state()
        replayer.begin(init_states(SUITE, TASK_ID)[index], index=index)
        for _ in range(SETTLING_STEPS):
            replayer.step(np.array(SETTLING_ACTION))
        look = replayer.look()
        np.testing.assert_array_equal(look.state, state)
        for camera in CAMERAS:
            np.testing.assert_array_equal(getattr(look, camera), expected[camera])
        proprio = np.concatenate([look.ee_state, look.gripper_state]).astype(np.float32)
        np.testing.assert_array_equal(proprio, expected["proprio"])


def test_a_replay_that_misses_the_goal_is_no_demonstration(env):
    from envs.regenerate import LiberoReplayer
    from envs.suites import init_states

    actions = np.zeros((4, 7))
    actions[:, 2], actions[:, 6] = 0.5, -1
    state = init_states(SUITE, TASK_ID)[0]
    words = {"instruction": "x", "attributes": {}}
    demo = replay(LiberoReplayer(env), actions=actions, first_state=state, index=0, **words)
    assert demo is None


def test_what_was_replayed_is_merged_and_what_failed_is_listed(tmp_path, monkeypatch):
    from envs import regenerate as module
    from envs.suites import get_task

    task = get_task(SUITE, TASK_ID)
    source = tmp_path / SUITE
    write_task(
        source / f"{task.name}_demo.hdf5",
        [make_demo(k, px=32, instruction=task.instruction) for k in range(3)],
    )
    settings = module.RegenerateSettings(source=source, to=tmp_path / "new", suite=SUITE)
    parts = tmp_path / ".new.parts"

    def replayed(_, task, file):
        for index, ref in enumerate(list_demos([file])):
            if index == 1:
                (parts / task.name / "demo_0001.json").write_text(json.dumps("demo_1 failed"))
            else:
                write_demo(parts / task.name / f"demo_{index:04d}.hdf5", read_demo(ref))

    class InThisProcess:
        def __init__(self, *_, **__): ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...
        def submit(self, _, *arguments):
            from concurrent.futures import Future

            future = Future()
            future.set_result(replayed(*arguments))
            return future

    monkeypatch.setattr(module, "ProcessPoolExecutor", InThisProcess)
    result = module.regenerate(settings)
    assert (result.episodes, result.skipped) == (2, ("demo_1 failed",))
    assert len(open_episodes(tmp_path / "new")) == 2
    assert not parts.exists()
    with pytest.raises(ContractError, match="is there already"):
        module.regenerate(settings)


def test_a_file_of_another_suite_is_named(tmp_path):
    from envs.regenerate import RegenerateSettings, regenerate

    write_task(tmp_path / SUITE / "stack_the_bowls_demo.hdf5", [make_demo(0, px=32)])
    settings = RegenerateSettings(source=tmp_path / SUITE, to=tmp_path / "new", suite=SUITE)
    with pytest.raises(ContractError, match="unknown task of libero_object 'stack_the_bowls'"):
        regenerate(settings)
    assert not (tmp_path / ".new.parts").exists()
