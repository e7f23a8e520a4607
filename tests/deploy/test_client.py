"""The robot's end of the websocket, against a server that follows openpi's protocol."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from vega_policy.control.link import Seen
from vega_policy.deploy.client import Client, Refused, RemotePolicy, remote_link
from vega_policy.deploy.codec import pack
from vega_policy.deploy.wire import Refusal, to_refusal
from vega_policy.spec import (
    AGENTVIEW,
    WRIST,
    ActionChunk,
    ActionSpec,
    ContractError,
    EnvFault,
    Observation,
    PolicyFault,
)
from vega_policy.testing.fake_policy import FakePolicy
from vega_policy.testing.fake_server import FakeServer

WAIT_S = 30.0
"""For answers that come; generous, since the machine may be busy."""


class Echo:
    """Answers every observation with its first proprioceptive number."""

    action_spec = ActionSpec()

    def act(self, batch, *, keys):
        del keys
        return [ActionChunk(np.full((8, 7), o.proprio[0], dtype=np.float32)) for o in batch]


def observation(number=0.0, *, episode=None):
    rng = np.random.default_rng(int(number))
    images = {name: rng.integers(0, 255, (32, 32, 3), np.uint8) for name in (AGENTVIEW, WRIST)}
    proprio = np.full(8, number, dtype=np.float32)
    return Observation(images, proprio, "reach the red block", episode)


def test_client_imports_without_torch_and_what_only_servers_need():
    code = """
import sys
sys.modules.update(dict.fromkeys(["torch", "transformers", "prometheus_client", "hydra", "mujoco"]))
import vega_policy.deploy.client, vega_policy.control.pilot
import vega_policy.deploy.loop, vega_policy.deploy.robot, vega_policy.deploy.simulated_arm
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_answers_equal_those_of_the_policy_in_this_process():
    seen = [observation(n, episode=n) for n in range(6)]
    keys = [2**40 + n for n in range(6)]
    expected = FakePolicy().act(seen, keys=keys)
    with (
        FakeServer(FakePolicy()) as server,
        RemotePolicy(server.url, connections=3, want_gate=True) as policy,
    ):
        answers = policy.act(seen, keys=keys)
        assert server.n_connections <= 3
    assert policy.action_spec == ActionSpec()
    for answer, chunk in zip(answers, expected, strict=True):
        np.testing.assert_array_equal(answer.actions, chunk.actions)
        assert answer.actions.dtype == np.float32
        np.testing.assert_array_equal(answer.gate[WRIST], chunk.gate[WRIST])


def test_a_batch_is_open_over_several_connections_at_once():
    together = threading.Barrier(3)

    def all_are_here(number):
        del number
        together.wait(WAIT_S)

    with (
        FakeServer(Echo(), before_reply=all_are_here) as server,
        RemotePolicy(server.url, connections=3) as policy,
    ):
        answers = policy.act([observation(n) for n in range(3)], keys=[0, 1, 2])
    assert [answer.actions[0, 0] for answer in answers] == [0, 1, 2]


def test_plain_openpi_server_works_once_its_actions_are_declared():
    with FakeServer(Echo(), is_vega=False) as server:
        with pytest.raises(ContractError, match="pass the action_spec"):
            Client(server.url).connect()
        with Client(server.url, action_spec=ActionSpec()) as client:
            assert not client.info.is_vega
            assert client.infer(observation(3)).actions[7, 6] == 3
        assert "vega" not in server.requests[0]


def test_every_difference_of_the_action_specification_is_listed():
    with FakeServer(FakePolicy(action_spec=ActionSpec(horizon=4, rate_hz=10.0))) as server:
        client = Client(server.url, action_spec=ActionSpec())
        with pytest.raises(ContractError, match=r"horizon.*4.*8.*rate_hz.*10.*20"):
            client.connect()


def test_late_answer_never_answers_the_next_request():
    may_answer = threading.Event()

    def first_is_late(number):
        if number == 0:
            may_answer.wait(WAIT_S)

    for is_vega in (True, False):
        may_answer.clear()
        with FakeServer(Echo(), is_vega=is_vega, before_reply=first_is_late) as server:
            client = Client(server.url, action_spec=ActionSpec(), timeout_s=0.3)
            with pytest.raises(EnvFault, match=r"within 0\.3 s"):
                client.infer(observation(1))
            client._timeout_s = WAIT_S
            may_answer.set()
            assert client.infer(observation(2)).actions[0, 0] == 2
            assert server.n_connections == 2
            client.close()


def test_answer_to_another_request_is_skipped():
    stale = pack({"actions": np.ones((8, 7), np.float32), "vega": {"request_id": "none of yours"}})
    with FakeServer(Echo(), before_reply=lambda n: stale if n == 0 else None) as server:
        client = Client(server.url, timeout_s=0.5)
        with pytest.raises(EnvFault, match="within"):
            client.infer(observation(1))
        client.close()


def test_unasked_message_costs_the_connection_not_an_answer():
    with FakeServer(Echo(), is_vega=False) as server:
        with Client(server.url, action_spec=ActionSpec(), timeout_s=WAIT_S) as client:
            client.infer(observation(1))
            (connection,) = server._connections
            connection.send(pack({"actions": np.full((8, 7), 9, np.float32)}))
            while client._connection.recv_messages.frames.qsize() == 0:  # it is under way
                threading.Event().wait(0.01)
            assert client.infer(observation(2)).actions[0, 0] == 2
        assert server.n_connections == 2


