"""Ground truth and proposals from each of the published forms."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from vega_policy.scene.readers.ground_truth import read_objects
from vega_policy.scene.readers.mesh import read_vertices
from vega_policy.scene.readers.object_array import read_object_array
from vega_policy.scene.readers.proposals import Proposals, read_proposals, write_proposals
from vega_policy.spec import ContractError

SCENE = "scene9999_00"
VERTICES = np.array([[0, 0, 0], [1, 2, 3], [5, 5, 5], [6, 5, 5], [9, 9, 9]], np.float32)
"""Two of a chair, two of a table, one of nothing."""
SHIFT = np.array([0.5, -1.0, 2.0])
CHAIR, TABLE = np.array([1.0, 0, 3.5, 1, 2, 3]), np.array([6.0, 4, 7, 1, 0, 0])


def write_mesh(path, *, ascii_text=False):
    kind = "ascii" if ascii_text else "binary_little_endian"
    properties = ["float x", "float y", "float z", "uchar red"]
    lines = ["ply", f"format {kind} 1.0", f"element vertex {len(VERTICES)}"]
    lines += [f"property {name}" for name in properties]
    lines += ["element face 1", "property list uchar int vertex_indices", "end_header", ""]
    if ascii_text:
        body = "".join(f"{x} {y} {z} 7\n" for x, y, z in VERTICES).encode() + b"3 0 1 2\n"
    else:
        table = np.zeros(len(VERTICES), [("xyz", "<f4", 3), ("red", "u1")])
        table["xyz"] = VERTICES
        body = table.tobytes() + b"\x03" + np.arange(3, dtype="<i4").tobytes()
    path.write_bytes("\n".join(lines).encode() + body)


@pytest.fixture
def release(tmp_path):
    """Return a folder with the files of a ScanNet scene."""
    folder = tmp_path / SCENE
    folder.mkdir()
    write_mesh(folder / f"{SCENE}_vh_clean_2.ply")
    segments = {"segIndices": [4, 4, 9, 11, 2]}
    (folder / f"{SCENE}_vh_clean_2.0.010000.segs.json").write_text(json.dumps(segments))
    groups = [
        {"objectId": 1, "label": "table", "segments": [9, 11]},
        {"objectId": 0, "label": "office chair", "segments": [4]},
    ]
    (folder / f"{SCENE}.aggregation.json").write_text(json.dumps({"segGroups": groups}))
    alignment = np.eye(4)
    alignment[:3, 3] = SHIFT
    numbers = " ".join(map(str, alignment.ravel()))
    (folder / f"{SCENE}.txt").write_text(f"axisAlignment = {numbers}\nsceneType = Office\n")
    return folder


def test_the_release_gives_boxes_of_aligned_vertices(release):
    chair, table = read_objects(release, SCENE)
    assert (chair.object_id, chair.label, table.label) == (0, "office chair", "table")
    assert np.array_equal(chair.box, CHAIR)
    assert np.array_equal(table.box, TABLE)


@pytest.mark.parametrize("ascii_text", [True, False])
def test_vertices_are_read_from_both_kinds_of_ply(tmp_path, ascii_text):
    write_mesh(tmp_path / "a.ply", ascii_text=ascii_text)
    assert np.array_equal(read_vertices(tmp_path / "a.ply"), VERTICES)


def test_a_mesh_that_is_cut_off_is_refused(tmp_path):
    write_mesh(tmp_path / "a.ply")
    data = (tmp_path / "a.ply").read_bytes()
    (tmp_path / "a.ply").write_bytes(data[:-40])
    with pytest.raises(ContractError, match="cut off"):
        read_vertices(tmp_path / "a.ply")


def test_segments_of_another_mesh_are_refused(release):
    path = release / f"{SCENE}_vh_clean_2.0.010000.segs.json"
    path.write_text(json.dumps({"segIndices": [1]}))
    with pytest.raises(ContractError, match="5 vertices, its segments 1"):
        read_objects(release, SCENE)


def test_an_object_without_vertices_is_named(release):
    groups = [{"objectId": 0, "label": "x", "segments": [77]}, {"label": "y", "segments": [4]}]
    (release / f"{SCENE}.aggregation.json").write_text(json.dumps({"segGroups": groups}))
    with pytest.raises(ContractError, match=r"no vertex \(row 0\); objectId is missing.*row 1"):
        read_objects(release, SCENE)


def dictionaries():
    return np.array(
        [
            {"id": 1, "label": "table", "center_position": [6.0, 4, 7], "size": [1, 0.0, 0]},
            {"id": 0, "label": "chair", "center_position": [1.0, 0, 3.5], "size": [1, 2, 3]},
        ],
        dtype=object,
    )


def test_lists_of_dictionaries_and_detection_boxes_agree(tmp_path):
    (tmp_path / "objects_info").mkdir()
    np.save(tmp_path / "objects_info" / f"objects_info_{SCENE}.npy", dictionaries())
    (tmp_path / "scannet_data").mkdir()
    rows = np.array([[*TABLE, 7, 1], [*CHAIR, 5, 0]])
    np.save(tmp_path / "scannet_data" / f"{SCENE}_aligned_bbox.npy", rows)
    by_dictionary = read_objects(tmp_path, SCENE)
    (tmp_path / "objects_info" / f"objects_info_{SCENE}.npy").unlink()
    by_row = read_objects(tmp_path, SCENE)
    for a, b in zip(by_dictionary, by_row, strict=True):
        assert (a.object_id, a.label) == (b.object_id, b.label)
        assert np.array_equal(a.box, b.box)


def test_a_scene_without_ground_truth_is_none(tmp_path):
    assert read_objects(tmp_path, SCENE) is None


class Trap:
    """Runs a command when a plain unpickler reads it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_an_array_that_names_code_is_refused_and_does_not_run(tmp_path):
    sprung = tmp_path / "sprung"
    np.save(tmp_path / "a.npy", np.array([{"id": Trap(sprung)}], dtype=object))
    with pytest.raises(ContractError, match="mkdir"):
        read_object_array(tmp_path / "a.npy")
    assert not sprung.exists()
    np.load(tmp_path / "a.npy", allow_pickle=True)
    assert sprung.exists()


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", pickle.dumps([{}]), b"text"])
def test_an_array_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ContractError, match="not an array of dictionaries"):
        read_object_array(tmp_path / "a.npy")


