"""What is said of a model that TensorRT's parser refuses, over a stand-in for the parser of TensorRT 8."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from enginehouse_worker.backends.tensorrt.library import Messages
from enginehouse_worker.backends.tensorrt.network import parse
from enginehouse_worker.errors import WorkerError


class Code:
    """An error code of TensorRT 8: prints like an enumeration's member, and its `name` is a method."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return f"ErrorCode.{self._text}"

    def name(self) -> str:
        return self._text


class Parser:
    num_errors = 1

    def __init__(self, network: object, logger: object) -> None: ...

    def parse(self, model: bytes) -> bool:
        return False

    def get_error(self, index: int) -> Any:
        return SimpleNamespace(code=lambda: Code("UNSUPPORTED_NODE"), node=lambda: 7, desc=lambda: "false")


def test_a_refusal_of_tensorrt_8_names_the_node() -> None:
    library: Any = SimpleNamespace(
        trt=SimpleNamespace(OnnxParser=Parser), logger=None, messages=Messages(), name="TensorRT 8.6.0"
    )
    library.flag = lambda kind, name: None
    builder = SimpleNamespace(create_network=lambda flags: None)
    with pytest.raises(WorkerError) as refused:
        parse(library, builder, b"model", strongly_typed=False)
    assert refused.value.code == "INVALID_ARGUMENT"
    assert "node number 7" in refused.value.message
    assert "TensorRT does not have this operator" in refused.value.message