@pytest.mark.parametrize(
    ("sent", "error", "words"),
    [
        (
            "the policy ran out of memory\nat line 7",
            PolicyFault,
            "failed: the policy ran out of memory$",
        ),
        ("Traceback (most recent):\n  x\nKeyError: 'a'\n", PolicyFault, "KeyError: 'a'$"),
        ("", PolicyFault, "no reason given"),
        (b"\xc1", EnvFault, "no msgpack"),
        (b"\x80", PolicyFault, "actions missing"),
    ],
)
def test_what_is_no_answer_becomes_a_sentence(sent, error, words):
    with FakeServer(
        Echo(), is_vega=False, before_reply=lambda n: sent if n == 0 else None
    ) as server:
        client = Client(server.url, action_spec=ActionSpec(), timeout_s=WAIT_S)
        with pytest.raises(error, match=words):
            client.infer(observation(1))
        assert client.infer(observation(2)).actions[0, 0] == 2
        client.close()


def test_actions_that_are_not_finite_are_a_fault_of_the_policy():
    policy = FakePolicy(misbehaves="nan")
    with (
        FakeServer(policy) as server,
        Client(server.url, timeout_s=WAIT_S) as client,
        pytest.raises(PolicyFault, match="not finite"),
    ):
        client.infer(observation(1))


def test_raising_policy_costs_one_request():
    policy = FakePolicy(misbehaves="raises", on_instruction="red")
    with FakeServer(policy) as server, Client(server.url, timeout_s=WAIT_S) as client:
        with pytest.raises(PolicyFault, match="told to fail"):
            client.infer(observation(1))
        policy.misbehaves = "never"
        client.infer(observation(1))


def test_missing_and_wrong_keys_are_one_sentence():
    with FakeServer(Echo(), api_key="right") as server:
        with pytest.raises(ContractError, match="pass its api_key"):
            Client(server.url).connect()
        with pytest.raises(ContractError, match="correct the api_key"):
            Client(server.url, api_key="wrong").connect()
        with Client(server.url, api_key="right") as client:
            client.infer(observation(1))


def test_server_that_is_not_there_and_comes_back():
    server = FakeServer(Echo())
    port = server.port
    client = Client(server.url, timeout_s=WAIT_S)
    client.infer(observation(1))
    server.close()
    with pytest.raises(EnvFault, match=r"was lost|cannot be reached"):
        client.infer(observation(2))
    with pytest.raises(EnvFault, match=r"cannot be reached.*serve\.py"):
        client.infer(observation(3))
    with FakeServer(Echo(), port=port):
        assert client.infer(observation(4)).actions[0, 0] == 4
    client.close()


def test_another_policy_behind_the_same_address_is_noticed():
    server = FakeServer(Echo())
    port = server.port
    client = Client(server.url, timeout_s=WAIT_S)
    client.connect()
    server.close()
    other = FakePolicy(action_spec=ActionSpec(horizon=4))
    with FakeServer(other, port=port), pytest.raises(ContractError, match=r"changed.*horizon"):
        client.infer(observation(1))
    client.close()


def test_closed_client_says_so():
    with FakeServer(Echo()) as server:
        client = Client(server.url)
        client.connect()
        client.close()
        with pytest.raises(EnvFault, match="was closed"):
            client.infer(observation(1))


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "http://127.0.0.1:8000"])
def test_address_without_scheme_is_answered_with_one(url):
    with pytest.raises(ContractError, match="write ws://"):
        Client(url)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("request", ContractError),
        ("policy", PolicyFault),
        ("busy", Refused),
        ("stopped", Refused),
        ("draining", Refused),
    ],
)
def test_refusal_of_each_kind_says_who_has_to_act_and_keeps_the_connection(kind, error):
    refusal = pack(to_refusal(Refusal("the sentence\nand more", kind), "1"))
    with FakeServer(Echo(), before_reply=lambda n: refusal if n == 0 else None) as server:
        client = Client(server.url, timeout_s=WAIT_S)
        with pytest.raises(error, match=r"the sentence$") as raised:
            client.infer(observation(1))
        assert getattr(raised.value, "kind", kind) == kind
        assert client.infer(observation(2)).actions[0, 0] == 2
        assert server.n_connections == 1
        client.close()


def test_server_that_is_stopped_is_told_to_the_robot_side():
    refusal = pack(to_refusal(Refusal("no actions: a person pressed", "stopped"), "1"))
    told = []
    with FakeServer(Echo(), before_reply=lambda _: refusal) as server:
        client = Client(server.url, timeout_s=WAIT_S)
        link = remote_link(client, timeout_s=WAIT_S, on_stopped=told.append)
        link.ask(Seen(observation=observation(1), stamps_s={"proprio": 0.0}), tick=0)
        while (reply := link.poll()) is None:
            threading.Event().wait(0.01)
        link.close()
        client.close()
    assert reply.chunk is None
    assert "a person pressed" in told[0]
