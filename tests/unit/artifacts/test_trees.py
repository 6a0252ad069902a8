"""Directories as trees of blobs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.artifacts import BlobStore, Tree, TreeEntry, digest_bytes, materialize, store_tree
from enginehouse.artifacts.tree import check_path
from enginehouse.errors import DataLossError, EnginehouseError, InternalError, InvalidArgumentError, NotFoundError

DIGEST = digest_bytes(b"x")


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def make(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def read(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


FILES = {"a.txt": b"1", "sub/b.bin": b"22", "sub/deep/c": b"", "same": b"1"}


@pytest.mark.parametrize("copy", [False, True])
def test_a_directory_comes_back(store: BlobStore, tmp_path: Path, copy: bool) -> None:
    tree = store_tree(store, make(tmp_path / "in", FILES))
    assert [entry.path for entry in tree.entries] == sorted(FILES)
    assert tree.size == sum(map(len, FILES.values()))
    materialize(store, tree, tmp_path / "out", copy=copy)
    assert read(tmp_path / "out") == FILES
    links = (tmp_path / "out" / "sub" / "b.bin").stat().st_nlink
    assert links == (1 if copy else 2)
    assert Tree.from_json(tree.to_json()) == tree
    assert tree.without("same", "absent").digest != tree.digest


def test_moving_takes_the_files(store: BlobStore, tmp_path: Path) -> None:
    tree = store_tree(store, make(tmp_path / "in", FILES), move=True)
    assert read(tmp_path / "in") == {}
    materialize(store, tree, tmp_path / "out")
    assert read(tmp_path / "out") == FILES


def test_equal_files_have_equal_trees(store: BlobStore, tmp_path: Path) -> None:
    first = store_tree(store, make(tmp_path / "one", FILES))
    second = store_tree(store, make(tmp_path / "two", dict(reversed(FILES.items()))))
    assert first.digest == second.digest


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../up", "a/../../b", "a//b", "./a", "a/.", "..", "a\\..\\b", "nul\0"]
)
def test_paths_that_leave_are_refused(store: BlobStore, tmp_path: Path, path: str) -> None:
    with pytest.raises(InvalidArgumentError, match="not valid in a tree"):
        Tree((TreeEntry(path, DIGEST, 1),))


@given(st.text(max_size=20))
def test_a_path_that_is_accepted_stays_inside(path: str) -> None:
    try:
        checked = check_path(path)
    except InvalidArgumentError:
        return
    root = "/folder/of/it"
    assert os.path.normpath(f"{root}/{checked}").startswith(root + "/")


def test_clashing_entries_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="twice"):
        Tree((TreeEntry("a", DIGEST, 1), TreeEntry("a", DIGEST, 1)))
    with pytest.raises(InvalidArgumentError, match="inside another"):
        Tree((TreeEntry("a/b", DIGEST, 1), TreeEntry("a", DIGEST, 1)))


@pytest.mark.parametrize("value", [None, {}, [1], [{"path": "a"}], [{"path": "a", "digest": "x", "size": 1}], 3])
def test_what_is_no_tree(value: object) -> None:
    if value == {}:
        assert Tree.from_json(value).entries == ()
        return
    with pytest.raises(InvalidArgumentError):
        Tree.from_json(value)


def test_links_are_refused(store: BlobStore, tmp_path: Path) -> None:
    folder = make(tmp_path / "in", FILES)
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(InvalidArgumentError, match="link"):
        store_tree(store, folder)


def test_missing_and_damaged_blobs(store: BlobStore, tmp_path: Path) -> None:
    tree = store_tree(store, make(tmp_path / "in", FILES))
    with pytest.raises(NotFoundError):
        materialize(store, Tree((TreeEntry("a", DIGEST, 1),)), tmp_path / "out1")
    path = store.path(tree.entries[0].digest)
    path.chmod(0o644)
    path.write_bytes(b"zz")
    with pytest.raises(DataLossError):
        materialize(store, tree, tmp_path / "out2")


def test_an_existing_file_is_not_overwritten(store: BlobStore, tmp_path: Path) -> None:
    tree = store_tree(store, make(tmp_path / "in", FILES))
    make(tmp_path / "out", {"a.txt": b"mine"})
    with pytest.raises(InternalError):
        materialize(store, tree, tmp_path / "out")
    assert (tmp_path / "out" / "a.txt").read_bytes() == b"mine"


def test_a_caller_may_stop_it(store: BlobStore, tmp_path: Path) -> None:
    tree = store_tree(store, make(tmp_path / "in", FILES))

    def stop() -> None:
        raise EnginehouseError("stop")

    with pytest.raises(EnginehouseError, match="stop"):
        materialize(store, tree, tmp_path / "out", before_each=stop)
