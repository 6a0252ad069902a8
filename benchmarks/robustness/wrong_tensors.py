"""Malformed inference requests: bytes, names, shapes, sizes and parameters."""

from __future__ import annotations

import struct
from random import Random

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from robustness.case import (
    ABSENT,
    ANY,
    FINE,
    WRONG,
    Case,
    case,
    double,
    valid,
    varint,
)

# Bytes that are no message, or nearly one


def noise(random: Random) -> Case:
    return case("random bytes", random.randbytes(random.choice([1, 7, 60, 900, 40_000])), ANY)


def cut(random: Random) -> Case:
    data = valid(random).SerializeToString()
    return case("cut short", data[: random.randrange(len(data))], ANY)


def flipped(random: Random) -> Case:
    data = bytearray(valid(random).SerializeToString())
    for _ in range(random.randint(1, 4)):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return case("flipped bits", bytes(data), ANY)


def spliced(random: Random) -> Case:
    one, other = (valid(random).SerializeToString() for _ in range(2))
    return case("two spliced", one[: random.randrange(len(one))] + other[random.randrange(len(other)) :], ANY)


def lying_length(random: Random) -> Case:
    """A field that says it is longer than the message; above and below where the server parses by itself."""
    padding = b"\x3a" + varint(20_000) + bytes(20_000) if random.random() < 0.5 else b""
    field = random.choice([1, 5, 6, 7]) << 3 | 2
    length = random.choice([1 << 20, (1 << 31) - 1, 1 << 31, 1 << 40, (1 << 64) - 1])
    return case("lying length", valid(random).SerializeToString() + padding + bytes([field]) + varint(length))


def wrong_wire_type(random: Random) -> Case:
    padding = b"\x3a" + varint(20_000) + bytes(20_000) if random.random() < 0.5 else b""
    return case(
        "wire type", padding + bytes([random.randrange(1, 16) << 3 | random.choice([6, 7])]) + random.randbytes(9)
    )


def not_text(random: Random) -> Case:
    """A model's name that is no UTF-8."""
    name = b"\xff\xfe" + random.randbytes(random.randint(0, 20))
    return case("no UTF-8", b"\x0a" + varint(len(name)) + name, ANY)


# Names


def nobody(random: Random) -> Case:
    request = valid(random)
    request.model_name = random.choice(
        ["", "nobody", "x" * 100_000, "../double", "double\x00", "doub\u0142e", "\n\r\x1b[31m"]
    )
    return case("unknown model", request, ABSENT | WRONG)


def no_such_version(random: Random) -> Case:
    request = valid(random)
    request.model_version = random.choice(["2", "-1", "1.0", "9" * 5000, "latest", "0"])
    return case("unknown version", request, ABSENT | WRONG)


def wrong_names(random: Random) -> Case:
    request = valid(random)
    if random.random() < 0.5:
        request.inputs[0].name = random.choice(["", "X", "y", "x" * 10_000])
    else:
        request.outputs.add(name=random.choice(["", "x", "z", "y" * 10_000]))
    return case("unknown tensor", request)


def duplicates(random: Random) -> Case:
    request = valid(random)
    if random.random() < 0.7:
        request.inputs.append(request.inputs[0])
        request.raw_input_contents.append(request.raw_input_contents[0])
    else:
        request.outputs.add(name="y")
        request.outputs.add(name="y")
    return case("duplicate tensor", request)


def missing(random: Random) -> Case:
    request = pb.ModelInferRequest(model_name="addsub")
    if random.random() < 0.7:
        request.inputs.add(name="a", datatype="INT32", shape=[1, 3])
        request.raw_input_contents.append(bytes(12))
    return case("missing input", request)


# Shapes, types and sizes


def huge_shape(random: Random) -> Case:
    big = [2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1]
    shape = random.choice(
        [[random.choice(big), 4], [1, random.choice(big)], [random.choice(big), random.choice(big)], [1] * 10_000, [4]]
    )
    return case("huge shape", double(shape, bytes(16)))


def empty_rows(random: Random) -> Case:
    """Rows without a byte: any number of them costs the sender nothing."""
    rows = random.choice([2**20, 2**31, 2**40, 2**62, 2**63 - 1])
    return case("rows without bytes", double([rows, 0], b"", model="identity"))


