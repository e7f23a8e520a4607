"""The load test and the fuzzer can fail; at length they are run by hand."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vega_policy.deploy.codec import pack
from vega_policy.testing.fake_policy import FakePolicy

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def load():
    sys.path.insert(0, str(SCRIPTS))
    try:
        spec = importlib.util.spec_from_file_location("load_script", SCRIPTS / "load.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["load_script"] = module  # dataclasses look there
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(SCRIPTS))


def run(script, *settings):
    command = [sys.executable, str(SCRIPTS / script), *settings]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_an_answer_to_another_observation_or_request_is_noticed(load):
    cases = load.make_cases(FakePolicy(), {"seed": 0, "image_px": 32, "observations": 4})

    def judged(actions, request_id="mine", **more):
        reply = {
            "actions": actions,
            "server_timing": {"batch": 1},
            "vega": {"request_id": request_id},
        }
        return load.judge(pack({**reply, **more}), "mine", cases[1], cases, load.Tally())

    assert judged(cases[1].actions) == "right"
    assert judged(cases[2].actions) == "crossed"
    assert judged(cases[1].actions, request_id="another's") == "crossed"
    assert judged(np.zeros((8, 7), np.float32)) == "wrong"
    refusal = pack({"vega": {"request_id": "mine", "refused": "busy"}})
    assert load.judge(refusal, "mine", cases[1], cases, load.Tally()) == "refused"
    assert load.judge("a traceback", "mine", cases[1], cases, load.Tally()) == "refused"


def test_load_counts_every_request_and_the_server_the_same():
    ended = run("load.py", "load.seconds=0.5", "load.clients=3", "load.image_px=32")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["right"] == found["requests"] == found["server"]["requests"] > 3
    assert ended.stdout.startswith("| clients | seconds |")


def test_the_fuzzer_reports_what_is_too_much():
    ended = run("fuzz.py", "fuzz.frames=200", "fuzz.max_peak_mb=-1000.0", "fuzz.raw_every=20")
    assert ended.returncode == 1
    assert "the server's peak is" in ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["problems"] == [p for p in found["problems"] if "peak" in p]
    assert found["decoder"]["refused"] > 50
    assert found["server"]["refused and closed"] > 50
    assert found["server"]["robot_answers"] > 0
