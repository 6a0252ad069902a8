"""Malformed use of shared memory, and of the methods beside inference."""

from __future__ import annotations

from random import Random
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from robustness.case import (
    ABSENT,
    FINE,
    REGION,
    REGION_BYTES,
    SHRUNK,
    THEIR_BYTES,
    THEIRS,
    WRONG,
    Case,
    case,
    double,
    valid,
)

BAD_CONFIGURATIONS = (
    "",
    "{",
    "[]",
    "null",
    "9" * 5000,
    "[" * 100_000,
    '{"engine_directory": "/nothing"}',
    '{"engine_directory": 5}',
    '{"instances": -1}',
    '{"engine_directory": "/etc", "max_queue_size": 1e400}',
    '{"engine_directory": "/dev/zero\\u0000"}',
)

# Shared memory


def from_region(region: str, offset: int, size: int) -> Any:
    request = pb.ModelInferRequest(model_name="double")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_byte_size"].int64_param = size
    if offset:
        tensor.parameters["shared_memory_offset"].int64_param = offset
    return request


def into(region: str, offset: int, size: int) -> Any:
    request = double([1, 4], bytes(16))
    output = request.outputs.add(name="y")
    output.parameters["shared_memory_region"].string_param = region
    output.parameters["shared_memory_byte_size"].int64_param = size
    if offset:
        output.parameters["shared_memory_offset"].int64_param = offset
    return request


def out_of_bounds(random: Random) -> Case:
    """Beyond the region, though not always beyond the object that it is part of."""
    region, size = random.choice([(REGION, REGION_BYTES), (THEIRS, THEIR_BYTES)])
    offset = random.choice([size - 15, size, size + 1, 4096, 2**31, 2**40, 2**63 - 16])
    return case("beyond a region", random.choice([from_region, into])(region, offset, 16))


def negative_offset(random: Random) -> Case:
    return case("negative offset", random.choice([from_region, into])(REGION, -random.choice([1, 16, 4096, 2**62]), 16))


def bad_shared_size(random: Random) -> Case:
    size = random.choice([0, 1, 15, 17, REGION_BYTES + 1, 2**40, 2**63 - 1, -1, -16])
    if random.random() < 0.5:
        return case("wrong shared size", from_region(REGION, 0, size))
    return case("wrong shared size", into(REGION, 0, random.choice([0, 1, 15, -1])))


def no_such_region(random: Random) -> Case:
    region = random.choice(["", "nobody's", "/dev/shm/x", "x" * 10_000])
    return case("unknown region", random.choice([from_region, into])(region, 0, 16), ABSENT | WRONG)


def shrunk(random: Random) -> Case:
    return case("region that shrank", random.choice([from_region, into])(SHRUNK, random.choice([0, 4096]), 16))


def bad_registration(random: Random) -> Case:
    key = random.choice(
        ["/nothing", "../etc/passwd", "/../etc/passwd", "", "/", "..", "a/b", "x" * 5000, "\x00", "nul\x00"]
    )
    size = random.choice([0, 1, 2**63, 2**64 - 1])
    offset = random.choice([0, 2**63, 2**64 - 1])
    name = random.choice(["", "new", "x" * 10_000])
    request = pb.SystemSharedMemoryRegisterRequest(name=name, key=key, offset=offset, byte_size=size)
    return case("bad registration", request, WRONG | ABSENT, "SystemSharedMemoryRegister")


def taken_name(random: Random) -> Case:
    """Another's name: registered once, it stays what it is."""
    name, key = random.choice([REGION, THEIRS]), random.choice(["/dev/null", "/nothing", "/mem"])
    request = pb.SystemSharedMemoryRegisterRequest(name=name, key=key, byte_size=16)
    allowed = frozenset({"ALREADY_EXISTS"}) | WRONG | ABSENT
    return case("name of another's region", request, allowed, "SystemSharedMemoryRegister")


def no_device(random: Random) -> Case:
    request = pb.CudaSharedMemoryRegisterRequest(
        name="gpu",
        raw_handle=random.randbytes(random.choice([0, 63, 64, 65])),
        device_id=random.choice([-1, 0, 99]),
        byte_size=64,
    )
    return case("no device", request, WRONG | {"FAILED_PRECONDITION"}, "CudaSharedMemoryRegister")


# Other methods


def other_methods(random: Random) -> Case:
    method = random.choice(["ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryModelLoad"])
    # Bytes that gRPC's own parser refuses before our code sees them are answered INTERNAL, by every gRPC server.
    name = random.choice(["nobody", "x" * 60_000, "\x00", "../../etc"])
    request = {
        "ModelReady": pb.ModelReadyRequest(name=name),
        "ModelMetadata": pb.ModelMetadataRequest(name=name),
        "ModelConfig": pb.ModelConfigRequest(name=name),
        "ModelStatistics": pb.ModelStatisticsRequest(name=name),
        "RepositoryModelLoad": pb.RepositoryModelLoadRequest(model_name=name),
    }[method]
    return case("other methods", request, ABSENT | WRONG | FINE, method)


def bad_load(random: Random) -> Case:
    request = pb.RepositoryModelLoadRequest(model_name="loaded")
    config = random.choice(BAD_CONFIGURATIONS)
    request.parameters["config"].string_param = config
    allowed = WRONG | ABSENT | {"FAILED_PRECONDITION"}
    return case("bad load", request, allowed, "RepositoryModelLoad")


def no_method(random: Random) -> Case:
    return case(
        "unknown method", valid(random), frozenset({"UNIMPLEMENTED"}), random.choice(["Nothing", "modelinfer", "%00"])
    )
