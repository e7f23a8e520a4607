"""A recording is what the feed was told, in a file that rerun reads; the inference never waits."""

import threading
from itertools import count

import numpy as np
import pytest

from vega_policy.deploy.feed import Feed
from vega_policy.deploy.recording import Recording
from vega_policy.spec import CAMERAS, ActionChunk, ContractError, Observation


def observation():
    return Observation(
        images={c: np.full((32, 32, 3), 90, np.uint8) for c in CAMERAS},
        proprio=np.arange(8, dtype=np.float32),
        instruction="pick the bowl",
    )


def chunk():
    return ActionChunk(
        actions=np.arange(56, dtype=np.float32).reshape(8, 7),
        gate={c: np.full((4, 4), 0.25, np.float32) for c in CAMERAS},
    )


def test_without_rerun_one_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ContractError, match=r"pip install 'vega-policy\[rerun\]'"):
        Recording(Feed(), tmp_path / "a.rrd")


@pytest.fixture
def rerun():
    return pytest.importorskip("rerun")


def read(rerun, path, contents):
    recording = rerun.dataframe.load_recording(path)
    return recording.view(index="time", contents=contents).select().read_all().to_pydict()


def column(table, name):
    found = next(values for key, values in table.items() if key.startswith(name))
    return [value for value in found if value is not None]


@pytest.mark.usefixtures("rerun")
def test_a_file_that_cannot_be_written_is_told_before_the_server_starts(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ContractError, match="cannot be written"):
        Recording(Feed(), tmp_path / "file/a.rrd")
    with pytest.raises(ContractError, match=r"ends in \.rrd"):
        Recording(Feed(), tmp_path / "a.mp4")


def test_what_was_told_is_read_back_and_the_feed_knows_it_too(tmp_path, rerun):
    feed = Feed()
    with Recording(feed, tmp_path / "a.rrd", clock=count(1000).__next__) as recording:
        report = {"interventions": {"step_m": 3}, "holds": {"no_action": 2}}
        recording.answered(observation(), chunk(), robot="arm/1", latency_ms=41.0, report=report)
        recording.refused("full", "arm/1")
        recording.event("estop", "pressed by a person")
        assert recording.snapshot()["answered"] == feed.snapshot()["answered"] == 1
    table = read(rerun, tmp_path / "a.rrd", "/**")
    robot = "/arm\\/1/"
    assert [row[0] for row in column(table, f"{robot}action:Scalar")] == [7.0 * k for k in range(8)]
    assert column(table, f"{robot}latency_ms:Scalar") == [[41.0]]
    assert column(table, f"{robot}interventions/step_m:Scalar") == [[3.0]]
    assert column(table, f"{robot}holds/no_action:Scalar") == [[2.0]]
    assert column(table, f"{robot}instruction:Text") == [["pick the bowl"]]
    assert len(column(table, f"{robot}camera/wrist:Blob")) == 1
    gate = np.frombuffer(
        np.asarray(column(table, f"{robot}gate/wrist:ImageBuffer")[0][0], np.uint8), np.float32
    )
    assert gate.tolist() == [0.25] * 16
    said = [text for (text,) in column(table, "/events:Text")]
    assert sorted(said) == ["estop: pressed by a person", "refused: arm/1: full"]


@pytest.mark.usefixtures("rerun")
def test_a_disk_that_hangs_costs_entries_and_never_an_answer(tmp_path, monkeypatch):
    go_on = threading.Event()
    write = Recording._write_answer
    monkeypatch.setattr(
        Recording,
        "_write_answer",
        lambda self, *a: (go_on.wait(60), write(self, *a)),
    )
    feed = Feed()
    recording = Recording(feed, tmp_path / "a.rrd")
    for _ in range(200):
        recording.answered(observation(), chunk())
    assert feed.snapshot()["answered"] == 200
    assert recording.n_left_out >= 200 - 64 - 1
    go_on.set()
    recording.close()
    recording.answered(observation(), chunk())  # after the end: the page still hears it
    assert feed.snapshot()["answered"] == 201
