"""What an engine returns, on its way into shared memory."""

from __future__ import annotations

import numpy as np
import pytest
from enginehouse_worker.backends.base import TensorSpec
from enginehouse_worker.runner.segments import Segment, SegmentPool
from enginehouse_worker.runner.tensors import write_outputs

SPECS = {"y": TensorSpec("y", "INT64", (-1,))}


def test_outputs_that_cannot_be_written_keep_no_segment() -> None:
    announced: list[Segment] = []
    pool = SegmentPool(announced.append, lambda segment: None)
    for _ in range(3):
        with pytest.raises(ValueError, match="OBJECT"):
            write_outputs({"y": np.array([None, 1], dtype=object)}, SPECS, ["y"], pool)
    assert len(announced) == 1, "each failure kept a segment"
    written = write_outputs({"y": np.array([1, 2])}, SPECS, ["y"], pool)
    assert (written.segment, written.described[0]["shape"]) == (announced[0].id, [2])
