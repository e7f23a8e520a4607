"""Files in, scores out: every task, in our prediction format and those of others."""

import json

import pytest

from vega_policy.scene.annotations import (
    Multi3DReferRow,
    Scan2CapRow,
    ScanQARow,
    ScanReferRow,
    SQA3DRow,
    VsiRow,
)
from vega_policy.scene.evaluate import TASKS, EvaluationSettings, evaluate, read_rows
from vega_policy.scene.readers.multi3drefer import write_multi3drefer
from vega_policy.scene.readers.scan2cap import write_scan2cap
from vega_policy.scene.readers.scanqa import write_scanqa
from vega_policy.scene.readers.scanrefer import write_scanrefer
from vega_policy.scene.readers.sqa3d import write_sqa3d
from vega_policy.scene.readers.vsi_bench import write_vsi
from vega_policy.spec import ContractError

SCENES = ("scene9998_00", "scene9999_00")
BOX = (0.0, 0.0, 0.5, 1.0, 1.0, 1.0)
QUIET = EvaluationSettings(text="raw", meteor=False)


@pytest.fixture
def folder(tmp_path):
    """Annotation files of two scenes, the boxes beside them, and a right answer to everything."""
    pairs = [(scene, i) for scene in SCENES for i in range(2)]
    scanrefer = [
        ScanReferRow(
            scene_id=scene,
            object_id=i,
            object_name=("chair", "office chair")[i],
            ann_id="0",
            description=f"chair {i}",
        )
        for scene, i in pairs
    ]
    multi = [
        Multi3DReferRow(
            scene_id=scene,
            object_ids=(0, 1)[: 2 * i],
            description="chairs",
            eval_type="mt" if i else "zt_w_d",
            object_name="chair",
            ann_id=i,
        )
        for scene, i in pairs
    ]
    captions = [
        Scan2CapRow(
            scene_id=scene, object_id=i, box=BOX, references=(f"chair {i} here",), box_input=BOX
        )
        for scene, i in pairs
    ]
    answers = [
        ScanQARow(scene_id=s, question_id=f"val-{s}-{i}", question="What?", answers=(f"chair {i}",))
        for s, i in pairs
    ]
    situated = [
        SQA3DRow(
            scene_id=s,
            question_id=10 * n + i,
            situation="Here I am.",
            question="What is it?",
            answer="chair",
            position=(0.0, 0.0, 0.0),
            rotation=(0.0, 0.0, 0.0, 1.0),
        )
        for n, (s, i) in enumerate(pairs)
    ]
    videos = [
        VsiRow(
            id=n,
            dataset="scannet",
            scene_name=s,
            question_type="object_counting",
            question="How many?",
            ground_truth="2",
        )
        for n, (s, _) in enumerate(pairs)
    ]
    write_scanrefer(tmp_path / "scanrefer.json", scanrefer)
    write_multi3drefer(tmp_path / "multi3drefer.json", multi)
    write_scan2cap(tmp_path / "scan2cap.json", captions)
    write_scanqa(tmp_path / "scanqa.json", answers)
    write_sqa3d(tmp_path / "sqa3d_questions.json", situated)
    write_vsi(tmp_path / "vsi_bench.jsonl", videos)
    for scene in SCENES:
        (tmp_path / "scans" / scene).mkdir(parents=True)
        objects = [{"object_id": i, "label": "chair", "box": [i, *BOX[1:]]} for i in range(2)]
        (tmp_path / "scans" / scene / "objects.json").write_text(json.dumps(objects))
    said = {
        "scanrefer": [
            {"scene_id": s, "object_id": i, "ann_id": "0", "box": [i, *BOX[1:]]} for s, i in pairs
        ],
        "multi3drefer": [
            {"scene_id": s, "ann_id": i, "boxes": [[k, *BOX[1:]] for k in range(2 * i)]}
            for s, i in pairs
        ],
        "scan2cap": [
            {"scene_id": s, "object_id": i, "text": f"chair {i} here", "box": BOX} for s, i in pairs
        ],
        "scanqa": [{"question_id": r.question_id, "text": r.answers[0]} for r in answers],
        "sqa3d": [{"question_id": r.question_id, "text": "a chair"} for r in situated],
        "vsi_bench": [{"id": r.id, "text": "2"} for r in videos],
    }
    (tmp_path / "said").mkdir()
    for task, rows in said.items():
        (tmp_path / "said" / f"{task}.json").write_text(json.dumps(rows))
    return tmp_path


