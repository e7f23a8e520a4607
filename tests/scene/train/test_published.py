"""Trained models on data in the published layout: what is lost by a stop, a gap or a mistake is little."""

import json
from pathlib import Path

import pytest

from vega_policy.scene.heads.checkpoint import SHIPPED
from vega_policy.scene.readers.scannet import read_scan
from vega_policy.scene.train import published
from vega_policy.scene.train.settings import SceneTrainConfig
from vega_policy.scene.train.study import train_scene
from vega_policy.spec import ContractError

ROOMS = Path("tests/data/scene/rooms")
SCENE = "room0000_90"


@pytest.fixture
def data(tmp_path):
    """Return settings that name annotations and proposals of the room that comes with the tests."""
    scan = read_scan(ROOMS, SCENE, n_frames=1)
    folder = tmp_path / "annotations"
    folder.mkdir()
    refer = [
        {
            "scene_id": SCENE,
            "object_id": str(i),
            "object_name": name,
            "ann_id": "0",
            "description": text,
            "eval_type": "unique",
        }
        for i, name, text in ((6, "table", "the green table"), (4, "bookshelf", "the bookshelf"))
    ]
    (folder / "scanrefer.json").write_text(json.dumps(refer))
    asked = [
        {
            "scene_id": SCENE,
            "question_id": f"{SCENE}-{i}",
            "question": text,
            "answers": [answer],
            "object_ids": [],
            "object_names": [],
        }
        for i, (text, answer) in enumerate(
            (("how many tables are there?", "1"), ("what color is the sofa?", "white"))
        )
    ]
    (folder / "scanqa.json").write_text(json.dumps(asked))
    boxes = {f"scannet/{SCENE}": [o.box.tolist() for o in scan.objects]}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    return {
        "scannet_model": str(SHIPPED / "nano-scannet"),
        "scans": str(ROOMS),
        "annotations": str(folder),
        "proposals": str(tmp_path / "boxes.json"),
        "n_frames": 6,
        "texts_at_once": 1,
    }


def config_of(out, data):
    return SceneTrainConfig.from_dict(
        {"out": str(out), "tasks": ["scanrefer", "scanqa"], "published": data}
    )


def test_answers_are_scored_and_a_stopped_run_goes_on_without_asking_again(
    data, tmp_path, monkeypatch
):
    said = train_scene(config_of(tmp_path / "out", data))
    # Both descriptions are of things that the shipped model finds.
    assert said["columns"]["scanrefer acc@0.5"] == 100.0
    assert said["not_scored"] == []
    rows = json.loads((tmp_path / "out" / "published" / "scanqa.json").read_text())
    assert [row["question_id"] for row in rows] == [f"{SCENE}-0", f"{SCENE}-1"]
    # In one pass they are the same answers.
    together = train_scene(config_of(tmp_path / "together", {**data, "texts_at_once": 8}))
    assert together["columns"] == said["columns"]
    monkeypatch.setattr(published, "_of_scene", None)
    assert train_scene(config_of(tmp_path / "out", data)) == said


def test_answers_of_another_model_are_not_taken_over(data, tmp_path):
    config = config_of(tmp_path, data)
    published._claim(config, "scannet", tmp_path)
    other = config_of(tmp_path, {**data, "n_frames": 4})
    with pytest.raises(ContractError, match="made with another n_frames"):
        published._claim(other, "scannet", tmp_path)


def test_all_gaps_are_named_before_anything_is_asked(data, tmp_path):
    Path(data["proposals"]).write_text(json.dumps({"scannet/scene0000_00": [[0, 0, 0, 1, 1, 1]]}))
    with pytest.raises(ContractError, match=f"1 scenes have no proposals, {SCENE} first"):
        train_scene(config_of(tmp_path / "out", data))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ContractError, match=r"published\.scans is 'nowhere'.*published\.proposals"):
        train_scene(config_of(tmp_path, {**data, "scans": "nowhere", "proposals": "nor_here"}))
