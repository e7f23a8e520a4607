"""Rooms, cameras, boxes and exports of plain MuJoCo scenes."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest

mujoco = pytest.importorskip("mujoco")

from envs.scan.boxes import bounds  # noqa: E402
from envs.scan.check import check_scan, summary  # noqa: E402
from envs.scan.export import (  # noqa: E402
    ScanSettings,
    export_scans,
    export_some,
    render_room,
    scene_id,
    split,
    to_check,
)
from envs.scan.posed_camera import PosedCamera, look_at  # noqa: E402
from envs.scan.rendered import draw_turn  # noqa: E402
from envs.scan.rooms import furnish, mjcf, overlap  # noqa: E402
from envs.scan.walk import walk_room  # noqa: E402
from vega_policy.scene.annotations import VsiRow  # noqa: E402
from vega_policy.scene.readers.scannet import list_scans, read_scan  # noqa: E402
from vega_policy.scene.readers.video import read_uniform_frames  # noqa: E402
from vega_policy.scene.truth import read_truth  # noqa: E402
from vega_policy.spec import ContractError  # noqa: E402

SHIPPED = Path(__file__).parents[1] / "data" / "scene" / "rooms"
SCENE = "room0000_90"
ROOMS = 12


@pytest.fixture(scope="module")
def rooms():
    return [furnish((7, k)) for k in range(ROOMS)]


@pytest.fixture
def settings(tmp_path):
    return ScanSettings(
        kind="rooms", out=tmp_path / "out", n=2, seed=7, frames=3, width_px=64, height_px=48
    )


# -- rooms -------------------------------------------------------------------------------------------


def test_no_two_pieces_of_furniture_meet_and_none_leaves_the_room(rooms):
    for room in rooms:
        for (_, a), (j, b) in combinations(enumerate(room.things), 2):
            if b.stands_on is None or room.things[b.stands_on] is not a:
                assert not overlap(a, b, gap_m=0.0), (a.piece.label, b.piece.label, j)
        for thing in room.things:
            assert (np.abs(thing.corners) <= np.array(room.size[:2]) / 2 + 1e-5).all()
            assert 0 <= thing.heights[0] < thing.heights[1] <= room.size[2]


def test_what_stands_on_something_touches_its_top(rooms):
    carried = [(room, t) for room in rooms for t in room.things if t.stands_on is not None]
    assert len(carried) > ROOMS
    for room, thing in carried:
        carrier = room.things[thing.stands_on]
        assert thing.heights[0] == pytest.approx(carrier.z + carrier.piece.top[2], abs=1e-6)


def test_rooms_have_distractors_and_differ(rooms):
    labels = [[t.piece.label for t in room.things] for room in rooms]
    assert all(len(set(names)) < len(names) for names in labels)
    assert len({room.size for room in rooms}) == ROOMS
    assert furnish((7, 0)) == rooms[0]


def test_camera_keeps_away_from_walls_and_from_what_is_as_tall_as_it_is(rooms):
    for k, room in enumerate(rooms):
        poses = walk_room(room, np.random.default_rng(k), n=24)
        eyes = poses[:, :3, 3]
        assert (np.array(room.size[:2]) / 2 - np.abs(eyes[:, :2]) > 0.15).all()
        for thing in room.things:
            if thing.heights[1] > eyes[:, 2].min():
                c, s = np.cos(thing.yaw), np.sin(thing.yaw)
                local = (eyes[:, :2] - [thing.x, thing.y]) @ np.array([[c, -s], [s, c]])
                low, high = thing.piece.low[:2], thing.piece.high[:2]
                assert (np.maximum(low - local, local - high).max(axis=1) > 0.1).all()
        assert np.linalg.norm(np.diff(eyes, axis=0), axis=1).max() < 1.5
        assert (poses[:, 2, 1] < 0).all()  # upright: the image's down points down


# -- camera and boxes --------------------------------------------------------------------------------

_TILES = """<mujoco><asset><mesh name="wedge" vertex="0 0 0 .4 0 0 0 .2 0 0 0 .3"/></asset>
<worldbody><camera name="eye"/>
<geom name="floor" type="box" group="1" size="5 5 .1" pos="0 0 -.1" rgba=".5 .5 .5 1"/>
<geom name="wall" type="box" group="1" size=".1 5 2" pos="3 0 0" euler="0 0 30"/>
<geom name="hidden" type="box" group="0" size=".2 .2 .2" pos=".4 -1 .2"/>
<body pos="1 .5 .3" euler="20 50 70">
<geom name="box" type="box" group="1" size=".1 .2 .3" pos=".1 0 0"/>
<geom name="ball" type="sphere" group="1" size=".2" pos="0 .1 0"/>
<geom name="egg" type="ellipsoid" group="1" size=".1 .2 .4"/>
<geom name="tin" type="cylinder" group="1" size=".1 .3" pos="0 0 .2"/>
<geom name="pill" type="capsule" group="1" size=".1 .3"/>
<geom name="wedge" type="mesh" mesh="wedge" group="1"/>
</body></worldbody></mujoco>"""


@pytest.fixture(scope="module")
def tiles():
    model = mujoco.MjModel.from_xml_string(_TILES)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def surface(model, geom, rng, n=20_000):
    """Points on a geom's surface in its own frame, found without the formula under test."""
    size, kind = model.geom_size[geom], model.geom_type[geom]
    ball = rng.normal(size=(n, 3))
    ball /= np.linalg.norm(ball, axis=1, keepdims=True)
    if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
        return ball * size[0]
    if kind == mujoco.mjtGeom.mjGEOM_ELLIPSOID:
        return ball * size
    if kind == mujoco.mjtGeom.mjGEOM_CAPSULE:
        return ball * size[0] + np.outer(np.sign(ball[:, 2]), [0, 0, size[1]])
    if kind == mujoco.mjtGeom.mjGEOM_BOX:
        return rng.choice([-1, 1], (n, 3)) * size
    if kind == mujoco.mjtGeom.mjGEOM_CYLINDER:
        rim = ball[:, :2] / np.linalg.norm(ball[:, :2], axis=1, keepdims=True) * size[0]
        return np.column_stack([rim, rng.choice([-1, 1], n) * size[1]])
    return model.mesh_vert.astype(float)


