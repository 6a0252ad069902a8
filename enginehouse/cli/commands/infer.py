"""infer: one request from files or random numbers."""

from __future__ import annotations

import time
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from enginehouse.cli import completion
from enginehouse.cli.context import connected
from enginehouse.cli.output import Json, out, print_json, say
from enginehouse.client.values import ModelSignature, TensorSpec
from enginehouse.errors import InvalidArgumentError

Arrays = dict[str, npt.NDArray[Any]]

EPILOG = (
    "Examples: enginehouse infer resnet --input images=image.npy; enginehouse infer resnet --input data.npz "
    "--save out.npz; enginehouse infer resnet --random --batch 8"
)


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("infer", epilog=EPILOG)(_infer)


def _infer(
    model: Annotated[str, typer.Argument(help="The served name.", autocompletion=completion.served)],
    input: Annotated[  # noqa: A002 - the option's name
        list[str] | None, typer.Option(help="NAME=FILE.npy (may be repeated), FILE.npy, or FILE.npz.")
    ] = None,
    random: Annotated[bool, typer.Option("--random", help="Random inputs of the model's shapes.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Of random inputs.")] = 1,
    version: Annotated[str | None, typer.Option(help="The newest when absent.")] = None,
    output: Annotated[list[str] | None, typer.Option(help="Only this output; may be repeated.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the outputs to this .npz.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds.")] = 30.0,
    json: Json = False,
) -> None:
    """Run a served model once and print its outputs.

    Files of float64, or of whole numbers such as UINT8, are cast to float32 where the model takes that; values stay
    as they are: only an engine made with `optimize --fold-preprocessing` normalizes pixels itself.
    """
    if bool(input) == random:
        raise InvalidArgumentError("give --input (once or more), or --random")
    with connected() as client:
        if random:
            inputs: Any = random_inputs(client.model_metadata(model, version), batch, np.random.default_rng(0))
        else:
            inputs = read_inputs(input or ())
        started = time.perf_counter()
        result = client.infer(model, inputs, outputs=output, version=version, timeout=timeout, casting="same_kind")
        milliseconds = (time.perf_counter() - started) * 1e3
    if save is not None:
        np.savez(save, **dict(result))  # type: ignore[arg-type]
    if json:
        described = {
            name: {"shape": list(a.shape), "dtype": str(a.dtype), "data": _listed(a)} for name, a in result.items()
        }
        print_json(
            {
                "model": result.model_name,
                "version": result.model_version,
                "milliseconds": milliseconds,
                "outputs": described,
            },
            compact=True,
        )
        return
    for name, array in result.items():
        out().print(f"{name} {array.dtype}{list(array.shape)} {summary(array)}", markup=False)
    say(f"{result.model_name} version {result.model_version} answered in {milliseconds:.1f} ms")


def read_inputs(texts: Sequence[str]) -> Any:
    """The arrays of --input options: a mapping by name, or one array where a single file has no name.

    Raises:
        InvalidArgumentError: a file is missing, or is no array.
    """
    arrays: Arrays = {}
    for text in texts:
        name, equals, file = text.partition("=")
        path = Path(file if equals else text)
        try:
            loaded = np.load(path, allow_pickle=False)
            found = None if isinstance(loaded, np.ndarray) else {k: loaded[k] for k in loaded.files if k != "labels"}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InvalidArgumentError(
                f"--input {text}: cannot read {path}: {error}; numpy.save and numpy.savez write what can be read"
            ) from None
        if found is not None:
            arrays.update(found)
        elif equals:
            arrays[name] = loaded
        elif len(texts) == 1:
            return loaded
        else:
            raise InvalidArgumentError(f"--input {text}: give it a name, NAME={text}")
    return arrays


def random_inputs(signature: ModelSignature, batch: int, random: np.random.Generator) -> Arrays:
    """Inputs of a model's shapes; the first free dimension is the batch, other free ones are 1."""
    return {spec.name: _random(spec, batch, random) for spec in signature.inputs}


def summary(array: npt.NDArray[Any]) -> str:
    """An array in a line: the best classes of a row of scores, else the first values."""
    if array.ndim == 2 and array.dtype.kind == "f" and array.shape[1] >= 2:
        best = [f"{int(row.argmax())} ({row.max():.4g})" for row in array[:8]]
        return f"arg max {', '.join(best)}{' ...' if len(array) > 8 else ''}"
    values = ", ".join(str(value) for value in array.ravel()[:8])
    return f"{values}{' ...' if array.size > 8 else ''}"


def _random(spec: TensorSpec, batch: int, random: np.random.Generator) -> npt.NDArray[Any]:
    free = [place for place, size in enumerate(spec.shape) if size < 0]
    shape = [batch if free and place == free[0] else max(1, size) for place, size in enumerate(spec.shape)]
    if spec.dtype == "BOOL":
        return random.integers(0, 2, shape).astype(bool)
    if spec.dtype == "BYTES":
        return np.full(shape, b"text", dtype=object)
    if spec.dtype.startswith(("INT", "UINT")):
        return random.integers(0, 100, shape).astype(spec.dtype.lower())
    return random.standard_normal(shape).astype({"FP16": "float16", "FP64": "float64"}.get(spec.dtype, "float32"))


def _listed(array: npt.NDArray[Any]) -> Any:
    if array.dtype == object:
        return [item.decode(errors="replace") for item in array.ravel()]
    return array.tolist()
