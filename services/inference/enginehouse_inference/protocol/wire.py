"""Large messages without needless copies.

protobuf copies each `raw_input_contents` twice on its way to Python and each `raw_output_contents` twice on its way
out. Both are top-level fields of length-delimited bytes, so they are cut out of and put into the serialized message
here, and protobuf sees only the small rest. The same bytes go over the wire.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from enginehouse.errors import InvalidArgumentError
from enginehouse.workers.tensors import Buffer

# Below it protobuf alone is faster.
SMALL_BYTES = 16 << 10

_MODEL_NAME = (1 << 3) | 2
_RAW_INPUT = (7 << 3) | 2
_RAW_OUTPUT = bytes([(6 << 3) | 2])
_STREAM_RESPONSE = bytes([(2 << 3) | 2])
_FIXED = {1: 8, 5: 4}


def parse_infer_request(data: bytes) -> tuple[service_pb2.ModelInferRequest, Sequence[Buffer]]:
    """A serialized ModelInferRequest as a message, and its raw input contents (views of `data`).

    Raises:
        InvalidArgumentError: the bytes are no such message.
    """
    try:
        if len(data) < SMALL_BYTES:
            request = service_pb2.ModelInferRequest.FromString(data)
            return request, request.raw_input_contents
        rest, raw = split(data, _RAW_INPUT)
        return service_pb2.ModelInferRequest.FromString(rest), raw
    except (DecodeError, ValueError) as error:
        raise InvalidArgumentError(f"the request is not a ModelInferRequest: {error}") from error


def split(data: bytes, tag: int) -> tuple[bytes, list[memoryview]]:
    """Cut the length-delimited fields with `tag` out of a serialized message: the rest, and views of their contents.

    Raises:
        ValueError: the bytes are no message.
    """
    view = memoryview(data)
    kept: list[memoryview] = []
    cut: list[memoryview] = []
    behind = 0
    for field, start, content, end in _fields(data):
        if field == tag:
            if start > behind:
                kept.append(view[behind:start])
            cut.append(view[content:end])
            behind = end
    kept.append(view[behind:])
    return b"".join(kept), cut


def model_name(data: bytes) -> str:
    """The model that a serialized ModelInferRequest names, without parsing or copying the rest.

    Raises:
        InvalidArgumentError: the bytes are no such message.
    """
    name = ""
    try:
        for field, _, content, end in _fields(data):
            if field == _MODEL_NAME:  # the last one counts, as in protobuf
                name = data[content:end].decode()
    except ValueError as error:
        raise InvalidArgumentError(f"the request is not a ModelInferRequest: {error}") from error
    return name


def _fields(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """The fields of a message: tag, where each begins, where its content (without its length) begins, and its end."""
    position = 0
    while position < len(data):
        start = position
        field, position = _varint(data, position)
        wire_type = field & 7
        if wire_type == 2:
            size, position = _varint(data, position)
            end = position + size
        elif wire_type == 0:
            _, end = _varint(data, position)
        elif wire_type in _FIXED:
            end = position + _FIXED[wire_type]
        else:
            raise ValueError(f"wire type {wire_type} at {start}")
        if end > len(data):
            raise ValueError(f"the field at {start} ends at {end}, behind the message's {len(data)} bytes")
        yield field, start, position, end
        position = end


def encode_infer_response(response: service_pb2.ModelInferResponse, raw: Iterable[Sequence[Buffer]]) -> bytes:
    """A serialized ModelInferResponse: `response` and, as its raw output contents, one entry for each of `raw`."""
    parts: list[Buffer] = [response.SerializeToString()]
    for pieces in raw:
        parts.append(_RAW_OUTPUT)
        parts.append(encode_varint(sum(map(len, pieces))))
        parts.extend(pieces)
    return b"".join(parts)


def encode_stream_response(response: bytes) -> bytes:
    """A serialized ModelStreamInferResponse that carries a serialized ModelInferResponse."""
    return b"".join([_STREAM_RESPONSE, encode_varint(len(response)), response])


def encode_varint(value: int) -> bytes:
    """An unsigned integer as protobuf writes it."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError(f"a bad number at byte {position}")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
