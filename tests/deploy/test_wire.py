"""Requests and replies: everything wrong with one is said at once."""

import numpy as np
import pytest

from vega_policy.deploy.codec import WireError, pack, unpack
from vega_policy.deploy.wire import (
    EXTRAS_KEY,
    PROMPT_KEY,
    STATE_KEY,
    Refusal,
    RequestExtras,
    read_chunk,
    read_request,
    require_answer,
    to_refusal,
    to_request,
)
from vega_policy.spec import CAMERAS, Observation


def observation(**changes):
    values = {
        "images": {c: np.full((8, 8, 3), i, np.uint8) for i, c in enumerate(CAMERAS)},
        "proprio": np.arange(8, dtype=np.float32),
        "instruction": "reach",
    }
    return Observation(**{**values, **changes})


def test_a_request_comes_back_as_it_was():
    extras = RequestExtras(
        request_id="7", key=3, episode=5, inference=2, want_gate=True, robot="arm"
    )
    sent = observation(episode=5, inference=2)
    got, more = read_request(unpack(pack(to_request(sent, extras))), cameras=CAMERAS)
    assert more == extras
    assert (got.instruction, got.episode, got.inference) == ("reach", 5, 2)
    np.testing.assert_array_equal(got.proprio, sent.proprio)
    for camera in CAMERAS:
        np.testing.assert_array_equal(got.images[camera], sent.images[camera])


def test_a_plain_openpi_request_is_one():
    _, extras = read_request(to_request(observation()), cameras=CAMERAS)
    assert extras == RequestExtras()


def test_everything_wrong_is_listed_in_one_sentence():
    request = to_request(observation())
    request["observation/image"] = request["observation/image"].astype(np.float32)
    request[STATE_KEY] = np.arange(7.0)
    request[PROMPT_KEY] = " "
    del request["observation/wrist_image"]
    with pytest.raises(WireError) as caught:
        read_request(request, cameras=CAMERAS)
    for what in ("float32", "wrist_image is missing", "(7,)", "prompt"):
        assert what in str(caught.value)


@pytest.mark.parametrize(
    ("extras", "what"),
    [
        ({"protocol": 2}, "protocol 2"),
        ({"protocol": np.array([1, 1])}, "has protocol"),
        ({"key": True}, "vega.key"),
        ({"key": -1}, "expected 0"),
        ({"request_id": "x" * 300}, "300 characters"),
        ({"sudo": 1}, "unknown entries: sudo"),
        ([], "expected a map"),
    ],
)
def test_extras_that_cannot_be_meant_are_refused(extras, what):
    with pytest.raises(WireError, match=what):
        read_request({**to_request(observation()), EXTRAS_KEY: extras}, cameras=CAMERAS)


def test_a_state_that_is_not_finite_is_refused():
    bad = observation(proprio=np.full(8, np.nan, np.float32))
    with pytest.raises(WireError, match="not finite"):
        read_request(to_request(bad), cameras=CAMERAS)


@pytest.mark.parametrize(
    "actions",
    [None, np.zeros((8, 6)), np.zeros((8, 7), int), np.full((8, 7), np.inf), [[0.0] * 7] * 8],
)
def test_a_reply_that_must_not_reach_a_motor_is_refused(actions):
    with pytest.raises(WireError):
        read_chunk({"actions": actions}, horizon=8, size=7)


def test_a_refusal_arrives_with_its_kind():
    with pytest.raises(Refusal, match="full") as caught:
        require_answer(unpack(pack(to_refusal(Refusal("full", "busy"), "1"))))
    assert caught.value.kind == "busy"
    require_answer({"actions": np.zeros((8, 7))})
