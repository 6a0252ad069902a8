"""The parts of the optimizer that inference processes talk to, in this process, with what a test publishes."""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from enginehouse.v1 import blobs_pb2, blobs_pb2_grpc, engines_pb2, engines_pb2_grpc, serving_pb2, serving_pb2_grpc


class OptimizerDouble(serving_pb2_grpc.ServingConfigsServicer, engines_pb2_grpc.EnginesServicer):
    """Serving configurations, engines and blobs of the project "default".

    `damage`: digests whose bytes come wrong. `reads`: what was downloaded, from which offset.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._configs: dict[str, serving_pb2.ServingConfig] = {}
        self._engines: dict[str, engines_pb2.Engine] = {}
        self._blobs: dict[str, bytes] = {}
        self._revision = 0
        self._server: Any = None
        self.port = 0
        self.damage: set[str] = set()
        self.reads: list[tuple[str, int]] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen: on the port of before, when it was stopped."""
        self._server = grpc.server(ThreadPoolExecutor(8))
        serving_pb2_grpc.add_ServingConfigsServicer_to_server(self, self._server)
        engines_pb2_grpc.add_EnginesServicer_to_server(self, self._server)
        blobs_pb2_grpc.add_BlobsServicer_to_server(_Blobs(self), self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def stop(self) -> None:
        with self._changed:
            server, self._server = self._server, None
            self._changed.notify_all()
        if server is not None:
            server.stop(0).wait()

    def publish(self, name: str, directory: Path, **facts: Any) -> str:
        """Publish an engine directory, with what else is said of the engine; returns its resource name."""
        engine = engines_pb2.Engine(name=f"projects/default/engines/{name}", **facts)
        for path in sorted(directory.iterdir()):
            data = path.read_bytes()
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            self._blobs[digest] = data
            engine.files.add(path=path.name, digest=digest, size_bytes=len(data))
        self._engines[engine.name] = engine
        return engine.name

    def digest(self, engine: str, path: str) -> str:
        return next(f.digest for f in self._engines[engine].files if f.path == path)

    def configure(self, name: str, versions: dict[int, str], **fields: Any) -> None:
        """Desire a model: version to engine."""
        config = serving_pb2.ServingConfig(name=f"projects/default/servingConfigs/{name}", **fields)
        for version, engine in versions.items():
            config.versions.add(version=version, engine=engine)
        config.options["intra_op_threads"] = "1"
        with self._changed:
            self._configs[name] = config
            self._revision += 1
            self._changed.notify_all()

    def remove(self, name: str) -> None:
        with self._changed:
            del self._configs[name]
            self._revision += 1
            self._changed.notify_all()

    def WatchServingConfigs(self, request: Any, context: Any) -> Iterator[serving_pb2.WatchServingConfigsResponse]:
        assert request.parent == "projects/default"
        server = self._server
        seen = -1
        while context.is_active() and self._server is server:
            with self._changed:
                if seen == self._revision:
                    self._changed.wait(0.2)
                    continue
                seen = self._revision
                configs = [self._configs[name] for name in sorted(self._configs)]
            yield serving_pb2.WatchServingConfigsResponse(serving_configs=configs, revision=seen)

    def GetEngine(self, request: Any, context: Any) -> engines_pb2.Engine:
        if request.name not in self._engines:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no engine {request.name}")
        return self._engines[request.name]

    def ListEngines(self, request: Any, context: Any) -> engines_pb2.ListEnginesResponse:
        found = [engine for engine in self._engines.values() if engine.model == request.model]
        return engines_pb2.ListEnginesResponse(engines=found)


class _Blobs(blobs_pb2_grpc.BlobsServicer):
    def __init__(self, world: OptimizerDouble) -> None:
        self._world = world

    def ReadBlob(self, request: Any, context: Any) -> Iterator[blobs_pb2.ReadBlobResponse]:
        data = self._world._blobs[request.digest]
        self._world.reads.append((request.digest, request.offset))
        if request.digest in self._world.damage:
            data = data[:-1] + bytes([data[-1] ^ 1])
        for offset in range(request.offset, len(data), 100):
            chunk = data[offset : offset + 100]
            yield blobs_pb2.ReadBlobResponse(offset=offset, data=chunk, crc32=zlib.crc32(chunk))
