"""What the page and a recording are told: bounded, cheap, and never more than is known."""

import base64
import json
import math

import numpy as np
import pytest
import simplejpeg

from vega_policy.deploy.feed import IMAGE_PX, LATENCY_BINS_MS, MAX_ROBOTS, Feed
from vega_policy.spec import CAMERAS, ActionChunk, ActionSpec, Observation


def observation(*, px=16, value=90, instruction="pick the bowl"):
    image = np.full((px, px, 3), value, np.uint8)
    return Observation(
        images=dict.fromkeys(CAMERAS, image),
        proprio=np.zeros(8, np.float32),
        instruction=instruction,
    )


def chunk(value=0.0, *, gate=True):
    gates = {name: np.full((2, 2), 0.25, np.float32) for name in CAMERAS}
    return ActionChunk(actions=np.full((8, 7), value, np.float32), gate=gates if gate else None)


class Clock:
    now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def feed(clock):
    return Feed(capacity=4, clock=clock)


def test_a_snapshot_is_json_without_nan_whatever_a_robot_reports(feed):
    deep = {"a": {"b": {"c": {"d": 1}}}}
    report = {
        "state": "running",
        "latency_ms": math.nan,
        "array": np.zeros(3),
        "holds": {"no_action": np.int64(3), "x" * 500: np.float32(math.inf)},
        "deep": deep,
        **{f"entry {n}": n for n in range(100)},
    }
    feed.answered(observation(), chunk(), robot="arm", latency_ms=math.nan, report=report)
    said = json.dumps(feed.snapshot(), allow_nan=False)
    heard = json.loads(said)["robots"]["arm"]["report"]
    assert heard["latency_ms"] is None
    assert heard["holds"] == {"no_action": 3, "x" * 80: None}
    assert heard["array"] == "ndarray"
    assert len(heard) == 32
    assert len(said) < 20_000


def test_pictures_are_what_the_policy_saw_and_large_ones_are_thinned_out(feed):
    feed.answered(observation(px=2 * IMAGE_PX + 10, value=120), chunk())
    data = feed.snapshot()["views"]["images"]["agentview"].partition(",")[2]
    seen = simplejpeg.decode_jpeg(base64.b64decode(data), colorspace="RGB")
    assert max(seen.shape) <= IMAGE_PX
    assert abs(seen.astype(int) - 120).max() <= 1


def test_nothing_is_encoded_until_a_page_asks_and_then_once(feed, monkeypatch):
    encoded = []
    monkeypatch.setattr(
        "vega_policy.deploy.feed._data_url", lambda image: encoded.append(image) or "data:"
    )
    for _ in range(5):
        feed.answered(observation(), chunk())
    assert encoded == []
    feed.snapshot()
    feed.snapshot()
    assert len(encoded) == len(CAMERAS)


def test_a_second_look_brings_only_what_is_new(feed):
    feed.answered(observation(), chunk(0.1))
    feed.event("server", "listens")
    first = feed.snapshot()
    nothing = feed.snapshot(first["n"])
    assert (nothing["chunks"], nothing["events"], nothing["views"]) == ([], [], None)
    feed.answered(observation(), chunk(0.2))
    second = feed.snapshot(first["n"])
    assert [c["actions"][0][0] for c in second["chunks"]] == [0.2]
    assert second["views"]["n"] == second["n"] > first["n"]


def test_a_page_that_knew_an_earlier_server_is_told_all_and_that_it_is_another(feed, clock):
    feed.answered(observation(), chunk())
    other = Feed(clock=clock)
    assert other.snapshot()["run"] != feed.snapshot()["run"]
    assert len(feed.snapshot(since=10**6)["chunks"]) == 1


def test_chunks_and_pictures_are_those_of_the_robot_asked_for(feed):
    feed.answered(observation(instruction="left"), chunk(0.1), robot="a")
    feed.answered(observation(instruction="right"), chunk(0.2), robot="b")
    assert feed.snapshot()["robot"] == "b"
    of_a = feed.snapshot(0, "a")
    assert of_a["views"]["instruction"] == "left"
    assert [c["instruction"] for c in of_a["chunks"]] == ["left"]
    assert sorted(of_a["robots"]) == ["a", "b"]


def test_memory_is_bounded_and_the_robot_silent_longest_is_forgotten(feed):
    for n in range(MAX_ROBOTS + 5):
        for _ in range(10):
            feed.answered(observation(), chunk(), robot=f"arm-{n:03d}")
        feed.event("note", f"{n}")
    said = feed.snapshot()
    assert list(said["robots"]) == [f"arm-{n:03d}" for n in range(5, MAX_ROBOTS + 5)]
    assert len(said["chunks"]) == 4
    assert len(said["events"]) == 4
    assert said["answered"] == 10 * (MAX_ROBOTS + 5)


def test_the_histogram_and_its_quantiles_are_of_the_same_answers(feed):
    for ms in (1.0, 60.0, 60.0, 5000.0):
        feed.answered(observation(), chunk(), latency_ms=ms)
    latency = feed.snapshot()["latency"]
    edges = LATENCY_BINS_MS.index(75)
    assert sum(latency["counts"]) == latency["of"] == 4
    assert (latency["counts"][0], latency["counts"][edges], latency["counts"][-1]) == (1, 2, 1)
    assert latency["p50"] == 60.0


def test_answers_per_second_fall_to_zero_when_nothing_comes(feed, clock):
    for _ in range(10):
        clock.now_s += 0.5
        feed.answered(observation(), chunk())
    assert feed.snapshot()["per_s"] == 2.0
    clock.now_s += 60
    assert feed.snapshot()["per_s"] == 0.0


def test_a_flood_of_the_same_refusal_is_one_line_with_a_number(feed):
    feed.event("estop", "pressed")
    for _ in range(1000):
        feed.refused("the emergency stop is pressed", "arm")
    said = feed.snapshot()
    assert said["refused"] == 1000
    assert [(e["kind"], e["times"]) for e in said["events"]] == [
        ("estop", 1),
        ("robot", 1),
        ("refused", 1000),
    ]
    feed.refused("the emergency stop is pressed", "arm")
    again = feed.snapshot(said["n"])["events"]
    assert [(e["id"], e["times"]) for e in again] == [(said["events"][2]["id"], 1001)]


def test_a_robot_that_stops_is_an_event_and_one_between_chunks_is_none(feed):
    for state in ("running", "holding", "running", "stopped", "stopped"):
        report = {"state": state, "reason": "why"}
        feed.answered(observation(), chunk(), robot="arm", report=report)
    assert [e["text"] for e in feed.snapshot()["events"]] == [
        "arm: first request",
        "arm: stopped, why",
    ]


def test_what_serves_and_what_a_chunk_means_is_said():
    said = Feed(action_spec=ActionSpec(), about={"model": "nano"}).snapshot()["about"]
    assert (said["model"], said["action"]["horizon"], said["action"]["rate_hz"]) == ("nano", 8, 20)
