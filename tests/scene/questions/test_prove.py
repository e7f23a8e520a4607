"""Every row is proved, and what is wrong in any way is caught."""

import ast
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from vega_policy.scene.annotations import CHOICE_TYPES, NUMERIC_TYPES, TASKS
from vega_policy.scene.questions.prove import prove
from vega_policy.scene.questions.sentences import (
    ASK,
    NUMBERS,
    REFER,
    SITUATED,
    SITUATION,
    VSI,
    read,
)


@pytest.fixture(scope="session")
def some(asked, labels):
    """Return up to ``n`` rows of a task and kind, with their scenes."""
    families = {
        "scanrefer": (REFER, "description"),
        "multi3drefer": (REFER, "description"),
        "scanqa": (ASK, "question"),
        "sqa3d": (SITUATED, "question"),
        "vsi_bench": (VSI, "question"),
    }
    by_kind = {}
    for task, (family, field) in families.items():
        for row, truth in asked[task]:
            (said,) = read(getattr(row, field), family, nouns=labels)
            by_kind.setdefault((task, said.kind), []).append((row, truth))

    def pick(task, kind=None, n=8):
        found = asked[task] if kind is None else by_kind[task, kind]
        assert found
        return found[:: max(1, len(found) // n)][:n]

    return pick


def refuse(row, truth, saying=""):
    why = prove(row, truth)
    assert why is not None, row
    assert saying in why, why


def moved(truth, object_id, by):
    """Return a scene in which one object, and what it carries, is elsewhere."""
    objects = tuple(
        replace(o, centre=o.centre + by, box=o.box + np.append(by, [0, 0, 0]))
        if object_id in (o.object_id, o.stands_on)
        else o
        for o in truth.objects
    )
    return replace(truth, objects=objects)


def mirrored(truth):
    """Return a scene as in a mirror: what was to the left is to the right."""
    flip = np.array([-1.0, 1.0, 1.0])
    objects = tuple(
        replace(
            o,
            centre=o.centre * flip,
            box=o.box * np.append(flip, [1, 1, 1]),
            axes=o.axes * flip,
        )
        for o in truth.objects
    )
    return replace(truth, objects=objects, floor=truth.floor * flip[:2])


def with_id(truth, object_id):
    return next(o for o in truth.objects if o.object_id == object_id)


def box(o):
    return tuple(float(x) for x in o.box)


def test_the_proof_knows_nothing_of_the_generator():
    code = (
        "import sys; import vega_policy.scene.questions.prove; "
        "print(sorted(name.rpartition('.')[2] for name in sys.modules if '.questions.' in name))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ast.literal_eval(out.stdout) == [
        *("meaning", "measured", "prove", "prove_situated", "prove_vsi", "sentences")
    ]


# -- what is right -----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_every_row_is_proved(asked, task):
    assert [(row, why) for row, truth in asked[task] if (why := prove(row, truth))] == []
    assert len(asked[task]) > 50


def test_the_order_of_proofs_does_not_matter(asked):
    rows = [pair for task in TASKS for pair in asked[task][:20]]
    for row, truth in reversed(rows):
        assert prove(row, truth) is None


# -- scenes that are others --------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_a_row_of_another_scene_is_refused(some, asked, task):
    other = asked[task][-1][1]
    refuse(some(task)[0][0], other, "the truth about")


def test_a_scene_that_contradicts_itself_proves_nothing(some):
    row, truth = some("scanrefer")[0]
    first = truth.objects[0]
    for changed in (
        replace(first, box=first.box + np.eye(6)[0]),
        replace(first, box=first.box * [1, 1, 1, 0.3, 0.3, 1]),
        replace(first, axes=first.axes * 2),
        replace(first, size=first.size * [1, 1, 0]),
    ):
        refuse(row, replace(truth, objects=(changed, *truth.objects[1:])), "object 0")


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("scanrefer", "side"),
        ("multi3drefer", "side"),
        ("sqa3d", "which_turn"),
        ("vsi_bench", "object_rel_direction_easy"),
        ("vsi_bench", "object_rel_direction_hard"),
    ],
)
def test_left_is_right_in_a_mirror(some, task, kind):
    for row, truth in some(task, kind):
        turned = row
        if task == "sqa3d":
            # The pose is mirrored too, so that the answer is what is wrong.
            x, y, z = row.position
            _, _, s, c = row.rotation
            turned = replace(row, position=(-x, y, z), rotation=(0.0, 0.0, c, s))
        refuse(turned, mirrored(truth))


