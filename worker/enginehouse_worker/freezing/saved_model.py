"""Freezes one signature of a SavedModel, as TensorFlow 1 or 2 wrote it.

The graph is read from the file and nothing of it runs but the restoring of variables: no initializer, no table, and
none of the Python that tf.saved_model.load would rebuild.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import listing
from enginehouse_worker.freezing.carving import End, interface_names
from enginehouse_worker.freezing.frozen_graph import Frozen, finish
from enginehouse_worker.freezing.graph_def import check_structure, end, imported
from enginehouse_worker.freezing.operations import (
    VARIABLES,
    check_inference,
    check_known,
    check_restoring,
    near,
    node_of,
    reachable,
)

DEFAULT_SIGNATURE = "serving_default"
_FILE = "saved_model.pb"
# The signature of TensorFlow 2's own initializer, which is no model.
_INTERNAL = "__saved_model_init_op"


def find_saved_model(directory: Path) -> Path:
    """The directory that holds saved_model.pb: the given one, or the one in it.

    Raises:
        WorkerError: INVALID_ARGUMENT when there is none or more than one.
    """
    folders = [directory, *sorted(p for p in directory.iterdir() if p.is_dir() and p.name != "__MACOSX")]
    found = [folder for folder in folders if (folder / _FILE).is_file()]
    if len(found) == 1:
        return found[0]
    if any((folder / "saved_model.pbtxt").is_file() for folder in folders):
        raise WorkerError("INVALID_ARGUMENT", f"the SavedModel is in text form; save it again, as {_FILE}")
    have = "; ".join(f"{folder.relative_to(directory)}: {listing(folder)}" for folder in folders[:4])
    raise WorkerError(
        "INVALID_ARGUMENT",
        f"the archive should hold one SavedModel, with {_FILE} at its root or in one folder; "
        f"{'it has several' if found else 'none was found'} ({have})",
    )


def freeze_saved_model(directory: Path, signature: str, file_name: str) -> Frozen:
    """Freeze a signature ("" for serving_default) of the SavedModel in a directory.

    Inputs and outputs are called as in the signature.

    Raises:
        WorkerError: INVALID_ARGUMENT when the SavedModel is damaged, lacks the signature, or needs at inference what a
            graph of constants cannot hold.
    """
    import tensorflow as tf
    from tensorflow.python.framework import convert_to_constants

    meta = _meta_graph(directory / _FILE)
    chosen = _signature(meta, signature or DEFAULT_SIGNATURE)
    graph = meta.graph_def
    check_known(graph)
    check_structure(graph)
    outputs = [node_of(name) for _, name in _tensors(chosen.outputs)]
    check_inference(graph, outputs, variables_allowed=True)
    symbolic = imported(graph)
    inputs_ends = _ends(symbolic, _tensors(chosen.inputs), "input")
    outputs_ends = _ends(symbolic, _tensors(chosen.outputs), "output")
    variables = [node for node in reachable(graph, outputs) if node.op in VARIABLES]
    if variables:
        with tf.compat.v1.Session(graph=symbolic) as session:
            _restore(session, meta, directory)
            _add_reads(symbolic)
            try:
                graph = convert_to_constants.convert_variables_to_constants_from_session_graph(
                    session, symbolic.as_graph_def(), outputs
                )
            except Exception as error:
                raise WorkerError(
                    "INVALID_ARGUMENT", f"the SavedModel's variables cannot be made constants: {_short(error)}"
                ) from None
    return finish(graph, inputs_ends, outputs_ends, file_name)


def _meta_graph(path: Path) -> Any:
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:
        raise WorkerError("INVALID_ARGUMENT", f"{path.name} is damaged or no SavedModel: {error}") from None
    serving = [graph for graph in model.meta_graphs if "serve" in graph.meta_info_def.tags]
    found = serving or list(model.meta_graphs)
    if len(found) != 1:
        tags = [sorted(graph.meta_info_def.tags) for graph in model.meta_graphs]
        raise WorkerError(
            "INVALID_ARGUMENT", f"the SavedModel should have one graph tagged 'serve'; its graphs' tags: {tags}"
        )
    return found[0]


def _signature(meta: Any, name: str) -> Any:
    known = [key for key in meta.signature_def if key != _INTERNAL]
    if name not in known:
        have = ", ".join(sorted(known)) or "none: save the model with signatures, or export it with model.export()"
        raise WorkerError(
            "INVALID_ARGUMENT", f"the SavedModel has no signature {name!r}{near(name, known)} (it has {have})"
        )
    signature = meta.signature_def[name]
    for kind, tensors in (("input", signature.inputs), ("output", signature.outputs)):
        if not tensors and kind == "output":
            raise WorkerError("INVALID_ARGUMENT", f"signature {name!r} has no outputs")
        for key, info in tensors.items():
            if info.WhichOneof("encoding") != "name":
                raise WorkerError("INVALID_ARGUMENT", f"{kind} {key!r} of signature {name!r} is not a dense tensor")
    return signature


def _tensors(infos: Any) -> list[tuple[str, str]]:
    """Keys and tensors of a signature, in the order of the keys: a map's own order is none."""
    return [(key, infos[key].name) for key in sorted(infos)]


def _ends(graph: Any, tensors: list[tuple[str, str]], kind: str) -> list[End]:
    names = interface_names((key for key, _ in tensors), kind)
    ends = []
    for name, (key, tensor) in zip(names, tensors, strict=True):
        try:
            ends.append(end(name, graph.get_tensor_by_name(tensor)))
        except (KeyError, ValueError, TypeError):
            raise WorkerError(
                "INVALID_ARGUMENT", f"the signature's {kind} {key!r} is tensor {tensor[:200]!a}, which the graph lacks"
            ) from None
    return ends


def _restore(session: Any, meta: Any, directory: Path) -> None:
    saver = meta.saver_def
    graph = session.graph
    prefix = directory / "variables" / "variables"
    if not saver.restore_op_name or not prefix.with_suffix(".index").is_file():
        have = listing(directory / "variables")
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"the SavedModel has variables but not their values: expected variables/variables.index (found: {have})",
        )
    check_restoring(meta.graph_def, node_of(saver.restore_op_name))
    try:
        operation = graph.get_operation_by_name(node_of(saver.restore_op_name))
        session.run(operation, {saver.filename_tensor_name: str(prefix)})
    except Exception as error:
        raise WorkerError(
            "INVALID_ARGUMENT", f"the SavedModel's variables cannot be restored: {_short(error)}"
        ) from None


def _add_reads(graph: Any) -> None:
    """Give each variable the operation that TensorFlow's conversion reads it by, where a SavedModel lacks it."""
    import tensorflow as tf

    for operation in list(_variables(graph)):
        name = f"{operation.name}/Read/ReadVariableOp"
        try:
            graph.get_operation_by_name(name)
        except KeyError:
            with graph.as_default(), tf.name_scope(""):
                tf.raw_ops.ReadVariableOp(
                    resource=operation.outputs[0],
                    dtype=operation.get_attr("dtype"),
                    name=f"{operation.name}/Read/ReadVariableOp",
                )


def _variables(graph: Any) -> Iterator[Any]:
    return (operation for operation in graph.get_operations() if operation.type == "VarHandleOp")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:1500]
