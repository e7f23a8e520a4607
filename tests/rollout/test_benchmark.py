"""Both loops are asked the same questions, and building a scene is not throughput."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vega_policy.rollout.benchmark import WatchedPolicy, _steps_per_s, averaged, official_key, play
from vega_policy.rollout.plan import inference_key
from vega_policy.spec import EpisodeKey, EpisodeResult
from vega_policy.testing.fake_env import FakeEnv
from vega_policy.testing.fake_policy import FakePolicy

ROOT = Path(__file__).resolve().parents[2]


def test_averaging_keeps_the_mean_and_refuses_what_does_not_divide():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    small = averaged(image, 4)
    assert np.array_equal(small[1, 2], np.rint(image[2:4, 4:6].mean(axis=(0, 1))).astype(np.uint8))
    with pytest.raises(ValueError, match="no multiple"):
        averaged(image, 3)


def test_the_official_loop_asks_with_the_same_keys():
    assert official_key("s", 3, 1, 7) == inference_key(EpisodeKey("s", 3, 1), 7)


def test_the_rate_leaves_out_building_and_the_idle_end():
    def row(build_s, wall_s):
        return EpisodeResult(
            key=EpisodeKey("s", 0, 0),
            outcome="success",
            n_steps=80,
            n_chunks=10,
            state_sha256="",
            wall_s=wall_s,
            info={"run": {"build_s": build_s}},
        )

    # One worker: built from 0 to 5, episodes of 2 s; then another scene from 9 to 12.
    rows = [row(5.0, 7.0), row(0.0, 2.0), row(3.0, 5.0), row(0.0, 2.0)]
    ends = [7.0, 9.0, 14.0, 16.0]
    moments = [5.0, 7.0, 12.0, 14.0]
    asked = [(begin + 0.2 * i, 1) for begin in moments for i in range(10)]
    # From 5 to 14 three episodes of 80 steps, 3 s of building taken off.
    assert _steps_per_s(rows, ends, asked, 1) == pytest.approx(240 / 6)


def test_the_states_of_an_episode_do_not_depend_on_the_workers(tmp_path):
    keys = [EpisodeKey("fake_reach", t, i) for t in range(2) for i in range(4)]
    one, two = (
        play(
            policy=WatchedPolicy(FakePolicy()),
            make_simulator=_SlowToBuild,
            keys=keys,
            n_workers=n,
            run_dir=tmp_path / str(n),
        )
        for n in (1, 2)
    )
    assert set(one.digests) == set(keys)
    assert all(np.array_equal(one.digests[k], two.digests[k]) for k in keys)


class _SlowToBuild(FakeEnv):
    def __init__(self, **kwargs):
        import time

        time.sleep(0.25)
        super().__init__(step_s=0.01, **kwargs)


@pytest.mark.sim
@pytest.mark.slow
def test_the_script_finds_equal_states():
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "scripts" / "benchmark.py"),
            "benchmark.episodes=2",
            "benchmark.workers=[1,2]",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["agrees"]
    assert result["ratio"] > 1
