"""Success against latency: every point is a rollout of its own, continued like any other."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vega_policy.rollout.latency import Cell, Measured, cells, plot, table
from vega_policy.rollout.ledger import read_header, read_rows
from vega_policy.rollout.statistics import tally
from vega_policy.spec import ContractError

ROOT = Path(__file__).resolve().parents[2]


def latency(out, *overrides):
    return subprocess.run(
        [
            *(sys.executable, "scripts/latency.py", "suite=fake_reach", "checkpoint=fake"),
            *("rollout.tasks=[0]", "rollout.preflight=false", "rollout.progress=false"),
            *("latency.latencies_ms=[0.0,100.0]", "latency.schedules=[open_loop,asynchronous]"),
            *(f"latency.out={out}", *overrides),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("latency")
    done = latency(out, "rollout.n_execute=4", "rollout.blend=0.5")
    assert done.returncode == 0, done.stderr
    return out, done


def test_every_combination_is_a_run_with_its_own_schedule_and_latency(measured):
    out, done = measured
    answer = json.loads(done.stdout.splitlines()[-1])
    assert (answer["cells"], answer["episodes"], answer["missing"]) == (4, 8, 0)
    late = read_header(out / "asynchronous-100ms").defines
    assert late["latency_ms"] == 100
    assert late["schedule"]["ask_every"] == 4
    assert late["schedule"]["blend"] == 0.5
    plain = read_header(out / "open_loop-0ms").defines
    assert plain["n_execute"] == 4
    assert not {"schedule", "latency_ms"} & set(plain)


def test_the_numbers_are_those_of_the_ledgers(measured):
    out, done = measured
    points = json.loads((out / "latency.json").read_text())
    assert len(points) == 4
    for point in points:
        rows = read_rows(out / f"{point['schedule']}-{point['latency_ms']:g}ms")
        won = [row.n_steps for row in rows if row.outcome == "success"]
        assert (point["successes"], point["episodes"]) == (len(won), len(rows))
        assert point["mean_steps"] == (sum(won) / len(won) if won else None)
        held = sum(row.info.get("holds", 0) for row in rows) / sum(row.n_steps for row in rows)
        assert point["held"] == round(held, 4)
        assert point["schedule"] in done.stdout
    assert (out / "latency.png").read_bytes().startswith(b"\x89PNG")


def test_started_again_it_plays_only_what_is_missing(measured):
    out, first = measured
    ledgers = {path: path.read_bytes() for path in out.glob("*/ledger.jsonl")}
    again = latency(
        out, "rollout.n_execute=4", "rollout.blend=0.5", "latency.latencies_ms=[0.0,100.0,150.0]"
    )
    assert again.returncode == 0, again.stderr
    assert len(ledgers) == 4
    assert all(path.read_bytes() == kept for path, kept in ledgers.items())
    assert len(list(out.glob("*/ledger.jsonl"))) == 6
    assert json.loads(again.stdout.splitlines()[-1])["episodes"] == 12
    assert json.loads(first.stdout.splitlines()[-1])["episodes"] == 8


@pytest.mark.parametrize(
    ("setting", "advice"),
    [
        ("rollout.latency_ms=50", "set latency.schedules and latency.latencies_ms"),
        ("latency.schedules=[open_lop]", "did you mean 'open_loop'"),
        ("latency.latencies_ms=[]", "list at least one each"),
        ("latency.latencies_ms=[-50.0]", "none below 0"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence_and_nothing_is_written(tmp_path, setting, advice):
    done = latency(tmp_path / "out", setting)
    assert done.returncode == 2
    assert advice in done.stderr
    assert not (tmp_path / "out").exists()


def test_no_combination_is_refused():
    with pytest.raises(ContractError, match="at least one each"):
        cells([], [0.0])


def test_a_point_without_an_episode_is_drawn_too(tmp_path):
    nothing = tally([])
    found = [
        Measured(cell=Cell(schedule="ensemble", latency_ms=400.0), tally=nothing, held=1.0),
    ]
    assert "0 / 0" in table(found)
    plot(found, tmp_path / "plot.png", gap_free_ms=200.0, title="none")
    assert (tmp_path / "plot.png").stat().st_size > 0
