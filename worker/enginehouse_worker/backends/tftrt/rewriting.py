"""Changes the engine ops of a SavedModel: their names, and whether they may build engines while they serve.

TF-TRT keeps engines by the name of their op, one table for the process, and every build names its first op alike: a
second SavedModel with the same names is refused by TensorFlow when it is loaded. So one that is loaded beside another
gets other names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from enginehouse_worker.backends.tftrt.counts import ENGINE_OP

_HANDLE_OP = "CreateTRTResourceHandle"
_GRAPH = "saved_model.pb"
_MAY_BUILD = "_allow_build_at_runtime"


def renamed_copy(source: Path, target: Path, suffix: str) -> Path:
    """A SavedModel whose engines' names end in `suffix`; everything but the graph is linked to, not copied."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.name != _GRAPH:
            (target / path.name).symlink_to(path.resolve())
    _rewrite(source / _GRAPH, target / _GRAPH, lambda graph: rename(graph, suffix))
    return target


def forbid_building(folder: Path) -> None:
    """Let the engine ops of a SavedModel run the engines that it was saved with, and TensorFlow where none fits."""
    _rewrite(folder / _GRAPH, folder / _GRAPH, forbid)


def _rewrite(source: Path, target: Path, change: Callable[[Any], None]) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel.FromString(source.read_bytes())
    for meta_graph in model.meta_graphs:
        change(meta_graph.graph_def)
    target.write_bytes(model.SerializeToString())


def forbid(graph: Any) -> None:
    """The same for a GraphDef, in place."""
    for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
        for node in nodes:
            if node.op == ENGINE_OP:
                node.attr[_MAY_BUILD].b = False


def rename(graph: Any, suffix: str) -> None:
    """Rename the engine ops of a GraphDef, in its functions too, with all that refers to them, in place."""
    _rename_nodes(graph.node, suffix)
    for function in graph.library.function:
        names = _rename_nodes(function.node_def, suffix)
        for results in (function.ret, function.control_ret):
            for key in list(results):
                results[key] = _reference(results[key], names, suffix)


def _rename_nodes(nodes: Sequence[Any], suffix: str) -> frozenset[str]:
    names = frozenset(node.name for node in nodes if node.op == ENGINE_OP)
    for node in nodes:
        if node.op == ENGINE_OP:
            node.name += suffix
        elif node.op == _HANDLE_OP:
            node.attr["resource_name"].s += suffix.encode()
        for place, reference in enumerate(node.input):
            node.input[place] = _reference(reference, names, suffix)
    return names


def _reference(reference: str, names: Iterable[str], suffix: str) -> str:
    """ "^a" and "a:out:0" as they are written when `a` is renamed."""
    control = "^" if reference.startswith("^") else ""
    name, colon, output = reference.removeprefix("^").partition(":")
    return f"{control}{name}{suffix}{colon}{output}" if name in names else reference
