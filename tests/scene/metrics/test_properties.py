"""What must hold of every metric, and the traps of the published evaluators, closed by default."""

# ruff: noqa: S311 - random inputs

import json
import random
from pathlib import Path

import numpy as np
import pytest

from vega_policy.scene.annotations import (
    CHOICE_TYPES,
    NUMERIC_TYPES,
    Multi3DReferRow,
    Scan2CapRow,
    ScanQARow,
    ScanReferRow,
    SQA3DRow,
    VsiRow,
)
from vega_policy.scene.metrics.answers import clean_answer, refined_match
from vega_policy.scene.metrics.captions import score_captions
from vega_policy.scene.metrics.multi3drefer import THRESHOLDS, f1, score_multi3drefer
from vega_policy.scene.metrics.scan2cap import prepare, score_scan2cap
from vega_policy.scene.metrics.scanqa import score_scanqa
from vega_policy.scene.metrics.scanrefer import (
    read_label_classes,
    score_scanrefer,
    unique_descriptions,
)
from vega_policy.scene.metrics.score import SceneBootstrap
from vega_policy.scene.metrics.sqa3d import question_type, score_sqa3d
from vega_policy.scene.metrics.vsi_bench import (
    mean_relative_accuracy,
    parse_number,
    score_answer,
    score_vsi_bench,
)
from vega_policy.spec import ContractError

BOX = (0.0, 0.0, 0.0, 1.0, 1.0, 1.0)
FAR = (9.0, 0.0, 0.0, 1.0, 1.0, 1.0)
GROUNDING = Path(__file__).resolve().parents[2] / "data/scene/metrics/grounding.json"


def described(scene=0, obj=0, ann=0, **changed):
    fields = {"object_name": "chair", "description": "a chair", "box": BOX, **changed}
    return ScanReferRow(scene_id=f"scene{scene}", object_id=obj, ann_id=str(ann), **fields)


def asked(number, kind="object_counting", truth="4"):
    return VsiRow(
        id=number,
        dataset="scannet",
        scene_name=f"s{number % 3}",
        question_type=kind,
        question="?",
        ground_truth=truth,
    )


def qa(number, *answers, scene=0):
    return ScanQARow(scene_id=f"s{scene}", question_id=f"q{number}", question="?", answers=answers)


def sqa(number, answer, question="What is it?"):
    return SQA3DRow(
        scene_id=f"s{number % 2}",
        question_id=number,
        situation="Here.",
        question=question,
        answer=answer,
    )


def captioned(number, *references, **changed):
    fields = {"box": BOX, **changed}
    return Scan2CapRow(scene_id=f"s{number % 2}", object_id=number, references=references, **fields)


# VSI-Bench


@pytest.mark.parametrize(
    ("text", "original", "lmms_eval"),
    [
        *[(text, 1, 1) for text in ("4", "4.", "4 meters", "4\n")],
        *[(text, 0, 1) for text in ("4m", "about 4", "four", " 4", "**4**", "4-5")],
    ],
)
def test_numbers_score_as_measured_with_each_parser(text, original, lmms_eval):
    assert score_answer(text, asked(0), parser="original") == original
    assert score_answer(text, asked(0), parser="lmms_eval") == lmms_eval


@pytest.mark.parametrize(
    ("text", "original", "lmms_eval"),
    [("1,200", None, 1), ("1e1", 10, 1), ("twenty-one", None, 21), ("no", None, None)],
)
def test_numbers_parse_as_measured_with_each_parser(text, original, lmms_eval):
    assert parse_number(text, parser="original") == original
    assert parse_number(text, parser="lmms_eval") == lmms_eval


@pytest.mark.parametrize("parser", ["original", "lmms_eval"])
@pytest.mark.parametrize(
    ("text", "points"),
    [
        *[(text, 1) for text in ("A", "a", "A.", "A. left", "A left", "\nA")],
        *[(text, 0) for text in ("(A)", "A)", "A:", " A", "Answer: A", "left", "A\nleft")],
    ],
)
def test_choices_score_as_measured(text, points, parser):
    assert score_answer(text, asked(0, "route_planning", "A"), parser=parser) == points


@pytest.mark.parametrize("step", range(10))
def test_relative_accuracy_on_each_threshold_is_that_of_numpy_points(step):
    threshold = np.linspace(0.5, 0.95, 10)[step]
    off = 1 - threshold  # an answer exactly this far off still counts for this threshold
    expected = np.mean(abs((1 + off) - 1) / 1 <= 1 - np.linspace(0.5, 0.95, 10))
    assert mean_relative_accuracy(1 + off, 1.0) == expected
    assert mean_relative_accuracy(1 + off - 1e-9, 1.0) == pytest.approx((step + 1) / 10)
    assert mean_relative_accuracy(1 + off + 1e-9, 1.0) == pytest.approx(step / 10)


