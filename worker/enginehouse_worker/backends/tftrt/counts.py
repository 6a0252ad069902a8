"""What became of a graph's ops: how many TensorRT took, and which stayed in TensorFlow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

ENGINE_OP = "TRTEngineOp"
# What carries values and computes none.
STRUCTURAL = frozenset(
    {
        "Const", "Identity", "IdentityN", "NoOp", "PartitionedCall", "Placeholder", "StatefulPartitionedCall", "_Arg",
        "_Retval",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Conversion:
    """Of a converted graph, ops that compute something.

    Attributes:
        segments: names of the parts that became engines.
        converted: ops in them.
        remaining: how many of each type stayed in TensorFlow.
    """

    segments: tuple[str, ...]
    converted: int
    remaining: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return {
            "tensorrt_segments": len(self.segments),
            "converted_ops": self.converted,
            "tensorflow_ops": sum(self.remaining.values()),
            "tensorflow_op_types": dict(sorted(self.remaining.items())),
        }


def count(graph: Any) -> Conversion:
    """Count the ops of a GraphDef that TF-TRT's converter made, its function library included.

    Each engine op names a function of the library that holds the part of the graph it stands for. That part is counted
    as converted; all else as TensorFlow's.
    """
    functions = {function.signature.name: function.node_def for function in graph.library.function}
    engines = {node.name: node for node in _all_nodes(graph) if node.op == ENGINE_OP}
    native = {node.attr["segment_func"].func.name for node in engines.values()}
    converted = sum(_computing(functions[name]).total() for name in native if name in functions)
    remaining = _computing(graph.node)
    for name, nodes in functions.items():
        if name not in native:
            remaining += _computing(nodes)
    # Inlined functions put their own names before the engine's, which it is kept without.
    names = {name.rpartition("/")[2] for name in engines}
    return Conversion(tuple(sorted(names)), converted, dict(remaining))


def _all_nodes(graph: Any) -> Iterator[Any]:
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def


def _computing(nodes: Iterable[Any]) -> Counter[str]:
    return Counter(node.op for node in nodes if node.op not in STRUCTURAL and node.op != ENGINE_OP)
