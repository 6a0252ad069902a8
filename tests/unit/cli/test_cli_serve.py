"""What `enginehouse serve` refuses before it starts anything."""

from __future__ import annotations

import pytest

from enginehouse.cli.run import run


@pytest.mark.parametrize("fronts", ["0", "-1", "two", ""])
def test_a_wrong_number_of_fronts_is_told(fronts: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", f"--fronts={fronts}"]) == 2
    assert '"auto"' in capfd.readouterr().err
