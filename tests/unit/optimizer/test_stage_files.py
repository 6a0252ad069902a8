"""The files of a stage in a pod: fetched as ordered, published whole, also past an optimizer that was away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from enginehouse.artifacts import BlobStore, Tree, TreeEntry, store_tree
from enginehouse.client.blobs import AsyncBlobs
from enginehouse.errors import InternalError, InvalidArgumentError, UnavailableError
from enginehouse.kubernetes.stage_files import Order, fetch, patiently, publish


class Stored(AsyncBlobs):
    """The blobs of a local store; away for some calls."""

    def __init__(self, store: BlobStore) -> None:
        self.store = store
        self.away = 0

    async def read(self, digest: str) -> bytes:
        return self.store.read_bytes(digest)

    async def download(self, digest: str, target: Path, progress: object = None, size: int = 0) -> None:
        if self.away:
            self.away -= 1
            raise UnavailableError("restarting")
        with target.open("xb") as file:
            file.write(self.store.read_bytes(digest))

    async def upload_part(self, path: Path, start: int, size: int, digest: str, progress: object = None) -> None:
        assert self.store.put_file(path) == digest

    async def upload(self, path: Path, progress: object = None) -> str:
        return self.store.put_file(path)


@pytest.fixture
def blobs(tmp_path: Path) -> Stored:
    return Stored(BlobStore(tmp_path / "store"))


async def test_what_is_fetched_and_published(blobs: Stored, tmp_path: Path) -> None:
    files = {"a/model.onnx": b"onnx", "empty": b""}
    model = Tree(tuple(TreeEntry(name, blobs.store.put_bytes(data), len(data)) for name, data in files.items()))
    order = Order("build", {"precision": "FP32"}, {"model": model, "timing_cache": Tree(())})
    assert Order.from_json(order.to_json()) == order
    folder = tmp_path / "pod"
    blobs.away = 1
    digest = blobs.store.put_bytes(order.to_json().encode())
    with pytest.raises(UnavailableError):
        await patiently(lambda: fetch(blobs, digest, folder), seconds=-1)
    await fetch(blobs, digest, folder)
    spec = json.loads((folder / "spec.json").read_text())
    assert (Path(spec["inputs"]["model"]) / "a" / "model.onnx").read_bytes() == b"onnx"
    assert Path(spec["inputs"]["timing_cache"]).is_dir() and spec["params"] == {"precision": "FP32"}
    output = Path(spec["output"])
    assert not list(output.iterdir())
    with pytest.raises(InternalError, match=r"wrote no result\.json"):
        await publish(blobs, folder)
    (output / "parts").mkdir()
    (output / "parts" / "empty").touch()
    (output / "result.json").write_text("{}")
    tree = Tree.from_json(json.loads(blobs.store.read_bytes(await publish(blobs, folder))))
    assert tree == store_tree(blobs.store, output)
    (output / "link").symlink_to("/etc/passwd")
    with pytest.raises(InternalError, match="'link'"):
        await publish(blobs, folder)


OUTSIDE = {"stage": "a", "params": {}, "inputs": {"x": [{"path": "../a", "digest": "d", "size": 1}]}}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"stage": 1, "params": 2, "inputs": 3}', json.dumps(OUTSIDE)])
def test_an_order_that_is_none(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        Order.from_json(text)
