"""Tensors: dtypes, BYTES serialization, and files read in place of memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from enginehouse.errors import InvalidArgumentError
from enginehouse.workers.tensors import (
    DTYPES,
    FilePart,
    decode_bytes,
    element_offsets,
    encode_bytes,
    numpy_dtype,
    protocol_dtype,
    tensor_input,
)


@pytest.mark.parametrize("name", [d for d in DTYPES if d != "BF16"])
def test_dtypes_go_there_and_back(name: str) -> None:
    assert protocol_dtype(numpy_dtype(name)) == name


def test_unknown_dtypes_say_what_is_known() -> None:
    with pytest.raises(InvalidArgumentError, match=r"FP99.*BOOL"):
        numpy_dtype("FP99")
    with pytest.raises(InvalidArgumentError, match="complex64"):
        protocol_dtype(np.dtype(np.complex64))


@given(st.lists(st.binary(max_size=30), max_size=20))
def test_bytes_are_serialized_as_triton_does(elements: list[bytes]) -> None:
    encoded = encode_bytes(elements)
    array = np.array([*elements, None], dtype=object)[:-1]
    assert encoded == (serialize_byte_tensor(array).item() if elements else b"")
    assert decode_bytes(memoryview(encoded), len(elements)).tolist() == elements
    assert deserialize_bytes_tensor(encoded).tolist() == elements
    assert element_offsets(encoded, "it")[-1] == len(encoded)


@given(st.binary(min_size=1, max_size=40))
def test_damaged_bytes_are_an_error_or_whole_elements(data: bytes) -> None:
    try:
        offsets = element_offsets(data, "input 'x'")
    except InvalidArgumentError as error:
        assert "input 'x'" in error.message
    else:
        assert offsets[-1] == len(data)


def test_arrays_become_inputs_without_a_copy() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = tensor_input("x", array)
    assert (tensor.dtype, tensor.shape, tensor.size) == ("FP32", (2, 3), 24)
    array[0, 0] = 9
    assert np.frombuffer(tensor.parts[0], dtype=np.float32)[0] == 9
    assert tensor_input("x", array.T).shape == (3, 2)
    assert tensor_input("x", np.zeros((), np.int8)).size == 1


def test_a_file_that_ends_early_is_an_error_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "region"
    path.write_bytes(b"0123456789")
    descriptor = os.open(path, os.O_RDWR)
    part = FilePart(descriptor, 2, 6)
    assert part.read() == b"234567"
    assert part.slice(1, 3).read() == b"34"
    os.ftruncate(descriptor, 4)
    with pytest.raises(InvalidArgumentError, match="ends after 4 bytes"):
        part.read()
    os.close(descriptor)
