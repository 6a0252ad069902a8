"""Triton Inference Server as nvidia-pytriton carries it: its binary in front, the models in a Python process behind."""

from __future__ import annotations

import os
import sysconfig
from importlib.metadata import version
from typing import Any

import numpy as np
from compute import announce, arguments, free_port, session
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig, TritonSecurityConfig

MAX_BATCH = 16


def main() -> None:
    models, announced = arguments()
    # Triton's Python processes are linked with this Python's library, which may not be the system's.
    libraries = [str(sysconfig.get_config_var("LIBDIR")), os.environ.get("LD_LIBRARY_PATH", "")]
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
    ports = {"grpc_port": free_port(), "http_port": free_port(), "metrics_port": free_port()}
    tensors = {
        "identity": (np.float32, (1000,), np.float32, (1000,)),
        "sums": (np.uint8, (224, 224, 3), np.int32, (1,)),
    }
    # Without it clients need a token to register shared memory.
    open_to_all = TritonSecurityConfig(restricted_endpoints=[])
    with Triton(config=TritonConfig(**ports, log_verbose=0), security_config=open_to_all) as triton:
        for name, (in_type, in_shape, out_type, out_shape) in tensors.items():
            run = session(models, name).run

            @batch
            def infer(x: Any, run: Any = run) -> dict[str, Any]:
                return {"y": run(None, {"x": x})[0]}

            triton.bind(
                model_name=name,
                infer_func=infer,
                inputs=[Tensor(name="x", dtype=in_type, shape=in_shape)],
                outputs=[Tensor(name="y", dtype=out_type, shape=out_shape)],
                config=ModelConfig(max_batch_size=MAX_BATCH, batching=True, batcher=DynamicBatcher()),
            )
        triton.run()
        announce(announced, ports["grpc_port"], **{"nvidia-pytriton": version("nvidia-pytriton")})
        triton.serve()


if __name__ == "__main__":
    main()
