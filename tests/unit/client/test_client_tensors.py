"""Arrays to bytes and back, for each of the protocol's datatypes."""

from __future__ import annotations

import numpy as np
import pytest
from tritonclient import utils as triton

from enginehouse import TensorSpec
from enginehouse.client.tensors import datatype_of, decode, encode, fit
from enginehouse.errors import DataLossError, InvalidArgumentError


@pytest.mark.parametrize(
    "dtype",
    ["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64"],
)
def test_numbers_come_back(dtype: str) -> None:
    array = np.array([[0, 1, 2], [3, 4, 100]]).astype(dtype)
    name = datatype_of(array)
    assert name == triton.np_to_triton_dtype(array.dtype)
    back = decode(name, array.shape, encode(name, array))
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype


def test_strings_are_coded_as_tritonclient_codes_them() -> None:
    array = np.array([[b"a", "\u00e9".encode()], [b"", b"long" * 99]], dtype=object)
    data = encode("BYTES", array)
    assert data == triton.serialize_byte_tensor(array).item()
    np.testing.assert_array_equal(decode("BYTES", (2, 2), data), array)
    assert encode("BYTES", np.array(["\u00e9"])) == encode("BYTES", np.array(["\u00e9".encode()], dtype=object))
    with pytest.raises(DataLossError):
        decode("BYTES", (2, 2), data[:-1])


def test_bfloat16_rounds_to_nearest_even() -> None:
    values = np.array([1.0, 1.0 + 2**-8, 1.0 + 3 * 2**-8, -2.5, np.inf, 3.4e38], np.float32)
    back = decode("BF16", values.shape, encode("BF16", values))
    np.testing.assert_array_equal(back, np.array([1.0, 1.0, 1.0 + 2**-6, -2.5, np.inf, np.inf], np.float32))
    assert np.isnan(decode("BF16", (1,), encode("BF16", np.array([np.nan], np.float32))))[0]


def test_order_and_endianness_are_the_wire_s() -> None:
    array = np.arange(6, dtype=">f4").reshape(2, 3).T
    assert datatype_of(array) == "FP32"
    np.testing.assert_array_equal(decode("FP32", (3, 2), encode("FP32", array)), array)


def test_a_short_output_is_damage() -> None:
    with pytest.raises(DataLossError, match="has 8 bytes, not 12"):
        decode("FP32", (3,), bytes(8))


def test_lists_are_taken_by_their_values() -> None:
    spec = TensorSpec("i", "INT32", (-1,))
    assert fit([1, 2], spec)[1].dtype == np.int32
    with pytest.raises(InvalidArgumentError, match="cannot hold"):
        fit([1.5], spec)
    with pytest.raises(InvalidArgumentError, match="expected numbers"):
        fit(["a"], spec)


def test_special_datatypes_take_what_they_can() -> None:
    with pytest.raises(InvalidArgumentError, match="expected bytes or strings"):
        fit(np.zeros(1), TensorSpec("s", "BYTES", (-1,)))
    with pytest.raises(InvalidArgumentError, match="rounded to BF16"):
        fit(np.zeros(1), TensorSpec("b", "BF16", (-1,)))
    assert fit(np.zeros(1, np.float32), TensorSpec("b", "BF16", (-1,)))[0] == "BF16"


def test_channels_on_the_other_side_are_recognized() -> None:
    with pytest.raises(InvalidArgumentError, match="channels on the other side"):
        fit(np.zeros((1, 3, 4, 4), np.float32), TensorSpec("x", "FP32", (-1, 4, 4, 3)))


def test_dates_have_no_datatype() -> None:
    with pytest.raises(InvalidArgumentError, match="no datatype"):
        datatype_of(np.zeros(1, "datetime64[s]"))


def test_rows_of_unequal_lengths_are_no_array() -> None:
    with pytest.raises(InvalidArgumentError, match="'x' is no array: expected rows of one length"):
        fit([[1, 2], [3]], TensorSpec("x", "FP32", (-1, 2)))
