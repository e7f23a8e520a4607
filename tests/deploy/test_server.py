"""The server against real clients: openpi's own, ours, broken ones, and a browser's page."""

import asyncio
import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from vega_policy.deploy.auth import ApiKeys
from vega_policy.deploy.client import Client, Refused, RemotePolicy
from vega_policy.deploy.codec import pack, unpack
from vega_policy.deploy.server import PolicyServer, ServerSettings
from vega_policy.deploy.wire import EXTRAS_KEY, RequestExtras, to_request
from vega_policy.spec import CAMERAS, ContractError, Observation, PolicyFault
from vega_policy.testing.fake_policy import FakePolicy

ROOT = Path(__file__).parents[2]
KEY = "a-key-of-sixteen-characters"


def observation(i=0, px=32, instruction="reach the red block"):
    rng = np.random.default_rng(i)
    return Observation(
        images={c: rng.integers(0, 255, (px, px, 3), dtype=np.uint8) for c in CAMERAS},
        proprio=rng.normal(size=8).astype(np.float32),
        instruction=instruction,
    )


class Gate:
    """A policy that computes only while it is open; counts what it was asked."""

    def __init__(self):
        self.inner = FakePolicy()
        self.action_spec = self.inner.action_spec
        self.open = threading.Event()
        self.entered = threading.Event()
        self.asked = []

    def act(self, batch, *, keys):
        self.entered.set()
        assert self.open.wait(60)
        self.asked += list(keys)
        return self.inner.act(batch, keys=keys)


@contextmanager
def serving(policy=None, **settings):
    server = PolicyServer(
        policy or FakePolicy(), settings=ServerSettings(**{"port": 0, **settings})
    )
    urls, ready = [], threading.Event()

    def listen(url):
        urls.append(url)
        ready.set()

    thread = threading.Thread(target=lambda: server.run(ready=listen), daemon=True)
    thread.start()
    assert ready.wait(30)
    server.url = urls[0]
    try:
        yield server
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


def get(server, path, method="GET", **headers):
    host, port = server.url.removeprefix("ws://").rsplit(":", 1)
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    return response.status, response.read().decode()


def openpi(server, **kwargs):
    host, port = server.url.removeprefix("ws://").rsplit(":", 1)
    return WebsocketClientPolicy(host, int(port), **kwargs)


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_openpis_own_client_is_served():
    with serving() as server:
        client = openpi(server)
        metadata = client.get_server_metadata()["vega"]
        assert metadata["action"]["horizon"] == 8
        first = client.infer(to_request(observation()))
        second = client.infer(to_request(observation()))
    [expected] = FakePolicy().act([observation()], keys=[0])
    np.testing.assert_array_equal(first["actions"], expected.actions)
    assert set(first) == {"actions", "policy_timing", "server_timing"}
    assert "prev_total_ms" not in first["server_timing"]
    assert second["server_timing"]["prev_total_ms"] > 0
    assert second["policy_timing"]["infer_ms"] >= 0


def test_openpis_client_hears_an_error_as_openpi_says_it():
    with serving() as server:
        client = openpi(server)
        with pytest.raises(RuntimeError, match="prompt is a int"):
            client.infer({**to_request(observation()), "prompt": 7})
        with pytest.raises(ConnectionClosed) as caught:
            client.infer(to_request(observation()))
        assert caught.value.rcvd.code == 1011


def test_remote_answers_equal_those_of_the_policy_itself():
    batch, keys = [observation(i) for i in range(6)], [3, 1, 4, 1, 5, 9]
    with serving() as server, RemotePolicy(server.url, connections=3, want_gate=True) as remote:
        there = remote.act(batch, keys=keys)
    here = FakePolicy().act(batch, keys=keys)
    for a, b in zip(there, here, strict=True):
        np.testing.assert_array_equal(a.actions, b.actions)
        for camera in CAMERAS:
            np.testing.assert_array_equal(a.gate[camera], b.gate[camera])


