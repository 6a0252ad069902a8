"""The store's promises, under wrong bytes, crashes at every step, and writers in other processes."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from enginehouse.artifacts import BlobStore, digest_bytes
from enginehouse.artifacts import store as store_module
from enginehouse.errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    ResourceExhaustedError,
)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def upload(store: BlobStore, data: bytes, piece: int = 7) -> Path:
    digest = digest_bytes(data)
    offset = store.committed_bytes(digest)
    while offset < len(data):
        offset = store.append(digest, offset, data[offset : offset + piece])
    return store.finish(digest, len(data))


def test_bytes_come_back(store: BlobStore) -> None:
    digest = store.put_bytes(b"hello")
    assert digest == "sha256:" + hashlib.sha256(b"hello").hexdigest()
    assert store.path(digest).read_bytes() == b"hello"
    assert store.has(digest)
    assert store.size(digest) == 5
    assert store.read_bytes(digest) == b"hello"


def test_an_unknown_blob_is_not_found(store: BlobStore) -> None:
    digest = digest_bytes(b"nobody stored this")
    assert not store.has(digest)
    assert store.committed_bytes(digest) == 0
    for ask in (store.path, store.size, store.read_bytes):
        with pytest.raises(NotFoundError, match=digest):
            ask(digest)
    assert not store.root.exists(), "looking must not write"


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:" + "A" * 64, "md5:" + "0" * 64, "sha256:../../etc/passwd"])
def test_a_malformed_digest_is_refused(store: BlobStore, digest: str) -> None:
    with pytest.raises(InvalidArgumentError, match="not valid"):
        store.has(digest)
    with pytest.raises(InvalidArgumentError):
        store.append(digest, 0, b"x")


def test_a_file_is_copied_or_moved(store: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"payload")
    digest = store.put_file(source)
    assert source.exists()
    assert store.put_file(source, move=True) == digest
    assert not source.exists()
    assert store.read_bytes(digest) == b"payload"
    assert not list((store.root / "partial").iterdir())


def test_damaged_bytes_are_noticed_quarantined_and_repaired(store: BlobStore) -> None:
    digest = store.put_bytes(b"good bytes")
    path = store.path(digest)
    path.chmod(0o644)
    path.write_bytes(b"evil bytes")
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataLossError, match="quarantine"):
        store.path(digest)
    assert not store.has(digest)
    assert [p.read_bytes() for p in (store.root / "quarantine").iterdir()] == [b"evil bytes"]
    assert store.put_bytes(b"good bytes") == digest
    assert store.read_bytes(digest) == b"good bytes"


def test_another_process_notices_damage_that_keeps_the_file_times(store: BlobStore) -> None:
    digest = store.put_bytes(b"good bytes")
    path = store.path(digest)
    before = path.stat()
    path.chmod(0o644)
    path.write_bytes(b"evil bytes")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataLossError):
        BlobStore(store.root).path(digest)


def test_a_blob_is_hashed_once_while_its_file_stays_the_same(store: BlobStore) -> None:
    digest = store.put_bytes(b"x")
    fresh = BlobStore(store.root)
    with mock.patch.object(store_module, "digest_file", wraps=store_module.digest_file) as hashing:
        for _ in range(3):
            fresh.path(digest)
    assert hashing.call_count == 1


def test_an_upload_resumes_in_another_process(store: BlobStore) -> None:
    data = os.urandom(1000)
    digest = digest_bytes(data)
    assert store.append(digest, 0, data[:300]) == 300
    other = BlobStore(store.root)
    assert other.committed_bytes(digest) == 300
    assert not other.has(digest)
    with pytest.raises(OutOfRangeError, match="expected 300") as caught:
        other.append(digest, 0, data)
    assert caught.value.details == {"committed_bytes": "300"}
    with pytest.raises(FailedPreconditionError, match="300 of 1000"):
        other.finish(digest, 1000)
    assert other.append(digest, 300, data[300:]) == 1000
    assert other.finish(digest, 1000).read_bytes() == data
    assert other.finish(digest, 1000).read_bytes() == data, "finishing again changes nothing"
    assert store.append(digest, 5, b"anything") == 1000, "a complete blob stays"
    assert store.read_bytes(digest) == data
    assert not list((store.root / "partial").iterdir())


def test_wrong_bytes_are_dropped_at_the_end(store: BlobStore) -> None:
    digest = digest_bytes(b"what was promised")
    store.append(digest, 0, b"what was sent....")
    with pytest.raises(DataLossError, match="dropped"):
        store.finish(digest, 17)
    assert store.committed_bytes(digest) == 0
    assert upload(store, b"what was promised").read_bytes() == b"what was promised"


def test_too_many_bytes_are_dropped(store: BlobStore) -> None:
    digest = digest_bytes(b"ab")
    store.append(digest, 0, b"abc")
    with pytest.raises(DataLossError):
        store.finish(digest, 2)
    assert store.committed_bytes(digest) == 0


def test_an_empty_blob(store: BlobStore) -> None:
    assert store.finish(digest_bytes(b""), 0).read_bytes() == b""


def test_finishing_what_never_began(store: BlobStore) -> None:
    with pytest.raises(FailedPreconditionError, match="no upload"):
        store.finish(digest_bytes(b"x"), 1)


def test_a_complete_blob_of_another_size(store: BlobStore) -> None:
    digest = store.put_bytes(b"abc")
    with pytest.raises(DataLossError, match="3 bytes, not 4"):
        store.finish(digest, 4)


def test_a_full_disk_keeps_what_was_committed(store: BlobStore) -> None:
    digest = digest_bytes(b"0123456789")
    store.append(digest, 0, b"01234")

    def full(descriptor: int, data: bytes, offset: int) -> None:
        os.pwrite(descriptor, data[:2], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    with mock.patch.object(store_module, "write_all", full), pytest.raises(ResourceExhaustedError, match="free space"):
        store.append(digest, 5, b"56789")
    assert store.committed_bytes(digest) == 5
    assert upload(store, b"0123456789").read_bytes() == b"0123456789"


def test_sweep_removes_old_leftovers_only(store: BlobStore) -> None:
    old, new = digest_bytes(b"old one"), digest_bytes(b"new one")
    store.append(old, 0, b"old")
    store.append(new, 0, b"new")
    os.utime(store.root / "partial" / old.partition(":")[2], (1, 1))
    assert store.sweep(3600) == 1
    assert store.committed_bytes(old) == 0
    assert store.committed_bytes(new) == 3


def test_delete_and_drop(store: BlobStore) -> None:
    digest = store.put_bytes(b"x")
    store.delete(digest)
    store.delete(digest)
    assert not store.has(digest)
    store.append(digest, 0, b"x")
    store.drop(digest)
    assert store.committed_bytes(digest) == 0


class Crash(BaseException):
    """The process dies here."""


CRASH_POINTS = ["os.fsync", "os.open", "pathlib.Path.rename", "pathlib.Path.chmod", "pathlib.Path.unlink"]


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=64),
    point=st.sampled_from(CRASH_POINTS),
    nth=st.integers(0, 8),
    way=st.sampled_from(["put_bytes", "put_file", "move", "upload"]),
)
def test_a_crash_anywhere_leaves_nothing_or_everything(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, point: str, nth: int, way: str
) -> None:
    root = tmp_path_factory.mktemp("crash")
    source = root / "source"
    source.write_bytes(data)
    store = BlobStore(root / "blobs")
    owner, name = point.rsplit(".", 1)
    target = os if owner == "os" else Path
    real, calls = getattr(target, name), 0

    def dying(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls > nth:
            raise Crash
        return real(*args, **kwargs)

    ways = {
        "put_bytes": lambda: store.put_bytes(data),
        "put_file": lambda: store.put_file(source),
        "move": lambda: store.put_file(source, move=True),
        "upload": lambda: upload(store, data),
    }
    with mock.patch.object(target, name, dying), suppress(Crash):
        ways[way]()
    after = BlobStore(root / "blobs")
    digest = digest_bytes(data)
    if after.has(digest):
        assert after.path(digest).read_bytes() == data
    assert upload(after, data).read_bytes() == data, "whatever was left must not be in the way"


class StoreMachine(RuleBasedStateMachine):
    """Uploads of a few contents by two stores on one folder, in any order, with torn and wrong bytes between."""

    CONTENTS = [b"", b"a", b"abcdefgh", b"0123456789" * 3]
    root: Path

    def __init__(self) -> None:
        super().__init__()
        StoreMachine.counter = getattr(StoreMachine, "counter", 0) + 1
        folder = self.root / str(StoreMachine.counter)
        self.stores = [BlobStore(folder), BlobStore(folder)]
        self.complete: set[bytes] = set()
        # What every store should say an upload has committed, and whether its bytes are right.
        self.partial: dict[bytes, bytes] = {}

    content = st.sampled_from(CONTENTS)
    which = st.integers(0, 1)

    @rule(content=content, which=which)
    def put(self, content: bytes, which: int) -> None:
        self.stores[which].put_bytes(content)
        self.complete.add(content)

    @rule(content=content, which=which, size=st.integers(0, 12), wrong=st.booleans())
    def append(self, content: bytes, which: int, size: int, wrong: bool) -> None:
        store, digest = self.stores[which], digest_bytes(content)
        have = self.partial.get(content, b"")
        if content in self.complete:
            assert store.append(digest, 99, b"zzz") == len(content)
            self.partial.pop(content, None)
            return
        data = content[len(have) : len(have) + size]
        data = bytes(byte ^ 1 for byte in data) if wrong else data
        assert store.append(digest, len(have), data) == len(have) + len(data)
        self.partial[content] = have + data

    @rule(content=content, which=which, offset=st.integers(0, 40))
    def append_elsewhere(self, content: bytes, which: int, offset: int) -> None:
        if content not in self.complete and offset != len(self.partial.get(content, b"")):
            with pytest.raises(OutOfRangeError):
                self.stores[which].append(digest_bytes(content), offset, b"x")
            self.partial.setdefault(content, b"")

    @rule(content=content, which=which)
    def finish(self, content: bytes, which: int) -> None:
        store, digest = self.stores[which], digest_bytes(content)
        have = self.partial.get(content)
        if content in self.complete or (have == content) or (content == b"" and not have):
            assert store.finish(digest, len(content)).read_bytes() == content
            self.complete.add(content)
            return
        expected = FailedPreconditionError if have is None or len(have) < len(content) else DataLossError
        with pytest.raises(expected):
            store.finish(digest, len(content))
        if expected is DataLossError:
            del self.partial[content]

    @precondition(lambda self: self.complete)
    @rule(which=which, data=st.data())
    def tear(self, which: int, data: st.DataObject) -> None:
        content = data.draw(st.sampled_from(sorted(self.complete)))
        store, digest = self.stores[which], digest_bytes(content)
        path = store.path(digest)
        path.chmod(0o644)
        path.write_bytes(content[: len(content) // 2] + b"torn")
        os.utime(path, ns=(1, StoreMachine.counter))
        with pytest.raises(DataLossError):
            store.path(digest)
        self.complete.discard(content)
        self.partial.pop(content, None)
        store.drop(digest)

    @invariant()
    def readers_see_whole_blobs_or_none(self) -> None:
        for content in self.CONTENTS:
            digest = digest_bytes(content)
            for store in self.stores:
                assert store.has(digest) == (content in self.complete)
                if content in self.complete:
                    assert store.read_bytes(digest) == content
                else:
                    assert store.committed_bytes(digest) == len(self.partial.get(content, b""))


def test_any_order_of_operations(tmp_path: Path) -> None:
    StoreMachine.root = tmp_path
    run_state_machine_as_test(StoreMachine, settings=settings(max_examples=40, stateful_step_count=25, deadline=None))


def test_writers_in_many_processes(tmp_path: Path) -> None:
    """Eight processes upload the same blob in small pieces, each resuming where it finds the upload."""
    program = """
