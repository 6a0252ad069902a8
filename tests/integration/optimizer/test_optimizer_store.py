"""Keeping house in a running optimizer: collections beside jobs and uploads, checks, and the commands."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from optimizer_process import FP32, INT8, PARENT, OptimizerProcess, error_of

from enginehouse.artifacts import digest_bytes
from enginehouse.cli.run import run
from enginehouse.errors import InvalidArgumentError
from enginehouse.v1 import optimizer_pb2, store_pb2


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OptimizerProcess]:
    server = OptimizerProcess(tmp_path_factory.mktemp("store"))
    yield server
    assert server.stop() == 0, server.log.read_text()


@pytest.fixture
def enginehouse(
    server: OptimizerProcess, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    port = json.loads((server.root / "announce.json").read_text())["port"]
    monkeypatch.setenv("ENGINEHOUSE_OPTIMIZER", f"127.0.0.1:{port}")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        status = run(arguments)
        said = capfd.readouterr()
        return status, said.out, said.err

    return call


def collect(server: OptimizerProcess, **fields: Any) -> store_pb2.CollectGarbageResponse:
    request = store_pb2.CollectGarbageRequest(parent=PARENT, **fields)
    if not request.HasField("minimum_age"):
        request.minimum_age.FromSeconds(0)
    answer: store_pb2.CollectGarbageResponse = server.store.CollectGarbage(request)
    return answer


def blob_file(server: OptimizerProcess, digest: str) -> Path:
    digits = digest.partition(":")[2]
    return server.data_dir / "projects" / "default" / "blobs" / "sha256" / digits[:2] / digits


def test_collections_beside_jobs_and_uploads(server: OptimizerProcess) -> None:
    """Without any minimum age, while jobs run; and with one, while old blobs are uploaded again and named."""
    calibration = optimizer_pb2.CalibrationSpec(synthetic=optimizer_pb2.SyntheticData(samples=4))
    jobs = [server.optimize(server.model(), FP32, INT8, calibration=calibration) for _ in range(2)]
    engines: list[Any] = []
    threads = [threading.Thread(target=lambda job=job: engines.extend(server.result(job))) for job in jobs]
    for thread in threads:
        thread.start()
    contents = [b"PK\x03\x04" + os.urandom(8) for _ in range(20)]
    for data in contents:
        os.utime(blob_file(server, server.upload(data)), (1, 1))
    hour = {"minimum_age": {"seconds": 1}}
    rounds = 0
    while any(thread.is_alive() for thread in threads) or rounds < 10:
        collect(server, **({} if any(thread.is_alive() for thread in threads) else hour))
        if contents:
            assert server.model(contents.pop())
        rounds += 1
    assert len(engines) == 4
    for engine in engines:
        for file in engine.files:
            assert digest_bytes(server.download(file.digest)) == file.digest
    *findings, last = server.store.CheckStore(store_pb2.CheckStoreRequest(parent=PARENT))
    assert findings == [] and last.totals.engines == 4


def test_negative_ages_are_refused(server: OptimizerProcess) -> None:
    error = error_of(collect, server, minimum_age={"seconds": -1})
    assert isinstance(error, InvalidArgumentError) and "minimum_age" in error.message


def test_the_commands(server: OptimizerProcess, enginehouse: Callable[..., tuple[int, str, str]]) -> None:
    collect(server)
    garbage = server.upload(b"garbage" + os.urandom(8))
    status, out, _ = enginehouse("store", "usage", "--json")
    usage = json.loads(out)
    assert status == 0 and usage["garbage_bytes"] == 15 and usage["bytes"] > 15
    assert enginehouse("store", "usage")[1].splitlines()[0].split() == ["WHAT", "SIZE"]
    assert "removed 0 blobs" in enginehouse("store", "gc")[2], "too young"
    assert "would remove 1 blobs (15 B)" in enginehouse("store", "gc", "--dry-run", "--minimum-age", "0")[2]
    assert blob_file(server, garbage).exists()
    status, out, _ = enginehouse("store", "gc", "--minimum-age", "0", "--json")
    assert (status, json.loads(out)["blobs"]) == (0, 1) and not blob_file(server, garbage).exists()

    status, out, err = enginehouse("store", "fsck")
    assert (status, out) == (0, "") and "0 findings" in err
    flipped = server.upload(b"a dataset that nobody named" + os.urandom(8))
    file = blob_file(server, flipped)
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    data[3] ^= 4
    file.write_bytes(data)
    status, out, err = enginehouse("store", "fsck")
    assert status == 1 and out.startswith(f"damaged: {flipped}") and "1 findings, 0 repaired" in err
    status, out, _ = enginehouse("store", "fsck", "--repair", "--json")
    assert status == 0 and json.loads(out)["findings"][0]["repaired"] is True
    assert enginehouse("store", "fsck")[0] == 0
    assert not file.exists()
    assert server.upload(bytes(data[:3]) + bytes([data[3] ^ 4]) + bytes(data[4:])) == flipped, "and comes back"
