"""Which samples exist, in which order they come, and what their targets are."""

import numpy as np
import pytest

from vega_policy.data import frames
from vega_policy.data.chunks import ChunkBatches, ChunkDataset, DataSource
from vega_policy.data.episodes import open_episodes
from vega_policy.data.prefetch import prefetched
from vega_policy.spec import ContractError
from vega_policy.testing.demos import make_demo, with_mask, write_suite, write_task


def open_suite(folder, horizon=8):
    source = DataSource(dirs=(folder,), suites=("libero_object",))
    return ChunkDataset.open(source, horizon=horizon)


def batches(dataset, *, seed=0, batch_size=4, features=None):
    return ChunkBatches(
        dataset,
        starts=dataset.starts(held_out=False, fraction=0.0),
        targets=dataset.targets,
        proprio=dataset.proprio,
        batch_size=batch_size,
        seed=seed,
        features=features,
    )


@pytest.mark.parametrize(("n_steps", "expected"), [(20, 13), (8, 1), (7, 0)])
def test_samples_start_only_where_a_whole_chunk_follows(tmp_path, n_steps, expected):
    write_task(tmp_path / "libero_object" / "x_demo.hdf5", [make_demo(0, n_steps=n_steps)])
    assert len(open_suite(tmp_path).starts(held_out=False, fraction=0.0)) == expected


def test_a_chunk_with_an_action_the_expert_did_not_choose_is_no_target(tmp_path):
    demo = with_mask(make_demo(0, n_steps=20), [1] * 5 + [0] + [1] * 14)
    write_task(tmp_path / "libero_object" / "x_demo.hdf5", [demo])
    assert open_suite(tmp_path).starts(held_out=False, fraction=0.0).tolist() == list(range(6, 13))


def test_a_sample_is_the_upright_frame_and_the_actions_from_it_on(tmp_path):
    demo = make_demo(5, n_steps=12)
    write_task(tmp_path / "libero_object" / "x_demo.hdf5", [make_demo(4, n_steps=9), demo])
    sample = batches(open_suite(tmp_path), batch_size=1).assemble(np.array([9 + 3]))
    np.testing.assert_array_equal(sample.pixels[0, 0].numpy(), demo.agentview[3].transpose(2, 0, 1))
    np.testing.assert_array_equal(sample.pixels[0, 1].numpy(), demo.wrist[3].transpose(2, 0, 1))
    np.testing.assert_allclose(sample.targets[0, :, :6].numpy(), demo.actions[3:11, :6], atol=1e-6)
    # -1 opens and becomes 1, +1 closes and becomes 0.
    assert sample.targets[0, :, 6].tolist() == [float(a < 0) for a in demo.actions[3:11, 6]]
    np.testing.assert_array_equal(sample.proprio[0].numpy(), demo.proprio[3])


