"""What a model's file or folder is, and how it goes up: one file, packed where it is several."""

from __future__ import annotations

import os
import re
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from enginehouse.client.onnx_files import external_files
from enginehouse.client.values.convert import enum_value
from enginehouse.errors import InvalidArgumentError
from enginehouse.v1 import models_pb2 as pb

_SUFFIXES: Mapping[str, pb.ModelFormat.ValueType] = {
    ".keras": pb.MODEL_FORMAT_KERAS,
    ".h5": pb.MODEL_FORMAT_KERAS_HDF5,
    ".hdf5": pb.MODEL_FORMAT_KERAS_HDF5,
    ".pb": pb.MODEL_FORMAT_FROZEN_GRAPH,
    ".onnx": pb.MODEL_FORMAT_ONNX,
}
ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
_SAVED_MODEL = "saved_model.pb"
# Of an archive, so many names are looked at to say what it holds.
_MAX_MEMBERS = 100_000


@dataclass(frozen=True)
class ModelFile:
    """A model on its way up: its format, and the files to pack under their names; none: `path` goes as it is."""

    path: Path
    format: pb.ModelFormat.ValueType
    packed: tuple[tuple[str, Path], ...] = ()

    @property
    def file_name(self) -> str:
        """Of what is uploaded."""
        return f"{self.path.name}.tar" if self.packed else self.path.name


def model_file(path: Path, format_name: str | None = None) -> ModelFile:
    """What a path is.

    Args:
        format_name: "keras", "keras_hdf5", "saved_model", "frozen_graph" or "onnx"; found out when None.

    Raises:
        InvalidArgumentError: there is no such file, we do not know it, or files that belong to it are missing.
    """
    if not path.exists():
        raise InvalidArgumentError(f"there is no {path}: expected a model's file or a SavedModel's folder")
    stated: pb.ModelFormat.ValueType | None = None
    if format_name is not None:
        stated = enum_value(pb.ModelFormat, format_name, "MODEL_FORMAT_", "model format")
        if stated == pb.MODEL_FORMAT_ZOO:
            raise InvalidArgumentError("a model of the zoo has no file: `models.create_zoo` makes one")
    if path.is_dir():
        return _folder(path, stated)
    found = stated if stated is not None else _format_of_file(path)
    archive = path.name.lower().endswith(ARCHIVES)
    if found == pb.MODEL_FORMAT_SAVED_MODEL and not archive:
        raise InvalidArgumentError(
            f"{path} is one file: expected a SavedModel's folder, or it as {', '.join(ARCHIVES)}"
        )
    if found == pb.MODEL_FORMAT_FROZEN_GRAPH and path.name == _SAVED_MODEL and (path.parent / "variables").is_dir():
        raise InvalidArgumentError(f"{path} is part of a SavedModel: upload its folder, {path.parent}")
    if found == pb.MODEL_FORMAT_ONNX and not archive and (data := external_files(path)):
        return ModelFile(path, found, ((path.name, path), *((name, path.parent / name) for name in data)))
    return ModelFile(path, found)


def as_one_file(model: ModelFile, folder: Path) -> Path:
    """The file to upload; what has to be packed is packed into `folder`."""
    if not model.packed:
        return model.path
    archive = folder / model.file_name
    pack(model.packed, archive)
    return archive


def pack(files: Iterable[tuple[str, Path]], archive: Path) -> None:
    """Files under their names as an uncompressed tar whose bytes depend on them alone: equal models have one digest."""
    # Links are what they lead to: the model is uploaded from a folder that its owner trusts.
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, path in files:
            with path.open("rb") as stream:
                member = tarfile.TarInfo(name)
                member.size = os.fstat(stream.fileno()).st_size
                member.mode = 0o644
                tar.addfile(member, stream)


def id_from(path: Path) -> str:
    """A valid id made from a file's name without its ending.

    Raises:
        InvalidArgumentError: nothing of the name is left.
    """
    stem = path.name
    if not path.is_dir():
        suffix = next((s for s in ARCHIVES if stem.lower().endswith(s)), path.suffix)
        stem = stem.removesuffix(stem[len(stem) - len(suffix) :]) if suffix else stem
    made = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")[:63].rstrip("-._")
    if not made:
        raise InvalidArgumentError(f"no id can be made from {path.name!r}: give one")
    return made


def _folder(path: Path, stated: pb.ModelFormat.ValueType | None) -> ModelFile:
    if (path / _SAVED_MODEL).is_file() and stated in (None, pb.MODEL_FORMAT_SAVED_MODEL):
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return ModelFile(path, pb.MODEL_FORMAT_SAVED_MODEL, tuple((f.relative_to(path).as_posix(), f) for f in files))
    graphs = sorted(path.glob("*.onnx"))
    if len(graphs) == 1 and stated in (None, pb.MODEL_FORMAT_ONNX):
        names = [graphs[0].name, *external_files(graphs[0])]
        return ModelFile(path, pb.MODEL_FORMAT_ONNX, tuple((name, path / name) for name in names))
    raise InvalidArgumentError(
        f"{path} is a folder with no {_SAVED_MODEL} and {len(graphs) or 'no'} .onnx files: "
        "expected a SavedModel, or one .onnx file and its data"
    )


def _format_of_file(path: Path) -> pb.ModelFormat.ValueType:
    if path.name.lower().endswith(ARCHIVES):
        return _format_of_archive(path)
    known = _SUFFIXES.get(path.suffix.lower())
    if known is not None:
        return known
    with path.open("rb") as file:
        head = file.read(8)
    if head == b"\x89HDF\r\n\x1a\n":
        return pb.MODEL_FORMAT_KERAS_HDF5
    if head.startswith(b"PK\x03\x04") and {"config.json", "model.weights.h5"} <= set(_members(path)):
        return pb.MODEL_FORMAT_KERAS
    raise InvalidArgumentError(
        f"unknown model format {path.name!r}: expected a file that ends in {', '.join([*_SUFFIXES, *ARCHIVES])}, "
        "a SavedModel's folder, or a format that is stated"
    )


def _format_of_archive(path: Path) -> pb.ModelFormat.ValueType:
    names = [name.rsplit("/", 1)[-1] for name in _members(path)]
    if _SAVED_MODEL in names:
        return pb.MODEL_FORMAT_SAVED_MODEL
    if any(name.endswith(".onnx") for name in names):
        return pb.MODEL_FORMAT_ONNX
    raise InvalidArgumentError(
        f"{path} holds neither {_SAVED_MODEL} nor an .onnx file: expected the archive of a SavedModel or an ONNX model"
    )


def _members(path: Path) -> list[str]:
    """Names in an archive, the first of them at least."""
    names: list[str] = []
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return archive.namelist()[:_MAX_MEMBERS]
        with tarfile.open(path) as tar:
            for member in tar:
                names.append(member.name)
                if len(names) >= _MAX_MEMBERS:
                    break
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise InvalidArgumentError(f"{path} cannot be read as an archive: {error}") from None
    return names
