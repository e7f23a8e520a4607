"""What must not cost the other robots anything: who leaves, who hangs, who writes long names."""

import http.client
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from urllib.parse import quote, urlsplit

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from vega_policy.deploy.client import Client
from vega_policy.deploy.codec import unpack
from vega_policy.deploy.server import PolicyServer, ServerSettings
from vega_policy.spec import ContractError, EnvFault
from vega_policy.testing.fake_policy import FakePolicy
from vega_policy.testing.fuzz_frames import valid_request

WAIT_S = 60.0


@contextmanager
def serving(policy=None, **settings):
    server = PolicyServer(policy or FakePolicy(), settings=ServerSettings(port=0, **settings))
    urls, is_ready = [], threading.Event()
    thread = threading.Thread(
        target=lambda: server.run(ready=lambda url: (urls.append(url), is_ready.set()))
    )
    thread.start()
    try:
        assert is_ready.wait(WAIT_S)
        yield server, urls[0]
    finally:
        server.stop()
        thread.join(WAIT_S)


def until(is_so):
    give_up = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < give_up
        time.sleep(0.005)


class Held:
    """Computes while it is let."""

    def __init__(self):
        self.inner = FakePolicy()
        self.action_spec = self.inner.action_spec
        self.entered, self.go = threading.Event(), threading.Event()

    def act(self, batch, *, keys):
        self.entered.set()
        assert self.go.wait(WAIT_S)
        return self.inner.act(batch, keys=keys)


def test_questions_of_those_who_left_take_nobodys_place_in_the_queue():
    policy = Held()
    with serving(policy, max_waiting=3, max_batch=1) as (server, url), ExitStack() as stack:
        computing = stack.enter_context(connect(url, compression=None))
        computing.recv(WAIT_S)
        computing.send(valid_request(1))
        assert policy.entered.wait(WAIT_S)
        for i in range(3):
            with connect(url, compression=None) as leaving:
                leaving.recv(WAIT_S)
                leaving.send(valid_request(i))
                until(lambda: server._batcher.n_waiting == 1)
            until(lambda: server._batcher.n_waiting == 0)
        late = stack.enter_context(connect(url, compression=None))
        late.recv(WAIT_S)
        late.send(valid_request(9))
        policy.go.set()
        assert "actions" in unpack(late.recv(WAIT_S))


def test_a_long_reason_in_any_script_closes_as_it_should():
    with serving() as (server, url), connect(url, compression=None) as plain:
        plain.recv(WAIT_S)
        server.estop.press("é" * 150, "Jürgen")
        plain.send(valid_request())
        assert "Jürgen" in plain.recv(WAIT_S)
        with pytest.raises(ConnectionClosed, match="1013"):
            plain.recv(WAIT_S)


def test_a_press_names_its_reason_in_any_script():
    with serving() as (server, url):
        address = urlsplit(url)
        asking = http.client.HTTPConnection(address.hostname, address.port, timeout=WAIT_S)
        query = f"by={quote('Jürgen')}&reason={quote('Öl läuft aus')}"
        asking.request("POST", f"/estop?{query}", headers={"X-Vega": "1"})
        assert asking.getresponse().status == 200
        assert server.estop.reason == "Öl läuft aus (pressed by Jürgen)"


def test_a_policy_that_hangs_does_not_keep_the_process_alive():
    code = """
from vega_policy.deploy.server import PolicyServer, ServerSettings
from vega_policy.testing.fake_policy import FakePolicy
policy = FakePolicy(act_s=10_000.0)
server = PolicyServer(policy, settings=ServerSettings(port=0, drain_s=0.3))
server.run(ready=lambda url: print(url, flush=True))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        with connect(url, compression=None) as plain:
            plain.recv(WAIT_S)
            plain.send(valid_request())
            asking = http.client.HTTPConnection(urlsplit(url).netloc, timeout=WAIT_S)
            asking.request("GET", "/metrics")  # answered after the frame was read
            asking.getresponse().read()
            process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed, match="1012"):
                plain.recv(WAIT_S)
        assert process.wait(WAIT_S) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_tls_serves_those_who_trust_its_certificate(tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-days", "1", "-subj", "/CN=localhost"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    with serving(tls_cert=str(cert), tls_key=str(key)) as (_, url):
        assert url.startswith("wss://")
        trusting = ssl.create_default_context(cafile=str(cert))
        with Client(url, ssl=trusting, timeout_s=WAIT_S) as client:
            assert client.info.is_vega
        with pytest.raises(EnvFault, match="certificate"):
            Client(url, timeout_s=WAIT_S).connect()
    with pytest.raises(ContractError, match="needs both"):
        PolicyServer(FakePolicy(), settings=ServerSettings(tls_cert=str(cert)))
