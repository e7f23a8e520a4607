"""A collection survives being killed: nothing lost, nothing made twice, no half file."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from envs.suites import tasks
from vega_policy.data.libero_hdf5 import write_demo
from vega_policy.testing.demos import make_demo

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "scripts/collect.py", "collect.tasks=[0]", "collect.workers=1"]

pytestmark = pytest.mark.sim


def part_files(data_dir: Path) -> list[Path]:
    return sorted(data_dir.glob("libero_object/parts/*/attempt_*.hdf5"))


def run(data_dir: Path, n_demos: int) -> dict:
    done = subprocess.run(
        [*COMMAND, f"data_dir={data_dir}", f"collect.demos_per_task={n_demos}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_killed_collection_resumes_and_writes_the_public_layout(tmp_path):
    arguments = [f"data_dir={tmp_path}", "collect.demos_per_task=2"]
    process = subprocess.Popen(
        [*COMMAND, *arguments], cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 180
    while not part_files(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1.0)  # into the second demonstration
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (first,) = part_files(tmp_path)
    kept = first.read_bytes()

    assert run(tmp_path, 2) == {"episodes": 2, "successes": 2, "data_dir": str(tmp_path)}
    assert first.read_bytes() == kept
    assert len(part_files(tmp_path)) == 2
    (task_file,) = (tmp_path / "libero_object").glob("*_demo.hdf5")
    with h5py.File(task_file) as file:
        data = file["data"]
        assert data.attrs["num_demos"] == 2
        problem = json.loads(data.attrs["problem_info"])
        expected = "pick up the alphabet soup and place it in the basket"
        assert problem["language_instruction"] == expected
        for demo in data.values():
            n = demo.attrs["num_samples"]
            assert demo["obs/agentview_rgb"].shape == (n, 128, 128, 3)
            assert demo["obs/eye_in_hand_rgb"].shape == (n, 128, 128, 3)
            assert demo["obs/joint_states"].shape == (n, 7)
            assert demo["rewards"][()].any()
            assert json.loads(demo.attrs["vega_attributes"])["evaluation_distance"] > 1e-3
        replay(data["demo_0"])

    before = task_file.read_bytes()
    run(tmp_path, 2)
    assert task_file.read_bytes() == before


def replay(demo: h5py.Group) -> None:
    """Recorded actions bring about the recorded states and the success."""
    from envs import LiberoEnv

    env = LiberoEnv(suite="libero_object", task_id=0, render=False)
    env.reset(
        seed=json.loads(demo.attrs["vega_attributes"])["seed"], options={"init_state": "sampled"}
    )
    for state, action, reward in zip(
        demo["states"][()], demo["actions"][()], demo["rewards"][()], strict=True
    ):
        # The solver starts from what an earlier episode left: 1e-12, which contacts make larger.
        assert np.abs(env.sim_state() - state).max() < 1e-4
        assert env.simulation.step(action) == bool(reward)
    env.close()


def test_a_task_that_stays_short_is_named_and_what_there_is_is_merged(tmp_path):
    arguments = [f"data_dir={tmp_path}", "collect.tasks=[0,1]", "collect.demos_per_task=1"]
    names = [tasks("libero_object")[k].name for k in (0, 1)]
    parts = tmp_path / "libero_object" / "parts"
    for name in names:
        (parts / name).mkdir(parents=True)
        for k in range(8):
            note = {"outcome": "failure", "steps": 280}
            (parts / name / f"attempt_{k:04d}.json").write_text(json.dumps(note))
    instruction = tasks("libero_object")[1].instruction
    write_demo(parts / names[1] / "attempt_0000.hdf5", make_demo(0, instruction=instruction))
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=180
    )
    assert done.returncode == 1
    assert (
        f"8 attempts at a task were not enough for 1 demonstrations of each: {names[0]} has 0"
        in (done.stderr)
    )
    assert names[1] not in done.stderr.splitlines()[-1]
    (task_file,) = (tmp_path / "libero_object").glob("*_demo.hdf5")
    assert task_file.name.startswith(names[1])


def test_settings_that_differ_from_the_folder_are_all_listed(tmp_path):
    folder = tmp_path / "libero_object" / "parts"
    folder.mkdir(parents=True)
    made_with = {"suite": "libero_object", "seed": 7, "camera_px": 64, "disturbed": 0.7}
    (folder / "settings.json").write_text(json.dumps(made_with))
    done = subprocess.run(
        [*COMMAND, f"data_dir={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "seed is 0 now, was 7" in done.stderr
    assert "camera_px is 128 now, was 64" in done.stderr


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("collect.checkpoint=nano-libero-objekt", "nano-libero-object"),
        ("suite=libero_90", "no skill for turnoff"),
        ("suite=libero_objekt", "libero_object"),
        ("collect.tasks=all", "a number or a list"),
        ("collect.max_learner_chunks=-1", "at least 0"),
        ("collect.demos_per_tsk=3", "demos_per_task"),
    ],
)
def test_bad_input_is_answered_before_anything_is_written(tmp_path, override, advice):
    data_dir = tmp_path / "data"
    command = [sys.executable, "scripts/collect.py", f"data_dir={data_dir}", override]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert advice in done.stderr
    assert "Traceback" not in done.stderr
    assert not data_dir.exists()
