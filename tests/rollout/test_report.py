"""The report bounds what it embeds, and says what is missing."""

import json

import numpy as np
import pytest

from vega_policy.rollout import charts
from vega_policy.rollout.doctor import Verdict
from vega_policy.rollout.gate_map import GateTrace, colours, overlay
from vega_policy.rollout.ledger import Ledger, RunHeader
from vega_policy.rollout.plan import Job, Plan
from vega_policy.rollout.report import write_report
from vega_policy.rollout.report.robustness import clusters
from vega_policy.rollout.video import film, first_frame, write_mp4
from vega_policy.spec import CAMERAS, Check, EpisodeKey, EpisodeResult

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


def grouped(run_dir, won, *, doctor=None, verdict=None, **plan):
    """Write a run in which `won` says who wins what, and return its page."""
    asked = Plan(suite="s", tasks={0: "pick", 1: "place"}, init_state_ids=(0, 1, 2, 3), **plan)
    header = RunHeader(
        defines={"suite": "s"},
        versions={},
        plans=[asked.to_json()],
        configuration={},
        doctor=doctor or {},
    )
    with Ledger.open(run_dir, header) as ledger:
        if verdict is not None:
            verdict.save(run_dir)
        for job in asked.jobs():
            ledger.append(
                EpisodeResult(
                    key=job.key,
                    arm=job.arm,
                    outcome="success" if won(job) else "failure",
                    n_steps=10,
                    n_chunks=2,
                    state_sha256="",
                    wall_s=1.0,
                    info={"run": {"wait_ms": [4.0, 6.0], "policy_ms": [{"total": 3.0}]}},
                )
            )
    return write_report(run_dir).read_text()


def between(text, start, end):
    return text[text.index(start) : text.index(end, text.index(start))]


def test_the_headline_counts_the_clean_episodes_of_the_full_arm_alone(tmp_path):
    text = grouped(
        tmp_path,
        lambda job: (job.arm, job.key.perturbation) == ("full", "none"),
        perturbations=("wind-1", "none"),
        arms=("gate_clamped", "full"),
    )
    assert "8 of 8 clean episodes, full policy, succeeded" in text
    assert "24 further episodes of other arms or perturbations are not in" in text
    assert ">4 / 4<" in between(text, 'id="results"', 'id="arms"')
    assert "4 / 8" not in text


def test_a_run_without_clean_episodes_says_what_its_headline_counts(tmp_path):
    text = grouped(tmp_path, lambda _: True, perturbations=("pro_lan",))
    assert "8 of 8 LIBERO-PRO language episodes, full policy, succeeded" in text
    assert 'id="robustness"' not in text


def test_arms_are_compared_on_the_same_episodes(tmp_path):
    text = grouped(tmp_path, lambda job: job.arm == "full", arms=("full", "gate_clamped"))
    part = between(text, 'id="arms"', 'id="timing"')
    assert "What the trained policy takes from the prior" in part
    assert "<b>+100.0 points</b>" in part
    assert "The two are separated (p = 0.0078)" in part  # 2 * 0.5**8
    assert part.count("not separated") == 2  # 4 pairs of a task cannot tell
    assert "8 : 0" in part


def test_equal_arms_are_not_separated_rather_than_equal(tmp_path):
    text = grouped(tmp_path, lambda _: True, arms=("full", "gate_clamped"))
    assert "The two are not separated" in between(text, 'id="arms"', 'id="timing"')
    assert "do not tell" in text


def test_perturbed_episodes_are_paired_with_their_clean_ones(tmp_path):
    text = grouped(
        tmp_path,
        lambda job: job.key.perturbation == "none" or job.key.init_state_id == 0,
        perturbations=("none", "camera-2", "camera-1"),
    )
    part = between(text, 'id="robustness"', 'id="timing"')
    assert part.count("&minus;75.0") == 2
    assert part.count(">0.062<") == 2  # 2 * 0.5**6, twice that after Holm
    assert "2 of 8" in between(part, "<svg", "</svg>")
    assert part.index(">camera 2<") < part.index(">camera 1<")  # rows as they were asked for


def test_levels_stand_in_order_and_kinds_together():
    names = ["pro_lan", "camera-3", "camera-1", "robot_start-2", "pro_swap", "sampled_start"]
    assert clusters(names) == [
        ("LIBERO-PRO", [("lan", "pro_lan"), ("swap", "pro_swap")]),
        ("camera", [("1", "camera-1"), ("3", "camera-3")]),
        ("robot start", [("2", "robot_start-2")]),
        ("sampled start", [("", "sampled_start")]),
    ]


def test_a_forced_preflight_and_a_missing_one_are_said_at_the_top(tmp_path):
    check = Check(
        area="simulator", name="gl", status="failed", found="<none>", expected="a", fix="do so"
    )
    forced = Verdict(checks=(check,), is_forced=True)
    good = Verdict(checks=(Check(area="policy", name="crop", status="ok", found="fine"),))
    bad = grouped(tmp_path / "a", lambda _: True, doctor=forced.short, verdict=forced)
    assert "The preflight failed and the run was" in bad[: bad.index('id="results"')]
    assert "&lt;none&gt;" in bad
    assert "do so" in bad
    none = grouped(tmp_path / "b", lambda _: True)
    assert "No preflight was made." in none
    assert 'id="preflight"' not in none
    fine = grouped(tmp_path / "c", lambda _: True, doctor=good.short, verdict=good)
    assert 'class="banner' not in fine
    assert "1 check before the latest" in fine


def test_repetitions_have_a_square_each(tmp_path):
    text = grouped(tmp_path, lambda job: job.key.repetition == 0, repetitions=2)
    assert text.count('<a class="success"') == text.count('<a class="failure"') == 8
    assert "initial state 3, repetition 1: failure" in text


def test_a_histogram_marks_where_half_and_nearly_all_lie():
    drawn = charts.histogram([float(v) for v in range(101)], unit="ms")
    for text in ("median 50.0", "90 % 90.0", "99 % 99.0", "101 inferences"):
        assert text in drawn
    assert "beyond" not in drawn
    assert "1 beyond the axis" in charts.histogram([1.0] * 200 + [900.0], unit="ms")
    drawn = charts.histogram([1.0] * 95 + [900.0] * 5, unit="ms")
    assert "99 % 900.0 &rarr;" in drawn
    assert "5 beyond the axis" in drawn
    assert "median 0.0" in charts.histogram([0.0], unit="ms")


def test_shares_add_up():
    drawn = charts.shares({"a": 1.0, "<b>": 3.0}, unit="s")
    assert "25.0 %" in drawn
    assert "75.0 %" in drawn
    assert "<b>" not in drawn