@pytest.mark.parametrize(
    ("task", "kind"), [("vsi_bench", "object_abs_distance"), ("vsi_bench", "object_rel_distance")]
)
def test_a_thing_that_was_moved_is_not_where_it_was(some, labels, task, kind):
    for row, truth in some(task, kind):
        (said,) = read(row.question, VSI, nouns=labels)
        of = {o.label: o.object_id for o in truth.objects}
        far = np.array([0.0, 0.0, 30.0])
        right = said.slots.get("other") or {o[0]: o[3:] for o in row.options}[row.ground_truth]
        elsewhere = truth
        for o in truth.objects:
            if o.label == right:
                elsewhere = moved(elsewhere, o.object_id, far)
        refuse(row, elsewhere)
        assert said.slots["thing"] in of


@pytest.mark.parametrize("kind", ["closest", "on"])
def test_a_description_does_not_fit_what_was_taken_away(some, kind):
    for row, truth in some("scanrefer", kind):
        refuse(row, moved(truth, row.object_id, np.array([40.0, 0.0, 5.0])))


def test_what_is_shown_in_no_frame_cannot_be_asked_for(some):
    for task, field in (("scanrefer", "description"), ("scan2cap", "references")):
        for row, truth in some(task):
            objects = tuple(
                replace(o, visible_px=o.visible_px * 0) if o.object_id == row.object_id else o
                for o in truth.objects
            )
            refuse(row, replace(truth, objects=objects), "no frame shows")
            assert getattr(row, field)


# -- ScanRefer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(set(REFER) - {"all", "all_on", "only"}))
def test_a_description_of_another_of_the_class_is_refused(some, kind):
    for row, truth in some("scanrefer", kind):
        others = [o for o in truth.objects if o.label == row.object_name]
        for o in others:
            if o.object_id != row.object_id:
                refuse(replace(row, object_id=o.object_id, box=box(o)), truth, "means objects")


def test_a_name_or_colour_of_another_thing_is_refused(some):
    for row, truth in some("scanrefer", "only"):
        for o in truth.objects:
            if o.object_id != row.object_id:
                named = replace(row, object_id=o.object_id, object_name=o.label, box=box(o))
                refuse(named, truth)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"object_id": 999}, "no object 999"),
        ({"object_name": "unicorn"}, "name of object"),
        ({"box": (0.0,) * 6}, "box of object"),
        ({"box": None}, "box of object"),
        ({"description": "that thing over there", "token": ()}, "no way"),
        ({"description": "find the unicorn", "token": ()}, "means objects []"),
        ({"token": ("the",)}, "token"),
        ({"eval_type": None}, "eval_type"),
    ],
)
def test_fields_of_a_description_are_checked(some, change, why):
    row, truth = some("scanrefer")[0]
    refuse(replace(row, **change), truth, why)


def test_unique_and_multiple_are_counted(some):
    for row, truth in some("scanrefer"):
        other = "unique" if row.eval_type == "multiple" else "multiple"
        refuse(replace(row, eval_type=other), truth, "eval_type")


def test_biggest_is_not_smallest_and_closest_not_farthest(some):
    for one, other in (
        ("biggest", "smallest"),
        ("tallest", "shortest"),
        ("closest", "farthest"),
    ):
        for kind, instead in ((one, other), (other, one)):
            for row, truth in some("scanrefer", kind, n=3):
                text = row.description.replace(kind, instead)
                refuse(replace(row, description=text, token=tuple(text.split())), truth)


