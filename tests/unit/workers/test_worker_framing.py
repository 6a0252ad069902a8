"""Frames: whatever way the bytes are cut, the same frames come out."""

from __future__ import annotations

import array
import os
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.errors import InternalError
from enginehouse.workers.framing import MAX_FRAME_BYTES, Decoder, encode, rights

frames = st.lists(
    st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=20), st.none()), max_size=4),
    max_size=8,
)


@given(frames, st.lists(st.integers(1, 40), max_size=60))
def test_frames_survive_any_cutting(sent: list[dict[str, object]], cuts: list[int]) -> None:
    data = b"".join(encode(frame) for frame in sent)
    decoder = Decoder()
    received = []
    for size in [*cuts, len(data)]:
        decoder.feed(data[:size], [])
        data = data[size:]
        while (item := decoder.next()) is not None:
            received.append(item[0])
    assert received == sent


def test_descriptors_go_with_their_segment_frames() -> None:
    ours, theirs = socket.socketpair()
    first, second = os.open("/dev/null", os.O_RDONLY), os.open("/dev/zero", os.O_RDONLY)
    theirs.sendmsg([encode({"type": "pong"})])
    theirs.sendmsg([encode({"type": "segment", "segment": 1})], rights(first))
    theirs.sendmsg([encode({"type": "segment", "segment": 2})], rights(second))
    decoder = Decoder()
    received = []
    while len(received) < 3:
        data, ancillary, _, _ = ours.recvmsg(1 << 16, socket.CMSG_SPACE(64 * 4))
        decoder.feed(data, ancillary)
        while (item := decoder.next()) is not None:
            received.append(item)
    (_, none), (_, null), (_, zero) = received
    assert none is None and null is not None and zero is not None
    assert os.path.samestat(os.fstat(null), os.fstat(first))
    assert os.path.samestat(os.fstat(zero), os.fstat(second))
    for descriptor in (first, second, null, zero):
        os.close(descriptor)
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<I", MAX_FRAME_BYTES + 1),
        struct.pack("<I", 3) + b"no!",
        struct.pack("<I", 2) + b"[]",
    ],
)
def test_nonsense_is_an_error(data: bytes) -> None:
    decoder = Decoder()
    decoder.feed(data, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i").tobytes())])
    with pytest.raises(InternalError):
        decoder.next()
