"""Runs ONNX Runtime engines. Instances share one session: its `run` is thread-safe and releases the GIL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from enginehouse_worker import cpu
from enginehouse_worker.backends.base import Array, Signature
from enginehouse_worker.backends.engine_files import read_engine, require_cpu
from enginehouse_worker.backends.onnxruntime.session import check_options, create_session
from enginehouse_worker.errors import WorkerError


def load(engine: Path, *, device: str, options: Mapping[str, Any]) -> OnnxRuntimeEngine:
    """Load an engine directory; `options` override those it was built with.

    Raises:
        WorkerError: INVALID_ARGUMENT for a bad directory or option; FAILED_PRECONDITION for a device other than the
        CPU.
    """
    require_cpu(device, "onnxruntime")
    description = read_engine(engine, "onnxruntime")
    chosen = {**description.get("options", {}), **options}
    check_options(chosen)
    # Weights of the full 8 bits, from a machine with VNNI, would saturate on one without.
    widen = bool(description.get("full_range_weights")) and cpu.int8_products_saturate()
    session = create_session(engine / description["payload"], chosen, widen_int8_products=widen)
    return OnnxRuntimeEngine(session, Signature.from_json(description))


class OnnxRuntimeEngine:
    """A session and the signature it was published with."""

    def __init__(self, session: Any, signature: Signature) -> None:
        self._session: Any = session
        self._signature = signature

    @property
    def signature(self) -> Signature:
        return self._signature

    def new_instance(self) -> OnnxRuntimeInstance:
        return OnnxRuntimeInstance(self._session, self._signature)

    def close(self) -> None:
        self._session = None


class OnnxRuntimeInstance:
    """One context of a session."""

    def __init__(self, session: Any, signature: Signature) -> None:
        self._session: Any = session
        self._outputs = tuple(spec.name for spec in signature.outputs)
        # Text is bytes to the protocol and str to ONNX Runtime; BF16 has no NumPy dtype.
        self._text_inputs = frozenset(s.name for s in signature.inputs if s.dtype == "BYTES")
        self._text_outputs = frozenset(s.name for s in signature.outputs if s.dtype == "BYTES")
        self._bfloat16 = tuple(s.name for s in (*signature.inputs, *signature.outputs) if s.dtype == "BF16")

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Compute the named outputs, all when `outputs` is empty. Arrays are as the signature says."""
        if self._bfloat16:
            raise WorkerError("FAILED_PRECONDITION", f"ONNX Runtime cannot exchange BF16 tensors: {self._bfloat16}")
        names = list(outputs) or list(self._outputs)
        feeds: dict[str, Array] = dict(inputs)
        for name in self._text_inputs & feeds.keys():
            feeds[name] = _map_elements(feeds[name], bytes.decode)
        values = dict(zip(names, self._session.run(names, feeds), strict=True))
        for name in self._text_outputs & values.keys():
            values[name] = _map_elements(values[name], str.encode)
        return values

    def close(self) -> None:
        self._session = None


def _map_elements(array: Array, function: Any) -> Array:
    mapped = np.empty(array.shape, object)
    mapped.reshape(-1)[:] = [function(element) for element in array.reshape(-1)]
    return mapped