def test_answers_of_many_clients_are_never_crossed():
    policy = FakePolicy(act_s=0.005)
    with (
        serving(policy, max_batch=8, max_waiting=1000) as server,
        ThreadPoolExecutor(12) as threads,
    ):

        def robot(number):
            with Client(server.url) as client:
                for i in range(8):
                    seen = observation(100 * number + i)
                    got = client.infer(seen, RequestExtras(key=number))
                    [expected] = FakePolicy().act([seen], keys=[number])
                    if not np.array_equal(got.actions, expected.actions):
                        return False
            return True

        assert all(threads.map(robot, range(12)))
    assert max(policy.batch_sizes) > 1  # else nothing was tested


def test_health_answers_while_the_policy_computes():
    policy = Gate()
    with serving(policy) as server, ThreadPoolExecutor(1) as threads, Client(server.url) as client:
        answer = threads.submit(client.infer, observation())
        assert policy.entered.wait(30)
        assert get(server, "/healthz") == (200, "OK\n")
        assert not answer.done()
        policy.open.set()
        answer.result(30)


def test_a_client_that_left_is_not_computed_for_and_delays_nobody():
    policy = Gate()
    with (
        serving(policy, max_batch=1) as server,
        ThreadPoolExecutor(1) as threads,
        Client(server.url) as client,
    ):
        answer = threads.submit(client.infer, observation(), RequestExtras(key=1))
        assert policy.entered.wait(30)
        with connect(server.url) as gone:
            gone.recv()
            gone.send(pack(to_request(observation(), RequestExtras(key=2))))
            wait_for(lambda: server._batcher.n_waiting == 1)
        wait_for(lambda: server.summary().outcomes.get("gone") == 1)
        policy.open.set()
        answer.result(30)
        client.infer(observation(), RequestExtras(key=3))
    assert policy.asked == [1, 3]


def test_a_client_that_does_not_take_its_answers_is_dropped_and_others_are_served():
    with serving(FakePolicy(), send_timeout_s=0.3, max_message_bytes=2**20) as server:
        silent = connect(server.url, compression=None)
        silent.recv()
        sock = silent.socket
        request = pack(to_request(observation(), RequestExtras(request_id="1", want_gate=True)))
        with suppress(Exception):
            sock.settimeout(1)
            for _ in range(3000):  # asked without ever reading
                silent.send(request)
        with Client(server.url) as client:
            for i in range(3):
                client.infer(observation(i))
        silent.socket.close()


def test_a_full_queue_refuses_at_once_and_keeps_the_connection():
    policy = Gate()
    with serving(policy, max_waiting=1, max_batch=1) as server, ThreadPoolExecutor(2) as threads:
        clients = [Client(server.url) for _ in range(3)]
        for client in clients:
            client.connect()
        first = threads.submit(clients[0].infer, observation())
        assert policy.entered.wait(30)
        second = threads.submit(clients[1].infer, observation())
        wait_for(lambda: server._batcher.n_waiting == 1)
        with pytest.raises(Refused, match="busy"):
            clients[2].infer(observation())
        policy.open.set()
        first.result(30)
        second.result(30)
        clients[2].infer(observation())  # the same connection
        for client in clients:
            client.close()


def test_a_policy_that_fails_on_one_robot_answers_the_others_of_the_batch():
    policy = FakePolicy(misbehaves="nan", on_instruction="bad")
    gate = Gate()
    gate.inner = policy
    with serving(gate, max_batch=4, max_delay_ms=0) as server, ThreadPoolExecutor(4) as threads:
        clients = [Client(server.url) for _ in range(4)]
        for client in clients:
            client.connect()
        first = threads.submit(clients[0].infer, observation())
        assert gate.entered.wait(30)
        words = ["good", "bad", "good"]
        rest = [
            threads.submit(c.infer, observation(instruction=w))
            for c, w in zip(clients[1:], words, strict=True)
        ]
        wait_for(lambda: server._batcher.n_waiting == 3)
        gate.open.set()
        first.result(30)
        rest[0].result(30)
        with pytest.raises(PolicyFault, match="not finite"):
            rest[1].result(30)
        rest[2].result(30)
        clients[2].infer(observation(1))  # the server and this connection live
        for client in clients:
            client.close()
    assert 3 in policy.batch_sizes


