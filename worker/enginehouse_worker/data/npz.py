"""The `.npz` file of a directory as a model's samples, streamed in batches: memory is flat in their number."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from enginehouse_worker.backends.base import Array, Signature, TensorSpec, numpy_dtype
from enginehouse_worker.data.layouts import is_channels_first
from enginehouse_worker.data.preprocessing import Preprocessing
from enginehouse_worker.digests import file_digest
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import read_json, sole_file
from enginehouse_worker.npy import NpyError, NpyMember

LABELS = "labels"
_LARGEST_LABEL = 2**31 - 1
# The name that the array of a model's sole input may have.
SOLE_INPUT = "x"
# Beside an .npz that a stage made: what of, for `describe`.
ORIGIN = "dataset.json"


@dataclass(frozen=True)
class _Column:
    spec: TensorSpec
    member: NpyMember
    # The axes that bring the stored array (channels last) into the model's order, or None when it is in order.
    axes: tuple[int, ...] | None
    # What pixels go through before that; None when the array is what the model takes.
    preprocessing: Preprocessing | None = None

    def ready(self, rows: Array) -> Array:
        """Rows as they are stored, as the model takes them."""
        if self.preprocessing is not None:
            rows = self.preprocessing.apply(rows).astype(numpy_dtype(self.spec.dtype), copy=False)
        return rows if self.axes is None else np.ascontiguousarray(rows.transpose(self.axes))


class NpzDataset:
    """The `.npz` file of a directory, checked against a model's signature.

    UINT8 images, channels last, go through `preprocessing` (when it is given) for an input that is floating-point.

    Raises:
        WorkerError: INVALID_ARGUMENT naming the array that is wrong and what was expected.
    """

    def __init__(
        self,
        directory: Path,
        signature: Signature,
        max_samples: int | None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        self._path = sole_file(directory, (".npz",), "the dataset")
        self._preprocessing = preprocessing
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
                batch[name] = column.ready(rows)
            yield batch

    def labels(self) -> npt.NDArray[np.int64] | None:
        return None if self._labels is None else self._labels[: self.samples]

    def describe(self) -> dict[str, Any]:
        """Format and digest of the uploaded file, also when a stage made this .npz of it; of an input that got pixels,
        what they went through."""
        origin = self._path.parent / ORIGIN
        facts = read_json(origin) if origin.is_file() else {"format": "npz", "digest": file_digest(self._path)}
        used = next((c.preprocessing for c in self._columns.values() if c.preprocessing is not None), None)
        return {"kind": "dataset", **facts, **({} if used is None else {"preprocessing": used.to_json()})}

    def _members(self) -> dict[str, NpyMember]:
        try:
            with zipfile.ZipFile(self._path) as archive:
                names = [n for n in archive.namelist() if n.endswith(".npy")]
            if not names:
                raise _wrong("it holds no arrays")
            return {name[: -len(".npy")]: NpyMember(self._path, name) for name in names}
        except NpyError as error:
            raise _wrong(str(error)) from None
        except (zipfile.BadZipFile, NotImplementedError, ValueError):
            raise _wrong(f"{self._path.name} is not an .npz file; write it with numpy.savez") from None

    def _column(self, spec: TensorSpec, member: NpyMember) -> _Column:
        expected = numpy_dtype(spec.dtype)
        pixels = member.dtype == np.uint8 and expected.kind == "f" and len(member.shape) == 4
        if member.dtype != expected and not (pixels and self._preprocessing is not None):
            message = (
                f"array {member.name!r} has dtype {member.dtype}; the model's input {spec.name!r} takes {expected}"
            )
            if pixels:
                raise _wrong(
                    f"{message}: give the model's `preprocessing` (mean, deviation, bgr), which pixels go through, or "
                    "store what the model takes"
                )
            raise _wrong(f"{message}: convert it with astype")
        axes = self._axes(spec, member, images=pixels)
        if not pixels or self._preprocessing is None:
            return _Column(spec, member, axes)
        self._preprocessing.check_channels(member.shape[3])
        return _Column(spec, member, axes, self._preprocessing)

    def _axes(self, spec: TensorSpec, member: NpyMember, images: bool) -> tuple[int, ...] | None:
        """The order of axes that makes the array fit, None for its own. `images` are channels last in any case."""
        shape, wanted = member.shape[1:], spec.shape[1:]
        if len(member.shape) == len(spec.shape) and _fits(shape, wanted) and not (images and is_channels_first(wanted)):
            return None
        if len(member.shape) == 4 and len(spec.shape) == 4 and _fits((shape[2], shape[0], shape[1]), wanted):
            return (0, 3, 1, 2)
        last = ", as images, channels last" if images else ""
        raise _wrong(
            f"array {member.name!r} has shape {list(member.shape)}; the model's input {spec.name!r} takes "
            f"{['samples', *(d if d >= 0 else 'any' for d in wanted)]}{last}"
        )

    def _read_labels(self, member: NpyMember | None, samples: int) -> npt.NDArray[np.int64] | None:
        if member is None:
            return None
        if member.dtype.kind not in "iu" or member.shape not in ((samples,), (samples, 1)):
            raise _wrong(
                f"`{LABELS}` has dtype {member.dtype} and shape {list(member.shape)}; expected {samples} integers, the "
                "class index of each sample"
            )
        try:
            stored = next(member.rows(samples, samples)).reshape(-1)
        except NpyError as error:
            raise _wrong(str(error)) from None
        for extreme in (stored.min(), stored.max()):
            if not 0 <= int(extreme) <= _LARGEST_LABEL:
                raise _wrong(f"`{LABELS}` has the class index {extreme}; expected 0 to {_LARGEST_LABEL}")
        return stored.astype(np.int64)


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