def negative_shape(random: Random) -> Case:
    shape = random.choice([[-1, 4], [1, -4], [-(2**63), 4], [-1, -4], [0, 4], [0, 0], [-2, -2], []])
    return case("negative shape", double(shape, bytes(16)))


def mixed_batches(random: Random) -> Case:
    request = pb.ModelInferRequest(model_name="addsub")
    for name, rows in (("a", 1), ("b", random.randint(2, 8))):
        request.inputs.add(name=name, datatype="INT32", shape=[rows, 3])
        request.raw_input_contents.append(bytes(rows * 12))
    return case("different batches", request)


def wrong_type(random: Random) -> Case:
    return case(
        "wrong dtype", double([1, 4], bytes(16), dtype=random.choice(["", "FP64", "INT32", "fp32", "BYTES", "\u00fc"]))
    )


def wrong_size(random: Random) -> Case:
    size = random.choice([0, 1, 15, 17, 32, 4096, 100_000])
    return case("wrong byte count", double([1, 4], bytes(size)))


def wrong_count(random: Random) -> Case:
    """Too many or too few raw contents, or both kinds of contents."""
    request = valid(random)
    what = random.randrange(4)
    if what == 0:
        request.raw_input_contents.extend([b"1234"] * random.randint(1, 2000))
    elif what == 1:
        del request.raw_input_contents[:]
    elif what == 2:
        request.inputs[0].contents.fp32_contents.extend([1.0] * 4)
    else:
        del request.raw_input_contents[:]
        request.inputs[0].contents.fp32_contents.extend([1.0] * random.choice([0, 3, 5, 1000]))
        request.inputs[0].shape[:] = [1, 4]
    return case("wrong contents", request)


def typed_out_of_range(random: Random) -> Case:
    request = pb.ModelInferRequest(model_name="addsub")
    for name in ("a", "b"):
        tensor = request.inputs.add(name=name, datatype="INT32", shape=[1, 3])
        tensor.contents.int64_contents.extend([random.getrandbits(62)] * 3)
    return case("contents of another type", request)


def bad_text(random: Random) -> Case:
    """BYTES whose lengths lie, or whose elements are too many or too few."""
    raw = random.choice(
        [
            struct.pack("<I", 2**32 - 1) + b"x",
            struct.pack("<I", 5) + b"abc",
            struct.pack("<I", 1) + b"a",
            (struct.pack("<I", 1) + b"a") * 3,
            b"\x00\x00",
            b"",
            random.randbytes(random.randint(1, 3000)),
        ]
    )
    return case("bad BYTES", double([1, 2], raw, "s", "BYTES", "text"))


def not_numbers(random: Random) -> Case:
    """NaN and infinities are values like others: they are computed."""
    values = np.array([random.choice([np.nan, np.inf, -np.inf, 3e38, 1e-45, -0.0]) for _ in range(4)], np.float32)
    return case("NaN and infinity", double([1, 4], values.tobytes()), FINE)


# Parameters


def bad_parameters(random: Random) -> Case:
    request = valid(random)
    key = random.choice(["timeout", "priority"])
    value = request.parameters[key]
    what = random.randrange(5)
    if what == 0:
        value.string_param = random.choice(["soon", "", "-1", "9" * 5000, "1e3", "\u0664\u0662\u00b2"])
    elif what == 1:
        value.int64_param = -random.randint(1, 2**62)
    elif what == 2:
        value.bool_param = True
    elif what == 3:
        value.double_param = random.choice([0.5, float("nan"), float("inf"), -1.0])
    else:
        value.Clear()
    return case("bad parameter", request)


def odd_parameters(random: Random) -> Case:
    """Numbers as large as they get, and parameters that nobody knows: no reason to refuse."""
    request = valid(random)
    request.parameters["priority"].uint64_param = 2**64 - 1
    request.parameters["timeout"].int64_param = 2**63 - 1
    request.parameters["x" * random.randint(1, 5000)].string_param = "y" * 5000
    return case("odd parameter", request, FINE)


def bad_classes(random: Random) -> Case:
    request = valid(random)
    output = request.outputs.add(name="y")
    output.parameters["classification"].int64_param = random.choice([-1, -(2**63)])
    return case("bad classification", request)


def many_classes(random: Random) -> Case:
    request = valid(random)
    request.outputs.add(name="y").parameters["classification"].int64_param = random.choice([5, 2**31, 2**63 - 1])
    return case("more classes than there are", request, FINE)