# -- Multi3DRefer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("eval_type", ["zt_w_d", "zt_wo_d", "st_w_d", "st_wo_d", "mt"])
def test_one_target_more_or_less_is_refused(asked, eval_type):
    rows = [pair for pair in asked["multi3drefer"] if pair[0].eval_type == eval_type][:8]
    assert rows
    for row, truth in rows:
        same = [o for o in truth.objects if o.label == row.object_name]
        more = next((o for o in [*same, *truth.objects] if o.object_id not in row.object_ids), None)
        for ids in (row.object_ids[1:], (*row.object_ids, more.object_id)):
            if ids != row.object_ids:
                boxes = tuple(box(with_id(truth, i)) for i in ids)
                refuse(replace(row, object_ids=ids, boxes=boxes), truth)
        for wrong in ("zt_w_d", "zt_wo_d", "st_w_d", "st_wo_d", "mt"):
            if wrong != eval_type:
                refuse(replace(row, eval_type=wrong), truth, "eval_type")


def test_attributes_and_boxes_of_several_are_checked(some):
    for row, truth in some("multi3drefer", "closest"):
        refuse(replace(row, attributes=frozenset({"shape"})), truth, "attributes")
        refuse(replace(row, boxes=None), truth, "no boxes")
        refuse(replace(row, boxes=()), truth, "0 boxes for 1")


def test_nothing_that_is_there_is_called_absent(asked):
    for row, truth in asked["multi3drefer"]:
        if row.eval_type == "zt_wo_d":
            there = truth.objects[0].label
            refuse(replace(row, description=f"the {there}"), truth)
            alike = replace(truth.objects[0], label=f"old {row.object_name}")
            objects = (alike, *truth.objects[1:])
            refuse(row, replace(truth, objects=objects), "may be")
            break


# -- Scan2Cap ----------------------------------------------------------------------------------------


def test_one_false_caption_among_true_ones_is_refused(some):
    seen = Counter()
    for row, truth in some("scan2cap", n=40):
        other = next(o for o in truth.objects if o.label != row.object_name and o.colour)
        false = [f"this is a {other.label}.", f"the {row.object_name} is of wood."]
        own = with_id(truth, row.object_id)
        if own.colour:
            false.append(f"this {own.label} is {'red' if own.colour != 'red' else 'blue'}.")
        n = sum(o.label == own.label for o in truth.objects)
        false.append(f"there is only one {own.label}." if n > 1 else "there are two chairs.")
        for text in row.references:
            first, second = text.rstrip(".").split(". ")
            if " on " in second:
                swapped = second.replace("it is on", "it is next to").replace("top of ", "")
                false.append(f"{first}. {swapped}.")
                seen["on"] += 1
            for word in NUMBERS[2:9]:
                if f" {word} " in second:
                    more = NUMBERS[NUMBERS.index(word) + 1]
                    false.append(f"{first}. {second.replace(word, more)}.")
                    seen["number"] += 1
        for text in false:
            refuse(replace(row, references=(*row.references[:1], text)), truth)
    assert min(seen["on"], seen["number"]) > 3


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"references": ()}, "0 references"),
        ({"references": ("this is a chair.",) * 2}, "differ"),
        ({"references": ("this is a chair",)}, "no caption"),
        ({"references": ("",)}, "no caption"),
        ({"question_type": ""}, "question_type"),
        ({"object_name": "unicorn"}, "name of object"),
        ({"box_input": None}, "box of object"),
        ({"box": None}, "box of object"),
    ],
)
def test_fields_of_captions_are_checked(some, change, why):
    row, truth = some("scan2cap")[0]
    refuse(replace(row, **change), truth, why)


# -- ScanQA ------------------------------------------------------------------------------------------

WRONG_ANSWERS = {
    "count": ("7", "seven", "many", "-1", "1.0", ""),
    "count_on": ("7", "seven"),
    "color": ("it is invisible", "red and blue", "it is "),
    "color_on": ("it is invisible",),
    "color_closest": ("it is invisible",),
    "where": ("on the floor", "in the room", "on the unicorn"),
    "what_on": ("unicorn", "a unicorn"),
    "what_next": ("unicorn", "a unicorn"),
}


