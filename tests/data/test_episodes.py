"""The same demonstrations in every format give the same samples."""

import h5py
import numpy as np
import pytest

from vega_policy.data.chunks import ChunkBatches, ChunkDataset, DataSource
from vega_policy.data.convert import convert
from vega_policy.data.episodes import open_episodes, open_suite, open_suites, recognise
from vega_policy.spec import CAMERAS, ContractError
from vega_policy.testing.demos import make_demo, with_mask, write_suite, write_task
from vega_policy.train.contract import look_at

SUITE = "libero_object"
FORMATS = ("hdf5", "lerobot", "rlds")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Two tasks in LIBERO files, and converted: a folder for each way of storing them."""
    root = tmp_path_factory.mktemp("stored")
    write_suite(root / "original", px=64)
    # One demonstration in which a learner chose an action.
    demo = with_mask(make_demo(7, n_steps=20, px=64), [1] * 5 + [0] + [1] * 14)
    write_task(root / "original" / SUITE / "pick_up_the_milk_demo.hdf5", [demo])
    source = open_episodes(root / "original" / SUITE)
    for kind in FORMATS:
        for images in ("lossless", "lossy"):
            convert(source, root / f"{kind}-{images}" / SUITE, format=kind, images=images)
    return root


def dataset(folder, **settings):
    source = DataSource(dirs=(folder,), suites=(SUITE,), **settings)
    return ChunkDataset.open(source, horizon=8)


def all_samples(data):
    batches = ChunkBatches(
        data,
        starts=data.starts(held_out=False, fraction=0.0),
        targets=data.targets,
        proprio=data.proprio,
        batch_size=4,
        seed=3,
    )
    return [batches.batch(k) for k in range(int(batches.batches_per_epoch) + 1)]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_equal_chunks_and_statistics(stored, kind):
    original, other = dataset(stored / "original"), dataset(stored / f"{kind}-lossless")
    assert other.statistics() == original.statistics()
    assert other.instructions == original.instructions
    held = {"held_out": True, "fraction": 0.4}
    assert other.starts(**held).tolist() == original.starts(**held).tolist()
    pairs = list(zip(all_samples(original), all_samples(other), strict=True))
    assert len(pairs) > 5
    for a, b in pairs:
        for name in ("pixels", "proprio", "targets", "tasks"):
            assert getattr(a, name).equal(getattr(b, name)), name


@pytest.mark.parametrize("kind", ["lerobot", "rlds"])
def test_a_lossy_copy_has_equal_actions_and_close_images(stored, kind):
    original, other = dataset(stored / "original"), dataset(stored / f"{kind}-lossy")
    assert other.statistics() == original.statistics()
    rows = np.arange(original.n_rows)
    difference = (original.pixels(rows).float() - other.pixels(rows).float()).abs()
    assert 0 < difference.mean() < 3
    assert difference.amax(dim=(1, 2, 3, 4)).max() < 40  # no frame is another one


@pytest.mark.parametrize("kind", FORMATS)
def test_an_episode_means_the_same_in_every_format(stored, kind):
    original = open_episodes(stored / "original" / SUITE)
    other = open_episodes(stored / f"{kind}-lossless" / SUITE)
    assert other.format == kind
    assert other.lengths.tolist() == original.lengths.tolist()
    assert other.instructions == original.instructions
    for index in range(len(original)):
        a, b = original.episode(index), other.episode(index)
        np.testing.assert_array_equal(a.actions.astype(np.float32), b.actions.astype(np.float32))
        np.testing.assert_array_equal(a.proprio, b.proprio)
        np.testing.assert_array_equal(a.expert_mask, b.expert_mask)
        np.testing.assert_allclose(a.joint_states, b.joint_states, rtol=1e-6)
        assert (a.instruction, a.attributes) == (b.instruction, b.attributes)


@pytest.mark.parametrize("name", ["hdf5-lossy", "lerobot-lossless", "lerobot-lossy", "rlds-lossy"])
def test_single_frames_are_those_of_the_whole_episode(stored, name):
    source = open_episodes(stored / name / SUITE)
    for index in range(len(source)):
        n = source.refs[index].n_steps
        whole, some = source.episode(index), source.episode(index, at=(0, 3, n - 1))
        for camera in CAMERAS:
            np.testing.assert_array_equal(whole.images[camera][[0, 3, n - 1]], some.images[camera])
        assert not source.episode(index, at=()).images


def test_images_in_a_libero_file_are_turned_and_upright_in_memory(stored):
    path = next((stored / "original" / SUITE).glob("*soup*.hdf5"))
    source = open_episodes(path)
    with h5py.File(path) as file:
        raw = file["data/demo_0/obs/agentview_rgb"][()]
    np.testing.assert_array_equal(source.episode(0).images["agentview"], raw[:, ::-1, ::-1])


def test_a_suite_is_found_by_its_published_name_and_version(stored, tmp_path):
    (tmp_path / f"{SUITE}_no_noops").mkdir()
    (tmp_path / f"{SUITE}_no_noops" / "1.0.0").symlink_to(stored / "rlds-lossy" / SUITE)
    assert open_suite(tmp_path, SUITE).format == "rlds"
    (tmp_path / f"{SUITE}_no_noops" / "2.0.0").symlink_to(stored / "rlds-lossy" / SUITE)
    with pytest.raises(ContractError, match=r"1\.0\.0, 2\.0\.0; give the folder of one"):
        open_suite(tmp_path, SUITE)


def test_a_folder_may_be_the_data_set_itself(stored):
    assert len(open_suite(stored / "lerobot-lossy" / SUITE, "anything")) == 7


def test_a_data_set_is_not_read_once_for_every_suite(stored):
    folder = stored / "lerobot-lossy" / SUITE
    with pytest.raises(ContractError, match="is one data set, expected a folder for each of a, b"):
        open_suites([folder], ["a", "b"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: f["data"].attrs.__setitem__("problem_info", "{"), "expected JSON with"),
        (lambda f: f["data"].attrs.__setitem__("problem_info", "{}"), "language_instruction"),
        (lambda f: f["data"].create_group("notes"), "a group 'notes', expected demo_0"),
        (lambda f: f["data/demo_0"].__setitem__("actions", 0.0), "is a single number"),
    ],
)
def test_a_task_file_with_wrong_descriptions_is_named(tmp_path, damage, message):
    write_suite(tmp_path, px=64)
    soup = min((tmp_path / SUITE).glob("*.hdf5"))
    with h5py.File(soup, "a") as file:
        if "single" in message:
            del file["data/demo_0/actions"]
        damage(file)
    with pytest.raises(ContractError, match=f"{soup.name}.*{message}"):
        open_suite(tmp_path, SUITE)
    rest = open_suite(tmp_path, SUITE, skip_damaged=True)
    assert {ref.file == soup for ref in rest.refs} == {False}


def test_what_is_no_data_set_is_said(tmp_path, stored):
    with pytest.raises(ContractError, match="nothing is there"):
        open_episodes(tmp_path / "absent")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ContractError, match=r"it holds notes\.txt, expected LIBERO"):
        open_episodes(tmp_path)
    with pytest.raises(ContractError, match=r"run scripts/collect\.py"):
        open_suite(tmp_path, SUITE)
    assert recognise(stored / "original") is None


def test_two_formats_in_one_folder_are_refused(tmp_path):
    (tmp_path / "a_demo.hdf5").touch()
    (tmp_path / "x-train.tfrecord-00000-of-00001").touch()
    with pytest.raises(ContractError, match="mixes the formats hdf5 and rlds"):
        open_episodes(tmp_path)


def test_a_damaged_demonstration_is_named_and_can_be_left_out(tmp_path):
    write_suite(tmp_path, px=64)
    soup, milk = sorted((tmp_path / SUITE).glob("*.hdf5"))
    with h5py.File(soup, "a") as file:
        del file["data/demo_1/obs/ee_states"]
    milk.write_bytes(milk.read_bytes()[:5000])
    with pytest.raises(ContractError, match=f"{milk.name} cannot be read"):
        open_suite(tmp_path, SUITE)
    rest = open_suite(tmp_path, SUITE, skip_damaged=True)
    with pytest.raises(ContractError, match=r"soup\S*hdf5: /data/demo_1 has no 'obs/ee_states'"):
        rest.episode(1)
    rest = rest.without_damaged()
    assert [ref.name for ref in rest.refs] == ["demo_0", "demo_2"]
    assert len(rest.left_out) == 2
    with pytest.raises(ContractError):
        dataset(tmp_path)
    assert dataset(tmp_path, skip_damaged=True).n_rows == 14 + 16


def test_the_look_before_training_takes_the_first_episode_that_can_be_read(tmp_path):
    write_suite(tmp_path, px=64)
    with h5py.File(min((tmp_path / SUITE).glob("*.hdf5")), "a") as file:
        del file["data/demo_0/actions"]
        file["data/demo_0/actions"] = np.zeros((14, 6))
    source = open_suite(tmp_path, SUITE)
    with pytest.raises(ContractError, match=r"demo_0: actions is \(14, 6\), expected \(14, 7\)"):
        look_at(source)
    assert look_at(source, skip_damaged=True).image_px == (64, 64)


def test_a_number_that_is_not_finite_is_refused(tmp_path):
    write_suite(tmp_path, px=64)
    soup = min((tmp_path / SUITE).glob("*.hdf5"))
    with h5py.File(soup, "a") as file:
        file["data/demo_2/actions"][3, 2] = np.nan
    source = open_episodes(tmp_path / SUITE)
    with pytest.raises(ContractError, match="demo_2: actions has a number that is not finite"):
        source.episode(2)
