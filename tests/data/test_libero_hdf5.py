"""The public LIBERO layout: what is written is what the benchmark's tools expect, and reads back."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import h5py
import numpy as np
import pytest

from vega_policy.data.libero_hdf5 import (
    TaskAttributes,
    list_demos,
    merge_demos,
    read_demo,
    task_files,
    write_demo,
)
from vega_policy.spec import ContractError
from vega_policy.testing.demos import make_demo, write_suite, write_task

ARRAYS = (
    "agentview",
    "wrist",
    "ee_states",
    "gripper_states",
    "joint_states",
    "robot_states",
    "actions",
    "states",
    "rewards",
    "dones",
    "expert_mask",
)


def test_a_demonstration_reads_back_as_it_was_written(tmp_path):
    demo = make_demo(3)
    write_demo(tmp_path / "one.hdf5", demo)
    (ref,) = list_demos([tmp_path / "one.hdf5"])
    back = read_demo(ref)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(back, name), getattr(demo, name), err_msg=name)
    assert (back.instruction, back.attributes) == (demo.instruction, demo.attributes)
    assert back.proprio.shape == (14, 8)


def test_files_hold_the_layout_of_the_public_ones(tmp_path):
    path = tmp_path / "libero_object" / "x_demo.hdf5"
    demo = make_demo(0)
    write_task(path, [demo, make_demo(1)])
    with h5py.File(path) as file:
        data = file["data"]
        assert json.loads(data.attrs["problem_info"])["language_instruction"] == demo.instruction
        assert json.loads(data.attrs["env_args"])["bddl_file"].endswith(".bddl")
        assert (data.attrs["num_demos"], data.attrs["total"]) == (2, 28)
        assert (data.attrs["tag"], data.attrs["macros_image_convention"]) == ("libero-v1", "opengl")
        group = data["demo_1"]
        assert group.attrs["num_samples"] == 14
        np.testing.assert_array_equal(group.attrs["init_state"], group["states"][0])
        # Stored as the simulator gives them: rotated by 180 degrees against what a person sees.
        stored = data["demo_0/obs/agentview_rgb"][0]
        np.testing.assert_array_equal(stored[::-1, ::-1], demo.agentview[0])
        assert set(group["obs"]) >= {"eye_in_hand_rgb", "ee_pos", "ee_ori", "ee_states"}


def test_benchmark_tooling_reads_our_files(tmp_path, capsys):
    pytest.importorskip(
        "libero.libero.utils.dataset_utils", reason="the sim extra is not installed"
    )
    from libero.libero.utils.dataset_utils import get_dataset_info

    path = tmp_path / "x_demo.hdf5"
    write_task(path, [make_demo(0), make_demo(1)])
    get_dataset_info(str(path))
    assert "total transitions: 28" in capsys.readouterr().out


def test_public_files_without_an_expert_mask_count_as_all_expert(tmp_path):
    write_demo(tmp_path / "one.hdf5", make_demo(0))
    with h5py.File(tmp_path / "one.hdf5", "r+") as file:
        del file["data/demo_0/expert_mask"]
    (ref,) = list_demos([tmp_path / "one.hdf5"])
    assert read_demo(ref).expert_mask.tolist() == [1] * 14


def test_ten_demonstrations_come_in_the_order_of_their_numbers(tmp_path):
    write_task(tmp_path / "x_demo.hdf5", [make_demo(k, n_steps=8 + k) for k in range(11)])
    refs = list_demos([tmp_path / "x_demo.hdf5"])
    assert [ref.n_steps for ref in refs] == list(range(8, 19))


def test_an_invalid_demonstration_lists_everything_wrong_and_leaves_no_file(tmp_path):
    demo = make_demo(0)
    broken = replace(demo, actions=demo.actions[:, :6], ee_states=np.full((14, 6), np.nan))
    with pytest.raises(ValueError, match=r"ee_states has a number.*actions has shape \(14, 6\)"):
        write_demo(tmp_path / "one.hdf5", broken)
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_another_task_is_refused(tmp_path):
    write_demo(tmp_path / "a.hdf5", make_demo(0, instruction="pick up the soup"))
    task = TaskAttributes(instruction="pick up the milk", problem_name="P", bddl_file_name="b")
    with pytest.raises(ContractError, match="another task"):
        merge_demos([tmp_path / "a.hdf5"], tmp_path / "out.hdf5", task=task)
    assert not (tmp_path / "out.hdf5").exists()


def test_a_missing_suite_names_what_is_there(tmp_path):
    write_suite(tmp_path, n_demos=1)
    with pytest.raises(ContractError, match="libero_object"):
        task_files(tmp_path, "libero_goal")


def test_a_file_that_is_no_hdf5_is_named(tmp_path):
    (tmp_path / "x_demo.hdf5").write_bytes(b"not hdf5")
    with pytest.raises(ContractError, match="x_demo"):
        list_demos([tmp_path / "x_demo.hdf5"])


def test_sigkill_while_writing_leaves_only_whole_files(tmp_path):
    script = f"""
        from pathlib import Path
        from vega_policy.testing.demos import make_demo
        from vega_policy.data.libero_hdf5 import write_demo
        demo = make_demo(0, n_steps=60)
        for k in range(10_000):
            write_demo(Path({str(tmp_path)!r}) / f"{{k:05d}}.hdf5", demo)
            print(k, flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    visible = sorted(p for p in tmp_path.iterdir() if not p.name.startswith("."))
    assert len(visible) >= 3
    for ref in list_demos(visible):
        assert read_demo(ref).n_steps == 60
