"""A chunk reaches the motors whole or not at all."""

import numpy as np
import pytest

from vega_policy.control import OpenLoop, require_valid_chunk
from vega_policy.spec import ActionChunk, ActionSpec, ContractError, PolicyFault

SPEC = ActionSpec()


def chunk(actions):
    return ActionChunk(actions=np.asarray(actions, dtype=np.float32))


def test_the_whole_chunk_is_applied_by_default():
    actions = np.arange(56, dtype=np.float32).reshape(8, 7)
    assert np.array_equal(OpenLoop(spec=SPEC).actions(chunk(actions)), actions)


def test_the_step_limit_cuts_the_chunk():
    assert OpenLoop(spec=SPEC, n_execute=5).actions(chunk(np.zeros((8, 7))), n_left=3).shape == (
        3,
        7,
    )


@pytest.mark.parametrize("n_execute", [0, 9])
def test_more_actions_than_the_chunk_has_are_refused(n_execute):
    with pytest.raises(ContractError, match="choose 1 to 8"):
        OpenLoop(spec=SPEC, n_execute=n_execute)


@pytest.mark.parametrize(
    ("actions", "said"),
    [
        (np.zeros((7, 7)), r"shape \(7, 7\)"),
        (np.zeros(56), "shape"),
        (np.where(np.arange(56).reshape(8, 7) == 9, np.nan, 0), "nan at action 1, number 2"),
        (np.full((8, 7), np.inf), "56 values"),
    ],
)
def test_an_invalid_chunk_is_a_policy_fault(actions, said):
    with pytest.raises(PolicyFault, match=said):
        require_valid_chunk(chunk(actions), SPEC)


def test_values_outside_the_bounds_are_the_environments_business():
    require_valid_chunk(chunk(np.full((8, 7), 1.5)), SPEC)