def test_relative_accuracy_at_the_ends():
    assert mean_relative_accuracy(4.0, 4.0) == 1
    assert mean_relative_accuracy(None, 4.0) == 0
    assert mean_relative_accuracy(float("nan"), 4.0) == 0
    assert mean_relative_accuracy(6.0, 4.0) == pytest.approx(0.1)  # exactly half off


def test_directions_are_averaged_unweighted_and_the_overall_score_is_over_eight_tasks():
    rows = [asked(i, kind) for i, kind in enumerate(NUMERIC_TYPES)]
    choice = ["object_rel_direction_easy"] * 3 + list(CHOICE_TYPES[2:])
    rows += [asked(10 + i, kind, "A") for i, kind in enumerate(choice)]
    rows += [asked(40, "object_rel_distance", "A")]
    right = {*range(4), 10, 11, 12}  # all numbers, all of the easy directions, nothing else
    said = [{"id": r.id, "text": r.ground_truth if r.id in right else "Z"} for r in rows]
    found = score_vsi_bench(said, rows)
    assert found.scores["object_rel_direction"].value == pytest.approx(100 / 3)
    assert found.scores["overall"].value == pytest.approx((4 * 100 + 100 / 3) / 8)
    assert not found.problems


def test_missing_types_are_named_and_the_mean_is_over_the_others():
    rows = [asked(0), asked(1, "object_rel_direction_hard", "B")]
    found = score_vsi_bench([{"id": 0, "text": "4"}, {"id": 1, "text": "C"}], rows)
    assert found.scores["overall"].value == 50
    [problem] = found.problems
    assert len(problem.ids) == 8
    assert problem.code == "annotation"


def test_a_number_that_is_not_greater_than_zero_is_refused():
    with pytest.raises(ContractError, match="relative accuracy"):
        score_vsi_bench([{"id": 0, "text": "0"}], [asked(0, truth="0")])


# Grounding


def test_f1_is_symmetric_and_blind_to_order():
    rng = random.Random(0)
    for row in json.loads(GROUNDING.read_text())["multi3drefer_rows"][:80]:
        a, b = (np.reshape(row[k], (-1, 6)) for k in ("predicted", "boxes"))
        once = f1(a, b, thresholds=THRESHOLDS).tolist()
        mixed = np.array(rng.sample(a.tolist(), len(a))).reshape(-1, 6)
        assert once == f1(b, a, thresholds=THRESHOLDS).tolist()
        assert once == f1(mixed, b, thresholds=THRESHOLDS).tolist()


def test_zero_targets_are_right_only_if_nothing_is_predicted():
    none, one = np.empty((0, 6)), np.array([BOX])
    assert f1(none, none, thresholds=THRESHOLDS).tolist() == [1, 1]
    assert f1(one, none, thresholds=THRESHOLDS).tolist() == [0, 0]
    assert f1(none, one, thresholds=THRESHOLDS).tolist() == [0, 0]


def test_the_overall_f1_is_over_descriptions_not_types():
    def row(ann, kind, boxes):
        return Multi3DReferRow(
            scene_id="s",
            object_ids=tuple(range(len(boxes))),
            description="chairs",
            eval_type=kind,
            object_name="chair",
            ann_id=ann,
            boxes=boxes,
        )

    rows = [row(0, "zt_w_d", ()), *[row(i, "st_w_d", (BOX,)) for i in (1, 2, 3)]]
    said = [{"scene_id": "s", "ann_id": i, "boxes": []} for i in range(4)]
    found = score_multi3drefer(said, rows)
    assert found.scores["f1@0.5"].value == 25
    assert found.scores["zt_w_d/f1@0.5"].value == 100
    assert "mt/f1@0.5" not in found.scores


