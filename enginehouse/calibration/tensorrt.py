"""TensorRT's calibration cache: a header, and for each tensor a line with its scale.

    TRT-8600-EntropyCalibration2
    input: 3caa5293

The hexadecimal digits are the bits of an FP32 number, the most significant first: the scale of symmetric INT8, which
is amax / 127. A cache has neither what was seen nor an asymmetric range, nor does it say which model and data it is of.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct

from enginehouse.calibration.table import CalibrationTable, TensorRange, check_range
from enginehouse.errors import InvalidArgumentError

HEADER = "TRT-8600-EntropyCalibration2"
_HEADER = re.compile(r"TRT-\d+-\w+")
_LINE = re.compile(r"(?P<name>.+): *(?P<bits>[0-9a-fA-F]{1,8})")
_STEPS = 127.0
# What TensorRT's calibrators find the range by, in our words.
_METHODS = {"EntropyCalibration": "entropy", "EntropyCalibration2": "entropy", "MinMaxCalibration": "max"}


def cache_text(table: CalibrationTable, header: str = HEADER) -> str:
    """The table as TensorRT's calibration cache.

    A tensor that was always 0 gets the scale 1/127, as it does when Enginehouse quantizes it.

    Raises:
        InvalidArgumentError: the header is none, or a tensor's name has a line break.
    """
    if not _HEADER.fullmatch(header):
        raise InvalidArgumentError(f"{header!r} is no header of a calibration cache: expected one such as {HEADER!r}")
    lines = [header]
    for name, value in table.tensors.items():
        if not name or len(name.splitlines()) != 1:
            raise InvalidArgumentError(f"tensor {name!r} cannot stand in a calibration cache: names are part of a line")
        bits = struct.pack(">f", (value.amax or 1.0) / _STEPS).hex()
        lines.append(f"{name}: {bits}")
    return "\n".join([*lines, ""])


def read_cache(text: str) -> CalibrationTable:
    """The table that a calibration cache is, with symmetric ranges. `method` is the header's, in our words if possible.

    Raises:
        InvalidArgumentError: a line is malformed, its scale no positive finite number, or a tensor is there twice; the
            message has the line's number.
    """
    lines = text.split("\n")
    header = lines[0].strip()
    if not _HEADER.fullmatch(header):
        raise _wrong(1, f"{header[:60]!r} is no header; expected one such as {HEADER!r}")
    tensors: dict[str, TensorRange] = {}
    for number, line in enumerate(lines[1:], start=2):
        stripped = line.rstrip("\r")
        if not stripped.strip():
            continue
        match = _LINE.fullmatch(stripped)
        if match is None:
            raise _wrong(number, f"{stripped[:60]!r}; expected a tensor's name, a colon and up to 8 hexadecimal digits")
        name, (scale,) = match["name"], struct.unpack(">f", bytes.fromhex(match["bits"].zfill(8)))
        if not math.isfinite(scale) or scale < 0.0 or scale * _STEPS > 3.4e38:
            raise _wrong(number, f"tensor {name!r} has the scale {scale:g}; expected a positive finite number")
        if name in tensors:
            raise _wrong(number, f"tensor {name!r} is there twice")
        amax = scale * _STEPS
        try:
            tensors[name] = check_range(name, TensorRange(-amax, amax, amax, -amax, amax))
        except InvalidArgumentError as error:
            raise _wrong(number, error.message) from None
    if not tensors:
        raise InvalidArgumentError("the calibration cache has no tensors")
    calibrator = header.split("-", 2)[2]
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    return CalibrationTable(
        method=_METHODS.get(calibrator, calibrator),
        tensors=tensors,
        data={"kind": "tensorrt_cache", "header": header, "digest": f"sha256:{digest}"},
    )


def _wrong(line: int, message: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"line {line} of the calibration cache: {message}")