def test_a_batch_is_a_function_of_seed_and_number(tmp_path):
    dataset = open_suite(write_suite(tmp_path))
    forwards = [batches(dataset).rows(k) for k in range(40)]
    source = batches(dataset)
    backwards = [source.rows(k) for k in reversed(range(40))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    assert not np.array_equal(forwards[0], batches(dataset, seed=1).rows(0))


def test_an_epoch_shows_every_sample_once(tmp_path):
    dataset = open_suite(write_suite(tmp_path))
    starts = dataset.starts(held_out=False, fraction=0.0)
    source = batches(dataset, batch_size=5)
    drawn = np.concatenate([source.rows(k) for k in range(2 * len(starts) // 5 + 1)])
    for epoch in range(2):
        part = drawn[epoch * len(starts) : (epoch + 1) * len(starts)]
        assert sorted(part) == sorted(starts)


def test_held_out_demonstrations_share_no_row_with_the_others(tmp_path):
    dataset = open_suite(write_suite(tmp_path, n_demos=6))
    trained = dataset.starts(held_out=False, fraction=0.4)
    kept = dataset.starts(held_out=True, fraction=0.4)
    everything = dataset.starts(held_out=False, fraction=0.0)
    assert len(kept) > 0
    assert sorted([*trained, *kept]) == sorted(everything)


def test_two_folders_read_as_one_data_set(tmp_path):
    a, b = write_suite(tmp_path / "a"), write_suite(tmp_path / "b", n_demos=1)
    both = ChunkDataset.open(DataSource(dirs=(a, b), suites=("libero_object",)), horizon=8)
    assert both.n_rows == open_suite(a).n_rows + open_suite(b).n_rows
    assert len(both.instructions) == 2


def test_so_many_demonstrations_of_a_task_are_counted_over_all_folders(tmp_path):
    for name in ("a", "b"):
        write_task(
            tmp_path / name / "libero_object" / "x_demo.hdf5",
            [make_demo(k + 10 * (name == "b"), n_steps=10) for k in range(2)],
        )
    source = DataSource(dirs=(tmp_path / "a", tmp_path / "b"), suites=("libero_object",))
    dataset = ChunkDataset.open(source, horizon=8)
    starts = dataset.starts(held_out=False, fraction=0.0, demos_per_task=3)
    assert starts.tolist() == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    with pytest.raises(ContractError, match=r"demos_per_task is 5.*libero_object/x has 4"):
        dataset.starts(held_out=False, fraction=0.0, demos_per_task=5)


def test_a_suite_may_be_missing_in_one_of_several_folders_but_not_in_all(tmp_path):
    a, b = write_suite(tmp_path / "a"), write_suite(tmp_path / "b")
    (b / "libero_object").rename(b / "libero_goal")
    suites = ("libero_object", "libero_goal")
    both = ChunkDataset.open(DataSource(dirs=(a, b), suites=suites), horizon=8)
    assert [f.suite for f in both.files] == ["libero_object"] * 2 + ["libero_goal"] * 2
    with pytest.raises(ContractError, match="libero_10"):
        ChunkDataset.open(DataSource(dirs=(a, b), suites=(*suites, "libero_10")), horizon=8)
    with pytest.raises(ContractError, match=r"no demonstrations in .*libero_goal"):
        ChunkDataset.open(DataSource(dirs=(a, b), suites=("libero_goal",)), horizon=8)


def test_two_processes_may_decode_one_task(tmp_path, monkeypatch):
    suite = open_episodes(write_suite(tmp_path / "data") / "libero_object")
    source = suite.of_task(suite.tasks[0])
    cache, low, pids = tmp_path / "cache", frames._low_dimensional, iter((1, 2))
    monkeypatch.setattr(frames.os, "getpid", lambda: next(pids))

    def overtaken(episode):
        # While the first process decodes, the second one begins and finishes.
        monkeypatch.setattr(frames, "_low_dimensional", low)
        frames.open_frames(source, suite="libero_object", cache_dir=cache)
        return low(episode)

    monkeypatch.setattr(frames, "_fingerprint", lambda _: "0" * 16)
    monkeypatch.setattr(frames, "_low_dimensional", overtaken)
    opened = frames.open_frames(source, suite="libero_object", cache_dir=cache)
    assert next(pids, None) is None
    assert [p.name for p in opened.folder.parent.iterdir()] == [opened.folder.name]
    rows = source.episode(0).images["agentview"].transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(opened.images[: len(rows), 0], rows)


def test_frames_are_decoded_once_and_again_when_the_file_changes(tmp_path):
    path = tmp_path / "libero_object" / "x_demo.hdf5"
    write_task(path, [make_demo(0)])
    first = open_suite(tmp_path).files[0].folder
    written = (first / "images.npy").stat().st_mtime_ns
    assert open_suite(tmp_path).files[0].folder == first
    assert (first / "images.npy").stat().st_mtime_ns == written
    write_task(path, [make_demo(0), make_demo(1)])
    second = open_suite(tmp_path).files[0]
    assert second.folder != first
    assert not first.exists()
    assert len(second.images) == 28


def test_mixed_image_sizes_are_refused(tmp_path):
    write_task(tmp_path / "libero_object" / "x_demo.hdf5", [make_demo(0), make_demo(1, px=64)])
    with pytest.raises(ContractError, match="one image size"):
        open_suite(tmp_path)


def test_statistics_use_gripper_targets_and_only_the_actions_of_the_expert(tmp_path):
    demo = make_demo(0, n_steps=20)
    demo.actions[4, :6] = 1.0
    demo = with_mask(demo, [1] * 4 + [0] + [1] * 15)
    write_task(tmp_path / "libero_object" / "x_demo.hdf5", [demo])
    stats = open_suite(tmp_path).statistics()["libero_object"]
    expert = np.delete(demo.actions, 4, axis=0).astype(np.float32)
    np.testing.assert_allclose(stats["action"]["max"][:6], expert[:, :6].max(axis=0))
    np.testing.assert_allclose(
        stats["action"]["q99"][:6], np.quantile(expert[:, :6], 0.99, axis=0), rtol=1e-6
    )
    assert (stats["action"]["min"][6], stats["action"]["max"][6]) == (0.0, 1.0)
    assert stats["action"]["mask"] == [True] * 6 + [False]
    assert (stats["num_transitions"], stats["num_trajectories"]) == (20, 1)
    np.testing.assert_allclose(stats["proprio"]["mean"], demo.proprio.mean(axis=0), rtol=1e-5)


def test_prefetching_keeps_the_order_and_hands_over_errors():
    def make(k):
        if k == 3:
            raise OSError("disk gone")
        return k

    seen = []
    with prefetched(make, first=1, last=9) as items, pytest.raises(OSError, match="disk gone"):
        seen.extend(items)
    assert seen == [1, 2]
    with prefetched(lambda k: k, first=2, last=50, depth=3) as items:
        assert list(items) == list(range(2, 50))


def test_leaving_a_prefetch_early_ends_its_thread():
    with prefetched(lambda k: k, first=0, last=10**9) as items:
        assert next(items) == 0


def test_fewer_demonstrations_are_the_first_and_leave_validation_alone(tmp_path):
    write_suite(tmp_path, n_demos=9)
    dataset = open_suite(tmp_path)
    whole = dataset.starts(held_out=False, fraction=0.3)
    kept = dataset.starts(held_out=True, fraction=0.3)
    few = dataset.starts(held_out=False, fraction=0.3, demos_per_task=2)
    assert set(few) < set(whole)
    assert not set(few) & set(kept)
    assert dataset.starts(held_out=True, fraction=0.3, demos_per_task=2).tolist() == kept.tolist()
    for file, begin, end in zip(dataset.files, dataset.offsets, dataset.offsets[1:], strict=False):
        demo = np.repeat(np.arange(len(file.lengths)), file.lengths)
        of_file = {int(demo[r - begin]) for r in few if begin <= r < end}
        trained = sorted({int(demo[r - begin]) for r in whole if begin <= r < end})
        assert sorted(of_file) == trained[:2]


def test_statistics_of_fewer_demonstrations_know_nothing_of_the_others(tmp_path):
    write_suite(tmp_path, n_demos=9)
    dataset = open_suite(tmp_path)
    few = dataset.statistics(fraction=0.3, demos_per_task=1)["libero_object"]
    assert few["num_trajectories"] == len(dataset.files)
    rows = dataset.starts(held_out=False, fraction=0.3, demos_per_task=1)
    reach = dataset.targets[rows, 0].max()
    assert few["action"]["max"][0] >= reach - 1e-6
    assert few != dataset.statistics()["libero_object"]
    assert dataset.statistics(fraction=0.3) == dataset.statistics()