def test_unique_is_counted_over_annotated_objects_of_the_whole_split(tmp_path):
    table = tmp_path / "labels.tsv"
    header = "id\traw_category\tcategory\tcount\tnyu40id\n"
    lines = ["1\tchair\tchair\t1\t5", "2\toffice chair\tchair\t1\t5", "3\tradio\tradio\t1\t40"]
    table.write_text(header + "\n".join(lines) + "\n")
    classes = read_label_classes(table)
    rows = [
        described(obj=1, object_name="chair"),
        described(obj=1, ann=1, object_name="chair"),  # the same object, told twice
        described(obj=2, object_name="radio"),
        described(scene=1, obj=1, object_name="office_chair"),
        described(scene=1, obj=2, object_name="chair"),
        described(scene=1, obj=3, object_name="radio"),  # 40 is not a known class ...
        described(scene=1, obj=4, object_name="gizmo"),  # ... and neither is a name without one
    ]
    nyu40 = unique_descriptions(rows, by="nyu40", classes=classes)
    assert nyu40.tolist() == [True, True, True, False, False, False, False]
    by_name = unique_descriptions(rows, by="name")
    assert by_name.tolist() == [True, True, True, True, True, True, True]
    part = rows[3:4]
    assert unique_descriptions(part, by="nyu40", classes=classes).tolist() == [True]  # the trap
    whole = unique_descriptions(part, by="nyu40", classes=classes, split=rows)
    assert whole.tolist() == [False]
    with pytest.raises(ContractError, match=r"combined\.tsv"):
        unique_descriptions(rows, by="nyu40")


def test_a_file_as_long_as_the_validation_split_with_other_counts_is_reported():
    rows = [described(obj=i) for i in range(9508)]
    said = [{"scene_id": "scene0", "object_id": 0, "ann_id": "0", "box": BOX}]
    problems = score_scanrefer(said, rows, classes={"chair": 5}).problems
    assert any("1845" in str(problem) for problem in problems)


# Answers


def test_an_empty_answer_is_right_for_leo_and_wrong_by_default():
    rows = [qa(0, "a brown chair"), qa(1, "two")]
    empty = [{"question_id": row.question_id, "text": ""} for row in rows]
    strict = score_scanqa(empty, rows, text="raw", with_meteor=False)
    leo = score_scanqa(empty, rows, text="raw", em_r="leo", with_meteor=False)
    assert (strict.scores["em_r"].value, leo.scores["em_r"].value) == (0, 100)
    rows = [sqa(0, "chair"), sqa(1, "two")]
    empty = [{"question_id": row.question_id, "text": " "} for row in rows]
    assert score_sqa3d(empty, rows).scores["em_r"].value == 0
    assert score_sqa3d(empty, rows, em_r="leo").scores["em_r"].value == 100


def test_a_missing_answer_is_no_refined_match_even_for_leo():
    rows = [sqa(0, "chair"), sqa(1, "two")]
    said = [{"question_id": 0, "text": "chair"}]
    assert score_sqa3d(said, rows, em_r="leo").scores["em_r"].value == 50


def test_answers_contain_each_other_without_blanks_and_articles():
    assert refined_match("The Chair.", ["brown chair"], em_r="strict")
    assert refined_match("arm chair", ["armchair"], em_r="strict")
    assert not refined_match("table", ["chair"], em_r="strict")
    assert clean_answer("The 2 TVs near a TV, none") == "two tvs near TV, zero"


def test_exact_match_of_scanqa_is_of_raw_texts():
    rows = [qa(0, "brown", "dark brown"), qa(1, "brown"), qa(2, "brown")]
    said = [("q0", "dark brown"), ("q1", "Brown"), ("q2", "brown ")]
    found = score_scanqa(
        [{"question_id": q, "text": t} for q, t in said], rows, text="raw", with_meteor=False
    )
    assert found.values["em@1"].tolist() == [1, 0, 0]


def test_capital_letters_cost_cider_in_raw_texts():
    rows = [qa(i, f"thing number {i}", scene=i % 2) for i in range(6)]
    said = [{"question_id": r.question_id, "text": r.answers[0].capitalize()} for r in rows]
    plain = [{"question_id": r.question_id, "text": r.answers[0] + "."} for r in rows]
    raw = score_scanqa(said, rows, text="raw", with_meteor=False).scores["raw/cider"].value
    best = score_scanqa(plain, rows, text="raw", with_meteor=False).scores["raw/cider"].value
    assert raw < best


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("What is it?", "what"),
        (" is it red?", "is"),
        ("Isn't it?", "is"),
        ("How many?", "how"),
        ("Can I see it?", "can"),
        ("Which way?", "which"),
        ("If I turn?", "others"),
    ],
)
def test_questions_are_typed_by_how_they_start(question, kind):
    assert question_type(question) == kind


# Captions


