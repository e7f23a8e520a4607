"""The LeRobot layout, its traps, and LeRobot's own reader where it is installed."""

import json
import shutil

import numpy as np
import pytest
from pyarrow import parquet

from vega_policy.data.convert import convert
from vega_policy.data.episodes import Episode, open_episodes
from vega_policy.data.lerobot_writer import LeRobotWriter
from vega_policy.spec import ContractError
from vega_policy.testing.demos import make_demo, write_suite

SUITE = "libero_object"


def episode(seed, **keywords):
    demo = make_demo(seed, px=64, **keywords)
    return Episode(
        images={"agentview": demo.agentview, "wrist": demo.wrist},
        proprio=demo.proprio,
        actions=demo.actions,
        expert_mask=demo.expert_mask,
        joint_states=demo.joint_states,
        instruction=demo.instruction,
        attributes=demo.attributes,
    )


def write(folder, episodes, **settings):
    folder.mkdir(parents=True)
    writer = LeRobotWriter(folder, rate_hz=20.0, **settings)
    for one in episodes:
        writer.add(one, task="x")
    writer.close()
    return folder


@pytest.fixture(scope="module", params=["video", "png"])
def finished(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lerobot") / request.param
    return write(folder, [episode(k, n_steps=10 + k) for k in range(4)], images=request.param)


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def test_several_episodes_share_a_file(finished):
    assert len(list(finished.glob("data/*/*.parquet"))) == 1
    rows = parquet.read_table(finished / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    spans = [(row["dataset_from_index"], row["dataset_to_index"]) for row in rows]
    assert spans == [(0, 10), (10, 21), (21, 33), (33, 46)]
    info = json.loads((finished / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"]) == ("v3.0", 20)
    assert (info["total_episodes"], info["total_frames"]) == (4, 46)
    if info["video_path"]:
        times = [row["videos/observation.images.image/from_timestamp"] for row in rows]
        assert times == [0.0, 0.5, 1.05, 1.65]


@pytest.mark.parametrize("images", ["video", "png"])
def test_a_full_file_is_followed_by_the_next(tmp_path, images):
    originals = [episode(k, n_steps=9) for k in range(3)]
    folder = write(tmp_path / "x", originals, images=images, data_file_mb=0.0, video_file_mb=0.0)
    assert len(list(folder.glob("data/chunk-000/file-*.parquet"))) == 3
    source = open_episodes(folder)
    for index, original in enumerate(originals):
        found = source.episode(index)
        np.testing.assert_array_equal(found.actions, original.actions.astype(np.float32))
        difference = found.images["wrist"].astype(float) - original.images["wrist"]
        assert np.abs(difference).mean() < (3 if images == "video" else 1e-9)


def test_statistics_are_those_of_the_values(finished):
    stats = json.loads((finished / "meta/stats.json").read_text())
    source = open_episodes(finished)
    episodes = [source.episode(i) for i in range(len(source))]
    actions = np.concatenate([e.actions for e in episodes])
    np.testing.assert_allclose(stats["action"]["mean"], actions.mean(axis=0))
    np.testing.assert_allclose(stats["action"]["q99"], np.quantile(actions, 0.99, axis=0))
    assert stats["action"]["count"] == [46]
    pixels = np.concatenate([episode(k, n_steps=10 + k).images["wrist"] for k in range(4)]) / 255
    for name, expected in {
        "mean": pixels.mean(axis=(0, 1, 2)),
        "max": pixels.max(axis=(0, 1, 2)),
    }.items():
        found = np.array(stats["observation.images.image2"][name])
        assert found.shape == (3, 1, 1)
        np.testing.assert_allclose(found.ravel(), expected, rtol=1e-6)


def test_every_known_name_of_the_instruction_column_is_read(copy):
    path = copy / "meta/tasks.parquet"
    table = parquet.read_table(path)
    parquet.write_table(table.rename_columns(["task_index", "__index_level_0__"]), path)
    assert open_episodes(copy).instructions == ("pick up the milk",)


def test_another_version_is_named_with_the_way_to_convert_it(copy):
    info = json.loads((copy / "meta/info.json").read_text())
    (copy / "meta/info.json").write_text(json.dumps({**info, "codebase_version": "v2.1"}))
    with pytest.raises(ContractError, match=r"format v2\.1, expected v3\.0; convert it"):
        open_episodes(copy)


def test_a_folder_without_its_table_of_episodes_is_refused(copy):
    shutil.rmtree(copy / "meta/episodes")
    with pytest.raises(ContractError, match="table of episodes of format v3"):
        open_episodes(copy)


def test_fewer_episodes_than_announced_are_refused(copy):
    info = json.loads((copy / "meta/info.json").read_text())
    (copy / "meta/info.json").write_text(json.dumps({**info, "total_episodes": 9}))
    with pytest.raises(ContractError, match=r"lists 4 episodes, meta/info\.json says 9"):
        open_episodes(copy)
    assert len(open_episodes(copy, skip_damaged=True)) == 4


def test_a_truncated_data_file_names_file_and_episode(copy):
    path = copy / "data/chunk-000/file-000.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ContractError, match=r"file-000\.parquet episode 2 cannot be read"):
        open_episodes(copy).episode(2)


def test_a_flipped_bit_in_a_data_file_is_noticed(tmp_path):
    folder = write(tmp_path / "x", [episode(k, n_steps=9) for k in range(3)], images="png")
    path = folder / "data/chunk-000/file-000.parquet"
    whole, good = path.read_bytes(), open_episodes(folder).episode(1)
    group = parquet.ParquetFile(path).metadata.row_group(1)
    chunks = [group.column(i) for i in range(group.num_columns)]
    pages = [
        (chunk.data_page_offset, chunk.total_compressed_size)
        for chunk in chunks
        if chunk.path_in_schema.startswith(("action", "observation.images.image2"))
    ]
    for place in [begin + size * i // 12 for begin, size in pages for i in range(1, 12)]:
        data = bytearray(whole)
        data[place] ^= 16
        path.write_bytes(data)
        try:
            found = open_episodes(folder).episode(1)
        except ContractError:
            continue
        np.testing.assert_array_equal(found.actions, good.actions)
        np.testing.assert_array_equal(found.images["wrist"], good.images["wrist"])
    path.write_bytes(whole)


def test_an_episode_of_one_step_is_read(tmp_path):
    folder = write(tmp_path / "x", [episode(0, n_steps=1), episode(1, n_steps=9)], images="video")
    one = open_episodes(folder).episode(0, at=(0, 0))
    assert one.images["wrist"].shape == (2, 64, 64, 3)


def test_a_data_file_of_another_set_is_noticed(copy, tmp_path):
    other = write(
        tmp_path / "other",
        [episode(k, n_steps=n) for k, n in enumerate((12, 11, 12, 11))],
        images="png",
    )
    shutil.copy(other / "data/chunk-000/file-000.parquet", copy / "data/chunk-000/file-000.parquet")
    source = open_episodes(copy)
    with pytest.raises(
        ContractError, match=r"episode 1 cannot be read: .*(belong|numbered|column)"
    ):
        source.episode(1)


def test_a_video_that_ends_early_spares_the_episodes_before(tmp_path):
    folder = write(tmp_path / "x", [episode(k, n_steps=12) for k in range(3)], images="video")
    short = write(tmp_path / "short", [episode(k, n_steps=12) for k in range(2)], images="video")
    name = "videos/observation.images.image/chunk-000/file-000.mp4"
    shutil.copy(short / name, folder / name)
    source = open_episodes(folder)
    with pytest.raises(
        ContractError, match=r"episode 2 cannot be read: file-000\.mp4 ends before 1\.20 s"
    ):
        source.episode(2)
    rest = source.without_damaged()
    assert (len(rest), len(rest.left_out)) == (2, 1)


def test_features_that_are_not_libero_are_listed(copy):
    info = json.loads((copy / "meta/info.json").read_text())
    info["features"]["observation.state"]["shape"] = [6]
    (copy / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(ContractError, match=r"no state, it has .*observation\.state \(6,\)"):
        open_episodes(copy)


def test_the_reader_of_lerobot_gives_the_same_values(finished):
    library = pytest.importorskip("lerobot.datasets.lerobot_dataset")
    ahead = {"action": [i / 20 for i in range(8)]}
    theirs = library.LeRobotDataset(
        "local/check", root=finished, delta_timestamps=ahead, video_backend="pyav"
    )
    source = open_episodes(finished)
    row = 0
    for index in range(len(source)):
        ours = source.episode(index)
        for step in range(ours.n_steps):
            item = theirs[row]
            assert item["task"] == ours.instruction
            np.testing.assert_array_equal(item["observation.state"], ours.proprio[step])
            chunk = ours.actions[step : step + 8]
            np.testing.assert_array_equal(item["action"][: len(chunk)], chunk)
            assert int(item["action_is_pad"].sum()) == 8 - len(chunk)
            image = item["observation.images.image"].numpy().transpose(1, 2, 0) * 255
            np.testing.assert_allclose(image, ours.images["agentview"][step], atol=1.01)
            row += 1
    assert row == len(theirs)


def test_a_suite_converted_twice_is_the_same(tmp_path):
    write_suite(tmp_path / "a", px=64)
    first = open_episodes(tmp_path / "a" / SUITE)
    for name in ("b", "c"):
        convert(first, tmp_path / name, format="lerobot", images="lossless")
    for file in ("meta/info.json", "meta/stats.json", "data/chunk-000/file-000.parquet"):
        assert (tmp_path / "b" / file).read_bytes() == (tmp_path / "c" / file).read_bytes()