NAMES = {
    "scanrefer": ("scanrefer.json", "acc@0.5"),
    "multi3drefer": ("multi3drefer.json", "f1@0.5"),
    "scan2cap": ("scan2cap.json", "bleu1"),
    "scanqa": ("scanqa.json", "em@1"),
    "sqa3d": ("sqa3d_questions.json", "em"),
    "vsi_bench": ("vsi_bench.jsonl", "overall"),
}


def settings_of(task, folder):
    if task in ("scanrefer", "multi3drefer"):
        return EvaluationSettings(scans=folder / "scans")
    return {"scan2cap": EvaluationSettings(meteor=False), "scanqa": QUIET}.get(task)


@pytest.mark.parametrize("task", TASKS)
def test_right_answers_score_full_marks(folder, task):
    file, headline = NAMES[task]
    found = evaluate(
        task, folder / "said" / f"{task}.json", folder / file, settings_of(task, folder)
    )
    partial = ["annotation"] if task == "vsi_bench" else []  # one of its types only
    assert [problem.code for problem in found.problems] == partial
    assert found.n == 4
    if task == "scan2cap":
        assert found.scores["located"].value == found.scores["rouge_l@0.5"].value == 100
    else:
        assert found.scores[headline].value == 100
    assert json.loads(json.dumps(found.to_json()))["task"] == task
    assert len(found.rows()) == 4


@pytest.mark.parametrize("task", TASKS)
def test_json_lines_read_as_a_list(folder, task):
    rows = json.loads((folder / "said" / f"{task}.json").read_text())
    lines = folder / "lines.jsonl"
    lines.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert read_rows(lines) == rows


def test_predictions_of_video_3d_llm_and_of_the_benchmarks_are_read(folder):
    def scored(task, rows, headline):
        file = folder / "other.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)))
        name = NAMES[task][0]
        return evaluate(task, file, folder / name, settings_of(task, folder)).scores[headline].value

    corners = [[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (0.0, 1.0)]
    boxes = [
        {
            "scene_id": s,
            "object_id": str(i),
            "ann_id": "0",
            "bbox": [[x + i, y, z] for x, y, z in corners],
        }
        for s in SCENES
        for i in range(2)
    ]
    assert scored("scanrefer", boxes, "acc@0.5") == 100
    captions = [
        {"sample_id": n, "pred_response": f"chair {n % 2} here", "gt_response": ["x"]}
        for n in range(4)
    ]
    assert scored("scan2cap", captions, "rouge_l@0.5") == 100
    ids = [(s, i) for s in SCENES for i in range(2)]
    answers = [
        {"sample_id": f"scanqa_val-{s}-{i}_0", "pred_response": f"chair {i}"} for s, i in ids
    ]
    assert scored("scanqa", answers, "em@1") == 100
    ranked = [
        {"scene_id": s, "question_id": f"val-{s}-{i}", "answer_top10": [f"chair {i}", "table"]}
        for s, i in ids
    ]
    assert scored("scanqa", ranked, "em@1") == 100
    situated = [{"sample_id": 10 * n + i, "pred_response": "chair"} for n, (_, i) in enumerate(ids)]
    assert scored("sqa3d", situated, "em") == 100
    numbered = [{"sample_id": n, "pred_response": "2"} for n in range(4)]
    assert scored("vsi_bench", numbered, "overall") == 100
    logged = [{"vsibench_score": {"id": n, "prediction": "2 chairs"}} for n in range(2)]
    logged += [{"doc": {"id": n}, "filtered_resps": [["2"]]} for n in (2, 3)]
    assert scored("vsi_bench", logged, "overall") == 100


def test_scores_of_proposals_are_read_as_video_3d_llm_reads_them(tmp_path):
    asked = (
        "Identify the object according to the following description.\nit"
        "\nThere may be no corresponding object, or there may be one or more objects."
    )
    boxes = [[float(i), 0.0, 0.5, 1.0, 1.0, 1.0] for i in range(3)]
    meant = {"mt": (0, 2), "st_w_d": (1,), "zt_wo_d": (), "zt_w_d": (), "st_wo_d": (0,)}
    conversations = [
        {
            "id": f"multi3drefer_val_{kind}",
            "video": f"scannet/{SCENES[0]}",
            "box": [boxes[i] for i in ids],
            "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": "x"}],
            "metadata": {"question_type": kind, "ann_id": n, "object_id": list(ids)},
        }
        for n, (kind, ids) in enumerate(meant.items())
    ]
    annotations = tmp_path / "multi3drefer_val.json"
    annotations.write_text(json.dumps(conversations))
    scores = {
        "mt": [0.5, 0.45, 0.5, 0.3],  # 0.393 of the mass each: both are needed
        "st_w_d": [0.1, 0.6, 0.1, 0.2],
        "zt_wo_d": [0.1, 0.2, 0.1, 0.9],
        "zt_w_d": [0.9, 0.2, 0.1, 0.1],  # wrong: there is none
        "st_wo_d": [0.9, 0.2, 0.1],  # a score is missing
    }
    said = tmp_path / "val.jsonl"
    rows = [
        {"sample_id": f"multi3drefer_val_{kind}", "scores": given, "objects": boxes}
        for kind, given in scores.items()
    ]
    said.write_text("\n".join(map(json.dumps, rows)))
    found = evaluate("multi3drefer", said, annotations)
    assert found.values["f1@0.5"].tolist() == [1, 1, 1, 0, 0]
    (problem,) = found.problems
    assert problem.ids == (f"{SCENES[0]}/4",)


