"""The parts of a run are the run, and parts that contradict each other are not united."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from vega_policy.rollout.ledger import Ledger, RunHeader, planned, read_header, read_rows
from vega_policy.rollout.merge import merge
from vega_policy.rollout.plan import Plan
from vega_policy.spec import ContractError, EpisodeResult

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "merge.py"
WHOLE = Plan(suite="s", tasks={0: "pick", 1: "place"}, init_state_ids=(0, 1, 2), arms=("full", "b"))


def header(plan, **changes):
    values = {
        "defines": {"suite": "s", "seed": 0, "checkpoint_sha256": "abc"},
        "versions": {"mujoco": "2.3.7"},
        "plans": [plan.to_json()],
        "configuration": {},
        "host": {"cpu_class": "x86_64 avx2 fma"},
        "created": "2026-01-01",
    }
    return RunHeader(**{**values, **changes})


def row(job, *, wall_s=1.0, state="0"):
    return EpisodeResult(
        key=job.key,
        arm=job.arm,
        outcome="success",
        n_steps=10,
        n_chunks=2,
        state_sha256=state * 64,
        wall_s=wall_s,
        info={"trace": f"traces/{job.name}.npz", "run": {"attempt": 1, "reset_s": wall_s}},
    )


def make_run(folder, plan, rows=None, **changes):
    with Ledger.open(folder, header(plan, **changes)) as ledger:
        for job in plan.jobs() if rows is None else ():
            (folder / "traces").mkdir(exist_ok=True)
            (folder / "traces" / f"{job.name}.npz").write_bytes(job.name.encode())
            ledger.append(row(job))
        for one in rows or ():
            ledger.append(one)
        ledger.note_start({"wall_s": 2.0, "episodes": len(ledger.rows), "control_steps": 9})
    return folder


@pytest.fixture
def parts(tmp_path):
    plans = [dataclasses.replace(WHOLE, shard=(i, 3)) for i in range(3)]
    return [make_run(tmp_path / f"part{i}", plan) for i, plan in enumerate(plans)]


def test_parts_are_disjoint_whole_and_keep_pairs_together():
    jobs = [dataclasses.replace(WHOLE, shard=(i, 4)).jobs() for i in range(4)]
    assert sorted(j for part in jobs for j in part) == sorted(WHOLE.jobs())
    assert all(
        {(j.key, arm) for j in part for arm in WHOLE.arms} == {(j.key, j.arm) for j in part}
        for part in jobs
    )


def test_all_parts_are_the_whole_run(parts, tmp_path):
    out = tmp_path / "whole"
    merged = merge(parts, out)
    assert (merged.n_rows, merged.n_duplicates, merged.missing, merged.warnings) == (12, 0, (), ())
    assert sorted(r.name for r in read_rows(out)) == sorted(j.name for j in WHOLE.jobs())
    assert read_header(out).plans == [json.loads(json.dumps(WHOLE.to_json()))]
    for one in read_rows(out):
        assert (out / one.info["trace"]).read_bytes() == one.name.encode()
    assert merged.report.is_file()


def test_a_missing_part_is_missing_rows(parts, tmp_path):
    make_run(tmp_path / "more", dataclasses.replace(WHOLE, shard=(2, 3)), rows=[])
    merged = merge([*parts[:2], tmp_path / "more"], tmp_path / "whole")
    assert merged.n_rows == 8
    assert set(merged.missing) == set(dataclasses.replace(WHOLE, shard=(2, 3)).jobs())
    assert planned(read_header(tmp_path / "whole")) == WHOLE.jobs()


@pytest.mark.parametrize("n_kept", [0, 3, 11])
def test_a_merge_that_was_cut_short_is_completed(parts, tmp_path, n_kept):
    whole, again = tmp_path / "whole", tmp_path / "again"
    merge(parts, whole)
    lines = (whole / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    again.mkdir()
    (again / "ledger.jsonl").write_bytes(b"".join(lines[:n_kept]) + lines[n_kept][:20])
    (again / "run.json").write_bytes((whole / "run.json").read_bytes())
    for _ in range(2):
        assert merge(parts, again).n_rows == 12
        for name in ("ledger.jsonl", "run.json", "starts.jsonl"):
            assert (again / name).read_bytes() == (whole / name).read_bytes()


def test_equal_duplicates_are_kept_once(parts, tmp_path):
    jobs = WHOLE.jobs()
    slower = [row(job, wall_s=9.0) for job in jobs[:4]]
    make_run(tmp_path / "twice", WHOLE, rows=slower)
    merged = merge([*parts, tmp_path / "twice"], tmp_path / "whole")
    assert (merged.n_rows, merged.n_duplicates) == (12, 4)


def test_contradictions_are_refused_by_name_and_nothing_is_written(parts, tmp_path):
    job = WHOLE.jobs()[3]
    make_run(tmp_path / "other", WHOLE, rows=[row(job, state="1")])
    with pytest.raises(ContractError) as caught:
        merge([*parts, tmp_path / "other"], tmp_path / "whole")
    assert job.name in str(caught.value)
    assert "state_sha256" in str(caught.value)
    assert not (tmp_path / "whole").exists()


def test_runs_with_other_settings_are_refused(parts, tmp_path):
    make_run(tmp_path / "other", WHOLE, rows=[], versions={"mujoco": "3.2.0"})
    with pytest.raises(ContractError, match=r"other: version of mujoco: .*'2\.3\.7'.*'3\.2\.0'"):
        merge([*parts, tmp_path / "other"], tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
    with pytest.raises(ContractError, match="named twice"):
        merge([parts[0], parts[0]], tmp_path / "whole")
    with pytest.raises(ContractError, match="is not a run"):
        merge([parts[0], tmp_path / "nowhere"], tmp_path / "whole")


def test_other_processors_and_lost_files_are_said(parts, tmp_path):
    one = WHOLE.jobs()[0]
    make_run(tmp_path / "arm", WHOLE, rows=[row(one)], host={"cpu_class": "aarch64"})
    Path(parts[0] / "traces" / f"{one.name}.npz").unlink()
    merged = merge([*parts, tmp_path / "arm"], tmp_path / "whole")
    assert "aarch64" in merged.warnings[0]
    assert one.name in merged.warnings[1]


def test_the_script_takes_any_number_of_runs(parts, tmp_path):
    def script(*arguments):
        return subprocess.run(
            [sys.executable, str(SCRIPT), *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
        )

    done = script(*parts, f"out={tmp_path / 'whole'}")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["episodes"], said["missing"], said["duplicates"]) == (12, 0, 0)
    refused = script(parts[0], f"out={tmp_path / 'whole'}", "sorces=1")
    assert refused.returncode == 2
    assert "did you mean 'sources'" in refused.stderr
