"""What a Keras model's configuration would run or import when it is loaded, found without Keras.

Keras files carry code in three ways: Python bytecode (marshal) of a lambda, which a Lambda layer or any
function-valued argument holds; names of classes and functions to import; layers that wrap another framework's program
or a path.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_CODE = {
    "Lambda": "is a Lambda layer, which runs code that the file carries",
    "__lambda__": "holds a Python lambda, which is code that the file carries",
    "TFSMLayer": "loads a SavedModel from a path",
    "TorchModuleWrapper": "unpickles a PyTorch module",
    "JaxLayer": "wraps a JAX function",
    "FlaxLayer": "wraps a Flax module",
}
# Where Keras's own model-building classes and functions live. Others (keras.utils, keras.saving) do things.
_MODULES = (
    "layers", "models", "ops", "initializers", "regularizers", "constraints", "activations", "dtype_policies",
    "quantizers",
    "losses", "metrics", "optimizers", "random", "applications", "src",
)  # fmt: skip
_VALUES = (
    "__keras_tensor__",
    "__tensor__",
    "__numpy__",
    "__bytes__",
    "__ellipsis__",
    "__slice__",
    "__typespec__",
    "__tuple__",
)


@dataclass(frozen=True)
class Hazard:
    """`where` names the layer and what it is nested in; `carries_code` is false for code that is not in the file."""

    where: str
    what: str
    carries_code: bool


def hazards(configuration: Any) -> list[Hazard]:
    """Everything in a parsed configuration that is not plain Keras, outermost first."""
    return list(_hazards(configuration, ()))


def _hazards(value: Any, path: tuple[str, ...]) -> Iterator[Hazard]:
    if isinstance(value, list):
        for item in value:
            yield from _hazards(item, path)
        return
    if not isinstance(value, dict):
        return
    kind = value.get("class_name")
    if kind is None and _is_bare_lambda(value):
        kind = "__lambda__"
    if isinstance(kind, str):
        name = _name(value)
        here = (*path, f"{name!r}") if name else path
        where = " in ".join(reversed(here)) or "the model"
        if kind in _CODE:
            yield Hazard(where, _CODE[kind], carries_code=True)
            return
        if (custom := _custom(value, kind)) is not None:
            yield Hazard(where, custom, carries_code=False)
        path = here
    for key, item in value.items():
        # How a model was trained is not loaded.
        if key != "compile_config":
            yield from _hazards(item, path)


def _is_bare_lambda(value: dict[str, Any]) -> bool:
    """Whether an object is what Keras makes of a lambda that is an activation: code, defaults and closure alone."""
    parts = value.get("value")
    return value.keys() == {"value"} and isinstance(parts, list) and len(parts) == 3 and isinstance(parts[0], str)


def _name(value: dict[str, Any]) -> str | None:
    inner = value.get("config")
    name = (inner.get("name") if isinstance(inner, dict) else None) or value.get("name")
    return name if isinstance(name, str) else None


def _custom(value: dict[str, Any], kind: str) -> str | None:
    """Words for a class or function that is not one of Keras's for building models; None for one that is."""
    if kind in _VALUES or "module" not in value:
        # HDF5 files name no modules: there, only names that Keras's layers have are found.
        return None
    module, registered = value["module"], value.get("registered_name")
    shown = str(value.get("config")) if kind == "function" else kind
    if isinstance(module, str):
        parts = module.split(".")
        if module in ("builtins", "keras") or (parts[0] == "keras" and len(parts) > 1 and parts[1] in _MODULES):
            return None
    origin = (
        registered if isinstance(registered, str) and ">" in registered else f"{module}.{shown}" if module else shown
    )
    return f"is of the custom {'function' if kind == 'function' else 'class'} {origin}"
