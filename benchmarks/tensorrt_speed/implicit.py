"""An INT8 engine with TensorRT's own entropy calibrator, for comparison: deprecated, and gone from TensorRT 11.

The other settings, profiles included, are those of the worker's builder; the images are those that our calibration saw.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

# A calibration batch must have the calibration profile's shape, or the GPU reads out of bounds.
CALIBRATION_BATCH = 32


def build_implicit(
    work: Path, output: Path, profile: Mapping[str, int], options: Mapping[str, Any], timing_cache: Path | None
) -> None:
    """Build from `work/fp32`, calibrated on `work/images.npy`, into an engine directory that the worker loads.

    Raises:
        WorkerError: as the worker's builder.
        RuntimeError: TensorRT does not build it.
    """
    from enginehouse_worker.backends import registry
    from enginehouse_worker.backends.base import BatchProfile
    from enginehouse_worker.backends.engine_files import describe_engine, write_engine
    from enginehouse_worker.backends.tensorrt import cuda
    from enginehouse_worker.backends.tensorrt.builder import optimization_profile, set_options
    from enginehouse_worker.backends.tensorrt.library import open_library
    from enginehouse_worker.backends.tensorrt.network import parse
    from enginehouse_worker.backends.tensorrt.options import build_options
    from enginehouse_worker.backends.tensorrt.shapes import batch_profiles, make_profiles
    from enginehouse_worker.graphs.signature_file import read_signature

    library = open_library()
    trt = library.trt
    images = np.load(work / "images.npy")
    device = cuda.open_device("cuda:0").to_json()
    memory = cuda.Memory(images[:CALIBRATION_BATCH].nbytes)

    class Calibrator(trt.IInt8EntropyCalibrator2):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IInt8EntropyCalibrator2.__init__(self)
            self.at = 0

        def get_batch_size(self) -> int:
            return CALIBRATION_BATCH

        def get_batch(self, names: list[str]) -> list[int] | None:
            part = np.ascontiguousarray(images[self.at : self.at + CALIBRATION_BATCH])
            if len(part) < CALIBRATION_BATCH:
                return None
            self.at += CALIBRATION_BATCH
            runtime = cuda.runtime()
            kind = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
            cuda.checked(runtime.cudaMemcpy(memory.pointer, part.ctypes.data, part.nbytes, kind), "copying images")
            return [memory.pointer]

        def read_calibration_cache(self) -> None:
            return None

        def write_calibration_cache(self, cache: Any) -> None: ...

    signature = read_signature(work / "fp32")
    whole = BatchProfile(**profile)
    builder = trt.Builder(library.logger)
    network, parser = parse(library, builder, work / "fp32" / "model.onnx", strongly_typed=False)
    config = builder.create_builder_config()
    for name in ("TF32", "FP16", "INT8"):
        config.set_flag(getattr(trt.BuilderFlag, name))
    set_options(library, config, build_options(options))
    profiles = make_profiles(signature, batch_profiles(whole, options), {})
    for item in profiles:
        config.add_optimization_profile(optimization_profile(builder, network, item))
    calibrating = BatchProfile(CALIBRATION_BATCH, CALIBRATION_BATCH, CALIBRATION_BATCH)
    config.set_calibration_profile(
        optimization_profile(builder, network, make_profiles(signature, [calibrating], {})[0])
    )
    config.int8_calibrator = calibrator = Calibrator()
    known = timing_cache / "timing.cache" if timing_cache is not None else None
    cache = config.create_timing_cache(known.read_bytes() if known is not None and known.exists() else b"")
    config.set_timing_cache(cache, False)
    data = builder.build_serialized_network(network, config)
    memory.close()
    if data is None:
        raise RuntimeError(f"TensorRT does not build it: {library.messages.take_errors()}")
    (output / "model.plan").write_bytes(bytes(data))
    (output / "timing.cache").write_bytes(bytes(cache.serialize()))
    del parser, calibrator
    described = describe_engine(
        backend="tensorrt",
        version=registry.get("tensorrt").version(),
        precision="INT8",
        signature=signature,
        profile=whole,
        payload="model.plan",
        device=device,
        options=options,
    )
    engine = {**described, "library": trt.__name__, "profiles": [vars(item.batch) for item in profiles]}
    write_engine(output, json.loads(json.dumps(engine)))
