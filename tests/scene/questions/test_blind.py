"""What is got without looking is what a constant is worth, and it is little."""

import pytest

from vega_policy.scene.annotations import ScanQARow, SQA3DRow, VsiRow
from vega_policy.scene.metrics.vsi_bench import score_answer
from vega_policy.scene.questions.blind import blind, table
from vega_policy.scene.questions.sentences import ASK, SITUATED, VSI


@pytest.fixture(scope="module")
def found(asked, rooms):
    rows = {task: [row for row, _ in pairs] for task, pairs in asked.items()}
    return blind(rows, rooms)


def vsi(kind, *answers, options=None):
    rows = [
        VsiRow(
            id=i,
            dataset="rooms",
            scene_name="a",
            question_type=kind,
            question="?",
            ground_truth=answer,
            options=options,
        )
        for i, answer in enumerate(answers)
    ]
    return blind({"vsi_bench": rows}, [])


def test_all_rows_are_counted_once(found, asked):
    for task, pairs in asked.items():
        assert sum(row.n for row in found if row.task == task) == len(pairs)
    kinds = {row.kind for row in found}
    assert kinds >= {*VSI, *ASK, *SITUATED, "mt", "side", "caption"}
    assert len(table(found).splitlines()) == len(found) + 1


def test_a_constant_of_questions_is_the_most_frequent_of_all_right_answers(rooms):
    answers = [("2", "two"), ("two",), ("3",)]
    rows = [
        ScanQARow(scene_id="a", question_id=str(i), question="how many beds are there?", answers=a)
        for i, a in enumerate(answers)
    ]
    (row,) = blind({"scanqa": rows}, rooms)
    assert (row.kind, row.best, row.n, row.answers) == ("count", "two", 3, 3)
    assert row.score == pytest.approx(2 / 3)


def test_who_knows_the_words_only_is_blind_too(rooms):
    """Left is as often yes as no, and so is behind, but each by itself has one answer."""
    rows = [
        SQA3DRow(
            scene_id="a",
            question_id=i,
            situation="",
            question=f"Is the bed {way}?",
            answer=answer,
        )
        for i, (way, answer) in enumerate([("behind me", "no"), ("to my left", "yes")] * 3)
    ]
    (row,) = blind({"sqa3d": rows}, rooms)
    assert (row.answers, row.score) == (2, 1.0)


def test_a_constant_number_is_scored_as_the_benchmark_does():
    (row,) = vsi("object_abs_distance", "1.0", "1.2", "9.0")
    assert row.best == "1"
    one = VsiRow(
        id=0,
        dataset="rooms",
        scene_name="a",
        question_type="object_abs_distance",
        question="?",
        ground_truth="1.2",
    )
    expected = (1 + score_answer("1", one, parser="original")) / 3
    assert row.score == pytest.approx(expected)


def test_a_constant_choice_may_be_a_letter_or_a_text():
    options = ("A. left", "B. right")
    (row,) = vsi("object_rel_direction_easy", "A", "A", "B", options=options)
    assert (row.best, row.answers) == ("A", 2)
    assert row.score == pytest.approx(2 / 3)


def test_without_looking_little_is_got(found):
    """Chance, by kind: nobody should be praised for what a constant gets."""
    score = {(row.task, row.kind): row.score for row in found}
    for kind in ("object_rel_distance", "object_rel_direction_hard", "obj_appearance_order"):
        assert score["vsi_bench", kind] < 0.45
    for kind in ("is_way", "can_see", "which_turn"):
        # Half, but for what the best of several wordings gains by chance in few rows.
        assert score["sqa3d", kind] <= 0.7
    assert score["sqa3d", "how_many"] < 0.6
    for kind in ("side", "closest", "farthest", "on"):
        assert score["scanrefer", kind] <= 0.5
    assert score["scanqa", "color"] < 0.3
