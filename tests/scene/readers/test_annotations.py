"""Rows survive a round trip through the released formats, and bad rows are all named."""

import json
import sys
from dataclasses import replace

import pytest

from vega_policy.scene.annotations import (
    Multi3DReferRow,
    Scan2CapRow,
    ScanQARow,
    ScanReferRow,
    SQA3DRow,
    VsiRow,
)
from vega_policy.scene.readers.folder import (
    annotation_file,
    missing_annotations,
    read_annotations,
)
from vega_policy.scene.readers.multi3drefer import read_multi3drefer, write_multi3drefer
from vega_policy.scene.readers.scan2cap import captions_of, read_scan2cap, write_scan2cap
from vega_policy.scene.readers.scanqa import read_scanqa, write_scanqa
from vega_policy.scene.readers.scanrefer import read_scanrefer, write_scanrefer
from vega_policy.scene.readers.sqa3d import read_sqa3d, write_sqa3d
from vega_policy.scene.readers.vsi_bench import read_vsi, read_vsi_meta, write_vsi
from vega_policy.spec import ContractError

SCENE = "scene9999_00"
BOX = (0.1, -0.2, 0.30000000000000004, 1.0, 0.5, 0.7)
SCANREFER = [
    ScanReferRow(
        scene_id=SCENE,
        object_id=7,
        object_name="office chair",
        ann_id="0",
        description="a red chair by the door, près.",
        token=("a", "red", "chair", "by", "the", "door", "."),
        eval_type="multiple",
        box=BOX,
    ),
    ScanReferRow(
        scene_id=SCENE, object_id=7, object_name="office chair", ann_id="1", description="a chair."
    ),
]
MULTI3DREFER = [
    Multi3DReferRow(
        scene_id=SCENE,
        object_ids=(3, 7),
        description="the red ones",
        eval_type="mt",
        object_name="office chair",
        ann_id=4,
        attributes=frozenset({"color", "spatial"}),
        boxes=(BOX, BOX),
    ),
    Multi3DReferRow(
        scene_id=SCENE,
        object_ids=(),
        description="a piano",
        eval_type="zt_wo_d",
        object_name="piano",
        ann_id=5,
    ),
]
SCAN2CAP = [
    Scan2CapRow(
        scene_id=SCENE,
        object_id=7,
        box=BOX,
        references=("a red chair.", "it is red."),
        box_input=BOX,
        object_name="office chair",
        ann_id="0",
        question_type="unique",
    ),
    Scan2CapRow(scene_id=SCENE, object_id=8, box=None, references=("a table.",)),
]
SCANQA = [
    ScanQARow(
        scene_id=SCENE,
        question_id="val-scene9999-0",
        question="What color is it?",
        answers=("red", "dark red"),
        object_ids=(7, 8),
        object_names=("chair", "table"),
    )
]
SQA3D = [
    SQA3DRow(
        scene_id=SCENE,
        question_id=220602000002,
        situation="I stand by the door.",
        question="What is on my left?",
        answer="piano",
        position=(0.5, -0.25, 0.0),
        rotation=(0.0, 0.0, -0.9995736030415032, -0.02919952230128897),
        alternative_situations=("I sit.", "I lie."),
    )
]
VSI = [
    VsiRow(
        id=0,
        dataset="arkitscenes",
        scene_name="41069025",
        question_type="object_counting",
        question="How many tables?",
        ground_truth="4",
    ),
    VsiRow(
        id=1,
        dataset="scannet",
        scene_name=SCENE,
        question_type="object_rel_direction_easy",
        question="Left or right?",
        ground_truth="B",
        options=("A. left", "B. right"),
        pruned=False,
    ),
]
FORMATS = {
    "scanrefer": (read_scanrefer, write_scanrefer, SCANREFER, "rows.json"),
    "multi3drefer": (read_multi3drefer, write_multi3drefer, MULTI3DREFER, "rows.json"),
    "scan2cap": (read_scan2cap, write_scan2cap, SCAN2CAP, "rows.json"),
    "scanqa": (read_scanqa, write_scanqa, SCANQA, "rows.json"),
    "sqa3d": (read_sqa3d, write_sqa3d, SQA3D, "v1_balanced_questions_test_scannetv2.json"),
    "sqa3d short": (read_sqa3d, write_sqa3d, SQA3D, "sqa3d_questions.json"),
    "vsi jsonl": (read_vsi, write_vsi, VSI, "test.jsonl"),
    "vsi parquet": (read_vsi, write_vsi, VSI, "test.parquet"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_rows_come_back_equal(tmp_path, name):
    read, write, rows, file = FORMATS[name]
    write(tmp_path / file, rows)
    assert read(tmp_path / file) == rows


def test_released_annotations_are_found_beside_their_questions(tmp_path):
    write_sqa3d(tmp_path / "v1_balanced_questions_val_scannetv2.json", SQA3D)
    assert (tmp_path / "v1_balanced_sqa_annotations_val_scannetv2.json").is_file()


def test_scanrefer_files_have_the_released_types_and_underscores(tmp_path):
    write_scanrefer(tmp_path / "a.json", SCANREFER)
    first = json.loads((tmp_path / "a.json").read_text())[0]
    assert first["object_id"] == "7"
    assert first["object_name"] == "office_chair"


def test_scan2cap_reads_straight_from_scanrefer(tmp_path):
    write_scanrefer(tmp_path / "a.json", SCANREFER)
    (row,) = read_scan2cap(tmp_path / "a.json")
    assert row.references == ("a red chair by the door, près.", "a chair.")
    assert row == captions_of(SCANREFER)[0]


def said(human, gpt="<ground>", **more):
    turns = [{"value": human, "from": "human"}, {"value": gpt, "from": "gpt"}]
    return {"id": 0, "video": f"scannet/{SCENE}", "conversations": turns, **more}


def dump(tmp_path, content, name="rows.json"):
    path = tmp_path / name
    path.write_text(json.dumps(content))
    return path


def test_conversations_are_read_without_their_fixed_words(tmp_path):
    identify = "<image>Identify the object according to the following description.\n"
    none = "\nThere may be no corresponding object, or there may be one or more objects."
    meta = {"question_type": "unique", "ann_id": "0", "object_id": "7"}
    path = dump(tmp_path, [said(f"{identify}A red chair.", box=list(BOX), metadata=meta)])
    (refer,) = read_scanrefer(path)
    assert (refer.description, refer.object_id, refer.box) == ("A red chair.", 7, BOX)

    meta = {"question_type": "st_w_d", "ann_id": 0, "object_id": [7]}
    path = dump(tmp_path, [said(f"{identify}A red chair.{none}", box=[list(BOX)], metadata=meta)])
    (multi,) = read_multi3drefer(path)
    assert (multi.description, multi.object_ids, multi.boxes) == ("A red chair.", (7,), (BOX,))

    row = said("<image> What is it? Answer the question simply.", metadata={"answers": ["a", "b"]})
    (answer,) = read_scanqa(dump(tmp_path, [{**row, "id": "scanqa_val-scene9999-0_0"}]))
    assert (answer.question, answer.question_id) == ("What is it?", "val-scene9999-0")

    text = "<image> I sit. What is it? Answer the question using a single word or phrase."
    row = said(text, "sofa", metadata={"question_type": "what"})
    (situated,) = read_sqa3d(dump(tmp_path, [row]))
    assert (situated.situation, situated.question) == ("I sit.", "What is it?")
    assert (situated.answer, situated.question_type) == ("sofa", "what")


def test_a_conversation_with_other_words_is_named(tmp_path):
    path = dump(tmp_path, [said("<image> What?", metadata={"answers": ["a"]})])
    with pytest.raises(ContractError, match="Answer the question simply"):
        read_scanqa(path)


BAD = {
    "scanrefer": ("description", "", "eval_type", "odd"),
    "multi3drefer": ("object_ids", ["3"], "ann_id", None),
    "scan2cap": ("gt_box", [0, 0, 0, -1, 1, 1], "annotations", []),
    "scanqa": ("answers", [], "object_ids", 3),
    "vsi jsonl": ("ground_truth", 4, "question_type", "odd"),
}


@pytest.mark.parametrize("name", BAD)
def test_every_bad_field_is_named_with_its_row(tmp_path, name):
    read, write, rows, file = FORMATS[name]
    path = tmp_path / file
    write(path, rows)
    lines = name == "vsi jsonl"
    text = path.read_text()
    items = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    first, second = items[0], dict(items[0])
    field, value, other, other_value = BAD[name]
    first[field], second[other] = value, other_value
    items = [first, *items[1:], second, "not a row"]
    path.write_text("\n".join(map(json.dumps, items)) if lines else json.dumps(items))
    with pytest.raises(ContractError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message
    assert field in message
    assert other in message
    assert "(row 0)" in message
    assert f"{len(items) - 2}" in message
    assert 'row is "not a row", expected an object' in message


@pytest.mark.parametrize("name", ["scanrefer", "scan2cap", "scanqa", "vsi jsonl"])
def test_a_row_that_comes_twice_is_named(tmp_path, name):
    read, write, rows, file = FORMATS[name]
    write(tmp_path / file, [*rows, rows[0]])
    with pytest.raises(ContractError, match=rf"already in row 0 \(row {len(rows)}\)"):
        read(tmp_path / file)


def test_many_rows_with_one_problem_are_written_as_a_range(tmp_path):
    rows = [{"scene_id": SCENE}] * 5000
    with pytest.raises(ContractError) as caught:
        read_scanqa(dump(tmp_path, rows))
    assert "question is missing, expected a text that is not empty (row 0-4999)" in str(
        caught.value
    )
    assert len(str(caught.value)) < 2000


def test_a_number_of_targets_that_the_type_excludes_is_named(tmp_path):
    write_multi3drefer(tmp_path / "a.json", [replace(MULTI3DREFER[0], eval_type="st_w_d")])
    with pytest.raises(ContractError, match="st_w_d has 2 object_ids"):
        read_multi3drefer(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ground_truth": "C"}, "expected one of"),
        ({"options": None}, "has no options"),
        ({"question_type": "object_counting"}, "expected a number"),
    ],
)
def test_vsi_answers_must_fit_their_question(tmp_path, change, said):
    write_vsi(tmp_path / "a.jsonl", [replace(VSI[1], **change)])
    with pytest.raises(ContractError, match=said):
        read_vsi(tmp_path / "a.jsonl")


def test_questions_and_answers_of_two_splits_are_compared(tmp_path):
    write_sqa3d(tmp_path / "a_questions.json", SQA3D)
    other = [replace(SQA3D[0], question_id=5, scene_id="scene0001_00")]
    write_sqa3d(tmp_path / "b_questions.json", other)
    with pytest.raises(ContractError, match=r"no annotation .*220602000002.*no question .*5"):
        read_sqa3d(tmp_path / "a_questions.json", tmp_path / "b_annotations.json")


@pytest.mark.parametrize("content", ["", "{", "[]", "[1]", "{}", "null"])
@pytest.mark.parametrize("name", FORMATS)
def test_files_of_another_kind_are_refused_in_words(tmp_path, name, content):
    read, _, _, file = FORMATS[name]
    (tmp_path / file).write_text(content)
    with pytest.raises(ContractError, match=file.split(".", maxsplit=1)[0]):
        read(tmp_path / file)


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_file_is_named(tmp_path, name):
    read, _, _, file = FORMATS[name]
    with pytest.raises(ContractError, match="no file"):
        read(tmp_path / file)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    write_vsi(tmp_path / "a.parquet", VSI)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ContractError, match=r"vega-policy\[data\]"):
        read_vsi(tmp_path / "a.parquet")


def test_meta_info_gives_rooms_counts_and_oriented_objects(tmp_path):
    item = {
        "centroid": [1, 2, 3],
        "axesLengths": [1, 2, 0.5],
        "normalizedAxes": [1, 0, 0, 0, 1, 0, 0, 0, 1],
        "min": [0.5, 1, 2.75],
        "max": [1.5, 3, 3.25],
    }
    scene = {
        "room_size": 21.5,
        "room_center": [0, 0, 0],
        "object_counts": {"chair": 2},
        "object_bbox": {"chair": [item]},
    }
    path = dump(tmp_path, {SCENE: scene}, "scannet_meta_info_val.json")
    found = read_vsi_meta(path)[SCENE]
    assert (found.dataset, found.room_size_m2, found.counts) == ("scannet", 21.5, {"chair": 2})
    assert found.objects[0].axes.shape == (3, 3)
    del item["min"]
    with pytest.raises(ContractError, match=r"scene9999_00.object_bbox.chair\[0\].min is missing"):
        read_vsi_meta(dump(tmp_path, {SCENE: scene}, "scannet_meta_info_val.json"))


def test_a_data_folder_takes_released_names_and_says_what_is_missing(tmp_path):
    write_scanrefer(tmp_path / "scanrefer" / "ScanRefer_filtered_val.json", SCANREFER)
    write_vsi(tmp_path / "vsi_bench.jsonl", VSI)
    assert read_annotations(tmp_path, "scanrefer") == SCANREFER
    assert read_annotations(tmp_path, "vsi_bench") == VSI
    assert len(read_annotations(tmp_path, "scan2cap")) == 1
    (sentence,) = missing_annotations(tmp_path, ["scanrefer", "scanqa", "vsi_bench"])
    assert "scanqa/ScanQA_v1.0_val.json" in sentence
    with pytest.raises(ContractError, match="scanrefer"):
        annotation_file(tmp_path, "scanreffer")
