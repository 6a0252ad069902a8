"""KServe's Python server with its gRPC endpoint."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from compute import MODELS, announce, arguments, free_port, session
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class OnnxModel(Model):
    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name)
        self._run = session(folder, name).run
        self.ready = True

    async def predict(self, payload: InferRequest, headers: Any = None, response_headers: Any = None) -> InferResponse:
        (y,) = self._run(None, {"x": payload.inputs[0].as_numpy()})
        output = InferOutput(name="y", shape=list(y.shape), datatype="FP32" if y.dtype == "float32" else "INT32")
        output.set_data_from_numpy(y, binary_data=True)
        return InferResponse(payload.id or "1", self.name, [output])


def main() -> None:
    folder, announced = arguments()
    grpc_port, http_port = free_port(), free_port()

    announce(announced, grpc_port, kserve=version("kserve"))
    ModelServer(http_port=http_port, grpc_port=grpc_port, workers=1, access_log_format=None).start(
        [OnnxModel(name, folder) for name in MODELS]
    )


if __name__ == "__main__":
    main()
