"""A ModelInferResponse from computed outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from tritonclient.grpc import service_pb2

from enginehouse.errors import InvalidArgumentError
from enginehouse.workers.tensors import Array, Buffer, encode_bytes, numpy_dtype
from enginehouse_inference.batching.rows import OutputRows
from enginehouse_inference.protocol.regions import Region
from enginehouse_inference.protocol.request import RequestedOutput
from enginehouse_inference.protocol.wire import encode_infer_response


def encode_response(
    *,
    model: str,
    version: str,
    identifier: str,
    requested: Sequence[RequestedOutput],
    computed: Mapping[str, OutputRows],
    batched: bool,
    final: bool = False,
) -> bytes:
    """A serialized ModelInferResponse; writes outputs that belong into clients' shared memory.

    Args:
        final: say in its parameters that no other response follows for this request, as streaming clients may ask.

    Raises:
        InvalidArgumentError: a client's shared memory is too small.
    """
    response = service_pb2.ModelInferResponse(model_name=model, model_version=version, id=identifier)
    if final:
        response.parameters["triton_final_response"].bool_param = True
    raw: list[Sequence[Buffer]] = []
    for wanted in requested:
        rows = computed[wanted.name]
        if wanted.classes:
            rows = classify(rows, wanted.classes, batched)
        tensor = response.outputs.add(name=wanted.name, datatype=rows.dtype, shape=rows.shape)
        if wanted.region is None:
            raw.append(rows.parts)
            continue
        if rows.size > wanted.size:
            raise InvalidArgumentError(
                f"output {wanted.name!r} has {rows.size} bytes: expected shared memory for them, "
                f"the request names {wanted.size}"
            )
        if isinstance(wanted.region, Region):  # into the other kind the worker has written
            wanted.region.write(wanted.offset, rows.parts, f"output {wanted.name!r}")
        tensor.parameters["shared_memory_region"].string_param = wanted.region.name
        tensor.parameters["shared_memory_byte_size"].int64_param = rows.size
        if wanted.offset:
            tensor.parameters["shared_memory_offset"].int64_param = wanted.offset
        # Clients index raw_output_contents by output: without an empty one here perf_analyzer crashes.
        raw.append(())
    return encode_infer_response(response, raw)


def classify(rows: OutputRows, classes: int, batched: bool) -> OutputRows:
    """The highest values of each row, as Triton writes them: BYTES "value:index", highest first."""
    values = np.frombuffer(b"".join(rows.parts), dtype=numpy_dtype(rows.dtype))
    if rows.dtype == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    count = rows.shape[0] if batched else 1
    table = values.reshape(count, math.prod(rows.shape) // count if count else 0)
    kept = min(classes, table.shape[1])
    order = _descending(table)
    texts = [f"{float(row[i]):f}:{i}" for row, indices in zip(table, order, strict=True) for i in indices[:kept]]
    shape = (count, kept) if batched else (kept,)
    return OutputRows(rows.name, "BYTES", shape, (encode_bytes(texts),))


def _descending(table: Array) -> Array:
    """Indices of each row, highest value first; of equal values the lower index first."""
    # A stable ascending sort of the reversed row, reversed: negating the values would overflow integers.
    backwards = np.argsort(table[:, ::-1], axis=1, kind="stable")[:, ::-1]
    indices: Array = table.shape[1] - 1 - backwards
    return indices
