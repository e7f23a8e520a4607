"""One question, one answer; a late one answers nothing."""

import threading

import numpy as np
import pytest

from vega_policy.control.thread_link import ThreadLink
from vega_policy.spec import ActionChunk, ActionSpec
from vega_policy.testing.fake_link import FakeClock, seen_at

SPEC = ActionSpec()
PATIENCE_S = 30


class Act:
    """Answers when it is let to; the chunk is filled with the key of its question."""

    def __init__(self):
        self.seen = []
        self.begun = threading.Semaphore(0)
        self.may_answer = threading.Semaphore(0)

    def __call__(self, observation, key):
        self.seen.append(observation)
        self.begun.release()
        assert self.may_answer.acquire(timeout=PATIENCE_S)
        return ActionChunk(np.full((8, 7), key, dtype=np.float32))


@pytest.fixture
def act():
    return Act()


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def link(act, clock):
    link = ThreadLink(act, action_spec=SPEC, timeout_s=1.0, clock=clock)
    yield link
    act.may_answer.release(100)
    link.close()


def ended(link):
    """Poll until the question has ended."""
    pause = threading.Event()
    for _ in range(PATIENCE_S * 100):
        if (reply := link.poll()) is not None:
            return reply
        pause.wait(0.01)
    raise AssertionError("no end of the question")


def test_it_answers_the_question_once(link, act, clock):
    assert link.poll() is None
    link.ask(seen_at(0.0), tick=7)
    assert act.begun.acquire(timeout=PATIENCE_S)
    assert link.poll() is None
    clock.now_s += 0.25
    act.may_answer.release()
    reply = ended(link)
    assert (reply.tick, reply.chunk.actions[0, 0], reply.latency_s) == (7, 0, 0.25)
    assert link.poll() is None


def test_a_second_question_while_one_is_open_is_refused(link):
    link.ask(seen_at(0.0), tick=0)
    with pytest.raises(ValueError, match="tick 0 is still open"):
        link.ask(seen_at(0.0), tick=1)


def test_an_answer_after_its_time_out_is_not_that_of_the_next_question(link, act, clock):
    link.ask(seen_at(0.0), tick=0)
    assert act.begun.acquire(timeout=PATIENCE_S)
    clock.now_s += 1.0
    late = link.poll()
    assert late.chunk is None
    assert late.detail == "no answer within 1 s"
    link.ask(seen_at(0.0), tick=1)
    act.may_answer.release()
    assert act.begun.acquire(timeout=PATIENCE_S)  # so the late answer is through
    assert link.poll() is None
    act.may_answer.release()
    reply = ended(link)
    assert (reply.tick, reply.chunk.actions[0, 0]) == (1, 1)


def test_an_answer_after_a_reset_is_dropped(link, act):
    link.ask(seen_at(0.0), tick=0)
    assert act.begun.acquire(timeout=PATIENCE_S)
    link.reset()
    assert link.poll() is None
    link.ask(seen_at(0.0), tick=0)
    act.may_answer.release(2)
    assert ended(link).chunk.actions[0, 0] == 1


def test_a_question_that_timed_out_before_it_was_begun_is_never_asked(link, act, clock):
    link.ask(seen_at(0.0), tick=0)
    assert act.begun.acquire(timeout=PATIENCE_S)
    for tick in (1, 2):
        clock.now_s += 1.0
        assert link.poll().chunk is None
        link.ask(seen_at(0.0), tick=tick)
    act.may_answer.release(2)
    reply = ended(link)
    assert (reply.tick, reply.chunk.actions[0, 0]) == (2, 2)
    assert len(act.seen) == 2


def test_a_question_of_the_last_episode_that_was_not_begun_is_never_asked(link, act, clock):
    link.ask(seen_at(0.0), tick=0)
    assert act.begun.acquire(timeout=PATIENCE_S)
    clock.now_s += 1.0
    assert link.poll().chunk is None
    link.ask(seen_at(0.0), tick=1)
    link.reset()
    act.may_answer.release(1)
    link.close()
    assert len(act.seen) == 1


def test_an_episode_has_a_name_and_counts_its_inferences(link, act):
    act.may_answer.release(100)
    for tick in range(3):
        link.ask(seen_at(0.0), tick=tick)
        ended(link)
    link.reset()
    link.ask(seen_at(0.0), tick=0)
    ended(link)
    assert [o.inference for o in act.seen] == [0, 1, 2, 0]
    names = [o.episode for o in act.seen]
    assert len(set(names[:3])) == 1
    assert names[3] != names[0]
    assert all(0 <= name < 2**63 for name in names)


def test_what_the_policy_raises_is_a_failed_inference():
    def broken(_observation, _key):
        raise RuntimeError("out of memory")

    link = ThreadLink(broken, action_spec=SPEC, timeout_s=PATIENCE_S)
    link.ask(seen_at(0.0), tick=3)
    reply = ended(link)
    assert (reply.tick, reply.chunk, reply.detail) == (3, None, "RuntimeError: out of memory")
    link.close()
