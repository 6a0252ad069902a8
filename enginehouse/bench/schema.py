"""Strict reading of a YAML document: every error names the file, the line, the key and what was expected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from enginehouse.errors import InvalidArgumentError


class _UniqueKeys(yaml.SafeLoader):
    """A safe loader that refuses a key given twice instead of keeping the last."""


def _unique_mapping(loader: _UniqueKeys, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        try:
            duplicate = key in seen
        except TypeError:
            continue  # unhashable: the constructor below says so
        if duplicate:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


@dataclass(frozen=True)
class Node:
    """A value of the document with the file and the key it stands at. `lines` has the line of every key."""

    file: str
    key: str
    value: Any
    lines: Mapping[str, int] = field(default_factory=dict, repr=False, compare=False)

    def error(self, expected: str) -> InvalidArgumentError:
        shown = repr(self.value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return self.refusal(f"expected {expected}, got {shown}")

    def refusal(self, problem: str) -> InvalidArgumentError:
        """An error of this place in the file."""
        line = self.lines.get(self.key)
        where = self.file if line is None else f"{self.file} line {line}"
        return InvalidArgumentError(
            f"{where}: {self.key or 'the document'}: {problem}",
            details={"file": self.file, "key": self.key, **({} if line is None else {"line": str(line)})},
        )

    def mapping(self, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Node]:
        """Its entries by key, when it is a mapping with all of `required` and else only `optional` keys."""
        allowed = [*required, *optional]
        if not isinstance(self.value, dict):
            raise self.error(f"a mapping with the keys {', '.join(allowed)}")
        for key in self.value:
            if key not in allowed:
                raise self._child(key).error(f"one of the keys {', '.join(allowed)}")
        for key in required:
            if key not in self.value:
                raise self.refusal(f"the key {key!r} is missing; required keys are {', '.join(required)}")
        return {str(key): self._child(key) for key in self.value}

    def options(self) -> dict[str, str | int | float | bool]:
        """A mapping from names to scalars."""
        if not isinstance(self.value, dict):
            raise self.error("a mapping from option names to values")
        for key, value in self.value.items():
            if not isinstance(key, str):
                raise self._child(key).error("an option name")
            if not isinstance(value, str | int | float | bool):
                raise self._child(key).error("a text, a number, true or false")
        return dict(self.value)

    def items(self, what: str, *, allow_empty: bool = False) -> list[Node]:
        """Its elements, when it is a list."""
        if not isinstance(self.value, list) or (not self.value and not allow_empty):
            raise self.error(f"a list of {what}" + ("" if allow_empty else ", at least one"))
        return [Node(self.file, f"{self.key}[{index}]", value, self.lines) for index, value in enumerate(self.value)]

    def text(self, what: str = "a text") -> str:
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.error(what)
        return self.value

    def choice(self, choices: Iterable[str]) -> str:
        known = list(choices)
        if self.value not in known or not isinstance(self.value, str):
            raise self.error("one of " + ", ".join(known))
        return self.value

    def integer(self, low: int, high: int) -> int:
        if isinstance(self.value, bool) or not isinstance(self.value, int) or not low <= self.value <= high:
            raise self.error(f"an integer from {low} to {high}")
        return self.value

    def number(self, low: float, high: float) -> float:
        if isinstance(self.value, bool) or not isinstance(self.value, int | float) or not low <= self.value <= high:
            raise self.error(f"a number from {low:g} to {high:g}")
        return float(self.value)

    def _child(self, key: object) -> Node:
        name = f"{self.key}.{key}" if self.key else str(key)
        return Node(self.file, name, self.value[key], self.lines)


def parse(text: str, file: str) -> Node:
    """The document of a YAML text.

    Raises:
        InvalidArgumentError: it is not YAML, or a mapping gives a key twice.
    """
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.load(text, Loader=_UniqueKeys)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}:" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise InvalidArgumentError(f"{file}:{where} {problem}", details={"file": file}) from error
    return Node(file, "", value, {} if tree is None else dict(_lines(tree, "")))


def _lines(node: yaml.Node, key: str) -> Iterator[tuple[str, int]]:
    """The line (from 1) of a node and of all below it, by the keys that errors use."""
    yield key, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            child = f"{key}.{name.value}" if key else str(name.value)
            yield from _lines(value, child)
            yield child, name.start_mark.line + 1  # a key's own line, where its value begins below it
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _lines(value, f"{key}[{index}]")


def unique(nodes: Sequence[Node], values: Sequence[object], what: str) -> None:
    """Refuse a value given twice."""
    for index, value in enumerate(values):
        if value in values[:index]:
            raise nodes[index].error(f"{what} not given before in the list")