@pytest.mark.parametrize("kind", sorted(ASK))
def test_one_wrong_answer_among_right_ones_is_refused(some, asked, kind):
    rows = some("scanqa", kind)
    every = {a for row, _ in asked["scanqa"] for a in row.answers}
    for row, truth in rows:
        for answer in WRONG_ANSWERS[kind]:
            if answer not in row.answers:
                refuse(replace(row, answers=(*row.answers, answer)), truth)
        for answer in sorted(every - set(row.answers))[::9]:
            refuse_unless_true(row, answer, truth)
        refuse(replace(row, answers=()), truth, "no answer")
        refuse(replace(row, object_ids=(*row.object_ids, 999)), truth, "no object 999")


def refuse_unless_true(row, answer, truth):
    """Refuse an answer of another question, but for what is as true: `3` for `three`."""
    colours = {f"{o.colour} {o.label}" for o in truth.objects if o.object_id in row.object_ids}
    same = {NUMBERS.index(a) if a in NUMBERS else a for a in row.answers}
    number = NUMBERS.index(answer) if answer in NUMBERS else answer
    if number in same or answer in colours or str(number) in row.answers:
        return
    if prove(replace(row, answers=(*row.answers, answer)), truth) is None:
        # `on the bed` may be said as `on the red bed`.
        assert answer.split(" ")[-1] == row.answers[0].split(" ")[-1]


def test_a_count_looks_at_all_that_is_counted(some):
    for row, truth in some("scanqa", "count"):
        refuse(
            replace(row, object_ids=row.object_ids[1:], object_names=row.object_names[1:]),
            truth,
            "means objects",
        )


# -- SQA3D -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(SITUATED))
def test_every_other_answer_from_a_place_is_refused(some, kind):
    answers = {row.answer for row, _ in some("sqa3d", kind, n=60)}
    assert len(answers) > 1
    for row, truth in some("sqa3d", kind):
        for answer in (*sorted(answers - {row.answer}), "", "maybe"):
            refuse(replace(row, answer=answer), truth, "has the answer")


def test_a_pose_that_is_not_the_situation_is_refused(some):
    for row, truth in some("sqa3d"):
        x, y, z = row.position
        _, _, s, c = row.rotation
        refuse(replace(row, position=(x + 40, y, z)), truth, "not on the floor")
        refuse(replace(row, position=(x, y, 1.5)), truth, "not on the floor")
        refuse(replace(row, position=None), truth, "no position")
        refuse(replace(row, rotation=None), truth, "no position or no rotation")
        refuse(replace(row, rotation=(0.0, 0.0, c, -s)), truth, "does not look at")
        refuse(replace(row, rotation=(0.0, 0.0, 2 * s, 2 * c)), truth, "does not look at")
        refuse(replace(row, rotation=(0.0, 0.0, -s, c)), truth, "does not look at")


def test_somebody_inside_of_furniture_or_far_from_what_they_stand_by_is_refused(some):
    for row, truth in some("sqa3d"):
        anywhere = [o for o in truth.objects if o.centre[2] < 1.0 and o.stands_on is None]
        whys = [
            prove(replace(row, position=(float(o.centre[0]), float(o.centre[1]), 0.0)), truth)
            for o in anywhere
        ]
        assert all(why is not None for why in whys)
        assert any("nobody fits" in why or "not by" in why for why in whys)


def test_another_situation_is_refused(some, labels):
    for row, truth in some("sqa3d"):
        refuse(replace(row, situation="I am at home."), truth, "no way")
        (said,) = read(row.situation, SITUATION, nouns=labels)
        by, facing = said.slots["by"], said.slots["facing"]
        turned = f"I am standing by the {facing} and facing the {by}."
        refuse(replace(row, situation=turned, alternative_situations=()), truth)
        other = "I am standing by the door and facing the window."
        refuse(replace(row, alternative_situations=(other,)), truth, "do not say the same")


