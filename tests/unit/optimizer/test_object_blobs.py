"""Blobs in an object store, with fsspec's memory and file systems: verified, bounded, refused and tried again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest
from enginehouse_optimizer.storage import objects as objects_module
from enginehouse_optimizer.storage.blobs import ProjectBlobs
from enginehouse_optimizer.storage.objects import ObjectStore
from enginehouse_optimizer.storage.remote import RemoteBlobStore

from enginehouse.artifacts import digest_bytes
from enginehouse.errors import (
    DataLossError,
    EnginehouseError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)

Blobs = Callable[..., RemoteBlobStore]


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{uuid4().hex}/x" if request.param == "memory" else f"file://{tmp_path}/objects"


@pytest.fixture
def blobs(url: str, tmp_path: Path) -> Iterator[Blobs]:
    """Stores on the same objects, each with a data folder of its own."""

    def make(name: str = "a", **options: int) -> RemoteBlobStore:
        store = ProjectBlobs(tmp_path / name, ObjectStore(url, retry_seconds=0), **options).of("p")
        assert isinstance(store, RemoteBlobStore)
        return store

    yield make


def path_of(url: str, digest: str) -> tuple[fsspec.AbstractFileSystem, str]:
    fs, root = fsspec.url_to_fs(url)
    digits = digest.partition(":")[2]
    return fs, f"{root}/projects/p/blobs/{digits[:2]}/{digits}"


def damage(url: str, digest: str) -> None:
    fs, path = path_of(url, digest)
    fs.pipe_file(path, b"evil")


def test_what_one_stores_another_reads(blobs: Blobs, url: str, tmp_path: Path) -> None:
    one, other = blobs("a"), blobs("b")
    source = tmp_path / "source"
    source.write_bytes(b"from a file")
    digests = [one.put_bytes(b"bytes"), one.put_file(source, move=True), digest_bytes(b"upload")]
    one.append(digests[2], 0, b"upl")
    assert not other.has(digests[2]) and other.committed_bytes(digests[2]) == 0
    one.append(digests[2], 3, b"oad")
    one.finish(digests[2], 6)
    assert [other.has(digest) for digest in digests] == [True] * 3
    assert [other.size(digest) for digest in digests] == [5, 11, 6]
    assert [other.read_bytes(digest) for digest in digests] == [b"bytes", b"from a file", b"upload"]
    assert sorted(blob.digest for blob in other.listing()) == sorted(digests)
    assert other.finish(digests[2], 6).read_bytes() == b"upload"
    assert other.append(digests[2], 9, b"anything") == 6
    with pytest.raises(DataLossError, match="6 bytes, not 7"):
        other.finish(digests[2], 7)
    other.delete(digests[0])
    assert not other.has(digests[0])
    with pytest.raises(NotFoundError):
        blobs("c").path(digests[0])


def test_a_damaged_object_goes_to_quarantine(blobs: Blobs, url: str) -> None:
    digest = blobs("a").put_bytes(b"good")
    damage(url, digest)
    reader = blobs("b")
    with pytest.raises(DataLossError, match="quarantine"):
        reader.path(digest)
    assert not reader.has(digest) and reader.quarantine.size() == 4
    assert not list(reader.cached()), "wrong bytes never enter the cache"
    assert reader.put_bytes(b"good") == digest and blobs("c").read_bytes(digest) == b"good"
    assert reader.quarantine.clear(1 << 62) == 1 and reader.quarantine.size() == 0


def test_a_damaged_file_of_the_cache_is_fetched_again(blobs: Blobs) -> None:
    store = blobs()
    digest = store.put_bytes(b"good")
    path = store.path(digest)
    path.chmod(0o644)
    path.write_bytes(b"evil bytes")
    assert store.path(digest).read_bytes() == b"good"


def test_a_damaged_object_is_repaired_from_the_cache(blobs: Blobs, url: str) -> None:
    store = blobs()
    digest = store.put_bytes(b"good")
    damage(url, digest)
    assert store.actual_digest(digest) == digest_bytes(b"evil")
    store.put_away(digest)
    assert store.actual_digest(digest) == digest and store.quarantine.size() == 4


def test_the_cache_is_bounded_and_what_is_in_use_stays(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    store = blobs(cache_bytes=35)
    digests = [store.put_bytes(bytes([n]) * 10) for n in range(5)]
    assert len(list(store.cached())) == 5, "all were asked for just now"
    monkeypatch.setattr(store._bound, "_in_use_ns", 0)
    store.path(digests[0])
    new = store.put_bytes(b"x" * 10)
    cached = {blob.digest for blob in store.cached()}
    assert {digests[0], new} <= cached and sum(blob.size for blob in store.cached()) <= 35
    assert all(store.has(digest) for digest in digests), "nothing is lost"
    assert store.read_bytes(digests[1]) == bytes([1]) * 10


def test_collecting_takes_objects_and_files(blobs: Blobs) -> None:
    store = blobs()
    old, wanted = store.put_bytes(b"old"), store.put_bytes(b"wanted")
    store._uses.forget(1 << 62)
    store.touch(wanted)
    before = store.last_use(wanted)
    assert store.collect([old, wanted], before) == [old]
    assert not store.has(old) and not list(blobs("b").cached())
    assert store.has(wanted)


def test_a_client_that_fails_is_tried_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects_module, "_WAIT_SECONDS", (0.0, 0.0))
    store = ObjectStore(url, retry_seconds=5)
    store.put_json("a/b", {"x": 1})
    real, calls = store._fs.cat_file, 0

    def failing(path: str) -> bytes:
        nonlocal calls
        calls += 1
        if calls < 4:
            raise ConnectionResetError("by peer")
        data: bytes = real(path)
        return data

    monkeypatch.setattr(store._fs, "cat_file", failing)
    assert store.get_json("a/b") == {"x": 1} and calls == 4


@pytest.mark.parametrize(
    ("failure", "kind", "words"),
    [
        (PermissionError("Forbidden"), FailedPreconditionError, "AWS_ACCESS_KEY_ID"),
        (TimeoutError("slow"), UnavailableError, "does not answer"),
        (OSError(5, "InternalError"), UnavailableError, "does not answer"),
        (OSError(28, "No space left on device"), ResourceExhaustedError, "free space"),
        (FileNotFoundError("NoSuchBucket"), FailedPreconditionError, "no such bucket"),
    ],
)
def test_failures_say_what_to_do(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch, failure: Exception, kind: type[EnginehouseError], words: str
) -> None:
    store = blobs()

    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(store._objects._fs, "put_file", fail)
    with pytest.raises(kind, match=words):
        store.put_bytes(b"x")
    assert not store.has(digest_bytes(b"x")) and not list(store.cached())


@pytest.mark.parametrize("url", ["folder", "teapot://x"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(InvalidArgumentError):
        ObjectStore(url)


def test_garbage_is_left_where_another_optimizer_is(url: str, tmp_path: Path) -> None:
    one, other = (ProjectBlobs(tmp_path / name, ObjectStore(url)) for name in ("a", "b"))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    one.open()
    one.check_alone()
    other.open()
    for alone in (one, other):
        with pytest.raises(FailedPreconditionError, match="is also used by"):
            alone.check_alone()
    again = ProjectBlobs(tmp_path / "a", ObjectStore(url))
    again.open()
    assert len(list(ObjectStore(url).objects("optimizers"))) == 2, "a restart makes no third"
    with pytest.raises(FailedPreconditionError, match=r"store\.json"):
        ProjectBlobs(tmp_path / "a").open()


def test_eviction_waits_for_nobody_and_forgets_no_use(blobs: Blobs) -> None:
    store = blobs()
    digest = store.put_bytes(b"x")
    used = store.last_use(digest)
    assert not store.evict(digest, used), "it was asked for since"
    assert store.evict(digest, used + 1) and not list(store.cached())
    assert store.last_use(digest) == used, "garbage collection must still know of it"
    with store._uses.leaving([digest], 1 << 62) as chosen:
        assert chosen and not store.evict(digest, 1 << 62), "somebody else removes it already"
