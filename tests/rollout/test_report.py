"""The report bounds what it embeds, and says what is missing."""

import json

import numpy as np
import pytest

from vega_policy.rollout.gate_map import GateTrace, colours, overlay
from vega_policy.rollout.ledger import Ledger, RunHeader
from vega_policy.rollout.plan import Job, Plan
from vega_policy.rollout.report import write_report
from vega_policy.rollout.video import film, first_frame, write_mp4
from vega_policy.spec import CAMERAS, EpisodeKey, EpisodeResult

HEADER = RunHeader(
    defines={"suite": "s", "seed": 0},
    versions={"mujoco": "2.3.7"},
    plans=[
        Plan(suite="s", tasks={0: "pick_<b>it</b>", 1: "place"}, init_state_ids=(0, 1, 2)).to_json()
    ],
    configuration={"name": "a"},
)


def row(task_id, init_state_id, outcome="success"):
    key = EpisodeKey("s", task_id, init_state_id)
    return EpisodeResult(
        key=key,
        outcome=outcome,
        n_steps=10,
        n_chunks=2,
        state_sha256="",
        wall_s=1.0,
        detail="<oops>" if outcome == "policy_fault" else "",
        info={"video": f"videos/{key.name()}.mp4"},
    )


@pytest.fixture
def run_dir(tmp_path):
    with Ledger.open(tmp_path, HEADER) as ledger:
        for outcome in (row(0, 0), row(0, 1), row(1, 0, "failure"), row(1, 1, "policy_fault")):
            ledger.append(outcome)
            frame = np.zeros((64, 128, 3), np.uint8)
            write_mp4(tmp_path / outcome.info["video"], [frame] * 3, fps=5)
        ledger.note_fault(Job(EpisodeKey("s", 0, 2)), attempt=1, detail="no <display>")
    return tmp_path


def test_failures_are_embedded_first_and_the_rest_is_linked(run_dir, monkeypatch):
    monkeypatch.setattr("vega_policy.rollout.report.episodes.MAX_EMBEDDED", 3)
    text = write_report(run_dir).read_text()
    assert text.count("<video") == 3
    linked = [r for r in (row(0, 0), row(0, 1)) if f'href="{r.info["video"]}"' in text]
    assert linked == [row(0, 1)]


def test_missing_episodes_are_said_and_text_is_escaped(run_dir):
    text = write_report(run_dir).read_text()
    assert "2 of 6 planned episodes have no row" in text
    assert "no &lt;display&gt;" in text
    assert "&lt;oops&gt;" in text
    assert "<b>it</b>" not in text


def test_an_empty_run_has_a_report(tmp_path):
    Ledger.open(tmp_path, HEADER).close()
    assert "0 of 0 episodes" in write_report(tmp_path).read_text()


def test_videos_play_and_end_in_the_colour_of_the_outcome(tmp_path):
    rng = np.random.default_rng(0)
    images = [{c: rng.integers(0, 255, (32, 32, 3), np.uint8) for c in CAMERAS} for _ in range(4)]
    gates = [{c: rng.random((8, 8), np.float32) for c in CAMERAS} for _ in range(4)]
    frames = film(images, gates, cameras=CAMERAS, outcome="success")
    assert {f.shape for f in frames} == {(128, 128, 3)}
    write_mp4(tmp_path / "a.mp4", frames, fps=5)
    red, green, blue = frames[-1][0, 0]
    assert green > red
    assert green > blue
    shown = first_frame(tmp_path / "a.mp4")
    assert shown is not None
    assert shown.shape == (128, 128, 3)
    assert film(images, [None] * 4, cameras=("wrist",), outcome="failure")[0].shape == (64, 64, 3)


def test_gate_traces_come_back_without_pickle(tmp_path):
    gates = [{"wrist": np.full((2, 2), i / 4, np.float32)} for i in range(4)]
    images = [{"wrist": np.full((8, 8, 3), i, np.uint8), "agentview": None} for i in range(4)]
    trace = GateTrace.of(gates, images)
    assert trace is not None
    trace.save(tmp_path / "a.npz")
    back = GateTrace.load(tmp_path / "a.npz")
    assert back.cameras == ("wrist",)
    assert np.array_equal(back.gates, trace.gates)
    assert int(back.images[0, 0, 0, 0]) == back.moment == 1
    assert GateTrace.of([], []) is None


def test_brighter_is_higher():
    weights = np.array([0.299, 0.587, 0.114])
    ramp = colours(np.linspace(0, 1, 50)) @ weights
    assert (np.diff(ramp) > 0).all()
    image = np.zeros((16, 16, 3), np.uint8)
    drawn = overlay(image, np.array([[0.2, 0.2], [0.2, 0.9]]), low=0.2, high=0.9)
    assert drawn[12, 12].sum() > drawn[0, 0].sum()
    assert json.dumps(drawn.shape) == "[16, 16, 3]"
