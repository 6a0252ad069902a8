"""MLServer with its gRPC endpoint. Models run in the server's own process: its inference workers cost it more."""

from __future__ import annotations

import asyncio
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse

sys.path.insert(0, str(Path(__file__).parent))
from compute import MODELS, announce, arguments, free_port, session


class OnnxModel(MLModel):
    async def load(self) -> bool:
        folder = Path(str(self.settings.parameters.uri)) if self.settings.parameters else Path()
        self._run: Any = session(folder, self.settings.name).run
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        x = NumpyCodec.decode_input(payload.inputs[0])
        (y,) = self._run(None, {"x": np.ascontiguousarray(x)})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])


async def serve(folder: Path, announced: Path) -> None:
    grpc_port = free_port()
    settings = Settings(
        host="127.0.0.1",
        http_port=free_port(),
        grpc_port=grpc_port,
        metrics_port=free_port(),
        grpc_max_message_length=64 << 20,
        debug=False,
        parallel_workers=0,
    )
    models = [
        ModelSettings(name=name, implementation=OnnxModel, parameters=ModelParameters(uri=str(folder)))
        for name in MODELS
    ]
    announce(announced, grpc_port, mlserver=version("mlserver"))
    await MLServer(settings).start(models)


if __name__ == "__main__":
    asyncio.run(serve(*arguments()))
