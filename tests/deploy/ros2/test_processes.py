"""Node and robot as two processes, as users start them."""

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vega_policy.spec import CAMERAS, Observation
from vega_policy.testing.fake_env import FakeEnv
from vega_policy.testing.fake_policy import FakePolicy
from vega_policy.testing.fake_server import FakeServer

ROOT = Path(__file__).resolve().parents[3]
LONG_S = 540
LOCK_STEP_NODE = (
    *("node.policy=local", "node.lock_step=true", "node.arm=true", "node.warm_up=1"),
    "schedule.name=open_loop",
)
LOCK_STEP_ROBOT = ("simulated.lock_step=true",)


@pytest.fixture
def start(rclpy, tmp_path):  # noqa: ARG001 - it chooses the ROS domain
    """Starts a script; ends it at the end of the test whatever happens."""
    processes = []

    def make(name, *settings):
        with (tmp_path / f"{name}.err").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *settings],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=tmp_path,
            )
        processes.append(process)
        return process

    yield make
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def result_of(process):
    out, _ = process.communicate(timeout=LONG_S)
    return process.returncode, json.loads(out)


def played_here(env, policy):
    """Play an episode without ROS; return its end as the simulated robot reports it."""
    seen, _ = env.reset(seed=0, options={"init_state_id": 0})
    n_chunks = n_steps = 0
    is_over = False
    while not is_over:
        observation = Observation({c: seen[c] for c in CAMERAS}, seen["proprio"], env.instruction)
        chunk = policy.act([observation], keys=[n_chunks])[0]
        seen, _, success, truncated, info = env.step_chunk(chunk.actions)
        n_chunks, n_steps = n_chunks + 1, n_steps + info["n_steps"]
        is_over = success or truncated
    state = np.ascontiguousarray(env.sim_state(), dtype="<f8")
    digest = hashlib.sha256(state.tobytes()).hexdigest()
    return {"success": bool(success), "steps": n_steps, "state_sha256": digest}


def played_through_ros(start, node_settings, robot_settings):
    node = start("ros2_node", *LOCK_STEP_NODE, *node_settings)
    code, episode = result_of(start("ros2_simulated_robot", *LOCK_STEP_ROBOT, *robot_settings))
    node.send_signal(signal.SIGTERM)
    assert (code, result_of(node)[0]) == (0, 0)
    assert (episode.pop("told_to_hold"), episode.pop("held_by_itself")) == (0, 0)
    assert episode.pop("command_age_ms")["n"] == 0
    return episode


def test_a_toy_episode_through_topics_equals_the_one_without(start):
    toy = ("suite=fake_reach",)
    episode = played_through_ros(start, (*toy, "checkpoint=fake"), toy)
    assert episode == played_here(FakeEnv(suite="fake_reach", task_id=0), FakePolicy())
    assert episode["success"]


def test_a_policy_behind_a_websocket_plays_the_same_episode(start):
    toy = ("suite=fake_reach",)
    with FakeServer(FakePolicy()) as server:
        remote = (*toy, "node.policy=remote", f"url={server.url}")
        episode = played_through_ros(start, remote, toy)
        reported = server.requests[-1]["vega"]["report"]
    assert episode == played_here(FakeEnv(suite="fake_reach", task_id=0), FakePolicy())
    assert reported["state"] == "running"


def test_in_slow_motion_a_toy_episode_is_solved_without_waiting_for_each_other(start):
    toy = ("suite=fake_reach",)
    node = start(
        "ros2_node",
        *(*toy, "node.policy=local", "checkpoint=fake", "node.arm=true", "node.warm_up=1"),
        *("--ros-args", "-p", "use_sim_time:=true"),
    )
    code, episode = result_of(start("ros2_simulated_robot", *toy, "simulated.speed=0.2"))
    assert (code, episode["success"], episode["held_by_itself"]) == (0, True, 0)
    node.send_signal(signal.SIGTERM)
    code, report = result_of(node)
    assert code == 0
    assert report["actions"] + episode["told_to_hold"] >= episode["steps"] > 0


@pytest.mark.sim
def test_a_task_of_libero_is_solved_through_topics_with_the_same_states(start):
    from envs import LiberoEnv
    from vega_policy.policy import from_pretrained

    episode = played_through_ros(start, (), ("simulated.task=1",))
    assert episode["success"]
    env = LiberoEnv(suite="libero_object", task_id=1, camera_px=128)
    try:
        assert episode == played_here(env, from_pretrained("nano-libero-object"))
    finally:
        env.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_last_thing_another_process_hears_from_a_stopped_node_is_a_hold(start, robot, number):
    arm = robot()
    arm.px = 128
    arm.say("estop", False)  # noqa: FBT003
    node = start(
        "ros2_node",
        *("node.policy=local", "checkpoint=fake", "suite=fake_reach", "node.arm=true"),
        *("node.warm_up=1", "robot.observation_age_s=2.0", "robot.camera_skew_s=2.0"),
        *("robot.hold_after_s=20.0", "robot.stop_after_s=60.0"),
    )
    arm.spin_until(lambda: len(arm.commands) > 3 and not arm.commands[-1][2], "motion")
    node.send_signal(number)
    arm.spin_until(lambda: node.poll() is not None, "the end of the node")
    for _ in range(20):
        arm.executor.spin_once(timeout_sec=0.05)
    action, _, is_hold = arm.commands[-1]
    assert is_hold
    np.testing.assert_array_equal(action[:6], 0)
    assert action[-1] == arm.commands[-2][0][-1]  # the gripper stays as it was told
    code, report = result_of(node)
    assert code == 0
    assert report["actions"] > 0
