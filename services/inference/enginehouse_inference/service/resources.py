"""What a call names, for authorization: a model's serving configuration, or the project."""

from __future__ import annotations

from typing import Any

from enginehouse.rpc.authorization import ResourceOf
from enginehouse_inference.protocol.wire import model_name

# Of the protocol's requests that have a `name`, those where it is a model's.
_NAMING = ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics")


def resource_function(project: str) -> ResourceOf:
    """The service's `resource`: `projects/{project}/servingConfigs/{model}`; the project for a call that names none."""
    parent = f"projects/{project}"

    def resource(method: str, request: Any) -> str:
        model = _model(method.rpartition("/")[2], request)
        return f"{parent}/servingConfigs/{model}" if model else parent

    return resource


def _model(method: str, request: Any) -> str:
    if isinstance(request, bytes):  # an inference: see service/inference.py
        return model_name(request)
    return str(getattr(request, "name" if method in _NAMING else "model_name", ""))
