"""A row that was reported is never lost, and a half-written one never counts."""

import dataclasses

import pytest

from vega_policy.rollout.ledger import (
    ROWS,
    Ledger,
    RunHeader,
    planned,
    read_header,
    read_rows,
    task_names,
)
from vega_policy.rollout.plan import Plan
from vega_policy.spec import ContractError, EpisodeKey, EpisodeResult

PLAN = Plan(suite="s", tasks={0: "pick"}, init_state_ids=(0, 1))
HEADER = RunHeader(
    defines={"suite": "s", "seed": 0, "checkpoint_sha256": "abc"},
    versions={"mujoco": "2.3.7"},
    plans=[PLAN.to_json()],
    configuration={"name": "a"},
    created="2026-01-01",
)


def row(init_state_id):
    return EpisodeResult(
        key=EpisodeKey("s", 0, init_state_id),
        outcome="success",
        n_steps=10,
        n_chunks=2,
        state_sha256="0" * 64,
        wall_s=1.5,
        info={"gate_mean": {"wrist": [0.5]}},
    )


def test_rows_come_back_as_they_were_written(tmp_path):
    with Ledger.open(tmp_path / "run", HEADER) as ledger:
        ledger.append(row(0))
        ledger.append(row(1))
    assert read_rows(tmp_path / "run") == [row(0), row(1)]


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_a_torn_last_line_is_cut_off_and_its_episode_is_played_again(tmp_path, kept):
    with Ledger.open(tmp_path, HEADER) as ledger:
        ledger.append(row(0))
        ledger.append(row(1))
    first, second = (tmp_path / ROWS).read_bytes().splitlines(keepends=True)
    (tmp_path / ROWS).write_bytes(first + second[:kept])
    assert read_rows(tmp_path) == [row(0)]
    with Ledger.open(tmp_path, HEADER) as ledger:
        assert ledger.rows == [row(0)]
        ledger.append(row(1))
    assert read_rows(tmp_path) == [row(0), row(1)]


def test_damage_in_the_middle_is_reported_and_not_repaired(tmp_path):
    with Ledger.open(tmp_path, HEADER) as ledger:
        ledger.append(row(0))
        ledger.append(row(1))
    content = (tmp_path / ROWS).read_bytes()
    (tmp_path / ROWS).write_bytes(b"x" + content)
    with pytest.raises(ContractError, match="line 1 is damaged"):
        Ledger.open(tmp_path, HEADER)
    assert (tmp_path / ROWS).read_bytes() == b"x" + content


def test_an_episode_is_recorded_once(tmp_path):
    with Ledger.open(tmp_path, HEADER) as ledger:
        ledger.append(row(0))
        with pytest.raises(ValueError, match="already"):
            ledger.append(row(0))


def test_other_settings_are_refused_with_all_of_them_listed(tmp_path):
    Ledger.open(tmp_path, HEADER).close()
    before = (tmp_path / "run.json").read_bytes()
    other = dataclasses.replace(
        HEADER,
        defines={"suite": "s", "seed": 1, "checkpoint_sha256": "def"},
        versions={"mujoco": "3.2.0"},
    )
    with pytest.raises(ContractError) as caught:
        Ledger.open(tmp_path, other)
    for part in ("seed", "checkpoint_sha256", "version of mujoco", "'2.3.7'", "another name"):
        assert part in str(caught.value)
    assert (tmp_path / "run.json").read_bytes() == before


def test_more_tasks_and_states_extend_a_run(tmp_path):
    Ledger.open(tmp_path, HEADER).close()
    more = Plan(suite="s", tasks={3: "place"}, init_state_ids=(1, 2))
    again = [PLAN.to_json(), more.to_json()]
    for plans in ([more.to_json()], again):
        Ledger.open(tmp_path, dataclasses.replace(HEADER, plans=plans, created="later")).close()
    header = read_header(tmp_path)
    # Not the product of both: nobody asked for task 0 from initial state 2.
    assert planned(header) == [*PLAN.jobs(), *more.jobs()]
    assert task_names(header) == {0: "pick", 3: "place"}
    assert header.created == "2026-01-01"


def test_two_processes_do_not_write_one_run(tmp_path):
    with (
        Ledger.open(tmp_path, HEADER),
        pytest.raises(ContractError, match="another process"),
    ):
        Ledger.open(tmp_path, HEADER)


def test_half_written_files_of_a_killed_worker_are_removed(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / ".s-task00.123.mp4").write_bytes(b"half")
    (videos / "s-task00.mp4").write_bytes(b"whole")
    Ledger.open(tmp_path, HEADER).close()
    assert [p.name for p in videos.iterdir()] == ["s-task00.mp4"]
