"""The command: a table, one JSON line, files; the user's mistakes in one sentence."""

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def call(*arguments, cwd):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "evaluate_scene.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
        check=False,
    )


@pytest.fixture
def folder(tmp_path):
    rows = [
        {
            "id": i,
            "dataset": "scannet",
            "scene_name": f"s{i}",
            "question_type": "object_counting",
            "question": "How many?",
            "ground_truth": "4",
            "options": None,
        }
        for i in range(2)
    ]
    (tmp_path / "vsi_bench.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "said").mkdir()
    said = [{"id": 0, "text": "4"}, {"id": 1, "text": "about 4"}, {"id": 7, "text": "4"}]
    (tmp_path / "said" / "vsi_bench.jsonl").write_text("\n".join(map(json.dumps, said)))
    return tmp_path


def test_a_file_is_scored_and_its_problems_are_in_the_result_the_table_and_the_log(folder):
    done = call(
        *("task=vsi_bench", "predictions=said/vsi_bench.jsonl", "annotations=vsi_bench.jsonl"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["scores"]["overall"]["value"] == 50
    assert result["protocol"] == {"parser": "original"}
    assert {"code": "unknown", "n": 1, "ids": ["7"]}.items() <= result["problems"][0].items()
    assert "predictions for no question" in done.stdout
    assert "predictions for no question" in done.stderr
    saved = Path(folder / result["out"])
    assert json.loads((saved / "scores.json").read_text())["n"] == 2
    questions = [json.loads(x) for x in (saved / "questions.jsonl").read_text().splitlines()]
    assert [row["score"] for row in questions] == [1, 0]


def test_all_scores_what_a_folder_holds(folder):
    done = call(*("task=all", "predictions=said", "annotations=.", "parser=lmms_eval"), cwd=folder)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["tasks"]["vsi_bench"]["scores"]["overall"]["value"] == 100
    assert "scanqa" in result["without_predictions"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["task=vsi"], "did you mean 'vsi_bench'"),
        (["task=sqa3d"], "predictions="),
        (["task=all", "predictions=nowhere", "annotations=."], "no predictions in nowhere"),
        (["task=scanqa", "predictions=said/vsi_bench.jsonl", "annotations=said"], "scanqa.json"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_2(folder, arguments, sentence):
    done = call(*arguments, cwd=folder)
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert sentence in line


def test_tasks_about_features_go_to_their_own_functions(monkeypatch, tmp_path):
    calls = {}
    stub = types.ModuleType("scene_correspondence")
    for name in ("run_correspondence", "run_consistency", "run_nos"):
        setattr(stub, name, lambda *a, _name=name, **k: calls.setdefault(_name, (a, k)))
    monkeypatch.setitem(sys.modules, "scene_correspondence", stub)
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from evaluate_scene import main
    from hydra_cli import load_config

    for task in ("correspondence", "consistency", "nos"):
        main(load_config("evaluate_scene", [f"task={task}", f"out={tmp_path}", "scans=rooms"]))
    (config,), options = calls["run_correspondence"]
    assert "voxel_m" in config
    assert options == {"scans": "rooms", "out": tmp_path}
    assert set(calls["run_nos"][1]) == {"group", "baseline", "unknown"}
    assert set(calls["run_consistency"][1]) == {"number", "reference"}
