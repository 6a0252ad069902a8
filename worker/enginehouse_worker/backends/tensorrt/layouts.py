"""Where the tensors of a batch go: shapes and sizes, worked out once for each combination of input shapes."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from enginehouse_worker.backends.tensorrt.shapes import profile_for
from enginehouse_worker.errors import WorkerError

if TYPE_CHECKING:
    from enginehouse_worker.backends.tensorrt.contexts import Contexts
    from enginehouse_worker.backends.tensorrt.runtime import TensorRtEngine

Shapes = tuple[tuple[int, ...], ...]
# Shapes whose layouts are kept; with every dimension dynamic there is no end of them.
MAX_LAYOUTS = 256


@dataclass(frozen=True)
class Layout:
    """`sizes`: bytes by tensor as the engine stores it; `outputs`: shapes in the signature's order."""

    profile: int
    outputs: Shapes
    sizes: dict[str, int]


class Layouts:
    """Layouts of one instance. For one thread."""

    def __init__(self, engine: TensorRtEngine, contexts: Contexts, own_profile: int | None) -> None:
        self._engine = engine
        self._contexts = contexts
        self._own_profile = own_profile
        self._inputs = engine.signature.inputs
        self._outputs = engine.signature.outputs
        self.types: dict[str, np.dtype[Any]] = {s.name: engine.tensor_type(s) for s in (*self._inputs, *self._outputs)}
        self.largest = self._largest()
        self._layouts: OrderedDict[Shapes, Layout] = OrderedDict()

    def get(self, shapes: Shapes) -> Layout:
        """The layout for these input shapes.

        Raises:
            WorkerError: INVALID_ARGUMENT for shapes that the engine was not built for.
        """
        found = self._layouts.get(shapes)
        if found is not None:
            return found
        profile = self._profile(shapes)
        context = self._contexts.shared(profile)
        self.set_shapes(context, shapes)
        outputs = tuple(tuple(context.get_tensor_shape(spec.name)) for spec in self._outputs)
        sizes = {}
        for spec, shape in zip((*self._inputs, *self._outputs), (*shapes, *outputs), strict=True):
            size = math.prod(shape) * self.types[spec.name].itemsize
            if min(shape, default=0) < 0 or size > self.largest[spec.name]:
                raise WorkerError(
                    "INVALID_ARGUMENT", f"tensor {spec.name!r} of shape {list(shape)} is larger than the engine allows"
                )
            sizes[spec.name] = size
        while len(self._layouts) >= MAX_LAYOUTS:
            self._layouts.popitem(last=False)
        layout = self._layouts[shapes] = Layout(profile, outputs, sizes)
        return layout

    def set_shapes(self, context: Any, shapes: Shapes) -> None:
        """Give a context the shapes of a batch; it keeps those of its last one, which may have been another's."""
        for spec, shape in zip(self._inputs, shapes, strict=True):
            if tuple(context.get_tensor_shape(spec.name)) != shape and not context.set_input_shape(spec.name, shape):
                reason = self._engine.library.messages.take_errors() or "not what the engine was built for"
                raise WorkerError("INVALID_ARGUMENT", f"input {spec.name!r} of shape {list(shape)}: {reason}")

    def _profile(self, shapes: Shapes) -> int:
        if self._own_profile is not None:
            return self._own_profile
        if not self._engine.signature.batched or not shapes:
            return 0
        return profile_for(shapes[0][0] if shapes[0] else 1, self._engine.profiles)

    def _largest(self) -> dict[str, int]:
        """Bytes of each tensor at the largest shapes of any profile: the first is the engine's own and holds all.

        Raises:
            WorkerError: FAILED_PRECONDITION for an output whose shape depends on the data.
        """
        largest = tuple(tuple(self._engine.engine.get_tensor_profile_shape(i.name, 0)[2]) for i in self._inputs)
        sizes = {}
        for spec, shape in zip(
            (*self._inputs, *self._outputs), (*largest, *self._largest_outputs(largest)), strict=True
        ):
            if min(shape, default=0) < 0:
                raise WorkerError(
                    "FAILED_PRECONDITION", f"the shape of output {spec.name!r} depends on the data: not supported"
                )
            sizes[spec.name] = math.prod(shape) * self.types[spec.name].itemsize
        return sizes

    def _largest_outputs(self, largest: Shapes) -> list[tuple[int, ...]]:
        batched = self._engine.signature.batched
        if any(d < 0 for spec in self._outputs for d in spec.shape[1 if batched else 0 :]):
            context = self._contexts.shared(self._own_profile or 0)
            self.set_shapes(context, largest)
            return [tuple(context.get_tensor_shape(spec.name)) for spec in self._outputs]
        first = self._engine.profiles[0].max
        return [(first, *spec.shape[1:]) if batched else spec.shape for spec in self._outputs]
