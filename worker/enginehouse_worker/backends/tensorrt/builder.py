"""Builds plans: the ONNX model of the convert or quantize stage in, a serialized engine out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginehouse_worker.backends.base import BatchProfile
from enginehouse_worker.backends.engine_files import describe_engine, write_engine
from enginehouse_worker.backends.tensorrt import cuda
from enginehouse_worker.backends.tensorrt.library import Library, open_library
from enginehouse_worker.backends.tensorrt.network import parse
from enginehouse_worker.backends.tensorrt.options import BuildOptions, build_options
from enginehouse_worker.backends.tensorrt.runtime import load
from enginehouse_worker.backends.tensorrt.shapes import Profile, batch_profiles, make_profiles, parse_shapes
from enginehouse_worker.backends.trial import run_trial
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import sole_file, write_whole
from enginehouse_worker.graphs.signature_file import read_signature

PAYLOAD = "model.plan"
LAYERS = "layers.json"
PRECISIONS = ("FP32", "TF32", "FP16", "BF16", "INT8")
# Builder flags of each precision where the network is weakly typed. INT8 by Q/DQ, the rest FP16.
_FLAGS: Mapping[str, tuple[str, ...]] = {
    "FP32": (),
    "TF32": ("TF32",),
    "FP16": ("TF32", "FP16"),
    "BF16": ("TF32", "BF16"),
    "INT8": ("TF32", "FP16", "INT8"),
}


@dataclass(frozen=True)
class Plan:
    """A serialized engine, what the inspector says of its layers (JSON), and the timing cache after the build."""

    data: bytes
    layers: str
    timing_cache: bytes


def build(
    model: Path, output: Path, *, precision: str, profile: BatchProfile, options: Mapping[str, Any], version: str
) -> dict[str, Any]:
    """Build an engine from a directory with one ONNX file and its signature; returns `engine.json`'s content.

    Raises:
        WorkerError: FAILED_PRECONDITION for what this version or GPU lacks; INVALID_ARGUMENT for a model that TensorRT
            does not take, or a bad option.
    """
    library, chosen = open_library(), build_options(options)
    device = cuda.open_device("cuda:0")
    signature = read_signature(model)
    shapes = parse_shapes(str(options.get("shapes", "")))
    profiles = make_profiles(signature, batch_profiles(profile, options), shapes)
    source = sole_file(model, (".onnx",), "the model")
    plan = make_plan(library, source, precision, profiles, chosen)
    write_whole(output / PAYLOAD, plan.data)
    write_whole(output / LAYERS, plan.layers.encode())
    engine = {
        **describe_engine(
            backend="tensorrt",
            version=version,
            precision=precision,
            signature=signature,
            profile=profile,
            payload=PAYLOAD,
            device=device.to_json(),
            options=options,
        ),
        "library": library.trt.__name__,
        "profiles": [vars(item.batch) for item in profiles],
        "version_compatible": chosen.version_compatible,
        "hardware_compatible": chosen.hardware_compatible,
    }
    write_engine(output, engine)
    loaded = load(output, device="cuda:0", options=options)
    try:
        run_trial(loaded, profile)
    finally:
        loaded.close()
    return engine


def make_plan(
    library: Library,
    model: Path,
    precision: str,
    profiles: Sequence[Profile],
    options: BuildOptions,
    timing_cache: bytes = b"",
) -> Plan:
    """Parse and build. Needs a GPU, except with TensorRT for RTX.

    Raises:
        WorkerError: as `build`.
    """
    trt = library.trt
    builder = trt.Builder(library.logger)
    network, parser = parse(library, builder, model, strongly_typed=not library.weakly_typed)
    config = builder.create_builder_config()
    set_precision(library, config, network, precision)
    set_options(library, config, options)
    for profile in profiles:
        config.add_optimization_profile(_optimization_profile(builder, network, profile))
    cache = _set_timing_cache(config, timing_cache)
    data = builder.build_serialized_network(network, config)
    if data is None:
        reason = library.messages.take_errors() or "TensorRT gave no reason; the log may have one"
        raise WorkerError("INVALID_ARGUMENT", f"TensorRT cannot build the engine: {reason}")
    plan = bytes(data)
    del parser
    return Plan(plan, _layers(library, plan), b"" if cache is None else bytes(cache.serialize()))


def set_precision(library: Library, config: Any, network: Any, precision: str) -> None:
    """Allow the precision's types, where they are flags; where types are the graph's own, they must be there.

    Raises:
        WorkerError: FAILED_PRECONDITION for a precision that this version does not have; INVALID_ARGUMENT for INT8
            without Q/DQ in the model, or the other way round.
    """
    if precision not in PRECISIONS:
        raise WorkerError("FAILED_PRECONDITION", f"backend 'tensorrt' has {', '.join(PRECISIONS)}, not {precision}")
    quantize = library.flag("LayerType", "QUANTIZE")
    quantized = any(network.get_layer(index).type == quantize for index in range(network.num_layers))
    if quantized != (precision == "INT8"):
        found, wanted = ("has", "an FP32 model") if quantized else ("has no", "the quantize stage's model")
        raise WorkerError("INVALID_ARGUMENT", f"the model {found} Q/DQ nodes; {precision} is built from {wanted}")
    if not library.weakly_typed:
        if precision not in ("FP32", "TF32", "INT8"):
            raise WorkerError(
                "FAILED_PRECONDITION",
                f"{library.trt.__name__} {library.trt.__version__} takes types from the graph, and the graph is FP32: "
                f"{precision} needs a TensorRT with precision flags for now",
            )
        if precision != "FP32" and (flag := library.flag("BuilderFlag", "TF32")) is not None:
            config.set_flag(flag)
        return
    tf32 = library.flag("BuilderFlag", "TF32")
    if tf32 is not None:
        config.clear_flag(tf32)  # TensorRT sets it by itself
    for name in _FLAGS[precision]:
        config.set_flag(library.require("BuilderFlag", name, name))


def set_options(library: Library, config: Any, options: BuildOptions) -> None:
    """Set what the caller chose and what every engine of ours has.

    Raises:
        WorkerError: FAILED_PRECONDITION for an option that this version does not have.
    """
    trt = library.trt
    if options.optimization_level >= 0:
        if not hasattr(config, "builder_optimization_level"):
            raise WorkerError(
                "FAILED_PRECONDITION", f"TensorRT {trt.__version__} has no optimization levels; 8.6 and later have them"
            )
        config.builder_optimization_level = options.optimization_level
    if options.workspace_mib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.version_compatible:
        config.set_flag(library.require("BuilderFlag", "VERSION_COMPATIBLE", "version compatibility"))
    if options.hardware_compatible:
        level = library.require("HardwareCompatibilityLevel", "AMPERE_PLUS", "hardware compatibility")
        config.hardware_compatibility_level = level
    if options.strip_weights:
        config.set_flag(library.require("BuilderFlag", "STRIP_PLAN", "weight stripping"))
    sharing = library.flag("PreviewFeature", "PROFILE_SHARING_0806")
    if sharing is not None:
        config.set_preview_feature(sharing, True)
    # cuBLAS and cuDNN tactics are deprecated and would drag two large libraries in.
    tactics = [library.flag("TacticSource", name) for name in ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")]
    if not library.rtx and all(tactic is not None for tactic in tactics):
        config.set_tactic_sources(sum(1 << int(tactic) for tactic in tactics if tactic is not None))
    detailed = library.flag("ProfilingVerbosity", "DETAILED")
    if detailed is not None:
        config.profiling_verbosity = detailed


def _optimization_profile(builder: Any, network: Any, profile: Profile) -> Any:
    made = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        name = network.get_input(index).name
        shapes = profile.inputs.get(name)
        if shapes is None:
            known = ", ".join(sorted(profile.inputs))
            raise WorkerError("INVALID_ARGUMENT", f"the model's input {name!r} is not in its signature ({known})")
        made.set_shape(name, shapes.min, shapes.opt, shapes.max)
    return made


def _set_timing_cache(config: Any, data: bytes) -> Any:
    if not hasattr(config, "create_timing_cache"):
        return None
    cache = config.create_timing_cache(data)
    # A cache of another device or version is refused, and an empty one made in its place.
    if not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _layers(library: Library, plan: bytes) -> str:
    """What the inspector says; empty JSON where the plan cannot be loaded here."""
    trt = library.trt
    try:
        engine = trt.Runtime(library.logger).deserialize_cuda_engine(plan)
    except Exception:  # a plan for another device
        engine = None
    if engine is None:
        library.messages.take_errors()
        return "{}"
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
