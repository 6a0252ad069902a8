from __future__ import annotations

import pytest

from enginehouse.cli.commands.bench import milliseconds
from enginehouse.errors import InvalidArgumentError


@pytest.mark.parametrize(("text", "value"), [("7ms", 7), ("0.5s", 500), ("800us", 0.8), ("7", 7), (" 15 ms", 15)])
def test_latency_budgets(text: str, value: float) -> None:
    assert milliseconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "7m", "-1ms", "0", "seven"])
def test_what_is_no_latency_budget(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="such as 7ms"):
        milliseconds(text)
