"""RLDS records without TensorFlow: the bytes, the published layout, and what damages them."""

import json
import shutil
import struct

import numpy as np
import pytest
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from vega_policy.data.chunks import ChunkDataset, DataSource
from vega_policy.data.convert import convert
from vega_policy.data.episodes import open_episodes
from vega_policy.data.frames import FrameTransform
from vega_policy.data.rlds import RldsWriter, encode_image
from vega_policy.data.tfrecords import (
    DamagedRecord,
    checked,
    frame_record,
    masked_crc,
    parse_example,
    records,
    write_example,
)
from vega_policy.spec import ContractError
from vega_policy.testing.demos import write_suite

SUITE = "libero_object"
Field = descriptor_pb2.FieldDescriptorProto


def example_class():
    """`tf.train.Example`, defined here in protocol-buffer terms."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")

    def message(name, *fields):
        kind = file.message_type.add(name=name)
        for number, (label, field, type_, type_name) in enumerate(fields, 1):
            kind.field.add(name=field, number=number, label=label, type=type_, type_name=type_name)
        return kind

    many, one = Field.LABEL_REPEATED, Field.LABEL_OPTIONAL
    message("BytesList", (many, "value", Field.TYPE_BYTES, None))
    message("FloatList", (many, "value", Field.TYPE_FLOAT, None))
    message("Int64List", (many, "value", Field.TYPE_INT64, None))
    feature = message(
        "Feature",
        (one, "bytes_list", Field.TYPE_MESSAGE, ".t.BytesList"),
        (one, "float_list", Field.TYPE_MESSAGE, ".t.FloatList"),
        (one, "int64_list", Field.TYPE_MESSAGE, ".t.Int64List"),
    )
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    features = message(
        "Features", (many, "feature", Field.TYPE_MESSAGE, ".t.Features.FeatureEntry")
    )
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=one, type=Field.TYPE_STRING)
    entry.field.add(
        name="value", number=2, label=one, type=Field.TYPE_MESSAGE, type_name=".t.Feature"
    )
    message("Example", (one, "features", Field.TYPE_MESSAGE, ".t.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


Example = example_class()
int64s = st.integers(-(2**63), 2**63 - 1)
lists = st.one_of(
    st.lists(st.binary(max_size=300), max_size=4),
    st.lists(st.floats(width=32, allow_nan=False), max_size=5).map(lambda v: np.array(v, "f4")),
    st.lists(int64s, max_size=5).map(lambda v: np.array(v, "i8")),
)


@given(st.dictionaries(st.text(max_size=6), lists, max_size=4))
def test_examples_are_those_of_protocol_buffers_in_both_directions(values):
    theirs = Example.FromString(write_example(values))
    ours = parse_example(memoryview(theirs.SerializeToString()))
    assert set(theirs.features.feature) == set(values) == set(ours)
    for key, value in values.items():
        feature = theirs.features.feature[key]
        if isinstance(value, list):
            assert list(feature.bytes_list.value) == value == [bytes(v) for v in ours[key].items()]
        elif value.dtype.kind == "f":
            np.testing.assert_array_equal(feature.float_list.value, value)
            np.testing.assert_array_equal(ours[key].floats(), value)
            assert ours[key].n_floats() == len(value)
        else:
            assert list(feature.int64_list.value) == value.tolist() == ours[key].ints().tolist()


def test_numbers_that_are_not_packed_are_read():
    floats = b"".join(b"\x0d" + struct.pack("<f", v) for v in (1.5, -2.0))
    ints = b"".join(b"\x08" + bytes([v]) for v in (1, 0, 7))

    def nested(number, data):
        return bytes([number << 3 | 2, len(data)]) + data

    entries = b"".join(
        nested(1, nested(1, key) + nested(2, nested(kind, data)))
        for key, kind, data in ((b"f", 2, floats), (b"i", 3, ints))
    )
    example = parse_example(memoryview(nested(1, entries)))
    assert example["f"].floats().tolist() == [1.5, -2.0]
    assert example["i"].ints().tolist() == [1, 0, 7]


def test_checksums_are_those_of_the_format():
    # CRC-32C's check value is e3069283; TFRecord rotates it by 15 bits and adds a constant.
    assert masked_crc(b"123456789") == (0x2507C60D + 0xA282EAD8) & 0xFFFFFFFF
    record = frame_record(b"abc")
    assert record[:8] == (3).to_bytes(8, "little")
    assert [bytes(checked(r)) for r in records(memoryview(record * 2))] == [b"abc", b"abc"]


@given(st.data())
def test_no_flipped_bit_goes_unnoticed(data):
    record = bytearray(frame_record(b"some bytes of an episode"))
    bit = data.draw(st.integers(0, len(record) * 8 - 1))
    record[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DamagedRecord):
        _ = [checked(one) for one in records(memoryview(bytes(record)))]


@given(st.binary(max_size=60))
def test_no_bytes_make_the_parser_do_anything_but_refuse(data):
    try:
        for feature in parse_example(memoryview(data)).values():
            {"bytes": feature.items, "floats": feature.floats, "ints": feature.ints}[feature.kind]()
    except (DamagedRecord, UnicodeDecodeError):
        pass


@pytest.fixture
def shards(tmp_path):
    """Six episodes in six shards."""
    source = open_episodes(write_suite(tmp_path / "original", px=32) / SUITE)
    folder = tmp_path / "rlds"
    folder.mkdir()
    writer = RldsWriter(folder, name=SUITE, images="png", shard_bytes=1)
    for index, ref in enumerate(source.refs):
        writer.add(source.episode(index), task=ref.task)
    writer.close()
    return folder


def shard(folder, number):
    return next(folder.glob(f"*-{number:05d}-of-*"))


def test_shards_and_description_are_named_as_tfds_does(shards):
    names = sorted(p.name for p in shards.iterdir())
    assert names[:2] == ["dataset_info.json", "features.json"]
    assert names[2] == "libero_object-train.tfrecord-00000-of-00006"
    split = json.loads((shards / "dataset_info.json").read_text())["splits"][0]
    assert (split["name"], split["shardLengths"]) == ("train", ["1"] * 6)
    features = json.loads((shards / "features.json").read_text())["featuresDict"]["features"]
    step = features["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    example = parse_example(checked(next(records(memoryview(shard(shards, 0).read_bytes())))))
    flat = {f"steps/{k}" for k in step if k != "observation"}
    flat |= {f"steps/observation/{k}" for k in step["observation"]["featuresDict"]["features"]}
    flat |= {
        f"episode_metadata/{k}" for k in features["episode_metadata"]["featuresDict"]["features"]
    }
    assert flat == set(example)


def test_a_record_of_the_published_layout_is_read(tmp_path):
    t = 9
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (2, t, 16, 16, 3), dtype=np.uint8)
    actions = rng.uniform(-1, 1, (t, 7)).astype("f4")
    states = rng.normal(size=(t, 8)).astype("f4")
    ends = (np.arange(t) == t - 1).astype("i8")
    data = write_example(
        {
            "steps/observation/image": [encode_image(p, "jpeg") for p in pictures[0]],
            "steps/observation/wrist_image": [encode_image(p, "jpeg") for p in pictures[1]],
            "steps/observation/state": states,
            "steps/observation/joint_state": np.zeros((t, 7), "f4"),
            "steps/action": actions,
            "steps/language_instruction": [b"put the bowl on the plate"] * t,
            "steps/discount": np.ones(t, "f4"),
            "steps/reward": ends.astype("f4"),
            "steps/is_first": ends[::-1],
            "steps/is_last": ends,
            "steps/is_terminal": ends,
            "episode_metadata/file_path": [b"/data/put_the_bowl_on_the_plate_demo.hdf5"],
        }
    )
    path = tmp_path / "libero_goal-train.tfrecord-00000-of-00001"
    path.write_bytes(frame_record(data))
    source = open_episodes(tmp_path)
    assert source.refs[0].task == "put_the_bowl_on_the_plate"
    episode = source.episode(0)
    np.testing.assert_array_equal(episode.actions, actions)
    np.testing.assert_array_equal(episode.proprio, states)
    assert episode.expert_mask.all()
    assert episode.images["wrist"].shape == (t, 16, 16, 3)


def test_a_truncated_shard_says_how_much_of_it_is_whole(shards):
    path = shard(shards, 3)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(
        ContractError, match=r"00003-of-00006 is damaged after 0 episodes: the file ends"
    ):
        open_episodes(shards)
    rest = open_episodes(shards, skip_damaged=True)
    assert (len(rest), len(rest.left_out)) == (5, 1)


def test_a_flipped_bit_in_an_image_names_shard_and_record(shards):
    path = shard(shards, 4)
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 20] ^= 4
    path.write_bytes(data)
    source = open_episodes(shards)
    with pytest.raises(ContractError, match=r"00004-of-00006 record 0 cannot be read: .*checksum"):
        source.episode(4)
    assert len(source.without_damaged()) == 5


def test_a_missing_shard_is_named(shards):
    shard(shards, 2).unlink()
    with pytest.raises(ContractError, match="lacks shard 2 of 6"):
        open_episodes(shards)
    assert len(open_episodes(shards, skip_damaged=True)) == 5


def test_fewer_episodes_than_described_are_noticed(shards):
    shard(shards, 1).write_bytes(b"")
    with pytest.raises(
        ContractError, match=r"00001-of-00006 has 0 episodes, dataset_info\.json says 1"
    ):
        open_episodes(shards)
    rest = open_episodes(shards, skip_damaged=True)
    assert ["has 0 episodes" in problem for problem in rest.left_out] == [True]


def test_shards_of_two_sets_are_not_mixed(shards):
    shutil.copy(shard(shards, 0), shards / f"{SUITE}-train.tfrecord-00000-of-00002")
    with pytest.raises(ContractError, match="mixes shards of several sets"):
        open_episodes(shards)


def test_records_of_another_kind_are_described(tmp_path):
    path = tmp_path / "x-train.tfrecord-00000-of-00001"
    path.write_bytes(frame_record(write_example({"label": np.array([1])})))
    with pytest.raises(
        ContractError, match=r"record 0 cannot be read: it has no steps/action.*it has label"
    ):
        open_episodes(tmp_path)


def test_large_records_are_listed_without_reading_their_images(shards, monkeypatch):
    def refuse(_):
        raise AssertionError("an image was decoded")

    monkeypatch.setattr("vega_policy.data.rlds.decode_image", refuse)
    source = open_episodes(shards)
    assert source.lengths.tolist() == [14, 15, 16] * 2
    assert source.episode(0, at=()).n_steps == 14


def test_converting_back_gives_the_same_libero_files(shards, tmp_path):
    convert(open_episodes(shards), tmp_path / "back", format="hdf5")
    original = open_episodes(tmp_path / "original" / SUITE)
    back = open_episodes(tmp_path / "back")
    assert [r.task for r in back.refs] == [r.task for r in original.refs]
    for index in range(len(original)):
        a, b = original.episode(index), back.episode(index)
        np.testing.assert_array_equal(a.images["agentview"], b.images["agentview"])
        np.testing.assert_array_equal(a.proprio, b.proprio)


@pytest.mark.parametrize(("images", "expected"), [("lossy", "jpeg"), ("lossless", "recorded")])
def test_frames_that_were_jpeg_files_are_not_made_one_again(tmp_path, images, expected):
    source = open_episodes(write_suite(tmp_path / "original", px=16, n_demos=1) / SUITE)
    convert(source, tmp_path / "rlds" / SUITE, format="rlds", images=images)
    used = []

    def through(name):
        def apply(frames):
            used.append(name)
            return torch.zeros(len(frames), 3, 16, 16, dtype=torch.uint8)

        return apply

    transform = FrameTransform(
        name="t", px=16, apply=through("recorded"), apply_to_jpeg=through("jpeg")
    )
    where = DataSource(dirs=(tmp_path / "rlds",), suites=(SUITE,), transform=transform)
    ChunkDataset.open(where, horizon=8)
    assert set(used) == {expected}
