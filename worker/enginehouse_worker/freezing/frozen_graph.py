"""A GraphDef of constants as a model: its inputs and outputs, given or inferred, and a batch dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enginehouse_worker.backends.base import Array, Signature
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.freezing.batch import with_free_batch
from enginehouse_worker.freezing.carving import End, carve, interface_names
from enginehouse_worker.freezing.constants import check_finite_constants, count_parameters
from enginehouse_worker.freezing.graph_def import check_structure, end, folded, imported, spec
from enginehouse_worker.freezing.operations import check_inference, check_known, near, node_of, reachable

_PLACEHOLDERS = ("Placeholder", "PlaceholderV2")
_NO_OUTPUT = ("NoOp", "Assert", "Print", "PrintV2", "Const", "Placeholder", "PlaceholderV2", "PlaceholderWithDefault")
# What the names of the switches between training and inference end in.
_SWITCHES = ("learning_phase", "is_training", "is_train", "phase_train", "train_phase", "training")
_SHOWN = 8


@dataclass(frozen=True)
class Frozen:
    """`graph` is a GraphDef in which tensor `name:0` is the signature's input or output `name`.

    `parameters` counts the model's weights before anything is folded. `unused` inputs were declared and nothing needs
    them: they are not in the graph. `weights` are the values, by node, of constants that have but a type and shape in
    `graph`: `frozen_file.write_graph` puts both together.
    """

    graph: Any
    signature: Signature
    parameters: int
    unused: tuple[str, ...] = ()
    weights: Mapping[str, Array] = field(default_factory=dict)


def freeze_graph_file(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Frozen:
    """Read a frozen GraphDef; empty `inputs` or `outputs` are inferred: placeholders, and nodes that nobody reads.

    Raises:
        WorkerError: INVALID_ARGUMENT when the file is damaged or not frozen, has operations that TensorFlow does not
            know or that reach out of the graph, or does not have the inputs and outputs.
    """
    graph = parse(path)
    check_known(graph)
    check_structure(graph)
    symbolic = imported(graph)
    found_outputs = [_tensor(symbolic, name, "output") for name in outputs] or _inferred_outputs(symbolic)
    check_inference(graph, [node_of(tensor.name) for tensor in found_outputs], variables_allowed=False)
    needed = reachable(graph, [node_of(tensor.name) for tensor in found_outputs])
    if inputs:
        found_inputs = [_tensor(symbolic, name, "input") for name in inputs]
    else:
        placeholders = {node.name for node in needed if node.op in _PLACEHOLDERS and not _is_switch(node)}
        ordered = [node.name for node in graph.node if node.name in placeholders]
        found_inputs = [symbolic.get_tensor_by_name(f"{name}:0") for name in ordered]
    input_names = interface_names((_shown(tensor) for tensor in found_inputs), "input")
    output_names = interface_names((_shown(tensor) for tensor in found_outputs), "output")
    clash = sorted(set(input_names) & set(output_names))
    if clash:
        raise WorkerError("INVALID_ARGUMENT", f"{clash} would be input and output at once; name other outputs")
    ends_in = [end(name, tensor) for name, tensor in zip(input_names, found_inputs, strict=True)]
    ends_out = [end(name, tensor) for name, tensor in zip(output_names, found_outputs, strict=True)]
    frozen = finish(graph, ends_in, ends_out, path.name)
    if frozen.unused:
        raise WorkerError(
            "INVALID_ARGUMENT", f"the outputs do not need the inputs {list(frozen.unused)}; leave them out"
        )
    return frozen


def parse(path: Path) -> Any:
    """The GraphDef in a file.

    Raises:
        WorkerError: INVALID_ARGUMENT when it is none, saying what it is instead where that is known.
    """
    import tensorflow as tf
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    data = path.read_bytes()
    graph = tf.compat.v1.GraphDef()
    try:
        graph.ParseFromString(data)
    except DecodeError as error:
        if _is_saved_model(saved_model_pb2.SavedModel(), data):
            raise _saved_model(path) from None
        raise WorkerError(
            "INVALID_ARGUMENT", f"{path.name} is no GraphDef, or is damaged or cut short: {error}"
        ) from None
    if not graph.node:
        if _is_saved_model(saved_model_pb2.SavedModel(), data):
            raise _saved_model(path)
        raise WorkerError("INVALID_ARGUMENT", f"{path.name} is no GraphDef: it has no nodes")
    return graph


def finish(graph: Any, inputs: Sequence[End], outputs: Sequence[End], file_name: str) -> Frozen:
    """Carve, check and fold a GraphDef without variables, and free its batch dimension where the graph allows that.

    Raises:
        WorkerError: INVALID_ARGUMENT when the outputs need more than the inputs, when constants are not finite, or when
            something is of no fixed rank.
    """
    graph = carve(_with_defaults(graph), inputs, outputs)
    present = {node.name for node in graph.node}
    unused = tuple(item.name for item in inputs if item.name not in present)
    used = [item for item in inputs if item.name in present]
    check_inference(graph, [item.name for item in outputs], variables_allowed=False)
    known = {item.name for item in used}
    missing = [node.name for node in graph.node if node.op in _PLACEHOLDERS and node.name not in known]
    if missing:
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"the outputs also need the placeholders {', '.join(missing[:_SHOWN])}; give them as inputs, or other "
            "outputs",
        )
    for item in used:
        if item.shape is None:
            raise WorkerError(
                "INVALID_ARGUMENT",
                f"input {item.name!r} has no fixed number of dimensions (unknown rank); export the model with a "
                "placeholder "
                "of a known shape, as [None, 224, 224, 3]",
            )
    if not used:
        raise WorkerError("INVALID_ARGUMENT", "the outputs need no input: name other outputs, or inputs before them")
    check_finite_constants(graph, file_name)
    parameters = count_parameters(graph)
    graph = folded(graph, used, outputs)
    freed, used = with_free_batch(graph, used, outputs)
    symbolic = imported(freed)
    specs_in = tuple(spec(symbolic, item.name) for item in used)
    specs_out = tuple(spec(symbolic, item.name) for item in outputs)
    batched = all(item.shape and item.shape[0] == -1 for item in (*specs_in, *specs_out))
    return Frozen(freed, Signature(specs_in, specs_out, batched), parameters, unused)


def _saved_model(path: Path) -> WorkerError:
    return WorkerError(
        "INVALID_ARGUMENT",
        f"{path.name} is the graph of a SavedModel, without its variables; upload the whole folder as .zip or "
        ".tar.gz, as "
        "saved_model",
    )


def _is_saved_model(message: Any, data: bytes) -> bool:
    try:
        message.ParseFromString(data)
    except Exception:
        return False
    return any(graph.graph_def.node for graph in message.meta_graphs)


def _tensor(graph: Any, name: str, kind: str) -> Any:
    """The tensor that a user calls `node` or `node:0`."""
    operations = {operation.name: operation for operation in graph.get_operations()}
    node, colon, number = name.partition(":")
    if node not in operations:
        raise WorkerError(
            "INVALID_ARGUMENT", f"the graph has no {kind} {name!r}{near(node, operations) or _some(operations, kind)}"
        )
    count = len(operations[node].outputs)
    if colon and not number.isdigit():
        raise WorkerError("INVALID_ARGUMENT", f"{kind} {name!r}: expected NODE or NODE:NUMBER")
    index = int(number) if colon else 0
    if index >= count:
        raise WorkerError("INVALID_ARGUMENT", f"{kind} {name!r}: node {node!r} has {count} outputs")
    return operations[node].outputs[index]


def _some(operations: dict[str, Any], kind: str) -> str:
    wanted = [name for name, operation in operations.items() if operation.type in _PLACEHOLDERS]
    if kind == "output":
        wanted = [name for name, operation in operations.items() if _nobody_reads(operation)]
    return f" (it has {', '.join(wanted[:_SHOWN])})" if wanted else ""


def _inferred_outputs(symbolic: Any) -> list[Any]:
    found = [operation for operation in symbolic.get_operations() if _nobody_reads(operation)]
    if not found:
        raise WorkerError("INVALID_ARGUMENT", "the graph has no node that nobody reads: name its outputs")
    return [tensor for operation in found for tensor in operation.outputs]


def _nobody_reads(operation: Any) -> bool:
    if operation.type in _NO_OUTPUT or not operation.outputs:
        return False
    return not any(tensor.consumers() for tensor in operation.outputs)


def _is_switch(node: Any) -> bool:
    """Whether a node is the placeholder that says if the model trains."""
    import tensorflow as tf

    if node.op not in _PLACEHOLDERS or node.attr["dtype"].type != tf.bool.as_datatype_enum:
        return False
    shape = node.attr["shape"].shape
    last: str = node.name.rpartition("/")[2]
    return not shape.dim and last.startswith(_SWITCHES)


def _shown(tensor: Any) -> str:
    name: str = tensor.op.name
    return name if len(tensor.op.outputs) == 1 else f"{name}_{tensor.value_index}"


def _with_defaults(graph: Any) -> Any:
    """The graph with placeholders that have a default replaced by it, and switches for training turned off."""
    import tensorflow as tf

    result = tf.compat.v1.GraphDef()
    result.CopyFrom(graph)
    for node in result.node:
        if node.op == "PlaceholderWithDefault":
            dtype = node.attr["dtype"].type
            node.op = "Identity"
            node.attr.clear()
            node.attr["T"].type = dtype
        elif _is_switch(node):
            node.op = "Const"
            node.attr.clear()
            node.attr["dtype"].type = tf.bool.as_datatype_enum
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(False))
    return result
