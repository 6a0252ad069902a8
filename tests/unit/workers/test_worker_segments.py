"""Shared memory on both sides: size classes, reuse, bounds, and what the peer may not do."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.errors import InternalError
from enginehouse.workers.segments import SMALLEST, Segment, SegmentMap, SegmentPool, size_class


class Peer:
    """Maps what a pool announces, as the other process does."""

    def __init__(self) -> None:
        self.map = SegmentMap()
        self.announced: list[int] = []
        self.dropped: list[int] = []

    def announce(self, segment: Segment) -> None:
        self.announced.append(segment.id)
        self.map.add(segment.id, segment.size, os.dup(segment.descriptor))

    def drop(self, segment: Segment) -> None:
        self.dropped.append(segment.id)
        self.map.drop(segment.id)


@given(st.integers(0, 1 << 40))
def test_a_size_class_is_the_smallest_power_of_two_that_holds(size: int) -> None:
    result = size_class(size)
    assert result >= max(size, SMALLEST)
    assert result & (result - 1) == 0
    assert result == SMALLEST or result < 2 * size


def test_the_peer_reads_what_we_wrote_and_segments_are_reused() -> None:
    peer = Peer()
    pool = SegmentPool(peer.announce, peer.drop)
    for round_number in range(3):
        segment = pool.acquire(10_000)
        segment.view[:3] = bytes([round_number] * 3)
        assert bytes(peer.map.view(segment.id, 0, 3)) == bytes([round_number] * 3)
        pool.release(segment)
    assert peer.announced == [1]
    assert pool.used == 0


def test_free_segments_are_bounded() -> None:
    peer = Peer()
    pool = SegmentPool(peer.announce, peer.drop, keep_bytes=3 * SMALLEST)
    segments = [pool.acquire(SMALLEST) for _ in range(5)]
    for segment in segments:
        pool.release(segment)
    assert pool.free_bytes == 3 * SMALLEST
    assert len(peer.dropped) == 2
    with pytest.raises(InternalError):
        peer.map.view(peer.dropped[0], 0, 1)


def test_releasing_twice_does_not_share_a_segment() -> None:
    pool = SegmentPool(lambda s: None, lambda s: None)
    segment = pool.acquire(1)
    pool.release(segment)
    pool.release(segment)
    assert pool.acquire(1) is not pool.acquire(1)


def test_a_segment_cannot_be_shrunk_under_its_reader() -> None:
    pool = SegmentPool(lambda s: None, lambda s: None)
    with pytest.raises(PermissionError):
        os.ftruncate(pool.acquire(1).descriptor, 0)


def test_a_view_outlives_its_segment() -> None:
    peer = Peer()
    pool = SegmentPool(peer.announce, peer.drop)
    segment = pool.acquire(1)
    segment.view[:1] = b"x"
    view = peer.map.view(segment.id, 0, 1)
    peer.map.close()
    pool.close()
    assert bytes(view) == b"x"


@pytest.mark.parametrize(("offset", "size"), [(0, SMALLEST + 1), (SMALLEST, 1), (-1, 1), (0, -1)])
def test_a_peer_that_names_bytes_outside_is_not_followed(offset: int, size: int) -> None:
    peer = Peer()
    segment = SegmentPool(peer.announce, peer.drop).acquire(1)
    with pytest.raises(InternalError):
        peer.map.view(segment.id, offset, size)
