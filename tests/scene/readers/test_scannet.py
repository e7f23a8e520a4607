"""An export is read as it is, or not at all."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vega_policy.scene.readers.scannet import list_scans, read_scan, uniform_indices
from vega_policy.scene.readers.write_scannet import write_scan
from vega_policy.scene.scan import Frame, Scan, SceneObject
from vega_policy.spec import ContractError

COLOUR_SIZE, DEPTH_SIZE = (48, 64), (24, 32)


def rotation(yaw, pitch):
    """Camera to world: looks along yaw in the floor plane, tilted down by pitch; OpenCV axes."""
    forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), -np.sin(pitch)])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    return np.stack([right, np.cross(forward, right), forward], axis=1)


def floor_depth(pose, intrinsics, shape):
    """Distance along the optical axis to the plane z = 0 of the world; 0 above the horizon."""
    v, u = np.mgrid[: shape[0], : shape[1]]
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(intrinsics).T @ pose[:3, :3].T
    with np.errstate(divide="ignore"):
        depth = -pose[2, 3] / rays[..., 2]
    return np.where((depth > 0) & (depth < 20), np.round(depth, 3), 0).astype(np.float32)


def make_scan(numbers=tuple(range(0, 60, 10)), *, scene_id="scene9999_00"):
    intrinsics = np.array([[60.0, 0, 31.5], [0, 60, 23.5], [0, 0, 1]])
    depth_intrinsics = np.array([[30.0, 0, 15.5], [0, 30, 11.5], [0, 0, 1]])
    frames = []
    for i in numbers:
        pose = np.eye(4)
        pose[:3, :3] = rotation(0.03 * i, 0.6)
        pose[:3, 3] = [0.02 * i, 1.0, 1.5]
        image = np.random.default_rng(i).integers(0, 255, (*COLOUR_SIZE, 3), dtype=np.uint8)
        depth = floor_depth(pose, depth_intrinsics, DEPTH_SIZE)
        frames.append(Frame(index=i, image=image, depth_m=depth, pose=pose))
    alignment = np.eye(4)
    alignment[:2, :2] = [[0.8, 0.6], [-0.6, 0.8]]
    alignment[:3, 3] = [1.0, -2.0, 0.25]
    box = np.array([0.1, 0.2, 0.3, 1.0, 0.5, 0.7])
    return Scan(
        scene_id=scene_id,
        frames=frames,
        intrinsics=intrinsics,
        depth_intrinsics=depth_intrinsics,
        axis_alignment=alignment,
        objects=(
            SceneObject(object_id=0, label="office chair", box=box, attributes={"colour": "red"}),
            SceneObject(object_id=3, label="table", box=box + 1),
        ),
    )


@pytest.fixture
def scan():
    return make_scan()


def assert_same_scan(a, b, *, exact_colour=True):
    assert a.scene_id == b.scene_id
    assert [f.index for f in a.frames] == [f.index for f in b.frames]
    for one, other in zip(a.frames, b.frames, strict=True):
        if exact_colour:
            assert np.array_equal(one.image, other.image)
        assert (one.depth_m is None) == (other.depth_m is None)
        if one.depth_m is not None:
            assert one.depth_m.dtype == other.depth_m.dtype == np.float32
            assert np.array_equal(one.depth_m, other.depth_m)
        assert np.array_equal(one.pose, other.pose)
    for name in ("intrinsics", "depth_intrinsics", "axis_alignment"):
        assert np.array_equal(getattr(a, name), getattr(b, name))
    assert [(o.object_id, o.label, o.attributes) for o in a.objects] == [
        (o.object_id, o.label, o.attributes) for o in b.objects
    ]
    assert all(np.array_equal(x.box, y.box) for x, y in zip(a.objects, b.objects, strict=True))


def folder_of(tmp_path):
    return tmp_path / "scene9999_00"


def read(tmp_path, **settings):
    return read_scan(tmp_path, "scene9999_00", **settings)


def test_what_is_written_is_read_back_bit_by_bit(tmp_path, scan):
    write_scan(tmp_path, scan, colour="png")
    assert_same_scan(read(tmp_path), scan)
    assert list_scans(tmp_path) == ["scene9999_00"]


def test_both_layouts_give_the_same_scan(tmp_path, scan):
    write_scan(tmp_path / "a", scan, layout="sens")
    write_scan(tmp_path / "b", scan, layout="posed")
    a, b = read(tmp_path / "a"), read(tmp_path / "b")
    assert_same_scan(a, b)
    assert_same_scan(a, scan, exact_colour=False)
    assert list_scans(tmp_path / "b") == ["scene9999_00"]


def test_scans_below_a_folder_named_scans_are_found(tmp_path, scan):
    write_scan(tmp_path / "scans", scan)
    assert list_scans(tmp_path) == ["scene9999_00"]
    assert len(read(tmp_path).frames) == 6


def test_jpg_colour_stays_close(tmp_path):
    smooth = np.linspace(0, 255, 48 * 64 * 3).reshape(48, 64, 3).astype(np.uint8)
    scan = make_scan()
    scan = replace(scan, frames=[replace(f, image=smooth) for f in scan.frames])
    write_scan(tmp_path, scan)
    assert np.abs(read(tmp_path).frames[0].image.astype(int) - smooth).mean() < 2


def test_depth_points_lie_on_the_floor_of_the_aligned_frame(tmp_path, scan):
    write_scan(tmp_path, scan)
    back = read(tmp_path)
    n = 0
    for frame in back.frames:
        v, u = np.nonzero(frame.depth_m)
        z = frame.depth_m[v, u].astype(np.float64)
        rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(back.depth_intrinsics).T
        camera = np.concatenate([rays * z[:, None], np.ones((len(z), 1))], axis=1)
        aligned = camera @ (back.axis_alignment @ frame.pose).T
        # half a millimetre of depth, seen at a slant, moves a point by less than that in height
        assert np.abs(aligned[:, 2] - 0.25).max() < 1e-3
        n += len(z)
    assert n > 1000


def test_a_stretched_pixel_still_shows_its_point(tmp_path, scan):
    write_scan(tmp_path, scan)
    back = read(tmp_path, px=96)
    frame = back.frames[0]
    assert frame.image.shape == (96, 96, 3)
    assert frame.depth_m.shape == (96, 96)
    exact = floor_depth(frame.pose, back.depth_intrinsics, (96, 96))
    both = (exact > 0) & (frame.depth_m > 0)
    # a nearest pixel is half an old pixel away at most
    assert np.median(np.abs(exact - frame.depth_m)[both] / exact[both]) < 0.02


def test_stretched_intrinsics_keep_every_ray(tmp_path, scan):
    write_scan(tmp_path, scan)
    back = read(tmp_path, px=96)
    for old, new, (height, width) in (
        (scan.intrinsics, back.intrinsics, COLOUR_SIZE),
        (scan.depth_intrinsics, back.depth_intrinsics, DEPTH_SIZE),
    ):
        for u, v in ((0, 0), (95, 40), (13, 95)):
            before = [(u + 0.5) * width / 96 - 0.5, (v + 0.5) * height / 96 - 0.5, 1]
            assert np.allclose(np.linalg.solve(new, [u, v, 1]), np.linalg.solve(old, before))


def test_frames_are_even_from_first_to_last_and_rounded_down():
    assert uniform_indices(100, n_frames=32) == [int(99 * k / 31) for k in range(32)]
    assert uniform_indices(5, n_frames=32) == [0, 1, 2, 3, 4]
    assert uniform_indices(33, n_frames=32)[-1] == 32


def test_thirty_two_of_many_frames(tmp_path):
    write_scan(tmp_path, make_scan(range(70)))
    assert [f.index for f in read(tmp_path).frames] == uniform_indices(70, n_frames=32)


def test_a_stride_gives_the_frames_of_an_export_of_every_tenth(tmp_path):
    every, tenth = make_scan(range(60)), make_scan(range(0, 60, 10))
    write_scan(tmp_path / "every", every)
    write_scan(tmp_path / "tenth", tenth)
    assert_same_scan(read(tmp_path / "every", stride=10), read(tmp_path / "tenth"))


def test_frames_without_a_pose_are_left_out_and_named(tmp_path, scan, caplog):
    write_scan(tmp_path, scan)
    lost = folder_of(tmp_path) / "pose" / "20.txt"
    lost.write_text("\n".join(["-inf -inf -inf -inf"] * 4))
    with caplog.at_level(logging.WARNING):
        back = read(tmp_path, n_frames=5)
    assert [f.index for f in back.frames] == [0, 10, 30, 40, 50]
    assert back.without_pose == (20,)
    assert "[20]" in caplog.text


def test_a_scene_where_no_frame_has_a_pose_is_refused(tmp_path, scan):
    write_scan(tmp_path, scan)
    for path in (folder_of(tmp_path) / "pose").iterdir():
        path.write_text(" ".join(["-inf"] * 16))
    with pytest.raises(ContractError, match="no frame has a pose"):
        read(tmp_path)


def test_a_scene_without_depth_is_a_scan_without_depth(tmp_path, scan):
    bare = replace(scan, frames=[replace(f, depth_m=None) for f in scan.frames])
    write_scan(tmp_path, bare)
    back = read(tmp_path)
    assert all(frame.depth_m is None for frame in back.frames)


def test_every_problem_of_a_scan_is_in_one_error(tmp_path, scan):
    write_scan(tmp_path, scan)
    folder = folder_of(tmp_path)
    (folder / "pose" / "10.txt").unlink()
    (folder / "color" / "20.jpg").unlink()
    (folder / "depth" / "30.png").unlink()
    whole = (folder / "depth" / "40.png").read_bytes()
    (folder / "depth" / "40.png").write_bytes(whole[: len(whole) // 2])
    (folder / "intrinsic" / "intrinsic_color.txt").unlink()
    (folder / "intrinsic" / "intrinsic_depth.txt").write_text("1 2 3")
    (folder / "scene9999_00.txt").unlink()
    Image.fromarray(np.zeros((10, 10, 3), np.uint8)).save(folder / "color" / "50.jpg")
    with pytest.raises(ContractError) as caught:
        read(tmp_path)
    for part in (
        "frames [10] have no pose file",
        "frames [20] have no colour image",
        "frames [30] have no depth image",
        "depth/40.png cannot be read",
        "intrinsic_color.txt is missing",
        "intrinsic_depth.txt does not hold",
        "axisAlignment",
        "colour images have sizes 64x48 in frames [0, 30], 10x10 in frames [50]",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("cut", [0, 20, 200])
def test_a_truncated_colour_image_is_named(tmp_path, scan, cut):
    write_scan(tmp_path, scan)
    path = folder_of(tmp_path) / "color" / "30.jpg"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ContractError, match=r"color/30\.jpg cannot be read"):
        read(tmp_path)


def test_depth_of_eight_bits_is_not_taken_for_millimetres(tmp_path, scan):
    write_scan(tmp_path, scan)
    shallow = Image.fromarray(np.zeros((24, 32), np.uint8))
    shallow.save(folder_of(tmp_path) / "depth" / "0.png")
    with pytest.raises(ContractError, match="16-bit"):
        read(tmp_path)


def test_mixed_depth_sizes_are_listed(tmp_path, scan):
    write_scan(tmp_path, scan)
    other = Image.fromarray(np.zeros((5, 5), np.uint16))
    other.save(folder_of(tmp_path) / "depth" / "10.png")
    with pytest.raises(ContractError, match=r"depth images have sizes .*5x5 in frames \[10\]"):
        read(tmp_path)


def test_two_images_of_one_frame_are_refused(tmp_path, scan):
    write_scan(tmp_path, scan)
    Image.fromarray(scan.frames[0].image).save(folder_of(tmp_path) / "color" / "0000.png")
    with pytest.raises(ContractError, match="delete one"):
        read(tmp_path)


def test_a_bad_pose_file_is_named(tmp_path, scan):
    write_scan(tmp_path, scan)
    (folder_of(tmp_path) / "pose" / "30.txt").write_text("1 0 0 zero")
    with pytest.raises(ContractError, match=r"30\.txt does not hold 4x4"):
        read(tmp_path)


def test_a_nan_alignment_is_refused(tmp_path, scan):
    write_scan(tmp_path, scan)
    text = "axisAlignment = " + " ".join(["nan"] * 16)
    (folder_of(tmp_path) / "scene9999_00.txt").write_text(text)
    with pytest.raises(ContractError, match="expected 16 numbers"):
        read(tmp_path)


def test_the_test_split_has_no_alignment_and_says_so(tmp_path, scan, caplog):
    write_scan(tmp_path, scan)
    (folder_of(tmp_path) / "scene9999_00.txt").write_text("sceneType = Office\n")
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(read(tmp_path).axis_alignment, np.eye(4))
    assert "no axisAlignment" in caplog.text


def test_an_unknown_scene_is_answered_with_the_nearest(tmp_path, scan):
    write_scan(tmp_path, scan)
    with pytest.raises(ContractError, match="scene9999_00"):
        read_scan(tmp_path, "scene9999_01")


@pytest.mark.parametrize("make", [True, False])
def test_an_empty_or_missing_folder_says_what_belongs_there(tmp_path, make):
    root = tmp_path / "scans_here"
    if make:
        root.mkdir()
    with pytest.raises(ContractError, match=r"color|set the folder"):
        list_scans(root)


@pytest.mark.parametrize("value", [np.nan, np.inf, 70.0, -1.0])
def test_depth_the_format_cannot_hold_is_refused(tmp_path, scan, value):
    bad = replace(scan.frames[1], depth_m=np.full((4, 4), value, np.float32))
    with pytest.raises(ContractError, match=r"frames \[10\].*set such pixels to 0"):
        write_scan(tmp_path, replace(scan, frames=[scan.frames[0], bad]))


def test_a_second_scan_is_not_mixed_into_a_folder(tmp_path, scan):
    write_scan(tmp_path, make_scan((0, 7)))
    with pytest.raises(ContractError, match=r"holds frames \[7\]"):
        write_scan(tmp_path, scan)


def test_writing_again_is_a_resumed_export(tmp_path, scan):
    write_scan(tmp_path, scan, colour="png")
    write_scan(tmp_path, scan, colour="png")
    assert_same_scan(read(tmp_path), scan)


def test_bad_objects_are_listed_by_row(tmp_path, scan):
    write_scan(tmp_path, scan)
    (folder_of(tmp_path) / "objects.json").write_text(
        '[{"object_id": 1, "label": "a", "box": [1, 2]}, {"label": "", "box": [0,0,0,1,1,1]}]'
    )
    with pytest.raises(ContractError) as caught:
        read(tmp_path)
    for part in ("box is [1, 2]", "(row 0)", "object_id is missing", 'label is ""'):
        assert part in str(caught.value)
