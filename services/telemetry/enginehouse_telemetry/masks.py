"""Read masks: which fields of a sample a caller wants. "gpus.x" picks x of every GPU."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.message import Message

from enginehouse.errors import InvalidArgumentError
from enginehouse.v1 import telemetry_pb2 as pb

# Field name to what is wanted beneath it; an empty tree wants everything.
Tree = dict[str, "Tree"]


def _paths(descriptor: Any, prefix: str = "") -> Iterator[str]:
    for field in descriptor.fields:
        path = f"{prefix}{field.name}"
        yield path
        if _is_ours(field):
            yield from _paths(field.message_type, f"{path}.")


def _is_ours(field: Any) -> bool:
    """Whether a path may go on beneath a field; a Timestamp is one value to us."""
    return field.message_type is not None and field.message_type.file.package == "enginehouse.v1"


SAMPLE_PATHS: tuple[str, ...] = tuple(_paths(pb.Sample.DESCRIPTOR))
_BY_LAST: dict[str, list[str]] = {}
for _path in SAMPLE_PATHS:
    _BY_LAST.setdefault(_path.rsplit(".", 1)[-1], []).append(_path)


class ReadMask:
    """A mask that was checked. Without paths, or with "*", it wants everything."""

    def __init__(self, paths: Iterable[str] = ()) -> None:
        """
        Raises:
            InvalidArgumentError: a path is not one of a Sample's; the message has the closest ones.
        """
        self._tree: Tree = {}
        wanted = list(paths)
        for path in wanted:
            if path != "*" and path not in SAMPLE_PATHS:
                raise _unknown(path)
        if "*" not in wanted:
            # Parents first: once a field is wanted whole, a path beneath it adds nothing.
            for path in sorted(wanted, key=lambda item: item.count(".")):
                self._add(path.split("."))

    @property
    def everything(self) -> bool:
        return not self._tree

    def apply(self, sample: pb.Sample) -> pb.Sample:
        """The wanted part of `sample`; the sample itself when that is all of it."""
        if self.everything:
            return sample
        part = pb.Sample()
        _copy(sample, part, self._tree)
        return part

    def _add(self, names: list[str]) -> None:
        tree = self._tree
        for name in names:
            if name in tree and not tree[name]:
                return  # wanted whole already
            tree = tree.setdefault(name, {})


def _unknown(path: str) -> InvalidArgumentError:
    last = path.rsplit(".", 1)[-1]
    close = _BY_LAST.get(last) or difflib.get_close_matches(path, SAMPLE_PATHS, n=3, cutoff=0.6)
    if not close:
        names = difflib.get_close_matches(last, _BY_LAST, n=3, cutoff=0.6)
        close = [found for name in names for found in _BY_LAST[name]]
    expected = "expected paths within Sample, such as gpus.power_draw_watts"
    hint = f"did you mean {', '.join(close)}?" if close else expected
    details = {"path": path, "close": ",".join(close)}
    return InvalidArgumentError(f"read_mask path {path!r} is not a field of Sample: {hint}", details=details)


def _copy(source: Message, target: Message, tree: Tree) -> None:
    fields = source.DESCRIPTOR.fields_by_name
    for name, beneath in tree.items():
        field, value = fields[name], getattr(source, name)
        if field.is_repeated:
            _copy_items(value, getattr(target, name), field, beneath)
        elif field.message_type is not None:
            if source.HasField(name):
                getattr(target, name).SetInParent()
                _copy_message(value, getattr(target, name), beneath)
        elif not field.has_presence or source.HasField(name):
            setattr(target, name, value)


def _copy_items(items: Any, target: Any, field: Any, beneath: Tree) -> None:
    if field.message_type is None:
        target.extend(items)
        return
    for item in items:
        _copy_message(item, target.add(), beneath)


def _copy_message(source: Message, target: Message, beneath: Tree) -> None:
    if beneath:
        _copy(source, target, beneath)
    else:
        target.CopyFrom(source)
