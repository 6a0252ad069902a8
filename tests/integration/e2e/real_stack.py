"""A whole stack with the real workers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stack_world import need_environments

from enginehouse.local.plan import StackOptions
from enginehouse.local.stack import down, up


@contextmanager
def stack_with(home: Path, **variables: str) -> Iterator[Path]:
    """A stack whose services have these variables, for the length of a block."""
    need_environments()
    # Two stages of tiny models at once take little memory in one environment.
    settings = {"ENGINEHOUSE_ENVIRONMENT_STAGES": '{"onnxruntime": 2}', "PYTHONPATH": os.pathsep.join(sys.path)}
    free = {"optimizer": 0, "inference": 0, "telemetry": 0}
    up(StackOptions(home, free, metrics_port=None, variables={**settings, **variables}))
    try:
        yield home
    finally:
        down(home, timeout=10)