def test_a_wrong_key_and_no_key_are_refused_with_a_sentence():
    with serving(api_keys=(KEY,)) as server:
        for wrong in (None, "a-key-of-sixteen-charactesr"):
            with pytest.raises(ContractError, match="401"):
                Client(server.url, api_key=wrong).connect()
        with Client(server.url, api_key=KEY) as client:
            client.infer(observation())
        assert openpi(server, api_key=KEY).infer(to_request(observation()))["actions"].shape == (
            8,
            7,
        )
        assert get(server, "/healthz")[0] == 200


def test_a_key_that_is_no_text_is_a_wrong_one():
    as_websockets_reads_it = b"Api-Key \xff".decode("ascii", "surrogateescape")
    assert not ApiKeys(["k" * 20]).accept(as_websockets_reads_it)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.7.7", "::"])  # noqa: S104 - refused
def test_other_machines_need_a_key(host):
    with pytest.raises(ContractError, match="API key"):
        PolicyServer(FakePolicy(), settings=ServerSettings(host=host))
    PolicyServer(FakePolicy(), settings=ServerSettings(host=host, api_keys=(KEY,)))


def test_an_oversized_frame_closes_its_connection_before_it_is_read():
    with serving(max_message_bytes=1000) as server, connect(server.url) as client:
        client.recv()
        client.send(bytes(2000))
        with pytest.raises(ConnectionClosed) as caught:
            client.recv(timeout=30)
        assert caught.value.rcvd.code == 1009


def test_images_of_another_size_are_refused_or_scaled_as_asked():
    with serving(image_px=32) as server, Client(server.url) as client:
        assert client.info.image_px == 32
        with pytest.raises(ContractError, match="64 x 64 px, the policy takes 32 x 32"):
            client.infer(observation(px=64))
        client.infer(observation(px=32))
    with serving(image_px=32, image_fit="resize") as server, Client(server.url) as client:
        assert client.info.image_px is None
        client.infer(observation(px=64))


def test_the_emergency_stop_lets_no_action_out_until_a_person_releases_it():
    policy = Gate()
    with serving(policy) as server, ThreadPoolExecutor(1) as threads, Client(server.url) as client:
        answer = threads.submit(client.infer, observation())
        assert policy.entered.wait(30)
        assert get(server, "/estop?by=anna&reason=smoke", "POST", **{"X-Vega": "1"}) == (
            200,
            "pressed\n",
        )
        policy.open.set()
        with pytest.raises(Refused, match="stopped"):  # although it was under way
            answer.result(30)
        with pytest.raises(Refused, match=r"smoke \(pressed by anna\)"):
            client.infer(observation())
        with pytest.raises(RuntimeError, match="smoke"):
            openpi(server).infer(to_request(observation()))
        assert "vega_stopped 1.0" in get(server, "/metrics")[1]
        assert get(server, "/estop/release?by=anna", "POST", **{"X-Vega": "1"}) == (
            200,
            "released\n",
        )
        client.infer(observation())


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {"X-Vega": "1"}, 405),
        ("POST", {}, 405),
        ("POST", {"X-Vega": "1", "Origin": "http://elsewhere.example"}, 403),
        ("POST", {"X-Vega": "1", "Host": "rebound.example:8000"}, 403),
    ],
)
def test_a_page_of_another_site_presses_and_releases_nothing(method, headers, status):
    with serving() as server:
        for path in ("/estop?by=x", "/estop/release?by=x"):
            assert get(server, path, method, **headers)[0] == status
        assert not server.estop.is_pressed


def test_a_browser_cannot_open_the_websocket():
    with serving() as server, pytest.raises(InvalidStatus) as caught:
        connect(server.url, origin="http://elsewhere.example")
    assert caught.value.response.status_code == 403


