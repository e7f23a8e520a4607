"""Whether a chunk lasts until the next one is there."""

import pytest

from vega_policy.control.delay import gap_free


@pytest.mark.parametrize(
    ("latency_ms", "delay", "ask_every"),
    [
        (10, 1, (1, 7)),
        (50, 1, (1, 7)),
        (51, 2, (2, 6)),
        (100, 2, (2, 6)),
        (150, 3, (3, 5)),
        (200, 4, (4, 4)),
        (201, 5, None),
        (450, 9, None),
    ],
)
def test_the_table_of_eight_actions_at_20_hz(latency_ms, delay, ask_every):
    verdict = gap_free(latency_ms / 1000, 20, 8)
    assert (verdict.delay_ticks, verdict.ask_every) == (delay, ask_every)


def test_a_latency_of_a_whole_number_of_periods_is_that_many_ticks():
    assert 0.07 * 100 > 7
    assert gap_free(0.07, 100, 16).delay_ticks == 7


@pytest.mark.parametrize(
    ("rate_hz", "horizon", "longest_ms"),
    [(20, 8, 200), (15, 8, 266.6), (10, 8, 400), (20, 16, 400)],
)
def test_the_longest_latency_by_rate_and_horizon(rate_hz, horizon, longest_ms):
    assert gap_free(longest_ms / 1000, rate_hz, horizon).status == "warning"
    assert gap_free(longest_ms / 1000 + 0.001, rate_hz, horizon).status == "refuse"


def test_up_to_175_ms_there_is_nothing_to_say():
    assert gap_free(0.175, 20, 8).status == "ok"
    assert gap_free(0.176, 20, 8).status == "warning"


def test_a_refusal_names_the_rate_that_would_fit():
    verdict = gap_free(0.233, 20, 8)
    assert verdict.status == "refuse"
    assert verdict.max_rate_hz == pytest.approx(17.17, abs=0.01)
    assert "at most 17.1 Hz" in verdict.sentence
    assert gap_free(0.233, 17.1, 8).status != "refuse"


def test_questions_that_are_too_rare_are_refused_with_those_that_fit():
    assert gap_free(0.15, 20, 8, ask_every=5).status == "ok"
    verdict = gap_free(0.15, 20, 8, ask_every=6)
    assert verdict.status == "refuse"
    assert "ask every 3 to 5 steps" in verdict.sentence