@pytest.mark.parametrize("name", ["box", "ball", "egg", "tin", "pill", "wedge"])
def test_bounds_are_those_of_points_on_the_surface_in_any_frame(tiles, name):
    model, data = tiles
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    geom = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, name)
    low, high = bounds(model, data, [geom], axes)
    local = surface(model, geom, rng)
    world = local @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom]
    assert np.allclose(low, (world @ axes.T).min(axis=0), atol=2e-3)
    assert np.allclose(high, (world @ axes.T).max(axis=0), atol=2e-3)


def test_depth_of_each_pixel_is_that_of_the_ray_through_its_centre(tiles):
    model, data = tiles
    pose = look_at(np.array([-1.0, 0.3, 1.2]), np.array([0.6, -0.5, 0.5]))
    with PosedCamera(model, data, camera="eye", width=96, height=64, fovy_deg=50) as camera:
        view, k = camera.look(pose), camera.intrinsics
    rows, columns = np.indices((64, 96))
    rays = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ np.linalg.inv(k).T
    rays = rays @ pose[:3, :3].T
    for name, axis, half in (("floor", 2, 0.1), ("wall", 0, -0.1)):
        geom = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, name)
        normal = data.geom_xmat[geom].reshape(3, 3)[:, axis]
        seen = view.geom == geom
        assert seen.mean() > 0.1
        on_plane = data.geom_xpos[geom] + half * normal
        exact = (on_plane - pose[:3, 3]) @ normal / (rays[seen] @ normal)
        # Half a pixel off would be centimetres here, up and down on the floor, sideways on the wall.
        assert np.abs(view.depth_m[seen] - exact).max() < 1e-3
    hidden = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, "hidden")
    assert not (view.geom == hidden).any()
    assert ((view.geom < 0) == (view.depth_m == 0)).all()


def test_camera_that_is_not_there_is_named(tiles):
    with pytest.raises(ContractError, match="'nose'"):
        PosedCamera(*tiles, camera="nose", width=8, height=8, fovy_deg=50)


# -- exports -----------------------------------------------------------------------------------------