def test_draining_answers_what_is_under_way_and_refuses_what_is_new():
    policy = Gate()
    with serving(policy) as server, ThreadPoolExecutor(1) as threads:
        busy, idle = Client(server.url), connect(server.url)
        busy.connect()
        idle.recv()
        answer = threads.submit(busy.infer, observation())
        assert policy.entered.wait(30)
        server.stop()
        wait_for(lambda: server._is_draining)
        idle.send(pack(to_request(observation(), RequestExtras(request_id="1"))))
        refused = unpack(idle.recv(timeout=30))[EXTRAS_KEY]
        assert refused["kind"] == "draining"
        policy.open.set()
        answer.result(30)
        with pytest.raises(ConnectionClosed) as caught:
            idle.recv(timeout=30)
        assert caught.value.rcvd.code == 1012
        busy.close()


def test_metrics_count_what_happened():
    with serving() as server, Client(server.url) as client:
        client.infer(observation())
        with pytest.raises(ContractError):
            client.infer(observation(instruction=""))
        status, text = get(server, "/metrics")
    assert status == 200
    for line in (
        'vega_requests_total{outcome="answered"} 1.0',
        'vega_requests_total{outcome="request"} 1.0',
        "vega_connections 1.0",
        "vega_inference_seconds_count 1.0",
    ):
        assert line in text


def test_an_address_in_use_is_one_sentence():
    with serving() as server:
        port = int(server.url.rsplit(":", 1)[1])
        other = PolicyServer(FakePolicy(), settings=ServerSettings(port=port))
        with pytest.raises(ContractError, match=r"choose another serve\.port"):
            asyncio.run(other.serve())


@contextmanager
def process(tmp_path, *settings, env=None):
    port_file = tmp_path / "url"
    command = [sys.executable, "scripts/serve.py", "serve.port=0", f"serve.port_file={port_file}"]
    with (tmp_path / "log").open("w") as out:
        running = subprocess.Popen(
            [*command, *settings],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=out,
            env={**os.environ, **(env or {})},
        )
    try:
        wait_for(lambda: port_file.exists() or running.poll() is not None, 120)
        assert running.poll() is None, (tmp_path / "log").read_text()
        yield running, port_file.read_text().strip()
    finally:
        if running.poll() is None:
            running.kill()
        running.communicate()


def test_the_script_serves_the_shipped_policy_and_ends_cleanly_on_sigterm(tmp_path):
    from vega_policy import from_pretrained

    with process(tmp_path, "checkpoint=nano-libero-object") as (running, url):
        with RemotePolicy(url, want_gate=True) as remote:
            assert remote.info.image_px == 128
            assert len(remote.info.metadata["vega"]["checkpoint_sha256"]) == 64
            seen = observation(px=128, instruction="pick up the milk and place it in the basket")
            [there] = remote.act([seen], keys=[5])
        running.send_signal(signal.SIGTERM)
        out, _ = running.communicate(timeout=60)
        assert running.returncode == 0
        assert b'"answered": 1' in out.splitlines()[-1]
    [here] = from_pretrained("nano-libero-object").act([seen], keys=[5])
    np.testing.assert_array_equal(there.actions, here.actions)
    assert there.gate.keys() == here.gate.keys()


def test_the_script_takes_keys_from_the_environment_and_refuses_weak_ones(tmp_path):
    with process(tmp_path, "checkpoint=fake", env={"VEGA_API_KEYS": KEY}) as (_, url):
        with pytest.raises(ContractError, match="401"):
            Client(url).connect()
        Client(url, api_key=KEY).connect()
    ended = subprocess.run(
        [sys.executable, "scripts/serve.py", "checkpoint=fake", "serve.port=0"],
        cwd=ROOT,
        capture_output=True,
        env={**os.environ, "VEGA_API_KEYS": "short"},
        check=False,
        timeout=120,
    )
    assert ended.returncode == 2
    assert b"at least 16" in ended.stderr
