"""A plan run by TensorRT and CUDA alone: own buffers, one stream, one CUDA graph, timed by events. Nothing of ours.

    python benchmarks/tensorrt_speed/direct.py model.plan --batch 128 --seconds 3

trtexec is in no Python package; this is the least that a program does to run a plan, so what our runtime takes more is
its own. Needs tensorrt, cuda-bindings and NumPy. For a plan with one input and one output, the batch in dimension 0.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt as trt
from cuda.bindings import runtime as cuda


def checked(result: tuple[Any, ...]) -> Any:
    """The value of a call of the bindings.

    Raises:
        RuntimeError: the call failed.
    """
    error, *values = result
    if int(error) != 0:
        raise RuntimeError(str(error))
    return values[0] if values else None


class Direct:
    """One context, and a graph for each batch size."""

    def __init__(self, plan: Path) -> None:
        checked(cuda.cudaSetDevice(0))
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise RuntimeError(f"TensorRT does not load {plan}")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        modes = [self._engine.get_tensor_mode(name) for name in names]
        self._input = names[modes.index(trt.TensorIOMode.INPUT)]
        self._output = names[modes.index(trt.TensorIOMode.OUTPUT)]
        self._stream = checked(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))
        self._events = [checked(cuda.cudaEventCreate()) for _ in range(2)]
        self._graphs: dict[int, Any] = {}
        self._kept: list[Any] = []

    def prepare(self, batch: int) -> None:
        """Make buffers and a graph for a batch size. The input is random."""
        if batch in self._graphs:
            return
        context = self._engine.create_execution_context()
        profile = self._profile(batch)
        if context.active_optimization_profile != profile:
            context.set_optimization_profile_async(profile, int(self._stream))
            checked(cuda.cudaStreamSynchronize(self._stream))
        shape = (batch, *tuple(self._engine.get_tensor_shape(self._input))[1:])
        context.set_input_shape(self._input, shape)
        dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(self._input)))
        random = np.random.default_rng(batch)
        if dtype == np.uint8:
            images = random.integers(0, 256, shape, np.uint8)
        else:
            images = random.standard_normal(shape, np.float32).astype(dtype)
        out_dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(self._output)))
        out_size = math.prod(tuple(context.get_tensor_shape(self._output))) * out_dtype.itemsize
        source, target = checked(cuda.cudaMalloc(images.nbytes)), checked(cuda.cudaMalloc(out_size))
        kind = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        checked(cuda.cudaMemcpy(source, images.ctypes.data, images.nbytes, kind))
        context.set_tensor_address(self._input, int(source))
        context.set_tensor_address(self._output, int(target))
        self._enqueue(context)
        checked(cuda.cudaStreamSynchronize(self._stream))
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        checked(cuda.cudaStreamBeginCapture(self._stream, mode))
        self._enqueue(context)
        graph = checked(cuda.cudaStreamEndCapture(self._stream))
        self._graphs[batch] = checked(cuda.cudaGraphInstantiate(graph, 0))
        self._kept.append((context, source, target, graph))

    def seconds(self, batch: int, count: int) -> float:
        """GPU seconds of `count` batches back to back, by events."""
        begin, end = self._events
        checked(cuda.cudaEventRecord(begin, self._stream))
        for _ in range(count):
            checked(cuda.cudaGraphLaunch(self._graphs[batch], self._stream))
        checked(cuda.cudaEventRecord(end, self._stream))
        checked(cuda.cudaEventSynchronize(end))
        return float(checked(cuda.cudaEventElapsedTime(begin, end))) / 1e3

    def close(self) -> None:
        """Free everything."""
        cuda.cudaStreamSynchronize(self._stream)
        for executable in self._graphs.values():
            cuda.cudaGraphExecDestroy(executable)
        for _, source, target, graph in self._kept:
            cuda.cudaGraphDestroy(graph)
            cuda.cudaFree(source)
            cuda.cudaFree(target)
        self._graphs.clear()
        self._kept.clear()
        for event in self._events:
            cuda.cudaEventDestroy(event)
        cuda.cudaStreamDestroy(self._stream)
        self._engine = self._runtime = None

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(int(self._stream)):
            raise RuntimeError("TensorRT does not run the batch")

    def _profile(self, batch: int) -> int:
        """The profile whose usual batch is nearest above this one's, else the one that holds it."""
        shapes = [
            self._engine.get_tensor_profile_shape(self._input, i) for i in range(self._engine.num_optimization_profiles)
        ]
        fitting = [i for i, (low, _, high) in enumerate(shapes) if low[0] <= batch <= high[0]]
        return min(fitting, key=lambda i: (shapes[i][1][0] < batch, abs(shapes[i][1][0] - batch), shapes[i][2][0]))


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("plan", type=Path)
    cli.add_argument("--batch", type=int, nargs="+", default=[1, 128])
    cli.add_argument("--seconds", type=float, default=3.0)
    arguments = cli.parse_args()
    direct = Direct(arguments.plan)
    for batch in arguments.batch:
        direct.prepare(batch)
        direct.seconds(batch, 10)
        rates, begin = [], time.monotonic()
        while time.monotonic() - begin < arguments.seconds:
            rates.append(batch * 20 / direct.seconds(batch, 20))
        singles = sorted(direct.seconds(batch, 1) * 1e3 for _ in range(200))
        median = statistics.median(rates)
        print(f"batch {batch}: {median:.0f} images/s, latency {singles[100]:.4f} ms, p99 {singles[197]:.4f} ms")
    direct.close()


if __name__ == "__main__":
    main()
