"""What is asked: everything, the same each time, in the public files, with nothing to guess from."""

from collections import Counter
from dataclasses import replace

import pytest

from vega_policy.scene.annotations import CHOICE_TYPES, NUMERIC_TYPES, TASKS
from vega_policy.scene.questions.choosing import Letters, generator, in_turn
from vega_policy.scene.questions.generate import generate
from vega_policy.scene.questions.sentences import (
    ASK,
    CAPTION,
    REFER,
    SITUATED,
    SITUATION,
    VSI,
    read,
)
from vega_policy.scene.readers.folder import read_annotations
from vega_policy.scene.readers.multi3drefer import write_multi3drefer
from vega_policy.scene.readers.scan2cap import write_scan2cap
from vega_policy.scene.readers.scanqa import write_scanqa
from vega_policy.scene.readers.scanrefer import write_scanrefer
from vega_policy.scene.readers.sqa3d import write_sqa3d
from vega_policy.scene.readers.vsi_bench import write_vsi
from vega_policy.spec import ContractError

WRITERS = {
    "scanrefer": ("scanrefer.json", write_scanrefer),
    "multi3drefer": ("multi3drefer.json", write_multi3drefer),
    "scan2cap": ("scan2cap.json", write_scan2cap),
    "scanqa": ("scanqa.json", write_scanqa),
    "sqa3d": ("sqa3d_questions.json", write_sqa3d),
    "vsi_bench": ("vsi_bench.jsonl", write_vsi),
}
LEFT_OUT = {
    "scanrefer": {"eval_type", "box"},
    "multi3drefer": {"boxes"},
    "sqa3d": {"question_type"},
}
"""What a public file does not have room for, or what a reader adds."""


def rows_of(asked, task):
    return [row for row, _ in asked[task]]


def kinds(texts, family, nouns):
    return Counter(reading.kind for text in texts for reading in read(text, family, nouns=nouns))


# -- everything is asked -----------------------------------------------------------------------------


def test_all_kinds_of_all_tasks_are_asked(asked, labels):
    said = kinds([r.description for r in rows_of(asked, "scanrefer")], REFER, labels)
    assert set(said) == set(REFER) - {"all", "all_on"}
    said = kinds([r.description for r in rows_of(asked, "multi3drefer")], REFER, labels)
    assert set(said) == set(REFER)
    types = Counter(r.eval_type for r in rows_of(asked, "multi3drefer"))
    assert min(types[t] for t in ("zt_w_d", "zt_wo_d", "st_w_d", "st_wo_d", "mt")) > 10
    captions = [c for r in rows_of(asked, "scan2cap") for c in r.references]
    sentences = [f"{s}." for c in captions for s in c.rstrip(".").split(". ")]
    assert set(kinds(sentences, CAPTION, labels)) == set(CAPTION)
    assert set(kinds([r.question for r in rows_of(asked, "scanqa")], ASK, labels)) == set(ASK)
    said = kinds([r.question for r in rows_of(asked, "sqa3d")], SITUATED, labels)
    assert set(said) == set(SITUATED)
    said = kinds([r.situation for r in rows_of(asked, "sqa3d")], SITUATION, labels)
    assert set(said) == set(SITUATION)
    assert {r.question_type for r in rows_of(asked, "vsi_bench")} == set(VSI)
    assert set(VSI) == {*NUMERIC_TYPES, *CHOICE_TYPES}


def test_scanrefer_has_unique_and_multiple_objects_and_captions_have_paraphrases(asked):
    assert {r.eval_type for r in rows_of(asked, "scanrefer")} == {"unique", "multiple"}
    assert all(2 <= len(set(r.references)) <= 5 for r in rows_of(asked, "scan2cap"))


def test_a_scene_without_a_floor_has_no_questions_from_a_place_in_it(rooms):
    rows = generate(replace(rooms[0], floor=None))
    assert rows["sqa3d"] == []
    assert "room_size_estimation" not in {r.question_type for r in rows["vsi_bench"]}
    assert rows["scanrefer"]


def test_an_empty_scene_has_no_questions_but_of_its_size_and_of_what_is_not_there(rooms):
    rows = generate(replace(rooms[0], objects=()), labels=["chair"])
    kept = {task: len(some) for task, some in rows.items() if some}
    assert kept == {"multi3drefer": 1, "vsi_bench": 1}


def test_what_no_frame_shows_is_not_asked_for(rooms):
    hidden = rooms[0].objects[0]
    objects = (replace(hidden, visible_px=hidden.visible_px * 0), *rooms[0].objects[1:])
    rows = generate(replace(rooms[0], objects=objects))
    assert hidden.object_id not in {r.object_id for r in rows["scanrefer"]}
    assert hidden.object_id not in {r.object_id for r in rows["scan2cap"]}


# -- the same each time ------------------------------------------------------------------------------


def test_same_seed_same_rows_whatever_else_is_asked(rooms, labels):
    every = generate(rooms[1], seed=3, labels=labels)
    assert generate(rooms[1], seed=3, labels=labels) == every
    for task in TASKS:
        assert generate(rooms[1], tasks=(task,), seed=3, labels=labels) == {task: every[task]}


def test_another_seed_asks_other_questions(rooms, labels):
    one, other = (generate(rooms[1], seed=seed, labels=labels) for seed in (0, 1))
    for task in TASKS:
        assert one[task] != other[task]


