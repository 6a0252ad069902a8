"""A malformed request: what is sent, and with which statuses it may be answered.

Requests are for a server that has `double`, `addsub`, `text`, `identity` and `scalar` loaded, of
`tests/integration/inference/build_models.py`, and the shared memory that `SharedObjects` registers.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb

SERVICE = "/inference.GRPCInferenceService/"
INFER, STREAM = "ModelInfer", "ModelStreamInfer"
# A region of REGION_BYTES, from REGION_OFFSET on of an object that is larger; the rest is nobody's to see.
REGION, REGION_BYTES, REGION_OFFSET = "mine", 256, 4096
# Another client registered it.
THEIRS, THEIR_BYTES = "theirs", 64
# Its object was made smaller after it was registered.
SHRUNK, SHRUNK_BYTES = "shrunk", 8192

WRONG = frozenset({"INVALID_ARGUMENT"})
ABSENT = frozenset({"NOT_FOUND"})
# What random damage may turn a request into: another wrong one, one for nobody, or one that is right.
ANY = frozenset({"OK", "INVALID_ARGUMENT", "NOT_FOUND"})
FINE = frozenset({"OK"})


@dataclass(frozen=True)
class Case:
    """One request: `data` is the serialized message; `allowed` are the statuses it may be answered with."""

    kind: str
    method: str
    data: bytes
    allowed: frozenset[str] = WRONG


def valid(random: Random) -> Any:
    """A request that is right."""
    rows = random.randint(1, 8)
    return double([rows, 4], np.arange(rows * 4, dtype=np.float32).tobytes())


def double(shape: list[int], raw: bytes | None, name: str = "x", dtype: str = "FP32", model: str = "double") -> Any:
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name=name, datatype=dtype, shape=shape)
    if raw is not None:
        request.raw_input_contents.append(raw)
    return request


def case(kind: str, request: Any, allowed: frozenset[str] = WRONG, method: str = INFER) -> Case:
    data = request if isinstance(request, bytes) else request.SerializeToString()
    return Case(kind, method, data, allowed)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
