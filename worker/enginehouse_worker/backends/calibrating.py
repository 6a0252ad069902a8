"""What a backend is that calibrates INT8 itself, while it builds; others take a quantized graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from enginehouse_worker.backends.base import BatchProfile
from enginehouse_worker.datasets import Dataset


@runtime_checkable
class CalibratingBackend(Protocol):
    """A backend whose `build` takes data."""

    name: str
    calibrates: bool

    def build(
        self,
        model: Path,
        output: Path,
        *,
        precision: str,
        profile: BatchProfile,
        options: Mapping[str, Any],
        data: Dataset | None = None,
    ) -> dict[str, Any]:
        """As `Backend.build`. `data` is what it calibrates with: given for INT8, and for no other precision."""
