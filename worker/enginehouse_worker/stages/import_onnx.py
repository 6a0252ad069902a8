"""import: an uploaded ONNX file, or an archive of one with its external data, in; a clean FP32 model out."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from enginehouse_worker.archives import SUFFIXES, extract
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import listing, write_json
from enginehouse_worker.graphs.write import write_model
from enginehouse_worker.stages.context import Stage, StageContext
from enginehouse_worker.stages.params import Params


def run(ctx: StageContext) -> dict[str, Any]:
    Params(ctx.params, (), ctx.stage)
    uploaded = _uploaded(ctx.input("model"))
    with tempfile.TemporaryDirectory(prefix=".import-", dir=ctx.output) as temporary:
        path = uploaded
        if uploaded.suffix.lower() != ".onnx":
            ctx.progress(0.05, "unpacking the archive")
            path = _from_archive(uploaded, Path(temporary) / "archive")
        from enginehouse_worker.conversion.onnx_import import import_onnx

        work = Path(temporary) / "work"
        work.mkdir()
        imported = import_onnx(path, work, ctx.progress)
        ctx.progress(0.9, "writing the ONNX model")
        write_model(ctx.output / "model.onnx", imported.graph)
    write_json(ctx.output / "signature.json", imported.signature.to_json())
    operators = Counter(node.op_type for node in imported.graph.nodes)
    return {**imported.facts, "operators": dict(sorted(operators.items()))}


def _uploaded(directory: Path) -> Path:
    suffixes = (".onnx", *SUFFIXES)
    found = [p for p in sorted(directory.iterdir()) if p.is_file() and p.name.lower().endswith(suffixes)]
    if len(found) != 1:
        wanted = ", ".join(suffixes)
        raise WorkerError(
            "INVALID_ARGUMENT", f"the model: expected exactly one file ({wanted}); found: {listing(directory)}"
        )
    return found[0]


def _from_archive(archive: Path, into: Path) -> Path:
    """The one .onnx file of an archive, at any depth."""
    extract(archive, into)
    found = sorted(p for p in into.rglob("*") if p.is_file() and p.suffix.lower() == ".onnx")
    if len(found) != 1:
        names = ", ".join(str(p.relative_to(into)) for p in found[:8]) or "none"
        raise WorkerError(
            "INVALID_ARGUMENT", f"the archive {archive.name} must hold exactly one .onnx file; found: {names}"
        )
    return found[0]


STAGE = Stage("import", ("model",), run, ("onnxruntime", "onnx", "numpy"))