import sys
from pathlib import Path
from enginehouse.artifacts import BlobStore, digest_bytes
from enginehouse.errors import OutOfRangeError
store = BlobStore(Path(sys.argv[1]))
data = b"0123456789" * 5000
digest = digest_bytes(data)
offset = store.committed_bytes(digest)
while not store.has(digest):
    try:
        offset = store.append(digest, offset, data[offset:offset + 777])
    except OutOfRangeError:
        offset = store.committed_bytes(digest)
    if offset == len(data):
        store.finish(digest, len(data))
assert store.read_bytes(digest) == data
assert store.put_bytes(data) == digest
"""
    processes = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "blobs")]) for _ in range(8)]
    assert [process.wait(60) for process in processes] == [0] * 8
    assert not list((tmp_path / "blobs" / "partial").iterdir())


def test_an_upload_that_a_crash_left_before_its_name_can_go_on(store: BlobStore) -> None:
    data = b"crash between the check and the rename"
    digest = digest_bytes(data)
    store.append(digest, 0, data)
    with mock.patch.object(Path, "rename", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        store.finish(digest, len(data))
    (upload_file,) = (store.root / "partial").iterdir()
    assert upload_file.stat().st_mode & 0o200, "a server that is not root opens it for writing again"
    assert store.finish(digest, len(data)).stat().st_mode & 0o777 == 0o444


def test_a_sweep_of_the_only_writer_removes_what_was_on_its_way_in(store: BlobStore) -> None:
    store.append(digest_bytes(b"whole"), 0, b"who")
    (store.root / "partial" / "tmp-1234").write_bytes(b"half of an engine")
    assert store.sweep(3600) == 0
    assert store.sweep(3600, alone=True) == 1
    assert store.committed_bytes(digest_bytes(b"whole")) == 3