def test_a_caption_without_a_located_object_is_the_empty_one_and_the_floor_stands_beside():
    rows = [
        captioned(i, f"a {c} chair near the door") for i, c in enumerate(["red", "blue", "big"])
    ]
    said = [
        {"scene_id": r.scene_id, "object_id": r.object_id, "text": r.references[0], "box": box}
        for r, box in zip(rows, (BOX, BOX, FAR), strict=True)
    ]
    found = score_scan2cap(said, rows, with_meteor=False)
    assert found.protocol["located"] == "prediction"
    assert found.values["located"].tolist() == [1, 1, 0]
    floor = found.scores["rouge_l of empty captions"].value
    assert 100 * found.values["rouge_l"][2] == pytest.approx(floor)
    assert 0 < floor < found.scores["rouge_l@0.5"].value
    all_empty = score_scan2cap(
        [{**row, "text": ""} for row in said], rows, located="all", with_meteor=False
    )
    assert all_empty.scores["rouge_l"].value == pytest.approx(floor)
    assert all_empty.scores["cider"].value == 0


def test_half_an_overlap_counts_unless_it_must_be_exceeded():
    half = (0.0, 0.0, 0.0, 1.0, 1.0, 0.5 + 1e-7)  # the 1e-8 in the union aside, exactly one half
    row = captioned(0, "a chair", box_input=half)
    said = [{"scene_id": "s0", "object_id": 0, "text": "a chair"}]
    assert score_scan2cap(said, [row], with_meteor=False).scores["located"].value == 100
    quarter = captioned(0, "a chair", box_input=(0.0, 0.0, 0.0, 1.0, 1.0, 0.49))
    assert score_scan2cap(said, [quarter], with_meteor=False).scores["located"].value == 0


def test_captions_are_prepared_with_marks_apart_and_end_markers():
    assert prepare("A chair, red.") == "sos a chair ,  red .  eos"


def test_meteor_is_left_out_with_a_reason_and_the_rest_is_computed(monkeypatch):
    monkeypatch.setattr("vega_policy.scene.metrics.meteor.why_no_java", lambda: "there is no java")
    found = score_captions(["a chair"], [["a chair"]], SceneBootstrap(["s"]))
    assert "meteor" not in found.scores
    assert {"cider", "bleu4", "rouge_l"} <= set(found.scores)
    assert found.notes == ("METEOR not computed: there is no java",)
    rows = [qa(0, "chair"), qa(1, "table")]
    said = [{"question_id": row.question_id, "text": "chair"} for row in rows]
    both = score_scanqa(said, rows)
    assert "raw/cider" in both.scores
    assert "ptb/cider" not in both.scores
    assert any("text=ptb" in note for note in both.notes)


# Order and intervals


@pytest.mark.parametrize("seed", [0, 1])
def test_no_score_depends_on_the_order_of_predictions_or_questions(seed):
    rng = random.Random(seed)
    rows = [sqa(i, answer) for i, answer in enumerate(["chair", "two", "left", "red"])]
    said = [{"question_id": i, "text": t} for i, t in enumerate(["chair", "3", "the left", "re"])]
    mixed = score_sqa3d(rng.sample(said, 4), rng.sample(rows, 4))
    assert mixed.scores == score_sqa3d(said, rows).scores
    refs = [captioned(i, f"a {c} chair", f"chair {c} here") for i, c in enumerate("abcd")]
    text = [
        {"scene_id": r.scene_id, "object_id": r.object_id, "text": f"a {c} table"}
        for r, c in zip(refs, "abxd", strict=True)
    ]
    once = score_scan2cap(text, refs, with_meteor=False)
    again = score_scan2cap(rng.sample(text, 4), rng.sample(refs, 4), with_meteor=False)
    for name, score in once.scores.items():
        assert again.scores[name].value == pytest.approx(score.value, abs=1e-12)


def test_intervals_draw_scenes_and_cover_the_score():
    scenes = [f"s{i // 10}" for i in range(200)]
    together = np.repeat(np.arange(20) % 2, 10).astype(float)  # a scene is right or wrong as one
    apart = np.tile([0.0, 1.0], 100)
    bootstrap = SceneBootstrap(scenes)
    wide, narrow = bootstrap.mean(together), bootstrap.mean(apart)
    assert wide.value == narrow.value == 50
    assert wide.interval[0] < 35
    assert wide.interval[1] > 65
    assert wide == SceneBootstrap(scenes).mean(together)
    assert narrow.method.startswith("Wilson")  # all scenes agree, so draws say nothing
    assert narrow.interval[0] < 50 < narrow.interval[1]


def test_nothing_right_has_an_interval_above_zero_and_one_scene_has_one_of_questions():
    assert SceneBootstrap(["a", "b"]).mean(np.zeros(2)).interval[1] > 0
    one = SceneBootstrap(["a", "a"]).mean(np.array([0.0, 1.0]))
    assert one.method == "Wilson over 2 questions"
    assert SceneBootstrap(["a", "a"]).mean(np.array([0.3, 1.0])).interval is None
