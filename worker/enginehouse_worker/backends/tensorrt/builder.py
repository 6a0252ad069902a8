"""Builds plans: the ONNX model of the convert or quantize stage in, a serialized engine out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginehouse_worker.backends.base import BatchProfile
from enginehouse_worker.backends.engine_files import describe_engine, write_engine
from enginehouse_worker.backends.tensorrt import cuda
from enginehouse_worker.backends.tensorrt.inspector import FILE as INSPECTOR
from enginehouse_worker.backends.tensorrt.library import Library, open_library
from enginehouse_worker.backends.tensorrt.network import parse
from enginehouse_worker.backends.tensorrt.options import BuildOptions, build_options
from enginehouse_worker.backends.tensorrt.precision import check_chip, check_precision, set_precision, typed_source
from enginehouse_worker.backends.tensorrt.profiler import describe_layers
from enginehouse_worker.backends.tensorrt.refit import FILE as WEIGHTS
from enginehouse_worker.backends.tensorrt.refit import KEY as WEIGHTS_KEY
from enginehouse_worker.backends.tensorrt.runtime import load
from enginehouse_worker.backends.tensorrt.shapes import (
    Profile,
    batch_profiles,
    make_profiles,
    parse_shapes,
    usual_shapes,
)
from enginehouse_worker.backends.trial import run_trial
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import sole_file, write_json, write_whole
from enginehouse_worker.graphs.signature_file import read_signature

PAYLOAD = "model.plan"
TIMING_CACHE = "timing.cache"
_DEVICE = "cuda:0"


@dataclass(frozen=True)
class Plan:
    """A serialized engine, and the timing cache after the build: empty where the version has none."""

    data: bytes
    timing_cache: bytes


def build(
    model: Path,
    output: Path,
    *,
    precision: str,
    profile: BatchProfile,
    options: Mapping[str, Any],
    version: str,
    timing_cache: Path | None = None,
) -> dict[str, Any]:
    """Build an engine from a directory with one ONNX file and its signature; returns `engine.json`'s content.

    Args:
        timing_cache: a directory with the `timing.cache` of an earlier build. One of another device or version is of no
            use and does no harm.

    Raises:
        WorkerError: FAILED_PRECONDITION for what this version or GPU lacks; INVALID_ARGUMENT for a model that TensorRT
            does not take, or a bad option.
    """
    library, chosen = open_library(), build_options(options)
    check_precision(library, precision)
    device = _device(library, chosen)
    check_chip(precision, device)
    signature = read_signature(model)
    shapes = parse_shapes(str(options.get("shapes", "")))
    profiles = make_profiles(signature, batch_profiles(profile, options), shapes)
    source = typed_source(library, sole_file(model, (".onnx",), "the model"), precision)
    known = timing_cache / TIMING_CACHE if timing_cache is not None else None
    cache = known.read_bytes() if known is not None and known.is_file() else b""
    plan = make_plan(library, source, precision, profiles, chosen, cache)
    write_whole(output / PAYLOAD, plan.data)
    if chosen.strip_weights:
        # By its digest, this is one file in the store for the plans of every GPU.
        write_whole(output / WEIGHTS, source if isinstance(source, bytes) else source.read_bytes())
    if plan.timing_cache:
        write_whole(output / TIMING_CACHE, plan.timing_cache)
    engine = {
        **describe_engine(
            backend="tensorrt",
            version=version,
            precision=precision,
            signature=signature,
            profile=profile,
            payload=PAYLOAD,
            device=device,
            options=options,
        ),
        "library": library.trt.__name__,
        "strongly_typed": not library.weakly_typed,
        "profiles": [vars(item.batch) for item in profiles],
        "version_compatible": chosen.version_compatible,
        "hardware_compatible": chosen.hardware_compatible,
        "trial": "not run: no GPU" if chosen.compute_capability else "run",
        **({WEIGHTS_KEY: WEIGHTS} if chosen.strip_weights else {}),
    }
    write_engine(output, engine)
    if not chosen.compute_capability:
        del plan  # as large as the weights, which are loaded now
        loaded = load(output, device=_DEVICE, options=options)
        try:
            run_trial(loaded, profile, usual_shapes(signature, profiles[0]))
        finally:
            loaded.close()
            del loaded
        if (found := describe_layers(output, device=_DEVICE)) is not None:
            write_json(output / INSPECTOR, found)
    return engine


def _device(library: Library, options: BuildOptions) -> dict[str, str]:
    """What the manifest says of the device: the one that is here, or any of the named compute capability."""
    if not options.compute_capability:
        return cuda.open_device(_DEVICE).to_json()
    if not library.rtx:
        raise WorkerError(
            "FAILED_PRECONDITION",
            f"{library.name} builds for the GPU that it runs on; option 'compute_capability' is TensorRT for RTX's",
        )
    _compute_capability(library, options.compute_capability)
    return {"kind": "gpu", "product": "any", "compute_capability": options.compute_capability}


def _compute_capability(library: Library, text: str) -> Any:
    found = library.flag("ComputeCapability", f"SM{text.replace('.', '')}")
    if found is None:
        members = (name for name in library.trt.ComputeCapability.__members__ if name.startswith("SM"))
        known = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in members)
        raise WorkerError(
            "FAILED_PRECONDITION", f"{library.name} does not build for compute capability {text}; it knows {known}"
        )
    return found


def make_plan(
    library: Library,
    model: Path | bytes,
    precision: str,
    profiles: Sequence[Profile],
    options: BuildOptions,
    timing_cache: bytes = b"",
) -> Plan:
    """Parse and build. Needs a GPU, except where TensorRT for RTX builds for a named compute capability.

    Raises:
        WorkerError: as `build`.
    """
    builder = library.trt.Builder(library.logger)
    network, parser = parse(library, builder, model, strongly_typed=not library.weakly_typed)
    config = builder.create_builder_config()
    set_precision(library, config, network, precision)
    set_options(library, config, options)
    for profile in profiles:
        if config.add_optimization_profile(optimization_profile(builder, network, profile)) < 0:
            reason = library.messages.take_errors() or "no reason given"
            raise WorkerError("INVALID_ARGUMENT", f"TensorRT does not take the profile {profile.inputs}: {reason}")
    cache = None if library.rtx else _set_timing_cache(config, timing_cache)
    data = builder.build_serialized_network(network, config)
    if data is None:
        reason = library.messages.take_errors() or "TensorRT gave no reason; the log may have one"
        code = "RESOURCE_EXHAUSTED" if "OutOfMemory" in reason or "out of memory" in reason else "INVALID_ARGUMENT"
        raise WorkerError(code, f"{library.name} cannot build the engine: {reason}")
    del parser  # it held the network's weights
    return Plan(bytes(data), b"" if cache is None else bytes(cache.serialize()))


def set_options(library: Library, config: Any, options: BuildOptions) -> None:
    """Set what the caller chose and what every engine of ours has.

    Raises:
        WorkerError: FAILED_PRECONDITION for an option that this version does not have.
    """
    trt = library.trt
    if options.optimization_level >= 0:
        if not hasattr(config, "builder_optimization_level"):
            raise WorkerError(
                "FAILED_PRECONDITION", f"{library.name} has no optimization levels; TensorRT 8.6 and later have them"
            )
        config.builder_optimization_level = options.optimization_level
    if options.aux_streams >= 0:
        if not hasattr(config, "max_aux_streams"):
            raise WorkerError(
                "FAILED_PRECONDITION", f"{library.name} has no auxiliary streams; TensorRT 8.6 and later have them"
            )
        config.max_aux_streams = options.aux_streams
    if options.workspace_mib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if library.rtx and (options.version_compatible or options.hardware_compatible):
        what = "version" if options.version_compatible else "hardware"
        raise WorkerError(
            "FAILED_PRECONDITION", f"{library.name} has no {what} compatibility: build for each compute_capability"
        )
    if options.version_compatible:
        config.set_flag(library.require("BuilderFlag", "VERSION_COMPATIBLE", "version compatibility"))
    if options.hardware_compatible:
        level = library.require("HardwareCompatibilityLevel", "AMPERE_PLUS", "hardware compatibility")
        config.hardware_compatibility_level = level
    if options.strip_weights:
        flag = library.require("BuilderFlag", "STRIP_PLAN", "weight stripping")
        if options.compute_capability:
            raise WorkerError("FAILED_PRECONDITION", f"{library.name} strips weights only where there is a GPU")
        config.set_flag(flag)
    if options.compute_capability:
        config.num_compute_capabilities = 1
        config.set_compute_capability(_compute_capability(library, options.compute_capability), 0)
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


def optimization_profile(builder: Any, network: Any, profile: Profile) -> Any:
    """TensorRT's own object for a profile.

    Raises:
        WorkerError: INVALID_ARGUMENT naming an input of the network that the profile lacks or does not fit.
    """
    made = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shapes = profile.inputs.get(tensor.name)
        if shapes is None:
            known = ", ".join(sorted(profile.inputs))
            raise WorkerError(
                "INVALID_ARGUMENT", f"the model's input {tensor.name!r} is not in its signature ({known})"
            )
        declared = tuple(tensor.shape)
        for shape in (shapes.min, shapes.opt, shapes.max):
            if len(shape) != len(declared) or any(d >= 0 and d != s for d, s in zip(declared, shape, strict=False)):
                raise WorkerError(
                    "INVALID_ARGUMENT",
                    f"the model's input {tensor.name!r} takes {list(declared)}, and the profile has {list(shape)}",
                )
        made.set_shape(tensor.name, shapes.min, shapes.opt, shapes.max)
    return made


def _set_timing_cache(config: Any, data: bytes) -> Any:
    """The cache in use. One of another device or version is refused, and an empty one made in its place."""
    if not hasattr(config, "create_timing_cache"):
        return None
    for content in (data, b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None
