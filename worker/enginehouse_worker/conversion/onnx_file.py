"""Reads an ONNX file that a stranger made: checks it in Python before any native code sees it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx

from enginehouse_worker.conversion.external_data import load_external_data
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.graphs.editing import subgraphs
from enginehouse_worker.graphs.tensor_sizes import element_bits, elements
from enginehouse_worker.graphs.write import check_size

# Deeper nesting of If, Loop and Scan than any exporter writes.
_MAX_DEPTH = 16
_MAX_NODES = 200_000
_OLDEST_IR = 3
_LARGEST_DIMENSION = (1 << 31) - 1


def read_onnx(path: Path) -> onnx.ModelProto:
    """A model with all its weights inside, structurally sound. Its external data is beside it in the file's folder.

    Raises:
        WorkerError: INVALID_ARGUMENT naming what is wrong with it; FAILED_PRECONDITION for more than 2 GiB of weights.
    """
    size = path.stat().st_size
    if size == 0:
        raise _wrong(path, "the file is empty")
    check_size(size)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception:
        raise _wrong(path, "it is damaged, cut short, or no ONNX model") from None
    _check_versions(path, model)
    if not model.graph.node:
        raise _wrong(path, "its graph has no nodes")
    if not model.graph.output:
        raise _wrong(path, "its graph has no outputs")
    _check_shapes(path, model.graph)
    nodes = _count(path, model.graph, 0)
    _check_functions(path, model, nodes)
    _check_initializers(path, model.graph)
    load_external_data(tensors(model), path)
    for tensor in tensors(model):
        _check_data(path, tensor)
    return model


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor with data in a model: initializers and attributes, in subgraphs and functions too."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
    for graph in subgraphs(node):
        yield from _graph_tensors(graph)


def _check_versions(path: Path, model: onnx.ModelProto) -> None:
    if not _OLDEST_IR <= model.ir_version <= onnx.IR_VERSION:
        raise _wrong(
            path,
            f"its IR version is {model.ir_version}; expected {_OLDEST_IR} to {onnx.IR_VERSION} (0: no ONNX model)",
        )
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    newest = onnx.defs.onnx_opset_version()
    if len(versions) != 1 or not 1 <= versions[0] <= newest:
        raise _wrong(path, f"it imports the ONNX operator sets {versions}; expected one version from 1 to {newest}")


def _count(path: Path, graph: onnx.GraphProto, depth: int) -> int:
    """The nodes of a graph and its subgraphs."""
    if depth > _MAX_DEPTH:
        raise _wrong(path, f"its graphs are nested more than {_MAX_DEPTH} deep")
    if graph.sparse_initializer:
        name = graph.sparse_initializer[0].values.name
        raise _wrong(path, f"its tensor {name!r} is sparse; export the model with dense weights")
    count = len(graph.node)
    for node in graph.node:
        if not node.output and not node.op_type:
            raise _wrong(path, "it has a node without operator and outputs")
        count += sum(_count(path, inner, depth + 1) for inner in subgraphs(node))
    if count > _MAX_NODES:
        raise _wrong(path, f"it has more than {_MAX_NODES} nodes")
    return count


def _check_shapes(path: Path, graph: onnx.GraphProto) -> None:
    """Sizes that no tensor has make libraries compute for hours."""
    for info in (*graph.input, *graph.output, *graph.value_info):
        sizes = [dimension.dim_value for dimension in info.type.tensor_type.shape.dim]
        if any(size > _LARGEST_DIMENSION for size in sizes):
            raise _wrong(path, f"its tensor {info.name!r} has the shape {sizes[:8]}; dimensions go to 2^31 - 1")


def _check_functions(path: Path, model: onnx.ModelProto, nodes: int) -> None:
    """Functions must not call themselves, and must stay small when they are written out where they are called."""
    functions = {(f.domain, f.name): f for f in model.functions}
    sizes: dict[tuple[str, str], int] = {}

    def expanded(key: tuple[str, str], callers: tuple[tuple[str, str], ...]) -> int:
        if key in callers or len(callers) > _MAX_DEPTH:
            raise _wrong(path, f"its function {key[1]!r} calls itself, or is nested more than {_MAX_DEPTH} deep")
        if key not in sizes:
            total = sum(called(node, (*callers, key)) for node in functions[key].node)
            sizes[key] = total
        if sizes[key] > _MAX_NODES:
            raise _wrong(path, f"its function {key[1]!r} grows to more than {_MAX_NODES} nodes")
        return sizes[key]

    def called(node: onnx.NodeProto, callers: tuple[tuple[str, str], ...]) -> int:
        inner = sum(called(n, callers) for graph in subgraphs(node) for n in graph.node)
        key = (node.domain, node.op_type)
        return inner + (expanded(key, callers) if key in functions else 1)

    for function in model.functions:
        for node in function.node:
            for graph in subgraphs(node):
                _count(path, graph, 1)
    if functions and sum(called(node, ()) for node in model.graph.node) > max(_MAX_NODES, nodes):
        raise _wrong(path, f"its functions grow to more than {_MAX_NODES} nodes")


def _check_initializers(path: Path, graph: onnx.GraphProto) -> None:
    names: set[str] = set()
    for tensor in graph.initializer:
        if not tensor.name or tensor.name in names:
            raise _wrong(path, f"it has two initializers called {tensor.name!r}, or one without a name")
        names.add(tensor.name)


def _check_data(path: Path, tensor: onnx.TensorProto) -> None:
    """A tensor must have as many values as its shape says."""
    name = tensor.name or "(of an attribute)"
    if tensor.HasField("segment"):
        raise _wrong(path, f"its tensor {name!r} is stored in segments, which nothing reads")
    bits = element_bits(tensor.data_type)
    if bits is None:
        raise _wrong(path, f"its tensor {name!r} has the unknown data type {tensor.data_type}")
    if any(size < 0 for size in tensor.dims) or len(tensor.dims) > 64:
        raise _wrong(path, f"its tensor {name!r} has the shape {list(tensor.dims)[:8]}")
    count = elements(tensor.dims)
    if tensor.data_type == onnx.TensorProto.STRING:
        found, expected = len(tensor.string_data), count
    elif tensor.HasField("raw_data"):
        found, expected = len(tensor.raw_data), (count * bits + 7) // 8
    else:
        found, expected = _typed_values(tensor, bits, count)
    if found != expected:
        raise _wrong(
            path,
            f"its tensor {name!r} of shape {list(tensor.dims)} has {found} bytes or values; expected {expected}",
        )


def _typed_values(tensor: onnx.TensorProto, bits: int, count: int) -> tuple[int, int]:
    """How many values are in the field for a tensor's type, and how many should be."""
    kind = tensor.data_type
    types = onnx.TensorProto
    if kind in (types.FLOAT, types.COMPLEX64):
        return len(tensor.float_data), count * (2 if kind == types.COMPLEX64 else 1)
    if kind in (types.DOUBLE, types.COMPLEX128):
        return len(tensor.double_data), count * (2 if kind == types.COMPLEX128 else 1)
    if kind == types.INT64:
        return len(tensor.int64_data), count
    if kind in (types.UINT32, types.UINT64):
        return len(tensor.uint64_data), count
    # Types of less than 8 bits are packed.
    return len(tensor.int32_data), (count * bits + 7) // 8 if bits < 8 else count


def _wrong(path: Path, what: str) -> WorkerError:
    return WorkerError("INVALID_ARGUMENT", f"{path.name} cannot be imported: {what}")
