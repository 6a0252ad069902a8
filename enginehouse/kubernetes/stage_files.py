"""The files of a stage that runs in a pod: fetched from the optimizer before it, published there after it.

    python -m enginehouse.kubernetes.stage_files fetch --order sha256:... --folder /stage
    python -m enginehouse.kubernetes.stage_files publish --folder /stage

`fetch` reads the order, a blob, and writes the inputs and the spec that the worker takes (`worker/PROTOCOL.md`).
`publish` uploads what the stage wrote, then a list of it, and leaves that list's digest as the container's termination
message: `{"tree": "sha256:..."}`. The optimizer's address, project, certificates and token come from the environment,
as for every client. An optimizer that does not answer is asked again for ten minutes: it may be restarting. An error is
one JSON line on standard output, as a worker's events are, and exit status 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from enginehouse.artifacts import Tree, TreeEntry, canonical_json
from enginehouse.artifacts.tree import check_path
from enginehouse.client import AsyncClient
from enginehouse.client.blobs import AsyncBlobs, digest_of
from enginehouse.errors import EnginehouseError, InternalError, InvalidArgumentError, UnavailableError
from enginehouse.workers.stage import RESULT, StageSpec

INPUTS, OUTPUT, SPEC = "inputs", "output", "spec.json"
TERMINATION_MESSAGE = Path("/dev/termination-log")
_AT_ONCE = 4
PATIENCE_SECONDS = 600.0
_AGAIN_SECONDS = 2.0

_T = TypeVar("_T")


@dataclass(frozen=True)
class Order:
    """A stage as the optimizer orders it: files by digest."""

    stage: str
    params: dict[str, Any]
    inputs: dict[str, Tree]

    def to_json(self) -> str:
        inputs = {name: tree.to_json() for name, tree in self.inputs.items()}
        return canonical_json({"stage": self.stage, "params": self.params, "inputs": inputs})

    @classmethod
    def from_json(cls, text: str | bytes) -> Order:
        """Raises InvalidArgumentError when it is not what `to_json` writes."""
        try:
            value = json.loads(text)
            inputs = {str(name): Tree.from_json(files) for name, files in value["inputs"].items()}
            return cls(str(value["stage"]), dict(value["params"]), inputs)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise InvalidArgumentError(f"not the order of a stage: {error!r}") from error


async def fetch(blobs: AsyncBlobs, digest: str, folder: Path) -> None:
    """Write the inputs and the spec of an ordered stage under a folder; what is there of an earlier try stays."""
    order = Order.from_json(await blobs.read(digest))
    waiting = asyncio.Semaphore(_AT_ONCE)

    async def one(entry: TreeEntry, target: Path) -> None:
        async with waiting:
            if target.exists():
                return  # a download that breaks leaves no file
            target.parent.mkdir(parents=True, exist_ok=True)
            await blobs.download(entry.digest, target, size=entry.size)

    places = {name: folder / INPUTS / name for name in order.inputs}
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    await asyncio.gather(
        *(one(e, places[name] / check_path(e.path)) for name, tree in order.inputs.items() for e in tree.entries)
    )
    output = folder / OUTPUT
    output.mkdir(exist_ok=True)
    (folder / SPEC).write_text(StageSpec(order.stage, places, output, order.params).to_json())


async def publish(blobs: AsyncBlobs, folder: Path) -> str:
    """Upload what a stage wrote; returns the digest of the list of it.

    Raises:
        InternalError: the stage left no result, or what is no plain file.
    """
    output = folder / OUTPUT
    if not (output / RESULT).is_file():
        raise InternalError(f"the stage ended well but wrote no {RESULT}")
    entries = []
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InternalError(f"the stage wrote {name!r}, which is a link or a special file: expected plain files")
        if path.is_file():
            digest, size = await asyncio.to_thread(digest_of, path), path.stat().st_size
            await blobs.upload_part(path, 0, size, digest)
            entries.append(TreeEntry(name, digest, size))
    with tempfile.TemporaryDirectory() as draft:
        listing = Path(draft) / "tree.json"
        listing.write_text(canonical_json(Tree(tuple(entries)).to_json()))
        return await blobs.upload(listing)


async def patiently(work: Callable[[], Awaitable[_T]], seconds: float = PATIENCE_SECONDS) -> _T:
    """Do what needs the optimizer, again and again while it does not answer.

    Raises:
        UnavailableError: it did not for so long.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            return await work()
        except UnavailableError as error:
            if time.monotonic() > end:
                raise
            print(f"the optimizer does not answer, asked again: {error.message}", file=sys.stderr, flush=True)
            await asyncio.sleep(_AGAIN_SECONDS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch or publish; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m enginehouse.kubernetes.stage_files", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fetching = commands.add_parser("fetch", help="write the inputs and the spec of a stage")
    fetching.add_argument("--order", required=True, help="digest of the order's blob")
    publishing = commands.add_parser("publish", help="upload what the stage wrote")
    for command in (fetching, publishing):
        command.add_argument("--folder", type=Path, required=True, help="folder that the pod's containers share")
    options = parser.parse_args(arguments)
    try:
        asyncio.run(_run(options))
    except (EnginehouseError, OSError) as error:
        code = error.reason if isinstance(error, EnginehouseError) else "INTERNAL"
        message = f"{'fetching the inputs' if options.command == 'fetch' else 'publishing the outputs'}: {error}"
        print(json.dumps({"event": "error", "code": code, "message": message, "details": {}}), flush=True)
        return 1
    return 0


async def _run(options: argparse.Namespace) -> None:
    async with AsyncClient.from_environment(timeout=60.0) as client:
        if options.command == "fetch":
            await patiently(lambda: fetch(client.blobs, options.order, options.folder))
            return
        tree = await patiently(lambda: publish(client.blobs, options.folder))
    target = Path(os.environ.get("ENGINEHOUSE_TERMINATION_MESSAGE") or TERMINATION_MESSAGE)
    target.write_text(json.dumps({"tree": tree}))


if __name__ == "__main__":
    sys.exit(main())
