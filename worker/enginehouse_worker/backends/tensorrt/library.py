"""The TensorRT that is installed here, and what it can do, asked of the module and not guessed from its version."""

from __future__ import annotations

import importlib
import sys
import threading
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import util
from typing import Any, NoReturn

from enginehouse_worker.errors import WorkerError

# In the order of preference: the full TensorRT first.
MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_bindings", "tensorrt_rtx_bindings")
# What a version lacks and which has it, for errors (decision 4: named, never faked).
SINCE = {"BF16": "9.0", "FP8": "9.0", "version compatibility": "8.6", "hardware compatibility": "8.6"}
SINCE |= {"weight stripping": "10.0"}


class Messages:
    """What TensorRT said, newest last: its functions return None and leave the reason in the log."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._errors: list[str] = []

    def add_error(self, text: str) -> None:
        with self._lock:
            self._errors.append(text)

    def take_errors(self) -> str:
        """The errors since the last call, joined."""
        with self._lock:
            errors, self._errors = self._errors, []
        return "; ".join(errors[-5:])


@dataclass(frozen=True)
class Library:
    """`trt` is the module; `rtx` whether it is TensorRT for RTX, whose networks are all strongly typed."""

    trt: Any
    logger: Any
    messages: Messages = field(compare=False)
    rtx: bool = False

    def flag(self, kind: str, name: str) -> Any | None:
        """A member of one of TensorRT's enumerations, such as BuilderFlag.BF16; None when this version has none."""
        return getattr(getattr(self.trt, kind, None), name, None)

    @property
    def weakly_typed(self) -> bool:
        """Precisions are builder flags, for want of strongly typed networks, where they are the graph's own types.

        TensorRT 8 has only the former, TensorRT 11 and TensorRT for RTX only the latter.
        """
        return not self.rtx and self.flag("NetworkDefinitionCreationFlag", "STRONGLY_TYPED") is None

    def require(self, kind: str, name: str, what: str) -> Any:
        """A flag that was asked for.

        Raises:
            WorkerError: FAILED_PRECONDITION naming the version that has it.
        """
        found = self.flag(kind, name)
        if found is None:
            self.lacks(what)
        return found

    def lacks(self, what: str) -> NoReturn:
        """Raise FAILED_PRECONDITION, naming the version that has it."""
        since = SINCE.get(what)
        later = f"; TensorRT {since} and later have it" if since else ""
        raise WorkerError("FAILED_PRECONDITION", f"{self.name} has no {what}{later}")

    @property
    def name(self) -> str:
        """The library and its version, for messages."""
        return f"{'TensorRT for RTX' if self.rtx else 'TensorRT'} {self.trt.__version__}"


@lru_cache(maxsize=1)
def open_library() -> Library:
    """Import TensorRT, once a process.

    Raises:
        WorkerError: FAILED_PRECONDITION when it is not installed or cannot be loaded.
    """
    name = next((module for module in MODULES if util.find_spec(module) is not None), None)
    if name is None:
        raise WorkerError("FAILED_PRECONDITION", "TensorRT is not installed in this worker environment")
    try:
        trt = importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise WorkerError("FAILED_PRECONDITION", f"{name} is installed but cannot be loaded: {error}") from error
    messages = Messages()

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                messages.add_error(text)
            if severity != trt.ILogger.Severity.VERBOSE:
                print(f"TensorRT {severity.name.lower()}: {text}", file=sys.stderr, flush=True)

    return Library(trt, Logger(), messages, rtx="rtx" in name)
