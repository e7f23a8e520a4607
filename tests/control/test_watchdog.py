"""Silence becomes a hold, then a stop that only a person ends."""

import threading

import pytest

from vega_policy.control.watchdog import Watchdog
from vega_policy.testing.fake_link import FakeClock


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def heard():
    return []


@pytest.fixture
def watchdog(clock, heard):
    return Watchdog(
        hold_after_s=0.1,
        stop_after_s=1.0,
        on_hold=lambda: heard.append("hold"),
        on_stop=lambda: heard.append("stop"),
        clock=clock,
    )


def test_before_the_first_command_there_is_nothing_to_end(watchdog, clock, heard):
    clock.now_s += 100
    assert watchdog.poll() == "hold"
    assert heard == []


def test_silence_is_a_hold_and_the_next_command_ends_it(watchdog, clock, heard):
    watchdog.fed()
    clock.now_s += 0.099
    assert watchdog.poll() == "fresh"
    clock.now_s += 0.002
    assert watchdog.poll() == watchdog.poll() == "hold"
    watchdog.fed()
    assert watchdog.poll() == "fresh"
    assert heard == ["hold"]


def test_a_long_silence_is_a_stop_that_commands_do_not_end(watchdog, clock, heard):
    watchdog.fed()
    clock.now_s += 1.0
    assert watchdog.poll() == "stop"
    watchdog.fed()
    assert watchdog.poll() == "stop"
    watchdog.rearm()
    assert watchdog.poll() == "fresh"
    clock.now_s += 0.5
    assert watchdog.poll() == "hold"
    assert heard == ["stop", "hold"]


def test_its_thread_calls_out_while_the_loop_is_stuck():
    held, stopped = threading.Event(), threading.Event()
    watchdog = Watchdog(hold_after_s=0.02, stop_after_s=0.05, on_hold=held.set, on_stop=stopped.set)
    watchdog.start()
    try:
        watchdog.fed()
        assert stopped.wait(30)
    finally:
        watchdog.close()
    assert watchdog.poll() == "stop"


def test_a_failed_callback_does_not_end_the_watch():
    stopped = threading.Event()

    def broken():
        raise RuntimeError("driver gone")

    watchdog = Watchdog(hold_after_s=0.02, stop_after_s=0.2, on_hold=broken, on_stop=stopped.set)
    watchdog.start()
    try:
        watchdog.fed()
        assert stopped.wait(30)
    finally:
        watchdog.close()
