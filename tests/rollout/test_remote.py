"""A rollout through a server is the rollout without one."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from vega_policy.rollout.ledger import read_header, read_rows

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def server(tmp_path, *settings):
    port_file = tmp_path / "url"
    with (tmp_path / "server.log").open("w") as log:
        running = subprocess.Popen(
            [
                *(sys.executable, "scripts/serve.py", "serve.port=0"),
                *(f"serve.port_file={port_file}", *settings),
            ],
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 120
        while not port_file.exists():
            assert running.poll() is None, (tmp_path / "server.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield running, port_file.read_text().strip()
    finally:
        running.kill()
        running.wait()


def rollout(out_dir, *settings, env=None):
    command = [sys.executable, "scripts/rollout.py", f"out_dir={out_dir}", *settings]
    ended = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(env or {})},
    )
    return ended.returncode, ended.stdout, ended.stderr


def timeless(run_dir):
    rows = {}
    for row in read_rows(run_dir):
        values = row.to_json()
        del values["wall_s"], values["info"]["run"], values["made_with"]
        rows[row.name] = values
    return rows


FAKE = (
    *("suite=fake_reach", "rollout.tasks=[0,3]", "rollout.init_states=2"),
    "rollout.camera_px=128",  # this policy takes any size, so a server cannot say it
)


def test_rows_through_a_server_are_those_of_the_policy_in_this_process(tmp_path):
    with server(tmp_path, "checkpoint=fake") as (_, url):
        code, out, said = rollout(
            tmp_path, *FAKE, "name=there", "policy=remote", f"policy.url={url}"
        )
        assert code == 0, said
        assert json.loads(out.splitlines()[-1])["episodes"] == 4
    code, _, said = rollout(tmp_path, *FAKE, "name=here", "checkpoint=fake")
    assert code == 0, said
    assert timeless(tmp_path / "there") == timeless(tmp_path / "here")
    assert len(timeless(tmp_path / "there")) == 4
    compared = subprocess.run(
        [sys.executable, "scripts/compare.py", str(tmp_path / "there"), str(tmp_path / "here")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert compared.returncode == 0, compared.stderr


@pytest.mark.sim
def test_the_shipped_policy_moves_the_real_simulator_alike_through_a_server(tmp_path):
    settings = (
        *("suite=libero_object", "rollout.tasks=[3]", "rollout.init_states=1"),
        *("rollout.max_steps=16", "rollout.preflight=false", "rollout.workers=1"),
    )
    with server(tmp_path, "checkpoint=nano-libero-object") as (_, url):
        code, _, said = rollout(
            tmp_path, *settings, "name=there", "policy=remote", f"policy.url={url}"
        )
        assert code == 0, said
    code, _, said = rollout(tmp_path, *settings, "name=here")
    assert code == 0, said
    assert timeless(tmp_path / "there") == timeless(tmp_path / "here")
    there, here = (read_header(tmp_path / name).defines for name in ("there", "here"))
    assert there == here


def test_a_server_that_is_lost_is_no_failed_episode_and_the_run_goes_on_later(tmp_path):
    many = ("suite=fake_reach", "rollout.init_states=20", "name=run", "policy=remote")
    with server(tmp_path, "checkpoint=fake") as (running, url):
        command = [sys.executable, "scripts/rollout.py", f"out_dir={tmp_path}", *many]
        playing = subprocess.Popen(
            [*command, f"policy.url={url}", "policy.timeout_s=5.0"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        ledger = tmp_path / "run" / "ledger.jsonl"
        deadline = time.monotonic() + 120
        while not ledger.exists() or ledger.read_text().count("\n") < 5:
            assert playing.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        running.send_signal(signal.SIGKILL)
        _, said = playing.communicate(timeout=120)
    assert playing.returncode == 1
    assert "no episode was counted for it" in said
    before = timeless(tmp_path / "run")
    assert 0 < len(before) < 200
    assert all(row["outcome"] != "policy_fault" for row in before.values())
    (tmp_path / "url").unlink()
    with server(tmp_path, "checkpoint=fake") as (_, url):
        code, _, said = rollout(tmp_path, *many, f"policy.url={url}")
    assert code == 0, said
    after = timeless(tmp_path / "run")
    assert len(after) == 200
    assert before.items() <= after.items()


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        (("policy=remote", "policy.url=ws://127.0.0.1:9"), "scripts/serve.py"),
        (("policy=remote", "policy.url=http://x"), "ws://"),
        (("policy=remote", "rollout.arms=[full,gate_clamped]"), "decided where the policy is"),
        (("policy=remote", "rollout.engine=ray"), "needs no cluster"),
        (("policy=nano",), "describe models to train"),
    ],
)
def test_what_cannot_be_asked_of_a_remote_policy_is_one_sentence(tmp_path, settings, advice):
    code, _, said = rollout(tmp_path, *FAKE, "name=run", *settings)
    assert code == 2
    assert advice in said
    assert not (tmp_path / "run").exists()
