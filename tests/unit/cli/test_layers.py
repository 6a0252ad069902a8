"""The tables of an engine's layers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.cli.layers import shortened


@given(st.text(), st.integers(min_value=3, max_value=100))
def test_a_name_keeps_its_ends(name: str, width: int) -> None:
    short = shortened(name, width)
    assert len(short) <= width
    kept = (width - 3) // 2
    assert short == name if len(name) <= width else short[width - kept :] == name[len(name) - kept :]
    assert name.startswith(short[:kept])


@pytest.mark.parametrize(("width", "short"), [(10, "abcd...xyz"), (3, "...")])
def test_the_middle_goes(width: int, short: str) -> None:
    assert shortened("abcdefghijklmnopqrstuvwxyz", width) == short
