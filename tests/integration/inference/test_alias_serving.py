"""Engines imported into a real optimizer, served by a real inference process by their alias, exported again."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_bundles import bundle, folder_files
from inference_world import Server, wait_for
from optimizer_process import OptimizerProcess

from enginehouse import Client, Engine
from enginehouse.errors import AlreadyExistsError, DataLossError, FailedPreconditionError, InvalidArgumentError

StartServer = Callable[..., Server]
OPTIONS = {"intra_op_threads": 1}


@pytest.fixture
def optimizer(tmp_path: Path) -> Iterator[OptimizerProcess]:
    process = OptimizerProcess(tmp_path / "optimizer")
    yield process
    assert process.stop() == 0, process.log.read_text()


def _client(optimizer: OptimizerProcess, server: Server | None = None, project: str = "default") -> Client:
    port = json.loads((optimizer.root / "announce.json").read_text())["port"]
    return Client(f"127.0.0.1:{port}", server.address if server else "127.0.0.1:1", project=project)


def _import(client: Client, folder: Path, tmp_path: Path) -> Engine:
    extra = {"calibration_digest": b"{}", "build_log_digest": b"built"}
    path = bundle(tmp_path / f"{folder.name}.engine", folder_files(folder), extra=extra)
    return client.engines.import_file(path)


class _Load:
    """Callers that ask without a pause, with as many rows as fill several batches: what each saw, and what failed."""

    def __init__(self, callers: int) -> None:
        self.seen: list[list[tuple[str, float]]] = [[] for _ in range(callers)]
        self.failures: list[Exception] = []

    def all_saw(self, version: str, factor: float) -> Callable[[], bool]:
        """Whether every caller was last answered by that version; True at once after a failure."""
        return lambda: bool(self.failures) or all(seen[-1:] == [(version, factor)] for seen in self.seen)


@contextmanager
def _load(client: Client, x: Any, callers: int = 6) -> Iterator[_Load]:
    load = _Load(callers)
    done = threading.Event()

    def keep_asking(seen: list[tuple[str, float]], rows: Any) -> None:
        while not done.is_set():
            try:
                result = client.infer("m", rows)
                (factor,) = np.unique(result.only() / rows)
                seen.append((result.model_version, float(factor)))
            except Exception as error:
                load.failures.append(error)

    threads = [
        threading.Thread(target=keep_asking, args=(seen, np.concatenate([x] * (1 + 3 * place))))
        for place, seen in enumerate(load.seen)
    ]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_moving_an_alias_rolls_what_is_served(
    start_server: StartServer, optimizer: OptimizerProcess, models: Path, tmp_path: Path
) -> None:
    server = start_server(optimizer=_client(optimizer).addresses.optimizer)
    with _client(optimizer, server) as client:
        double, triple = (_import(client, models / name, tmp_path) for name in ("double", "triple"))
        client.engines.set_alias("m:prod", double)
        config = client.load("m", "m:prod", options=OPTIONS)
        assert [(v.version, v.engine, v.alias) for v in config.versions] == [
            (1, double.name, "projects/default/models/m/aliases/prod")
        ]
        assert client.load("m", "m:prod") == config, "nothing to change"
        x = np.arange(1, 9, dtype=np.float32).reshape(2, 4)
        with _load(client, x) as load:
            wait_for(load.all_saw("1", 2.0))
            client.engines.set_alias("m:prod", triple)
            wait_for(load.all_saw("2", 3.0))
            client.engines.set_alias("m:prod", double)
            wait_for(load.all_saw("3", 2.0))
        assert not load.failures
        for seen in load.seen:  # nobody is sent back to an engine that was replaced
            assert list(dict.fromkeys(seen)) == [("1", 2.0), ("2", 3.0), ("3", 2.0)]
        assert [v.version for v in client.serving.get("m").versions] == [3]
        # Another setting of the same alias is the next version; only it follows.
        config = client.load("m", "m:prod", instances=2)
        assert [(v.version, bool(v.alias)) for v in config.versions] == [(4, True)]
        with pytest.raises(FailedPreconditionError, match="m"):
            client.engines.delete_alias("m:prod")
        with pytest.raises(FailedPreconditionError, match="prod"):
            client.engines.delete("m:prod")
        # A fixed engine again, and the alias lets go.
        client.load("m", triple)
        client.unload("m")
        client.engines.delete_alias("m:prod")
        client.engines.delete(double)
        assert [engine.id for engine in client.engines.list()] == [triple.id]


def test_an_engine_travels_as_one_file(optimizer: OptimizerProcess, models: Path, tmp_path: Path) -> None:
    with _client(optimizer) as client, _client(optimizer, project="other") as other:
        engine = _import(client, models / "double", tmp_path)
        assert _import(client, models / "double", tmp_path) == engine, "again changes nothing"
        client.engines.set_alias("m:prod", engine)
        told: list[tuple[int, int]] = []
        path = client.engines.export_file("m:prod", tmp_path / "out.engine", progress=lambda *n: told.append(n))
        assert told and told[-1][0] == told[-1][1]
        assert path.read_bytes() == (tmp_path / "double.engine").read_bytes(), "one engine, one file"
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".out")] == []
        with pytest.raises(AlreadyExistsError):
            client.engines.export_file(engine, path)
        assert client.engines.export_file(engine, path, overwrite=True) == path
        assert other.engines.list() == []
        there = other.engines.import_file(path, model_id="renamed")
        assert there.model == "projects/other/models/renamed" and there.files == engine.files
        assert there.manifest_digest == engine.manifest_digest and there.create_time == engine.create_time
        assert other.engines.build_log(there) == "built"
        folder = other.engines.download(there, tmp_path / "folder")
        assert (folder / "model.onnx").read_bytes() == (models / "double" / "model.onnx").read_bytes()
        data = bytearray(path.read_bytes())
        data[-2000] ^= 1
        path.write_bytes(data)
        with pytest.raises(DataLossError, match="damaged"):
            other.engines.import_file(path)
        with pytest.raises(InvalidArgumentError, match="there is no file"):
            other.engines.import_file(tmp_path / "none.engine")
        assert len(other.engines.list()) == 1
        pinned = client.engines.pin("m:prod")
        assert pinned.pinned and pinned.aliases == ("prod",)
        assert [alias.short for alias in client.engines.list_aliases("m")] == ["m:prod"]
        staging = client.engines.set_alias("m:staging", "m:prod")
        assert staging.engine == engine.name
