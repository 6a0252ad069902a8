"""Which operations a graph may hold, by what TensorFlow's registry says of them.

A frozen graph is run by every later stage, and folding constants runs parts of it: an operation that reads or writes
files, or calls Python, has no place in it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from enginehouse_worker.errors import WorkerError
from enginehouse_worker.stages.params import close_matches

VARIABLES = frozenset({"VarHandleOp", "VariableV2", "Variable", "AutoReloadVariable", "TemporaryVariable"})
_VARIABLE_READERS = frozenset({"ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape"})
_CALLS = frozenset(
    {"PartitionedCall", "StatefulPartitionedCall", "If", "While", "Case", "StatelessIf", "StatelessWhile"}
)
# Stateful, because each run gives other numbers, or because a loop writes an array piece by piece; harmless both.
_HARMLESS = frozenset(
    {"RandomUniform", "RandomUniformInt", "RandomStandardNormal", "TruncatedNormal", "ParameterizedTruncatedNormal",
     "Multinomial", "RandomShuffle", "RandomGamma", "RandomPoissonV2", "StatefulUniform", "Placeholder",
     "TensorArrayV3", "TensorArrayReadV3", "TensorArrayWriteV3", "TensorArrayGatherV3", "TensorArrayScatterV3",
     "TensorArraySizeV3", "TensorArrayConcatV3", "TensorArraySplitV3", "TensorArrayCloseV3"}
)  # fmt: skip
# Removed by cleaning, or dead once nothing depends on them.
TRAINING_ONLY = frozenset({"Assert", "Print", "PrintV2", "CheckNumerics", "CheckNumericsV2", "NoOp"})
# Not stateful in the registry, and yet they reach out of the graph.
_REACHING_OUT = frozenset(
    {"ReadFile", "WriteFile", "MatchingFiles", "PyFunc", "PyFuncStateless", "EagerPyFunc", "Save", "SaveV2",
     "SaveSlices", "Restore", "RestoreV2", "RestoreSlice", "MergeV2Checkpoints", "DebugIdentity", "DebugIdentityV2",
     "DebugNanCount", "XlaLaunch"}
)  # fmt: skip
_CONTROL_FLOW_1 = frozenset({"Switch", "RefSwitch", "Merge", "RefMerge", "Enter", "RefEnter"})
# What restoring variables from a checkpoint takes.
_RESTORING = frozenset(
    {"RestoreV2", "AssignVariableOp", "Assign", "VarHandleOp", "VariableV2", "Variable", "VarIsInitializedOp",
    "ShardedFilename"}
)  # fmt: skip
_MAX_SHOWN = 8


def check_known(graph: Any) -> None:
    """Refuse a GraphDef with operations that this TensorFlow does not have.

    Raises:
        WorkerError: INVALID_ARGUMENT naming them.
    """
    from tensorflow.python.framework import op_def_registry

    functions = {function.signature.name for function in graph.library.function}
    unknown: dict[str, str] = {}
    for node in _all_nodes(graph):
        if node.op not in functions and node.op not in unknown and op_def_registry.get(node.op) is None:
            unknown[node.op] = node.name
    if unknown:
        shown = ", ".join(f"{op[:80]!a} (node {name[:200]!a})" for op, name in list(unknown.items())[:_MAX_SHOWN])
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"the graph has operations that TensorFlow does not know: {shown}. Custom operations cannot be used; a "
            "damaged "
            "file looks like this too",
        )


def check_inference(graph: Any, outputs: Sequence[str], *, variables_allowed: bool) -> None:
    """Refuse what outputs need and a graph of constants cannot hold: tables, queues, files, Python, and variables.

    Args:
        outputs: node names.
        variables_allowed: they are about to be made constants.

    Raises:
        WorkerError: INVALID_ARGUMENT naming the nodes.
    """
    allowed = _HARMLESS | _CALLS | TRAINING_ONLY | (VARIABLES | _VARIABLE_READERS if variables_allowed else frozenset())
    found = [
        (node.name, node.op)
        for node in reachable(graph, outputs)
        if _reaches_out(graph, node.op) and node.op not in allowed
    ]
    variables = [name for name, op in found if op in VARIABLES | _VARIABLE_READERS]
    if variables:
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"the graph is not frozen: its outputs need variables ({_list(variables)}), whose values are not in the "
            "file. "
            "Freeze it (convert_variables_to_constants), or upload the SavedModel",
        )
    if found:
        tables = any("Table" in op for _, op in found)
        advice = "do the lookup outside of the model" if tables else "export the model without them, for inference only"
        shown = [f"{name} ({op})" for name, op in found]
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"the outputs need what a graph of constants cannot hold: {_list(shown)}; {advice}",
        )


def check_restoring(graph: Any, restore: str) -> None:
    """Refuse a SavedModel whose operation for restoring variables does more than that.

    Raises:
        WorkerError: INVALID_ARGUMENT naming the nodes.
    """
    allowed = _CALLS | _RESTORING | {"NoOp", "Placeholder"}
    nodes = reachable(graph, [restore], control=True)
    found = [f"{node.name} ({node.op})" for node in nodes if _reaches_out(graph, node.op) and node.op not in allowed]
    if found:
        raise WorkerError(
            "INVALID_ARGUMENT", f"restoring the SavedModel's variables would run more than that: {_list(found)}"
        )


def reachable(graph: Any, outputs: Iterable[str], *, control: bool = False) -> list[Any]:
    """The nodes whose values nodes need, those of the functions that they call included.

    What is only waited for (control edges) counts where TensorFlow 1's control flow needs these edges, see `carving`.
    """
    control = control or keeps_control_edges(graph)
    by_name = {node.name: node for node in graph.node}
    functions = {function.signature.name: function for function in graph.library.function}
    pending = [name for name in outputs if name in by_name]
    seen = set(pending)
    called: set[str] = set()
    found = []
    while pending:
        node = by_name[pending.pop()]
        found.append(node)
        for value in node.input:
            name = node_of(value)
            if name in by_name and name not in seen and (control or not value.startswith("^")):
                seen.add(name)
                pending.append(name)
    nodes: list[Any] = list(found)
    while nodes:
        node = nodes.pop()
        for name in functions_of(node):
            if name in functions and name not in called:
                called.add(name)
                found.extend(functions[name].node_def)
                nodes.extend(functions[name].node_def)
    return found


def keeps_control_edges(graph: Any) -> bool:
    """Whether control edges mean something without side effects: a constant in a branch or loop of TensorFlow 1."""
    return any(node.op in _CONTROL_FLOW_1 for node in graph.node)


def functions_of(node: Any) -> Iterator[str]:
    """The functions of the library that a node may call."""
    yield node.op
    for attribute in node.attr.values():
        if attribute.HasField("func"):
            yield attribute.func.name
        yield from (function.name for function in attribute.list.func)


def node_of(tensor: str) -> str:
    """The name of the node that an input (`node`, `node:1`, `^node`) comes from."""
    return tensor.removeprefix("^").partition(":")[0]


def near(name: str, known: Collection[str]) -> str:
    """A hint for a name that is not there, as the end of a sentence."""
    matches = close_matches(name, known)
    return f"; did you mean {', '.join(repr(match) for match in matches)}?" if matches else ""


def _all_nodes(graph: Any) -> Iterator[Any]:
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def


def _reaches_out(graph: Any, op: str) -> bool:
    from tensorflow.python.framework import op_def_registry

    definition = op_def_registry.get(op)
    if op in _REACHING_OUT:
        return True
    # A function of the library called by its name: its nodes are looked at themselves.
    return definition is not None and bool(definition.is_stateful)


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_SHOWN]) + (f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else "")
