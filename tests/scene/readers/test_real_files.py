"""The published files, where somebody has put them: set VEGA_SCENE_DATA to a folder as in docs/scene_data.md.

Nothing here is committed: the files keep the terms of their data sets.
"""

from collections import Counter

import numpy as np
import pytest

from vega_policy.scene.readers.folder import read_annotations
from vega_policy.scene.readers.ground_truth import read_objects
from vega_policy.scene.readers.proposals import read_proposals
from vega_policy.scene.readers.scan2cap import read_scan2cap
from vega_policy.scene.readers.scanqa import read_scanqa
from vega_policy.scene.readers.scanrefer import read_scanrefer, write_scanrefer
from vega_policy.scene.readers.sqa3d import read_sqa3d, write_sqa3d
from vega_policy.scene.readers.vsi_bench import read_vsi_meta


def test_scan2cap_has_its_objects_captions_and_misses(real):
    rows = read_scan2cap(real("scan2cap", "scan2cap_val_llava_style.json"))
    assert len(rows) == 2068
    assert sum(row.box_input is None for row in rows) == 373
    assert sum(len(row.references) for row in rows) == 9508


def test_ground_truth_and_proposals_are_those_of_the_released_rows(real):
    rows = read_scan2cap(real("scan2cap", "scan2cap_val_llava_style.json"))
    scans = real("scannet")
    proposals = read_proposals(real("proposals", "objects_info_3dvista_200c_wof"))
    truth = {scene: read_objects(scans, scene) for scene in {row.scene_id for row in rows}}
    boxes = {(scene, item.object_id): item.box for scene in truth for item in truth[scene]}
    for row in rows:
        assert np.abs(boxes[row.scene_id, row.object_id] - row.box).max() < 1e-6
        if row.box_input is not None:
            gaps = np.abs(proposals[row.scene_id].boxes - row.box_input).max(axis=1)
            assert gaps.min() < 1e-6


def test_scanqa_reads_the_same_from_both_forms(real):
    plain = read_scanqa(real("scanqa", "ScanQA_v1.0_val.json"))
    said = read_scanqa(real("scanqa", "scanqa_val_llava_style.json"))
    assert len(plain) == 4675
    by_id = {row.question_id: (row.scene_id, row.question, row.answers) for row in plain}
    assert by_id == {row.question_id: (row.scene_id, row.question, row.answers) for row in said}


def test_sqa3d_has_its_types_and_survives_writing(real, tmp_path):
    plain = read_annotations(real(), "sqa3d")
    said = read_sqa3d(real("sqa3d", "sqa3d_test_llava_style.json"))
    counts = Counter(row.question_type for row in said)
    assert [counts[t] for t in ("what", "is", "how", "can", "which", "others")] == [
        1147,
        652,
        465,
        338,
        351,
        566,
    ]
    whole = {row.question_id: f"{row.situation} {row.question}" for row in plain}
    assert whole == {row.question_id: f"{row.situation} {row.question}".strip() for row in said}
    write_sqa3d(tmp_path / "a_questions.json", plain)
    assert read_sqa3d(tmp_path / "a_questions.json") == plain


def test_scanrefer_survives_writing(real, tmp_path):
    files = sorted(real("scanrefer").glob("ScanRefer_filtered_val*.json"))
    if not files:
        pytest.skip("no ScanRefer file in VEGA_SCENE_DATA")
    rows = read_scanrefer(files[0])
    write_scanrefer(tmp_path / "a.json", rows)
    assert read_scanrefer(tmp_path / "a.json") == rows


@pytest.mark.parametrize(("name", "n"), [("scannet", 88), ("scannetpp", 50), ("arkitscenes", 150)])
def test_meta_info_has_its_scenes(real, name, n):
    scenes = read_vsi_meta(real("vsi_bench", "meta_info", f"{name}_meta_info_val.json"))
    assert len(scenes) == n
    for scene in scenes.values():
        assert scene.room_size_m2 > 0
        for item in scene.objects:
            assert np.abs(item.axes @ item.axes.T - np.eye(3)).max() < 1e-3