def test_scan_is_written_whole_and_never_made_again(settings, monkeypatch):
    export_some(settings, [0])
    first = settings.out / scene_id(settings, 0)
    before = {p: p.stat().st_mtime_ns for p in first.rglob("*")}
    # What a kill leaves of the second scene.
    half = settings.out / f".partial-{scene_id(settings, 1)}" / scene_id(settings, 1) / "color"
    half.mkdir(parents=True)
    made = []
    monkeypatch.setattr(
        "envs.scan.export._run", lambda s, missing: made.append(missing) or run(s, missing)
    )
    names = export_scans(settings)
    assert made == [[1]]
    assert {p: p.stat().st_mtime_ns for p in first.rglob("*")} == before
    assert list_scans(settings.out) == names
    assert json.loads((settings.out / "splits.json").read_text()) == {"train": names, "val": []}
    assert not list(settings.out.glob(".partial*"))
    assert check_scan(settings.out, names[1]).is_good
    video = read_uniform_frames(settings.out / "videos/rooms" / f"{names[1]}.mp4")
    assert len(video) == settings.frames
    shown = read_scan(settings.out, names[1]).frames
    assert np.abs(video[2].astype(float) - shown[2].image).mean() < 12


def run(settings, missing):
    export_some(settings, missing)


def test_same_seed_renders_the_same_scan_and_another_another(settings):
    one, two = render_room(settings, 0), render_room(settings, 0)
    assert np.array_equal(one.instances, two.instances)
    for a, b in zip(one.scan.frames, two.scan.frames, strict=True):
        assert np.array_equal(a.image, b.image)
        assert np.array_equal(a.depth_m, b.depth_m)
    other = render_room(replace(settings, seed=8), 0)
    assert other.truth.room_size_m2 != one.truth.room_size_m2


def test_shipped_scan_is_what_this_renderer_makes():
    made = json.loads((SHIPPED / "settings.json").read_text())
    fresh = render_room(ScanSettings(out=Path("unused"), n=1, **made), 0)
    shipped, truth = read_scan(SHIPPED, SCENE), read_truth(SHIPPED / SCENE / "truth.json")
    assert [o.label for o in truth.objects] == [o.label for o in fresh.truth.objects]
    for a, b in zip(truth.objects, fresh.truth.objects, strict=True):
        assert np.allclose(a.box, b.box, atol=1e-9)
    assert np.allclose(shipped.axis_alignment, fresh.scan.axis_alignment)
    for a, b in zip(shipped.frames, fresh.scan.frames, strict=True):
        assert np.allclose(a.pose, b.pose)
        assert (np.abs(a.depth_m - b.depth_m) < 2e-3).mean() > 0.99
        assert np.abs(a.image.astype(float) - b.image).mean() < 4


def test_other_settings_are_not_mixed_into_a_folder(settings):
    export_some(settings, [0])
    export_scans(replace(settings, n=1))
    with pytest.raises(ContractError, match="frames is 4 now, was 3"):
        export_scans(replace(settings, frames=4))


def test_every_setting_out_of_range_is_named(settings):
    wrong = replace(settings, kind="house", n=0, frames=1, fovy_deg=200.0, width_px=65)
    with pytest.raises(ContractError) as error:
        export_scans(wrong)
    for name in ("kind is 'house'", "n is 0", "frames is 1", "fovy_deg", "even sides"):
        assert name in str(error.value)
    assert not settings.out.exists()


def test_split_is_a_property_of_the_scene_and_260_scenes_give_200_and_60():
    sides = [split(k) for k in range(260)]
    assert (sides.count("train"), sides.count("val")) == (200, 60)


def test_checked_scenes_are_spread_over_all():
    scenes = [str(k) for k in range(10)]
    assert to_check(scenes, n=3) == ["0", "4", "9"]
    assert to_check(scenes, n=99) == scenes
    assert to_check(scenes, n=0) == []


def test_turn_keeps_up_and_is_never_along_the_axes():
    for k in range(20):
        turn = draw_turn(np.random.default_rng(k))
        assert np.allclose(turn[:3, :3] @ turn[:3, :3].T, np.eye(3))
        assert np.allclose(turn[2, :3], [0, 0, 1])
        assert np.abs(turn[:2, :2]).max() < np.cos(np.deg2rad(9.9))


def test_scene_text_compiles_to_one_body_for_each_thing(rooms):
    model = mujoco.MjModel.from_xml_string(mjcf(rooms[0]))
    assert model.nbody == 1 + len(rooms[0].things)


# -- the check ---------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(SHIPPED / SCENE, tmp_path / SCENE)
    return tmp_path


def test_shipped_scan_contradicts_itself_nowhere():
    found = check_scan(SHIPPED, SCENE)
    assert found.is_good
    assert min(found.inside.values()) > 0.999
    assert found.floating < 0.002
    assert found.same_object > 0.995
    assert found.turn_deg >= 10
    assert summary([found])["contradictory"] == []


