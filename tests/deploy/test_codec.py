"""What travels, byte for byte as openpi writes it, and what is never taken from a network."""

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from openpi_client import msgpack_numpy

from vega_policy.deploy.codec import Limits, WireError, pack, unpack

VECTOR = "81a16184c40b5f5f6e6461727261795f5fc3c40464617461c403000102c4056474797065a37c7531c40573686170659103"
NUMBERS = st.sampled_from(["?", "|u1", "<u2", "<i4", "<i8", "<f2", "<f4", "<f8", ">f4"])
ARRAYS = NUMBERS.flatmap(
    lambda d: hnp.arrays(
        np.dtype(d), hnp.array_shapes(min_dims=0, max_dims=4, max_side=4, min_side=0)
    )
)


def test_an_array_has_the_bytes_that_were_published():
    assert pack({"a": np.array([0, 1, 2], np.uint8)}).hex() == VECTOR


@given(st.dictionaries(st.text(max_size=8), ARRAYS | st.integers(-(2**63), 2**64 - 1) | st.text()))
@settings(max_examples=150, deadline=None)
def test_messages_equal_openpis_and_come_back(message):
    data = pack(message)
    assert data == msgpack_numpy.packb(message)
    back = unpack(data)
    assert back.keys() == message.keys()
    for name, value in message.items():
        assert np.asarray(back[name]).dtype == np.asarray(value).dtype
        np.testing.assert_array_equal(back[name], value)


def test_scalars_and_tuples_travel_as_openpi_sends_them():
    message = {"f": np.float64(1), "g": np.float32(2), "b": np.bool_(1), "t": (1, 2), "n": None}
    assert pack(message) == msgpack_numpy.packb(message)
    back = unpack(pack(message))
    assert back["t"] == [1, 2]
    assert back["g"] == 2
    assert isinstance(back["g"], np.float32)


def test_a_decoded_array_may_be_written_to():
    back = unpack(pack({"a": np.zeros(3)}))["a"]
    back += 1
    assert back.sum() == 3


def array():
    node = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f8", b"shape": [1]}
    return msgpack.packb({"a": node})


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (array()[:-1], "no msgpack"),
        (msgpack.packb({"a": {b"__ndarray__": True}}), "dtype None"),
        (msgpack.packb({1: 2}), "key that is not text"),
        (b"", "no msgpack"),
        (b"\xc1", "no msgpack"),
        (pack({"a": 1}) + b"\x00", "no msgpack"),
        (msgpack.packb({"a": msgpack.ExtType(1, b"x")}), "no msgpack"),
    ],
)
def test_what_is_no_message_is_refused(data, what):
    with pytest.raises(WireError, match=what):
        unpack(data)


@pytest.mark.parametrize(
    "dtype", ["|O", "O", "<U4", "|V8", "<c8", "<M8", "i4,f4", "f8" * 9, 7, "xx"]
)
def test_a_dtype_that_is_no_number_is_refused(dtype):
    node = {b"__ndarray__": True, b"data": bytes(8), b"dtype": dtype, b"shape": [1]}
    with pytest.raises(WireError, match="dtype"):
        unpack(msgpack.packb({"a": node}))
    number = {b"__npgeneric__": True, b"data": 1, b"dtype": dtype}
    with pytest.raises(WireError, match="dtype"):
        unpack(msgpack.packb({"a": number}))


def test_openpis_decoder_would_have_taken_the_pointers():
    node = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "|O", b"shape": [1]}
    taken = msgpack_numpy.unpackb(msgpack.packb({"a": node}))
    assert taken["a"].dtype == object  # not looked into: that crashes


@pytest.mark.parametrize(
    ("shape", "what"),
    [
        ([2], "8 bytes instead of 16"),
        ([-1], "negative"),
        ([1] * 5, "at most 4"),
        ("1", "bytes or shape"),
    ],
)
def test_an_array_whose_bytes_do_not_fit_its_shape_is_refused(shape, what):
    node = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f8", b"shape": shape}
    with pytest.raises(WireError, match=what):
        unpack(msgpack.packb({"a": node}))


def test_a_huge_shape_of_nothing_allocates_nothing():
    node = {b"__ndarray__": True, b"data": b"", b"dtype": "<f8", b"shape": [2**40, 2**40]}
    with pytest.raises(WireError, match="0 bytes instead of"):
        unpack(msgpack.packb({"a": node}))


def test_depth_size_and_number_of_entries_are_bounded():
    deep = 0
    for _ in range(40):
        deep = [deep]
    with pytest.raises(WireError, match="levels"):
        unpack(msgpack.packb(deep))
    with pytest.raises(WireError, match="no msgpack"):
        unpack(msgpack.packb([0] * 2000))
    with pytest.raises(WireError, match="5 are allowed"):
        unpack(bytes(6), limits=Limits(max_bytes=5))


def test_what_is_neither_plain_nor_numbers_is_not_sent():
    for value in (object(), np.array([object()]), np.array(["a"]), {1, 2}):
        with pytest.raises(TypeError, match="cannot be sent"):
            pack({"a": value})
