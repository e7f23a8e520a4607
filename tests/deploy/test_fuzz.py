"""Nothing that arrives breaks the decoder or the server; scripts/fuzz.py does the same at length."""

import threading
import tracemalloc
from collections import Counter

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from vega_policy.deploy.codec import WireError, unpack
from vega_policy.deploy.server import PolicyServer, ServerSettings
from vega_policy.deploy.wire import read_request
from vega_policy.spec import CAMERAS
from vega_policy.testing.fake_policy import FakePolicy
from vega_policy.testing.fuzz_frames import fuzz_frames, valid_request

WAIT_S = 60.0


def test_damaged_messages_are_refused_and_nothing_else_is_raised(tmp_path):
    marker = tmp_path / "unpickled"
    ends: Counter[str] = Counter()
    for frame in fuzz_frames(2000, marker=marker):
        try:
            read_request(unpack(frame), cameras=CAMERAS)
            ends["read"] += 1
        except WireError:
            ends["refused"] += 1
    assert not marker.exists()
    assert ends["refused"] > 1000
    assert ends["read"] > 50  # else only the first check of all was tried


@pytest.mark.parametrize("empty", [b"\x90", b"\x80"], ids=["lists", "maps"])
def test_a_message_of_nothing_but_empty_lists_is_refused_while_it_is_small(empty):
    rows = 7 * (b"\xdc\x04\x00" + 1024 * (b"\xdc\x04\x00" + 1024 * empty))
    tracemalloc.start()
    with pytest.raises(WireError, match="entries; send large data as arrays"):
        unpack(b"\x97" + rows)
    assert tracemalloc.get_traced_memory()[1] < 16 * 2**20  # it would be half a gigabyte
    tracemalloc.stop()


@pytest.mark.parametrize("shape", [[0, 2**62], [0, 2**63], [2**24, 0, 2**24, 2**24]])
def test_an_empty_array_of_a_huge_shape_is_refused(shape):
    node = {b"__ndarray__": True, b"data": b"", b"dtype": "<f8", b"shape": shape}
    with pytest.raises(WireError, match="smaller"):
        unpack(msgpack.packb({"a": node}))


@pytest.mark.parametrize(
    ("dtype", "value"), [("|u1", -1), ("<i4", 2**40), ("<f4", 1e300), ("<i8", 2.5), ("|b1", 5)]
)
def test_a_number_that_would_become_another_is_refused(dtype, value):
    node = {b"__npgeneric__": True, b"data": value, b"dtype": dtype}
    with pytest.raises(WireError, match="does not fit"):
        unpack(msgpack.packb({"a": node}))


def test_the_frames_are_the_same_for_the_same_seed():
    assert list(fuzz_frames(50, seed=3)) == list(fuzz_frames(50, seed=3))
    assert list(fuzz_frames(50, seed=3)) != list(fuzz_frames(50, seed=4))


def test_a_server_answers_or_refuses_every_damaged_frame_and_serves_on(caplog, tmp_path):
    marker = tmp_path / "unpickled"
    server = PolicyServer(FakePolicy(), settings=ServerSettings(port=0))
    urls: list[str] = []
    is_ready = threading.Event()
    thread = threading.Thread(
        target=lambda: server.run(ready=lambda url: (urls.append(url), is_ready.set()))
    )
    thread.start()
    try:
        assert is_ready.wait(WAIT_S)
        ends = Counter(_ends(urls[0], fuzz_frames(400, seed=1, marker=marker)))
        assert sum(ends.values()) == 400
        assert ends["answered"] > 5
        assert ends["refused"] > 10
        assert ends["closed"] > 100
        with connect(urls[0], compression=None) as robot:
            robot.recv(WAIT_S)
            robot.send(valid_request(7))
            answer = unpack(robot.recv(WAIT_S))
    finally:
        server.stop()
        thread.join(WAIT_S)
    observation, _ = read_request(unpack(valid_request(7)), cameras=CAMERAS)
    [expected] = FakePolicy().act([observation], keys=[0])
    np.testing.assert_array_equal(answer["actions"], expected.actions)
    assert not marker.exists()
    assert "handler failed" not in caplog.text


def _ends(url, frames):
    """Send each frame, on a new connection where the last one was closed, and say how it ended."""
    frames = list(frames)
    while frames:
        with connect(url, compression=None) as robot:
            robot.recv(WAIT_S)
            while frames:
                robot.send(frames.pop())
                reply = robot.recv(WAIT_S)
                if isinstance(reply, str):
                    with pytest.raises(ConnectionClosed, match="1011"):
                        robot.recv(WAIT_S)
                    yield "closed"
                    break
                yield "answered" if "actions" in unpack(reply) else "refused"