def test_a_caption_that_belongs_nowhere_is_not_called_a_score_at_an_overlap(folder):
    rows = json.loads((folder / "said" / "scan2cap.json").read_text())
    said = folder / "nowhere.json"
    said.write_text(json.dumps([{k: v for k, v in row.items() if k != "box"} for row in rows]))
    items = json.loads((folder / "scan2cap.json").read_text())
    asked = folder / "boxless.json"
    asked.write_text(
        json.dumps([{k: v for k, v in item.items() if k != "box_input"} for item in items])
    )
    found = evaluate("scan2cap", said, asked, settings_of("scan2cap", folder))
    assert found.scores["rouge_l"].value == 100
    assert not [name for name in found.scores if "@" in name]
    assert any("not the published score" in note for note in found.notes)


def test_errors_say_what_to_do(folder):
    said, asked = folder / "said" / "scanqa.json", folder / "scanqa.json"
    with pytest.raises(ContractError, match="did you mean 'scanqa'"):
        evaluate("scan_qa", said, asked)
    with pytest.raises(ContractError, match=r"parser .of vsi_bench"):
        evaluate("scanqa", said, asked, EvaluationSettings(parser="original"))
    with pytest.raises(ContractError, match="predictions="):
        evaluate("scanqa", folder / "nothing.json", asked)
    with pytest.raises(ContractError, match="did you mean 'strict'"):
        evaluate("scanqa", said, asked, EvaluationSettings(em_r="strikt"))
    with pytest.raises(ContractError, match="scans="):
        evaluate("scanrefer", folder / "said" / "scanrefer.json", folder / "scanrefer.json")
    with pytest.raises(ContractError, match="holds no box of 4 objects"):
        evaluate(
            "scanrefer",
            folder / "said" / "scanrefer.json",
            folder / "scanrefer.json",
            EvaluationSettings(scans=folder / "elsewhere"),
        )
    broken = folder / "broken.jsonl"
    broken.write_text('{"question_id": 1}\n{"question_id": \n')
    with pytest.raises(ContractError, match="1 broken: line 2"):
        read_rows(broken)
    broken.write_bytes(b'[{"text": "caf\xe9"}]')
    with pytest.raises(ContractError, match="no UTF-8"):
        read_rows(broken)
    broken.write_text("[]")
    with pytest.raises(ContractError, match="no predictions"):
        read_rows(broken)