def test_check_misses_no_forgotten_alignment(copy):
    identity = " ".join(map(str, np.eye(4).ravel()))
    (copy / SCENE / f"{SCENE}.txt").write_text(f"axisAlignment = {identity}\n")
    found = check_scan(copy, SCENE)
    assert not found.is_good
    assert min(found.inside.values()) < 0.5
    assert found.floating < 0.002  # poses and depth still agree with each other


def test_check_misses_no_box_that_is_three_centimetres_off(copy):
    path = copy / SCENE / "objects.json"
    rows = json.loads(path.read_text())
    rows[3]["box"][0] += 0.03
    path.write_text(json.dumps(rows))
    found = check_scan(copy, SCENE)
    assert [k for k, share in found.inside.items() if share < 0.98] == [rows[3]["object_id"]]


def test_check_misses_no_exchanged_poses(copy):
    one, two = (copy / SCENE / "pose" / f"{k}.txt" for k in (2, 3))
    texts = one.read_text(), two.read_text()
    one.write_text(texts[1])
    two.write_text(texts[0])
    found = check_scan(copy, SCENE)
    assert not found.is_good
    assert found.floating > 0.02


def test_check_misses_no_wrong_count_of_pixels(copy):
    path = copy / SCENE / "truth.json"
    row = json.loads(path.read_text())
    row["objects"][5]["visible_px"][0] += 1
    path.write_text(json.dumps(row))
    assert check_scan(copy, SCENE).miscounted == (5,)


def test_frames_of_the_walk_overlap():
    scan = read_scan(SHIPPED, SCENE)
    eyes = [frame.pose[:3, 3] for frame in scan.frames]
    assert all(0 < np.linalg.norm(b - a) < 2.5 for a, b in pairwise(eyes))


def test_scan_without_masks_or_depth_cannot_be_checked(copy):
    (copy / SCENE / "instance-filt" / "4.png").unlink()
    with pytest.raises(ContractError, match=r"instance-filt.4\.png"):
        check_scan(copy, SCENE)
    shutil.rmtree(copy / SCENE / "depth")
    shutil.copytree(
        SHIPPED / SCENE / "instance-filt", copy / SCENE / "instance-filt", dirs_exist_ok=True
    )
    with pytest.raises(ContractError, match="no depth"):
        check_scan(copy, SCENE)


def test_questions_about_a_scan_are_read_by_the_public_readers(copy):
    from envs.scan.ask import write_questions
    from vega_policy.scene.readers.folder import read_annotations

    settings = ScanSettings(kind="rooms", out=copy, n=1)
    written = write_questions(settings, [SCENE])
    assert min(written.rows.values()) > 0
    assert written.proved == sum(written.rows.values())
    for task, n in written.rows.items():
        rows = read_annotations(copy / "annotations", task)
        assert len(rows) == n
        names = {getattr(row, "scene_id", None) or row.scene_name for row in rows}
        assert names == {SCENE}


def test_a_question_that_is_not_proved_is_named_and_nothing_is_written(copy, monkeypatch):
    from envs.scan import ask

    right = ask.prove
    monkeypatch.setattr(
        ask, "prove", lambda row, truth: "a doubt" if isinstance(row, VsiRow) else right(row, truth)
    )
    # Processes that are started anew would not know of the doubt.
    monkeypatch.setattr(ask, "ProcessPoolExecutor", lambda n, **_: ThreadPoolExecutor(n))
    with pytest.raises(ContractError, match=r"(?s)rows are not proved.*VsiRow\(.*: a doubt"):
        ask.write_questions(ScanSettings(kind="rooms", out=copy, n=1), [SCENE])
    assert not (copy / "annotations").exists()


def test_questions_are_drawn_where_what_they_mean_is(copy, tmp_path):
    from envs.scan.ask import ANNOTATIONS, write_questions
    from envs.scan.question_picture import draw_questions

    write_questions(ScanSettings(kind="rooms", out=copy, n=1), [SCENE])
    draw_questions(copy, SCENE, copy / ANNOTATIONS, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    (copy / ANNOTATIONS / "scanqa.json").write_text("[]")
    with pytest.raises(ContractError):
        draw_questions(copy, SCENE, copy / ANNOTATIONS, tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()