def test_detection_boxes_with_unknown_classes_are_refused(tmp_path):
    np.save(tmp_path / f"{SCENE}_aligned_bbox.npy", np.array([[*CHAIR, 41, 0]]))
    with pytest.raises(ContractError, match=r"nyu40 classes \[41\]"):
        read_objects(tmp_path, SCENE)


def test_proposals_come_back_from_json(tmp_path):
    boxes = np.array([CHAIR, TABLE])
    write_proposals(tmp_path / "p.json", {SCENE: Proposals(scene_id=SCENE, boxes=boxes)})
    assert list(json.loads((tmp_path / "p.json").read_text())) == [f"scannet/{SCENE}"]
    found = read_proposals(tmp_path / "p.json")[SCENE]
    assert np.array_equal(found.boxes, boxes)
    assert len(read_proposals(tmp_path / "p.json", limit=1)[SCENE].boxes) == 1


def test_bad_proposals_are_listed(tmp_path):
    nan = [*CHAIR[:5].tolist(), float("nan")]
    content = {"scannet/a": [nan, TABLE.tolist()], "scannet/b": [[1, 2]]}
    (tmp_path / "p.json").write_text(json.dumps(content))
    with pytest.raises(ContractError, match=r"\[0\] a is .*\(row 0\); \[0\] b is \[1, 2\].*row 1"):
        read_proposals(tmp_path / "p.json")


def test_dictionaries_with_scores_come_best_first(tmp_path):
    items = dictionaries()
    items[0]["score"], items[1]["score"] = 0.25, 0.75
    np.save(tmp_path / f"objects_info_3dvista_200c_wof_{SCENE}.npy", items)
    found = read_proposals(tmp_path)[SCENE]
    assert np.array_equal(found.boxes, [CHAIR, TABLE])
    assert (found.labels, found.scores) == (("chair", "table"), (0.75, 0.25))


def test_masks_of_the_segmenter_become_aligned_boxes(tmp_path, release):
    out = tmp_path / "masks"
    (out / "pred_mask").mkdir(parents=True)
    (out / "pred_mask" / "0.txt").write_text("0\n0\n1\n1\n0\n")
    (out / "pred_mask" / "1.txt").write_text("1\n1\n0\n0\n0\n")
    (out / f"{SCENE}.txt").write_text("pred_mask/0.txt 7 0.5\npred_mask/1.txt 5 0.9\n")
    found = read_proposals(out, scans=release.parent)[SCENE]
    assert np.array_equal(found.boxes, [CHAIR, TABLE])
    assert found.scores == (0.9, 0.5)
    with pytest.raises(ContractError, match="where the meshes are"):
        read_proposals(out)
    (out / f"{SCENE}.txt").write_text("pred_mask/9.txt 7 0.5\npred_mask/1.txt 5 high\n1 2\n")
    with pytest.raises(ContractError, match=r"9.txt.*row 0.*high.*row 1.*row 2"):
        read_proposals(out, scans=release.parent)


@pytest.mark.parametrize("make", [True, False])
def test_an_empty_or_missing_place_for_proposals_is_named(tmp_path, make):
    place = tmp_path / "p"
    if make:
        place.mkdir()
    with pytest.raises(ContractError, match=r"no proposals|holds neither"):
        read_proposals(place)


def test_readers_load_neither_torch_nor_the_optional_libraries():
    code = (
        "import pkgutil, importlib, sys, vega_policy.scene.readers as r\n"
        "for m in pkgutil.iter_modules(r.__path__): importlib.import_module(r.__name__+'.'+m.name)\n"
        "assert not {'torch', 'av', 'pyarrow', 'PIL'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_damaged_files_are_refused_or_read_but_never_crash(tmp_path):
    generator = np.random.default_rng(0)
    path = tmp_path / f"objects_info_{SCENE}.npy"
    np.save(path, dictionaries())
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    n_refused = 0
    for _ in range(300):
        damaged = whole.copy()
        damaged[generator.integers(0, len(whole), 3)] = generator.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        try:
            read_objects(tmp_path, SCENE)
        except ContractError:
            n_refused += 1
    assert 0 < n_refused <= 300


def test_numpy_numbers_inside_dictionaries_become_plain(tmp_path):
    item = {"id": np.int64(4), "size": np.arange(3, dtype=np.float32), "score": np.float32(0.5)}
    np.save(tmp_path / "a.npy", np.array([item], dtype=object))
    assert read_object_array(tmp_path / "a.npy") == [{"id": 4, "size": [0, 1, 2], "score": 0.5}]
