"""Shapes of a request against a model's: -1 in the model's is any size, and no size in a request's."""

from __future__ import annotations

from pathlib import Path

import pytest
from enginehouse_inference.protocol.regions import Regions
from enginehouse_inference.protocol.request import Signature, check_request
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from enginehouse.errors import InvalidArgumentError
from enginehouse.workers.tensors import TensorSpec


def accepted(shape: tuple[int, ...], expected: tuple[int, ...], *, batched: bool, size: int) -> bool:
    signature = Signature({"x": TensorSpec("x", "UINT8", expected)}, {"y": TensorSpec("y", "UINT8", (1,))}, batched)
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name="x", datatype="UINT8", shape=shape)
    request = service_pb2.ModelInferRequest(model_name="m", inputs=[tensor])
    try:
        check_request(request, [bytes(size)], signature, Regions(Path("/dev/shm")), "m")
    except InvalidArgumentError:
        return False
    return True


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("shape", [(-1, -1, -1), (1, -1, -1), (-1, 1, 1), (1, 1, -1)])
def test_a_request_with_the_models_own_dynamic_sizes_is_refused(shape: tuple[int, ...], batched: bool) -> None:
    """Two sizes of -1 have a product of 1: with one byte they would pass for an image of one pixel."""
    assert not accepted(shape, (-1, -1, -1), batched=batched, size=1)


sizes = st.lists(st.integers(-2, 3), min_size=2, max_size=3)


@given(sizes, sizes, st.booleans())
def test_exactly_the_shapes_that_fit_are_accepted(given_sizes: list[int], model: list[int], batched: bool) -> None:
    expected = tuple(-1 if size < 1 else size for size in model)
    shape = tuple(given_sizes)
    fits = len(shape) == len(expected) and all(
        got >= 0 if want < 0 else got == want for got, want in zip(shape, expected, strict=True)
    )
    if batched:  # the batch is any, but not none
        expected = (-1, *expected[1:])
        fits = (
            len(shape) == len(expected)
            and shape[0] >= 1
            and all(got >= 0 if want < 0 else got == want for got, want in zip(shape[1:], expected[1:], strict=True))
        )
    size = 1
    for one in shape:
        size *= abs(one)
    assert accepted(shape, expected, batched=batched, size=size) == fits
