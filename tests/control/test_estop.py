"""Anybody stops; a named person releases."""

import threading

import pytest

from vega_policy.control.estop import EmergencyStop
from vega_policy.spec import ContractError


def test_it_latches_with_its_first_reason_until_a_named_person_releases_it():
    estop = EmergencyStop()
    assert not estop.is_pressed
    estop.press("hand in the box", "page")
    estop.press("again", "topic")
    assert estop.is_pressed
    assert estop.reason == "hand in the box (pressed by page)"
    with pytest.raises(ContractError, match="say who looked at the robot"):
        estop.release(" ")
    assert estop.is_pressed
    estop.release("ada")
    assert not estop.is_pressed
    assert estop.reason == ""


def test_every_listener_hears_each_change_once_even_behind_a_broken_one():
    estop, heard = EmergencyStop(), []

    def broken(_is_pressed, _text):
        raise RuntimeError("page gone")

    estop.on_change(broken)
    estop.on_change(lambda is_pressed, text: heard.append((is_pressed, text)))
    estop.release("ada")
    estop.press("smoke", "key")
    estop.press("smoke", "key")
    estop.release("ada")
    assert heard == [(True, "smoke (pressed by key)"), (False, "released by ada")]


def test_pressed_by_many_threads_at_once_it_tells_of_one_press():
    estop, heard = EmergencyStop(), []
    estop.on_change(lambda is_pressed, _text: heard.append(is_pressed))
    threads = [threading.Thread(target=estop.press, args=("all", str(i))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == [True]
