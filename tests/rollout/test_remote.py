"""A rollout through a server is the rollout without one."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from vega_policy.deploy.client import RemotePolicy
from vega_policy.deploy.wire import EXTRAS_KEY
from vega_policy.rollout.ledger import read_header, read_rows
from vega_policy.spec import CAMERAS, ContractError, EnvFault, Observation
from vega_policy.testing.fake_policy import FakePolicy
from vega_policy.testing.fake_server import FakeServer

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


def script(name, *settings, env=None):
    return subprocess.run(
        [sys.executable, f"scripts/{name}", *settings],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(env or {})},
    )


def rollout(out_dir, *settings, env=None):
    ended = script("rollout.py", f"out_dir={out_dir}", *settings, env=env)
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
    assert read_header(tmp_path / "there").configuration["checkpoint"] == "fake"
    compared = script("compare.py", str(tmp_path / "there"), str(tmp_path / "here"))
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
            [*command, f"policy.url={url}", "policy.timeout_s=5.0", "policy.patience_s=0.0"],
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


def test_a_recorded_episode_is_played_again_with_the_servers_answers(tmp_path):
    with server(tmp_path, "checkpoint=fake") as (_, url):
        code, _, said = rollout(tmp_path, *FAKE, "name=run", "policy=remote", f"policy.url={url}")
        assert code == 0, said
        name = read_rows(tmp_path / "run")[0].name
        done = script("replay.py", str(tmp_path / "run"), name, "mode=policy")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["agrees"]


def test_the_servers_key_comes_from_the_environment_and_goes_into_no_record(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-sixteen-letters-or-more\n")
    keys.chmod(0o600)
    asked = (*FAKE, "name=run", "policy=remote", "rollout.preflight=false")
    with server(tmp_path, "checkpoint=fake", f"serve.api_keys_file={keys}") as (_, url):
        code, _, said = rollout(tmp_path, *asked, f"policy.url={url}")
        assert code == 2
        assert "refused the connection (HTTP 401" in said
        key = {"VEGA_API_KEY": keys.read_text().strip()}
        code, _, said = rollout(tmp_path, *asked, f"policy.url={url}", env=key)
        assert code == 0, said
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 8
    assert not any(keys.read_bytes().strip() in path.read_bytes() for path in files)


class Serving(FakeServer):
    """Says which checkpoint it has."""

    def __init__(self, checkpoint, **options):
        self._checkpoint = checkpoint
        super().__init__(FakePolicy(), **options)

    def metadata(self):
        said = super().metadata()
        said[EXTRAS_KEY]["checkpoint_sha256"] = self._checkpoint
        return said


SEEN = Observation(
    images={c: np.zeros((32, 32, 3), np.uint8) for c in CAMERAS},
    proprio=np.zeros(8, np.float32),
    instruction="reach the red block",
)


def test_a_server_that_comes_back_in_time_is_asked_again():
    [expected] = FakePolicy().act([SEEN], keys=[5])
    with Serving("abc") as first:
        port = first.port
        policy = RemotePolicy(first.url, patience_s=120.0)
        policy.connect()
    found = []
    asking = threading.Thread(target=lambda: found.extend(policy.act([SEEN], keys=[5])))
    asking.start()
    with Serving("abc", port=port):
        asking.join(120)
    policy.close()
    assert np.array_equal(found[0].actions, expected.actions)


def test_a_server_that_stays_away_is_a_fault_after_a_while():
    with Serving("abc") as server:
        policy = RemotePolicy(server.url, patience_s=0.2)
        policy.connect()
    with pytest.raises(EnvFault, match="cannot be reached"):
        policy.act([SEEN], keys=[0])
    policy.close()


def test_rows_of_two_checkpoints_are_never_mixed():
    with Serving("abc") as first:
        policy = RemotePolicy(first.url, patience_s=60.0)
        policy.connect()
        policy.act([SEEN], keys=[0])
        port = first.port
    with Serving("def", port=port):
        with pytest.raises(ContractError, match="another checkpoint than before"):
            policy.act([SEEN], keys=[0])
        policy.close()


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        (("policy=remote", "policy.url=ws://127.0.0.1:9"), "scripts/serve.py"),
        (("policy=remote", "policy.url=http://x"), "ws://"),
        (("policy=remote", "rollout.arms=[full,gate_clamped]"), "decided where the policy is"),
        (("policy=remote", "rollout.engine=ray"), "needs no cluster"),
        (("policy=nano",), "unknown policy 'nano'; valid: checkpoint, remote"),
    ],
)
def test_what_cannot_be_asked_of_a_remote_policy_is_one_sentence(tmp_path, settings, advice):
    code, _, said = rollout(tmp_path, *FAKE, "name=run", *settings)
    assert code == 2
    assert advice in said
    assert not (tmp_path / "run").exists()
