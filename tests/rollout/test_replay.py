"""A replay agrees with an untouched record, and names the first step where something was changed."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from vega_policy.rollout.ledger import read_rows
from vega_policy.rollout.replay import check_record, find_episode, replay
from vega_policy.rollout.trace import Trace
from vega_policy.spec import ActionSpec, ContractError
from vega_policy.testing.fake_env import FakeEnv
from vega_policy.testing.fake_policy import FakePolicy

ROOT = Path(__file__).resolve().parents[2]
WON = "fake_reach-task00-init001-seed0-rep0"
BLOWN = f"{WON}-wind-1@gate_clamped"


def script(name, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("runs")
    done = script(
        "rollout",
        "suite=fake_reach",
        "checkpoint=fake",
        "rollout.tasks=[0]",
        "rollout.init_states=2",
        "rollout.arms=[full,gate_clamped]",
        "rollout.perturbations=[none,wind-1]",
        "rollout.workers=1",
        "rollout.video=none",
        f"out_dir={out_dir}",
        "name=run",
    )
    assert done.returncode == 0, done.stderr
    return out_dir / "run"


@pytest.fixture
def run_dir(recorded, tmp_path):
    return Path(shutil.copytree(recorded, tmp_path / "run"))


def again(run_dir, name=WON, **options):
    return replay(
        run_dir, name, make_simulator=FakeEnv, action_spec=ActionSpec(), timeout_s=30, **options
    )


def change_row(run_dir, name, change):
    lines = (run_dir / "ledger.jsonl").read_text().splitlines()
    rows = {row.name: i for i, row in enumerate(read_rows(run_dir))}
    row = json.loads(lines[rows[name]])
    change(row)
    lines[rows[name]] = json.dumps(row)
    (run_dir / "ledger.jsonl").write_text("\n".join(lines) + "\n")


def change_trace(run_dir, name, *, sign=False, **changes):
    """Write other values into a trace; ``sign``: and have the row vouch for it."""
    path = run_dir / "traces" / f"{name}.npz"
    trace = replace(Trace.load(path), **changes)
    trace.save(path)
    if sign:
        change_row(run_dir, name, lambda row: row["info"].update(trace_sha256=trace.sha256()))


def test_the_script_agrees_with_every_recorded_episode_of_a_run(recorded, tmp_path):
    for name in (WON, BLOWN):
        done = script("replay", recorded, name, f"video={tmp_path / 'a.mp4'}")
        answer = json.loads(done.stdout.splitlines()[-1])
        assert done.returncode == 0, done.stderr
        row, _ = find_episode(recorded, name)
        assert (answer["agrees"], answer["steps"]) == (True, row.n_steps)
        assert (answer["outcome"], answer["first_difference"]) == (row.outcome, None)
        with av.open(str(tmp_path / "a.mp4")) as film:
            n_frames = sum(1 for _ in film.decode(video=0))
        assert n_frames == 1 + row.n_steps + 3


def test_the_script_asks_the_policy_again(recorded):
    done = script("replay", recorded, BLOWN, "mode=policy")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["agrees"]


def test_an_altered_action_is_told_apart_from_another_simulator(run_dir):
    row, trace = find_episode(run_dir, WON)
    actions = trace.actions.copy()
    actions[9, 1] += 0.25
    change_trace(run_dir, WON, actions=actions)
    difference = again(run_dir).first_difference
    assert difference.kind == "record"
    assert "changed after it was written" in difference.meaning
    change_trace(run_dir, WON, sign=True)
    result = again(run_dir)
    assert (result.first_difference.kind, result.steps) == ("state", 9)
    assert (result.first_difference.step, result.first_difference.chunk) == (10, 1)
    assert result.is_repeatable
    assert row.n_steps > 10


def test_an_altered_digest_at_a_chunk_end_contradicts_the_row(run_dir):
    _, trace = find_episode(run_dir, WON)
    digests = trace.digests.copy()
    digests[7] ^= np.uint64(1)
    change_trace(run_dir, WON, sign=True, digests=digests)
    done = script("replay", run_dir, WON)
    assert done.returncode == 1
    difference = json.loads(done.stdout.splitlines()[-1])["first_difference"]
    assert (difference["kind"], difference["step"], difference["chunk"]) == ("record", 8, 0)
    assert "record at step 8 (chunk 0)" in done.stderr


def test_an_altered_final_hash_contradicts_the_trace(run_dir):
    change_row(run_dir, WON, lambda row: row.update(state_sha256="0" * 64))
    row, trace = find_episode(run_dir, WON)
    assert check_record(row, trace).step == row.n_steps


def test_another_start_is_named_before_any_step(run_dir):
    # As with a simulator that places its objects elsewhere: the key says initial state 5.
    change_row(run_dir, WON, lambda row: row["key"].update(init_state_id=5))
    result = again(run_dir, WON.replace("init001", "init005"))
    assert (result.first_difference.kind, result.first_difference.step) == ("start", 0)
    assert result.steps == 0


def test_another_perturbation_is_another_start(run_dir):
    lines = (run_dir / "ledger.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "ledger.jsonl").write_text("".join(x for x in lines if '"wind-1"' in x))
    name = f"{WON}-wind-1"
    change_row(run_dir, name, lambda row: row["key"].update(perturbation="none"))
    assert again(run_dir, WON).first_difference.kind == "start"


def test_other_answers_of_the_policy_are_named_with_their_size(run_dir):
    difference = again(run_dir, policy=FakePolicy(waver=0.3)).first_difference
    assert (difference.kind, difference.step, difference.chunk) == ("actions", 3, 0)
    assert "by up to 0." in difference.meaning


def test_another_step_limit_is_a_difference_of_the_end(run_dir):
    header = json.loads((run_dir / "run.json").read_text())
    header["defines"]["max_steps"] = 16
    (run_dir / "run.json").write_text(json.dumps(header))
    difference = again(run_dir).first_difference
    assert (difference.kind, difference.step) == ("end", 16)


def test_other_versions_are_named_where_something_differs(run_dir):
    change_row(run_dir, WON, lambda row: row["key"].update(init_state_id=5))
    name = WON.replace("init001", "init005")
    change_row(run_dir, name, lambda row: row["made_with"].update(mujoco="3.3.0"))
    result = again(run_dir, name)
    assert result.made_with["mujoco"][0] == "3.3.0"
    assert "mujoco 3.3.0 -> " in result.first_difference.meaning


def test_bad_input_says_what_to_do(run_dir):
    with pytest.raises(ContractError, match=f"did you mean '{WON}'"):
        again(run_dir, WON.replace("reach", "raech"))
    with pytest.raises(ContractError, match=r"ends in \.mp4"):
        again(run_dir, video=run_dir / "a.gif")
    path = run_dir / "traces" / f"{WON}.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ContractError, match="is damaged"):
        again(run_dir)
    path.unlink()
    with pytest.raises(ContractError, match="has no trace"):
        again(run_dir)
    done = script("replay", run_dir, WON, "mode=polcy")
    assert (done.returncode, "did you mean 'policy'" in done.stderr) == (2, True)


@pytest.mark.sim
def test_a_real_episode_happens_again_to_the_last_bit(tmp_path):
    from vega_policy.testing.tiny_policy import tiny_policy

    tiny_policy(tmp_path / "tiny")
    done = script(
        "rollout",
        "suite=libero_object",
        f"checkpoint={tmp_path / 'tiny'}",
        "rollout.tasks=[0]",
        "rollout.init_state_ids=[3]",
        "rollout.max_steps=16",
        "rollout.workers=1",
        "rollout.video=none",
        f"out_dir={tmp_path}",
        "name=run",
    )
    assert done.returncode == 0, done.stderr
    [row] = read_rows(tmp_path / "run")
    done = script("replay", tmp_path / "run", row.name)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["steps"] == 16
