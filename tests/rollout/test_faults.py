"""What may go wrong outside the program, with the real script in real processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest

from vega_policy.rollout.ledger import read_rows
from vega_policy.rollout.trace import Trace
from vega_policy.rollout.video import HOLD

ROOT = Path(__file__).resolve().parents[2]


def command(out_dir, *overrides):
    return [
        sys.executable,
        str(ROOT / "scripts" / "rollout.py"),
        "suite=fake_reach",
        "checkpoint=fake",
        "rollout.tasks=[0,4]",
        "rollout.init_states=2",
        "rollout.progress=false",
        f"out_dir={out_dir}",
        "name=run",
        *overrides,
    ]


def play(out_dir, *overrides, **options):
    return subprocess.run(
        command(out_dir, *overrides),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def start(out_dir, *overrides):
    return subprocess.Popen(
        command(out_dir, *overrides),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that runs the tests in the background lets its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def timeless(run_dir):
    rows = {}
    for row in read_rows(run_dir):
        values = row.to_json()
        del values["wall_s"], values["info"]["run"]
        rows[row.name] = values
    return rows


def wait_for_rows(run_dir, n_rows):
    deadline = time.monotonic() + 30
    ledger = run_dir / "ledger.jsonl"
    while time.monotonic() < deadline:
        if ledger.exists() and ledger.read_bytes().count(b"\n") >= n_rows:
            return
        time.sleep(0.01)
    raise AssertionError(f"{ledger} has not {n_rows} rows")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    out_dir = tmp_path_factory.mktemp("whole")
    done = play(out_dir)
    assert done.returncode == 0, done.stderr
    return out_dir / "run"


FULL_DISK = """
set -e
mount -t tmpfs -o size=128k tmpfs "$1"; shift
kept="$1"; shift
status=0; "$@" || status=$?
cp -r runs/run "$kept/before"
mount -o remount,size=64m "$PWD/runs"
"$@"
cp -r runs/run "$kept/after"
exit "$status"
"""


def test_a_full_disk_loses_no_row_and_says_what_to_do(whole, tmp_path):
    """A file system of 128 kB, mounted for this process alone, is made larger between two starts."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "kept").mkdir()
    script = ["sh", "-c", FULL_DISK, "sh", tmp_path / "runs", tmp_path / "kept"]
    unshare = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run(
        [*unshare, "mount", "-t", "tmpfs", "tmpfs", tmp_path / "runs"],
        check=False,
        capture_output=True,
    ).returncode:
        pytest.skip("this system lets nobody mount a file system of their own")
    full = command(tmp_path / "runs", "rollout.video=all", "rollout.force=true")
    done = subprocess.run(
        [*unshare, *script, *full],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "No space left on device" in done.stderr
    assert "start the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    before, after = (timeless(tmp_path / "kept" / name) for name in ("before", "after"))
    assert 0 < len(before) < 4
    assert before.items() <= after.items()
    assert bare(after) == bare(timeless(whole))
    for folder, rows in (("before", before), ("after", after)):
        for row in rows.values():
            files = {k: tmp_path / "kept" / folder / row["info"][k] for k in ("video", "trace")}
            assert len(Trace.load(files["trace"]).actions) == row["n_steps"]
            with av.open(str(files["video"])) as container:
                n_frames = sum(1 for _ in container.decode(video=0))
            assert n_frames == row["n_steps"] + 1 + HOLD


def bare(rows):
    return {name: (r["state_hashes"], r["outcome"]) for name, r in rows.items()}


def test_a_cut_last_line_is_played_again(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    ledger = tmp_path / "run" / "ledger.jsonl"
    os.truncate(ledger, ledger.stat().st_size - 25)
    done = play(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 episodes to play, 3 in the ledger" in done.stderr
    assert timeless(tmp_path / "run") == timeless(whole)


def test_a_second_process_is_refused_and_ctrl_c_keeps_what_was_played(whole, tmp_path):
    first = start(tmp_path, "suite.step_s=0.2", "rollout.workers=1")
    wait_for_rows(tmp_path / "run", 1)
    second = play(tmp_path)
    assert second.returncode == 2
    assert "is being written by another process" in second.stderr
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    os.killpg(first.pid, signal.SIGINT)
    _, said = first.communicate(timeout=20)
    assert first.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    assert children
    deadline = time.monotonic() + 5
    while left := [pid for pid in children if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    n_rows = len(read_rows(tmp_path / "run"))
    assert 1 <= n_rows < 4
    assert play(tmp_path).returncode == 0
    assert timeless(tmp_path / "run") == timeless(whole)


def test_a_report_that_cannot_be_written_is_said_after_the_rows_are_safe(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    report = tmp_path / "run" / "report.html"
    report.unlink()
    (report / "in the way").mkdir(parents=True)
    done = play(tmp_path)
    assert done.returncode == 1
    assert "cannot write to" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())
