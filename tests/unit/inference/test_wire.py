"""Serialized messages cut and put together: the same as what protobuf does."""

from __future__ import annotations

import pytest
from enginehouse_inference.protocol.wire import (
    SMALL_BYTES,
    encode_infer_response,
    encode_stream_response,
    encode_varint,
    parse_infer_request,
    split,
)
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from enginehouse.errors import InvalidArgumentError

raws = st.lists(st.binary(max_size=300), max_size=4)


@given(raws, st.text(max_size=20), st.integers(-1, 9))
def test_a_request_is_the_same_cut_or_whole(contents: list[bytes], name: str, padding: int) -> None:
    request = service_pb2.ModelInferRequest(model_name=name, id="i", raw_input_contents=contents)
    if padding > 0:
        request.inputs.add(name="x", shape=[padding])
        request.raw_input_contents.append(bytes(SMALL_BYTES))
    data = request.SerializeToString()
    rest, cut = split(data, (7 << 3) | 2)
    assert [bytes(c) for c in cut] == list(request.raw_input_contents)
    parsed, raw = parse_infer_request(data)
    assert [bytes(c) for c in raw] == list(request.raw_input_contents)
    without = service_pb2.ModelInferRequest()
    without.CopyFrom(request)
    del without.raw_input_contents[:]
    assert service_pb2.ModelInferRequest.FromString(rest) == without
    assert (parsed.model_name, parsed.id, parsed.inputs) == (request.model_name, request.id, request.inputs)


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_parsed_or_refused(data: bytes, large: bool) -> None:
    if large:
        data += bytes(SMALL_BYTES)
    try:
        parse_infer_request(data)
    except InvalidArgumentError as error:
        assert "ModelInferRequest" in error.message


@given(raws, st.text(max_size=20))
def test_a_response_is_what_protobuf_reads(contents: list[bytes], identifier: str) -> None:
    response = service_pb2.ModelInferResponse(id=identifier)
    pieces = [(memoryview(c)[: len(c) // 2], c[len(c) // 2 :]) for c in contents]
    data = encode_infer_response(response, pieces)
    expected = service_pb2.ModelInferResponse(id=identifier, raw_output_contents=contents)
    assert service_pb2.ModelInferResponse.FromString(data) == expected
    stream = service_pb2.ModelStreamInferResponse.FromString(encode_stream_response(data))
    assert stream.infer_response == expected and not stream.error_message


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**32, 2**63])
def test_numbers(value: int) -> None:
    expected = service_pb2.StatisticDuration(count=value).SerializeToString()
    assert (b"\x08" + encode_varint(value) if value else b"") == expected