def test_from_a_place_left_and_right_are_not_exchanged(some):
    for row, truth in some("sqa3d", "is_way"):
        for one, other in (("to my left", "to my right"), ("to my right", "to my left")):
            if one in row.question:
                refuse(replace(row, question=row.question.replace(one, other)), truth)


# -- VSI-Bench ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "by"),
    [
        ("object_counting", 1),
        ("object_abs_distance", 0.2),
        ("object_size_estimation", 2),
        ("room_size_estimation", 0.3),
    ],
)
def test_a_number_that_is_a_little_off_is_refused(some, kind, by):
    for row, truth in some("vsi_bench", kind):
        for wrong in (float(row.ground_truth) + by, float(row.ground_truth) - by):
            refuse(replace(row, ground_truth=f"{wrong:g}"), truth, "has the answer")
        for wrong in ("nan", "inf", "-inf"):
            refuse(replace(row, ground_truth=wrong), truth)
        refuse(replace(row, ground_truth="two"), truth, "no number")
        refuse(replace(row, options=("A. 1", "B. 2")), truth, "there are options")


@pytest.mark.parametrize("kind", CHOICE_TYPES)
def test_every_other_letter_is_refused(some, kind):
    for row, truth in some("vsi_bench", kind):
        letters = [option[0] for option in row.options]
        for letter in (*letters, "E", "", "a"):
            if letter != row.ground_truth:
                refuse(replace(row, ground_truth=letter), truth)


@pytest.mark.parametrize("kind", CHOICE_TYPES)
def test_options_that_are_exchanged_doubled_or_missing_are_refused(some, kind):
    for row, truth in some("vsi_bench", kind, n=4):
        texts = [option[3:] for option in row.options]
        rolled = texts[1:] + texts[:1]
        refuse(replace(row, options=labelled(rolled)), truth)
        right = texts["ABCD".index(row.ground_truth)]
        refuse(replace(row, options=labelled([right] * len(texts))), truth, "are the same")
        refuse(replace(row, options=None), truth, "expected two to four")
        refuse(replace(row, options=tuple(texts)), truth, "expected two to four")
        none = [text for text in texts if text != right]
        refuse(replace(row, options=labelled(none)), truth)


def labelled(texts):
    return tuple(f"{letter}. {text}" for letter, text in zip("ABCD", texts, strict=False))


def test_type_and_data_set_are_checked(some):
    row, truth = some("vsi_bench", "object_counting")[0]
    refuse(replace(row, question_type="room_size_estimation"), truth, "question_type")
    refuse(replace(row, dataset="scannet"), truth, "dataset")
    assert {*NUMERIC_TYPES, *CHOICE_TYPES} == set(VSI)


def test_a_route_through_furniture_or_without_its_turns_is_refused(some, labels):
    for row, truth in some("vsi_bench", "route_planning"):
        start = row.question.split("beginning at the ")[1].split(" and facing")[0]
        goal = row.question.split("navigate to the ")[1].split(". ")[0]
        refuse(
            replace(row, question=row.question.replace(f"until the {goal}.", "until the.")), truth
        )
        refuse(replace(row, question=row.question.replace("1. ", "2. ", 1)), truth)
        a, b = (next(o for o in truth.objects if o.label == name) for name in (start, goal))
        # A box in the middle of the way.
        first = row.question.split("Go forward until the ")[1].split(" 3.")[0].split(".")[0]
        stop = next(o for o in truth.objects if first.startswith(o.label))
        middle = (a.centre + stop.centre) / 2
        middle[2] = 0.2
        block = replace(
            a,
            object_id=900,
            label="hedge",
            centre=middle,
            size=np.full(3, 0.3),
            axes=np.eye(3),
            box=np.array([*middle, 0.3, 0.3, 0.3]),
        )
        blocked = replace(truth, objects=(*truth.objects, block))
        refuse(row, blocked, "in the way")
        assert b.label in labels


def test_the_order_of_a_video_played_backwards_is_another(some):
    for row, truth in some("vsi_bench", "obj_appearance_order"):
        objects = tuple(replace(o, visible_px=o.visible_px[::-1]) for o in truth.objects)
        refuse(row, replace(truth, objects=objects))
