"""Optimizers whose blobs are in S3: what is published outlives them, and what goes wrong there is said."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from optimizer_process import FP32, INT8, PARENT, OptimizerProcess, chunks, error_of
from s3_server import BUCKET, KEYS, S3Server

from enginehouse.artifacts import digest_bytes
from enginehouse.errors import DataLossError, FailedPreconditionError, UnavailableError
from enginehouse.v1 import blobs_pb2, engines_pb2, optimizer_pb2, store_pb2

Start = Callable[..., OptimizerProcess]


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3") / "moto.log")
    yield server
    server.stop()


def store(s3: S3Server, prefix: str, **variables: str) -> dict[str, str]:
    """Settings of an optimizer that keeps its blobs there."""
    return {
        **KEYS,
        "ENGINEHOUSE_STORE_URL": f"s3://{BUCKET}/{prefix}",
        "ENGINEHOUSE_STORE_OPTIONS": json.dumps({"endpoint_url": s3.endpoint}),
        "ENGINEHOUSE_STORE_RETRY_SECONDS": "0.5",
        **variables,
    }


def key_of(prefix: str, digest: str) -> str:
    digits = digest.partition(":")[2]
    return f"{prefix}/projects/default/blobs/{digits[:2]}/{digits}"


def findings(optimizer: OptimizerProcess, repair: bool = False) -> list[tuple[str, str]]:
    *found, last = optimizer.store.CheckStore(store_pb2.CheckStoreRequest(parent=PARENT, repair=repair))
    assert last.totals.findings == len(found)
    return [(item.finding.kind, item.finding.digest) for item in found]


def test_engines_outlive_their_optimizer(s3: S3Server, start: Start) -> None:
    first = start(**store(s3, "life"))
    calibration = optimizer_pb2.CalibrationSpec(synthetic=optimizer_pb2.SyntheticData(samples=4))
    engines = first.result(first.optimize(first.model(), FP32, INT8, calibration=calibration))
    payload = {file.digest: first.download(file.digest) for engine in engines for file in engine.files}
    assert first.stop() == 0
    assert all(key_of("life", digest) in s3.keys("life/") for digest in payload)

    second = start(**store(s3, "life", ENGINEHOUSE_STORE_CACHE_BYTES="1"))
    listed = second.engines.ListEngines(engines_pb2.ListEnginesRequest(parent=PARENT)).engines
    assert sorted(listed, key=lambda engine: engine.name) == sorted(engines, key=lambda engine: engine.name)
    assert '"recovered_engines": 2' in second.log.read_text() or "recovered_engines=2" in second.log.read_text()
    for digest, data in payload.items():
        assert second.download(digest) == data
    assert findings(second) == []

    # What the first one's models and jobs need is not known to the second.
    collect = store_pb2.CollectGarbageRequest(parent=PARENT)
    refused = error_of(second.store.CollectGarbage, collect)
    assert isinstance(refused, FailedPreconditionError) and "is also used by" in refused.message
    registration = refused.message.rsplit(f"s3://{BUCKET}/", 1)[1]
    s3.client().delete_object(Bucket=BUCKET, Key=registration)
    collect.minimum_age.FromSeconds(0)
    collected = second.store.CollectGarbage(collect)
    assert collected.blobs > 0, "the model and the stages' results, which nothing names any more"
    assert findings(second) == [], "but nothing of the engines"

    second.engines.DeleteEngine(engines_pb2.DeleteEngineRequest(name=engines[0].name))
    assert second.stop() == 0
    assert [key.rsplit("/", 1)[1] for key in s3.keys("life/projects/default/engines/")] == [
        engines[1].name.rsplit("/", 1)[1] + ".json"
    ]


@pytest.mark.slow
def test_a_damaged_object_is_data_loss_until_it_is_uploaded_again(s3: S3Server, start: Start) -> None:
    first = start(**store(s3, "damage"))
    digest, other = first.upload(b"good bytes"), first.upload(b"others")
    for damaged in (digest, other):
        s3.client().put_object(Bucket=BUCKET, Key=key_of("damage", damaged), Body=b"evil bytes")
    assert first.download(digest) == b"good bytes", "the cache has them"
    assert findings(first, repair=True) == [("damaged", d) for d in sorted([digest, other])]
    assert findings(first) == [], "repaired from the cache"

    s3.client().put_object(Bucket=BUCKET, Key=key_of("damage", digest), Body=b"evil bytes")
    second = start(**store(s3, "damage"))
    error = error_of(second.blobs.ReadBlob, blobs_pb2.ReadBlobRequest(parent=PARENT, digest=digest))
    assert isinstance(error, DataLossError) and digest in error.message and "quarantine" in error.message
    assert not second.blobs.FindBlob(blobs_pb2.FindBlobRequest(parent=PARENT, digest=digest)).complete
    usage = second.store.GetUsage(store_pb2.GetUsageRequest(parent=PARENT))
    assert usage.quarantined_bytes == 3 * len(b"evil bytes") and usage.blobs == 1
    second.upload(b"good bytes")
    assert second.download(digest) == b"good bytes"


@pytest.mark.slow
def test_a_damaged_file_of_the_cache_is_fetched_again(s3: S3Server, start: Start) -> None:
    server = start(**store(s3, "cache"))
    digest = server.upload(b"good bytes")
    (cached,) = server.data_dir.glob("projects/default/blobs/sha256/??/*")
    cached.chmod(0o644)
    cached.write_bytes(b"evil")
    assert server.download(digest) == b"good bytes"


@pytest.mark.slow
def test_two_optimizers_write_the_same_blob(s3: S3Server, start: Start) -> None:
    servers = [start(**store(s3, "two")) for _ in range(2)]
    data = os.urandom(3 << 20)
    with ThreadPoolExecutor(4) as pool:
        digests = set(pool.map(lambda server: server.upload(data), servers))
    assert digests == {digest_bytes(data)}
    assert all(server.download(digest_bytes(data)) == data for server in servers)
    third = servers[0].upload(b"only one has it")
    assert servers[1].blobs.FindBlob(blobs_pb2.FindBlobRequest(parent=PARENT, digest=third)).complete
    assert servers[1].download(third) == b"only one has it"


@pytest.mark.slow
def test_a_network_that_goes_away(tmp_path: Path, start: Start) -> None:
    s3 = S3Server(tmp_path / "moto.log")
    server = start(**store(s3, "network"))
    data = os.urandom(1_500_000)
    digest = digest_bytes(data)
    server.blobs.WriteBlob(chunks(data[:1_000_000], digest=digest, size=len(data)))
    s3.stop()
    error = error_of(server.blobs.WriteBlob, chunks(data, digest=digest, offset=1_000_000))
    assert isinstance(error, UnavailableError) and "does not answer" in error.message, error
    assert isinstance(error_of(server.upload, b"another"), UnavailableError)
    s3.start()
    try:
        find = server.blobs.FindBlob(blobs_pb2.FindBlobRequest(parent=PARENT, digest=digest))
        assert not find.complete and find.committed_bytes >= 1_000_000, "what was sent is not sent again"
        server.blobs.WriteBlob(chunks(data, digest=digest, offset=find.committed_bytes, size=len(data)))
        assert server.download(digest) == data
        assert s3.keys("network/projects/") == [key_of("network", digest)]
        assert server.stop() == 0
    finally:
        s3.stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://no-such-bucket-here/x", "no such bucket"),
        ("nowhere", "expected a URL"),
        ("teapot://x", "cannot be used"),
    ],
)
def test_stores_that_cannot_be_used(s3: S3Server, start: Start, tmp_path: Path, url: str, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        start(**store(s3, "x", ENGINEHOUSE_STORE_URL=url))


@pytest.mark.slow
def test_a_folder_moves_into_an_object_store_and_not_back(s3: S3Server, start: Start) -> None:
    server = start()
    digest = server.upload(b"local first")
    assert server.stop() == 0
    server.variables |= store(s3, "moved")
    server.start()
    assert key_of("moved", digest) in s3.keys("moved/")
    assert server.download(digest) == b"local first"
    assert server.stop() == 0
    server.variables["ENGINEHOUSE_STORE_URL"] = ""
    done = subprocess.run(server.command, env=server.variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and f"are in s3://{BUCKET}/moved" in done.stderr