def test_per_kind_bounds_how_many_are_asked(rooms):
    few = generate(rooms[1], per_kind=1)
    assert max(Counter(r.question_type for r in few["vsi_bench"]).values()) == 1
    assert all(len(few[task]) < len(some) for task, some in generate(rooms[1]).items())


def test_unknown_task_is_answered_with_the_nearest_and_nothing_is_asked_zero_times(rooms):
    with pytest.raises(ContractError, match="scanqa"):
        generate(rooms[0], tasks=("scanqq",))
    with pytest.raises(ContractError, match="per_kind is 0"):
        generate(rooms[0], per_kind=0)


# -- the public files --------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_rows_survive_the_public_files(asked, task, tmp_path):
    rows = rows_of(asked, task)
    if task == "sqa3d":
        rows = [replace(row, question_id=i) for i, row in enumerate(rows)]
    if task == "vsi_bench":
        rows = [replace(row, id=i) for i, row in enumerate(rows)]
    name, write = WRITERS[task]
    write(tmp_path / name, rows)
    got = read_annotations(tmp_path, task)
    assert len(got) == len(rows)
    for mine, theirs in zip(rows, got, strict=True):
        for field, value in vars(mine).items():
            if field not in LEFT_OUT.get(task, ()):
                assert getattr(theirs, field) == value, field


def test_ids_are_unique_in_a_scene(asked):
    keys = {
        "scanrefer": lambda r: (r.scene_id, r.object_id, r.ann_id),
        "multi3drefer": lambda r: (r.scene_id, r.ann_id),
        "scan2cap": lambda r: (r.scene_id, r.object_id),
        "scanqa": lambda r: r.question_id,
        "sqa3d": lambda r: (r.scene_id, r.question_id),
        "vsi_bench": lambda r: (r.scene_name, r.id),
    }
    for task, key in keys.items():
        rows = rows_of(asked, task)
        assert len({key(row) for row in rows}) == len(rows)


def test_numbers_are_numbers_and_choices_are_letters(asked):
    for row in rows_of(asked, "vsi_bench"):
        if row.question_type in NUMERIC_TYPES:
            assert row.options is None
            assert float(row.ground_truth) > 0
        else:
            letters = [option[0] for option in row.options]
            assert letters == list("ABCD"[: len(letters)])
            assert row.ground_truth in letters


# -- nothing to guess from ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CHOICE_TYPES)
def test_letters_are_balanced(asked, kind):
    rows = [r for r in rows_of(asked, "vsi_bench") if r.question_type == kind]
    most = Counter((len(r.options), r.ground_truth) for r in rows)
    for n in {len(r.options) for r in rows}:
        of_n = [count for (options, _), count in most.items() if options == n]
        assert max(of_n) <= 1 / n * sum(of_n) + 0.15 * sum(of_n) + 2


def test_yes_and_no_left_and_right_are_about_as_frequent(asked, labels):
    answers = Counter()
    for row in rows_of(asked, "sqa3d"):
        (reading,) = read(row.question, SITUATED, nouns=labels)
        answers[reading.kind, row.answer] += 1
    for kind, one, other in (
        ("is_way", "yes", "no"),
        ("can_see", "yes", "no"),
        ("which_turn", "left", "right"),
    ):
        n = answers[kind, one], answers[kind, other]
        assert min(n) >= 0.35 * sum(n), (kind, n)
    where = [answers["where", sector] for sector in ("front", "left", "right")]
    assert min(where) >= 0.2 * sum(where)


def test_the_side_asked_for_is_as_often_left_as_right(asked):
    said = [r.description for r in rows_of(asked, "scanrefer")]
    left, right = (sum(f"to the {side}" in text for text in said) for side in ("left", "right"))
    assert min(left, right) >= 0.35 * (left + right)


def test_no_answer_of_a_kind_dominates(asked, labels):
    answers = {}
    for row in rows_of(asked, "scanqa"):
        (reading,) = read(row.question, ASK, nouns=labels)
        answers.setdefault(reading.kind, Counter())[row.answers[0]] += 1
    for kind, found in answers.items():
        limit = 0.75 if kind == "count_on" else 0.5
        assert max(found.values()) <= limit * sum(found.values()), (kind, found)


def test_the_place_in_a_list_of_choices_says_nothing(asked):
    """In a question that lists its choices, the right one is at any place."""
    places = Counter()
    for row in rows_of(asked, "vsi_bench"):
        if row.question_type == "object_rel_distance":
            choices = row.question.split("(")[1].split(")")[0].split(", ")
            right = {o[0]: o[3:] for o in row.options}[row.ground_truth]
            places[choices.index(right)] += 1
    assert min(places[k] for k in range(4)) >= 0.1 * sum(places.values())


def test_answers_are_taken_in_turn():
    items = ["yes"] * 9 + ["no"] * 2 + ["maybe"]
    picked = in_turn(generator(0, "test"), items, 6, by=str)
    assert Counter(picked) == {"yes": 3, "no": 2, "maybe": 1}
    assert len(in_turn(generator(0, "test"), items, 99, by=str)) == len(items)


def test_letters_go_round():
    letters = Letters(generator(0, "test"))
    got = [letters.options("right", ["a", "b", "c"]) for _ in range(8)]
    assert Counter(letter for _, letter in got) == dict.fromkeys("ABCD", 2)
    assert all({o[0]: o for o in options}[letter].endswith("right") for options, letter in got)
