"""Options that say what stands between a photograph and a model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from enginehouse.client.values import Preprocessing
from enginehouse.errors import InvalidArgumentError

PreprocessingFile = Annotated[
    Path | None,
    typer.Option(
        "--preprocessing",
        help="A JSON file with mean, deviation, bgr, central_fraction, resampling, for datasets of images.",
    ),
]
Mean = Annotated[str | None, typer.Option(help="Subtracted from pixels (0 to 255): one number, or A,B,C.")]
Deviation = Annotated[str | None, typer.Option(help="Divides pixels then: one number, or A,B,C.")]
Bgr = Annotated[bool, typer.Option("--bgr", help="The model's channels are blue, green, red.")]
CentralFraction = Annotated[
    float | None, typer.Option(help="Share of a photograph's shorter side that fills the input; 0.875 when absent.")
]
Resampling = Annotated[str | None, typer.Option(help="bilinear (when absent), bicubic, lanczos or nearest.")]


def read_preprocessing(
    file: Path | None,
    mean: str | None,
    deviation: str | None,
    bgr: bool,
    central_fraction: float | None,
    resampling: str | None,
) -> Preprocessing | None:
    """What a file says, with the options over it; None when nothing is said.

    Raises:
        InvalidArgumentError: the file or an option is not as expected.
    """
    found = _read(file) if file is not None else {}
    given = {
        "mean": None if mean is None else _numbers(mean, "--mean"),
        "deviation": None if deviation is None else _numbers(deviation, "--deviation"),
        "bgr": True if bgr else None,
        "central_fraction": central_fraction,
        "resampling": resampling,
    }
    found.update({name: value for name, value in given.items() if value is not None})
    return Preprocessing(**found) if found or file is not None else None


def _read(file: Path) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(Preprocessing)]
    try:
        value = json.loads(file.read_text())
        unknown = sorted(set(value) - set(names))
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is not known")
        for name in {"mean", "deviation"} & set(value):
            numbers = value[name] if isinstance(value[name], list) else [value[name]]
            value[name] = tuple(float(number) for number in numbers)
        return dict(value)
    except (OSError, ValueError, TypeError) as error:
        raise InvalidArgumentError(f"{file} is no preprocessing: {error}; expected an object of {names}") from None


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InvalidArgumentError(f"{option} {text!r} is not valid: expected a number, or one a channel") from None
