"""Page tokens: ours are read back, all else is refused."""

from __future__ import annotations

import pytest
from enginehouse_telemetry.pages import PageTokens, page_size
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.errors import InvalidArgumentError
from enginehouse.v1 import telemetry_pb2 as pb

TOKENS = PageTokens()
REQUEST = pb.ListSamplesRequest(parent="projects/default", devices=["0"])
SEQUENCES = st.integers(0, 2**62)


@given(SEQUENCES, SEQUENCES)
def test_round_trip(first: int, last: int) -> None:
    token = TOKENS.write((first, last), REQUEST)
    later = pb.ListSamplesRequest(parent="projects/default", devices=["0"], page_token=token, page_size=7)
    assert TOKENS.read(token, later) == (first, last)


@given(SEQUENCES, st.integers(0, 42), st.characters(codec="utf-8"))
def test_a_changed_character_is_refused(first: int, place: int, character: str) -> None:
    token = TOKENS.write((first, first), REQUEST)
    forged = token[:place] + character + token[place + 1 :]
    if forged != token:
        with pytest.raises(InvalidArgumentError, match="page_token"):
            TOKENS.read(forged, REQUEST)


@pytest.mark.parametrize("token", ["x", "AAAA", "=", "ü", "A" * 43, "A" * 1000, "-"])
def test_what_is_not_a_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgumentError, match="page_token"):
        TOKENS.read(token, REQUEST)


def test_a_token_belongs_to_its_request_and_its_process() -> None:
    token = TOKENS.write((1, 2), REQUEST)
    other = pb.ListSamplesRequest(parent="projects/default", devices=["1"])
    for tokens, request in ((TOKENS, other), (PageTokens(), REQUEST), (TOKENS, pb.ListDevicesRequest())):
        with pytest.raises(InvalidArgumentError, match="page_token"):
            tokens.read(token, request)


def test_page_size() -> None:
    assert [page_size(asked, default=100, most=1000) for asked in (0, 1, 1000, 5000)] == [100, 1, 1000, 1000]
    with pytest.raises(InvalidArgumentError, match="page_size"):
        page_size(-1, default=100, most=1000)
