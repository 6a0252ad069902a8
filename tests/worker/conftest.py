"""Worker tests run in a worker environment's own interpreter; each file runs where its framework is installed."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from hypothesis import settings

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent / "worker")]

collect_ignore_glob = []
if find_spec("onnxruntime") is None:
    collect_ignore_glob += ["test_[!t]*.py", "test_tensorrt_[!r]*.py"]
if find_spec("tensorrt_rtx_bindings") is None:
    collect_ignore_glob += ["test_tensorrt_rtx_*.py"]
if find_spec("tensorflow") is None:
    collect_ignore_glob += ["test_tensorflow_*.py"]

# The same examples every time, so that a failure is a change's. HYPOTHESIS_PROFILE=random looks for new ones.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("random")
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
