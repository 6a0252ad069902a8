"""Calibration and verification data: `.npz` files and named synthetic distributions, read in batches.

Arrays are streamed from the file, so memory does not grow with the number of samples.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from enginehouse_worker.backends.base import Array, Signature, TensorSpec, numpy_dtype
from enginehouse_worker.digests import file_digest
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import sole_file
from enginehouse_worker.npy import NpyError, NpyMember
from enginehouse_worker.synthetic import SyntheticDataset

LABELS = "labels"
# The name that the array of a model's sole input may have.
SOLE_INPUT = "x"


class Dataset(Protocol):
    """Samples for every input of a model."""

    samples: int

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Inputs by name, `size` samples at a time (the last batch may be smaller)."""

    def labels(self) -> npt.NDArray[np.int64] | None:
        """One class index a sample, where there are labels."""

    def describe(self) -> dict[str, Any]:
        """What the data is, with its digest."""


@dataclass(frozen=True)
class _Column:
    spec: TensorSpec
    member: NpyMember
    # The axes that bring the stored array (channels last) into the model's order, or None when it is in order.
    axes: tuple[int, ...] | None


class NpzDataset:
    """The `.npz` file of a directory, checked against a model's signature.

    Raises:
        WorkerError: INVALID_ARGUMENT naming the array that is wrong and what was expected.
    """

    def __init__(self, directory: Path, signature: Signature, max_samples: int | None) -> None:
        self._path = sole_file(directory, (".npz",), "the dataset")
        members = self._members()
        names = _array_names(signature, set(members), self._path.name)
        self._columns = {name: self._column(spec, members[names[spec.name]]) for name, spec in _by_name(signature)}
        counts = {names[name]: column.member.shape[0] for name, column in self._columns.items()}
        if len(set(counts.values())) != 1:
            raise _wrong(f"its arrays have different numbers of samples: {counts}")
        available = next(iter(counts.values()))
        if available == 0:
            raise _wrong("it has no samples")
        self._labels = self._read_labels(members.get(LABELS), available)
        self.samples = available if max_samples is None else min(available, max_samples)

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        streams = {name: column.member.rows(size, self.samples) for name, column in self._columns.items()}
        for begin in range(0, self.samples, size):
            batch = {}
            for name, column in self._columns.items():
                try:
                    rows = next(streams[name])
                except (NpyError, StopIteration) as error:
                    raise _wrong(f"array {column.member.name!r} ends before sample {begin + size}: {error}") from None
                if rows.dtype.kind == "f" and not np.isfinite(rows).all():
                    raise _wrong(f"array {column.member.name!r} has a NaN or an infinity after sample {begin}")
                batch[name] = rows if column.axes is None else np.ascontiguousarray(rows.transpose(column.axes))
            yield batch

    def labels(self) -> npt.NDArray[np.int64] | None:
        return None if self._labels is None else self._labels[: self.samples]

    def describe(self) -> dict[str, Any]:
        return {"kind": "dataset", "digest": file_digest(self._path)}

    def _members(self) -> dict[str, NpyMember]:
        try:
            with zipfile.ZipFile(self._path) as archive:
                names = [n for n in archive.namelist() if n.endswith(".npy")]
            if not names:
                raise _wrong("it holds no arrays")
            return {name[: -len(".npy")]: NpyMember(self._path, name) for name in names}
        except zipfile.BadZipFile:
            raise _wrong(f"{self._path.name} is not an .npz file; write it with numpy.savez") from None
        except NpyError as error:
            raise _wrong(str(error)) from None

    def _column(self, spec: TensorSpec, member: NpyMember) -> _Column:
        expected = numpy_dtype(spec.dtype)
        if member.dtype != expected:
            message = (
                f"array {member.name!r} has dtype {member.dtype}; the model's input {spec.name!r} takes {expected}"
            )
            raise _wrong(f"{message}: convert it with astype")
        shape = member.shape[1:]
        wanted = spec.shape[1:]
        if len(member.shape) == len(spec.shape) and _fits(shape, wanted):
            return _Column(spec, member, None)
        if len(member.shape) == 4 and len(spec.shape) == 4 and _fits((shape[2], shape[0], shape[1]), wanted):
            return _Column(spec, member, (0, 3, 1, 2))
        raise _wrong(
            f"array {member.name!r} has shape {list(member.shape)}; the model's input {spec.name!r} takes "
            f"{['samples', *(d if d >= 0 else 'any' for d in wanted)]}"
        )

    def _read_labels(self, member: NpyMember | None, samples: int) -> npt.NDArray[np.int64] | None:
        if member is None:
            return None
        if member.dtype.kind not in "iu" or member.shape not in ((samples,), (samples, 1)):
            raise _wrong(
                f"`{LABELS}` has dtype {member.dtype} and shape {list(member.shape)}; expected {samples} integers, the "
                "class index of each sample"
            )
        return next(member.rows(samples, samples)).reshape(-1).astype(np.int64)


def open_dataset(
    directory: Path | None,
    synthetic: Mapping[str, Any] | None,
    signature: Signature,
    max_samples: int | None,
) -> Dataset:
    """The data a stage was given: a directory, or a synthetic description when there is none.

    Raises:
        WorkerError: INVALID_ARGUMENT when there is neither or both, or the data does not fit the model.
    """
    if not signature.batched:
        raise WorkerError(
            "INVALID_ARGUMENT", "the model has no batch dimension (dimension 0 of some tensor is fixed); data needs one"
        )
    if (directory is None) == (synthetic is None):
        wrong = "neither" if directory is None else "both"
        raise WorkerError("INVALID_ARGUMENT", f"give a `dataset` input or `synthetic` parameters; {wrong} were given")
    if directory is not None:
        return NpzDataset(directory, signature, max_samples)
    return SyntheticDataset(synthetic or {}, signature, max_samples)


def _by_name(signature: Signature) -> list[tuple[str, TensorSpec]]:
    return [(spec.name, spec) for spec in signature.inputs]


def _array_names(signature: Signature, found: set[str], file: str) -> dict[str, str]:
    """The array for each input; the array of a sole input may also be called `x`."""
    names = {spec.name: spec.name for spec in signature.inputs}
    if len(names) == 1 and SOLE_INPUT in found and not set(names) & found:
        names = dict.fromkeys(names, SOLE_INPUT)
    missing = sorted(set(names.values()) - found)
    unknown = sorted(found - set(names.values()) - {LABELS})
    if missing or unknown:
        wrong = [f"{file} lacks {', '.join(missing)}"] if missing else []
        wrong += [f"{file} has unknown {', '.join(unknown)}"] if unknown else []
        sole = f" (or {SOLE_INPUT!r})" if len(names) == 1 else ""
        raise _wrong(
            f"{'; '.join(wrong)}. Expected an array for each input: {', '.join(names)}{sole}, and maybe `{LABELS}`"
        )
    return names


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return all(w in (-1, s) for s, w in zip(shape, wanted, strict=True))


def _wrong(message: str) -> WorkerError:
    return WorkerError("INVALID_ARGUMENT", f"the dataset is not usable: {message}")
