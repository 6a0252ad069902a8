"""What TensorRT measures while it builds, kept from build to build: a second build for a GPU measures little.

There is one cache for each GPU product, driver and version of TensorRT: it is of use to no other. A build is given the
cache and writes one that also has what it measured itself. A cache is a help and never a condition: what goes wrong
with one is logged, and costs time only.
"""

from __future__ import annotations

import json
from pathlib import Path

import structlog

from enginehouse.artifacts import Tree, TreeEntry, materialize
from enginehouse.errors import EnginehouseError
from enginehouse_optimizer.storage.blobs import ProjectBlobs
from enginehouse_optimizer.storage.timing_caches import TimingCache, TimingCacheIndex
from enginehouse_optimizer.threads import in_thread

# The input that a build takes it as, and the file in there and among what the build writes.
INPUT = "timing_cache"
FILE = "timing.cache"

_log = structlog.get_logger("stages")


def timing_cache_name(environment: str, gpus: str, driver: str) -> str:
    """The name of the cache that builds of a worker environment use on a machine, such as "NVIDIA H200, driver
    580.65.06, tensorrt 8.6.0"; empty when the environment has no TensorRT.

    Args:
        environment: its version, as `EnvironmentVersions` says it.
        gpus: the machine's GPUs as a JSON list.
        driver: the version of their driver, empty when unknown.
    """
    try:
        known, products = json.loads(environment), json.loads(gpus)
        packages, image = known.get("packages", {}), known.get("image", "")
        versions = [f"{name} {version}" for name, version in sorted(packages.items()) if "tensorrt" in name]
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""
    versions += [image] if image else []
    if not versions:
        return ""
    return ", ".join([" + ".join(products) or "unknown GPU", *([f"driver {driver}"] if driver else []), *versions])


class TimingCaches:
    """Gives caches to builds and takes them back. All methods in the service's event loop.

    Args:
        max_bytes: a cache that grows beyond it is begun anew; 0 keeps none.
    """

    def __init__(self, index: TimingCacheIndex, blobs: ProjectBlobs, max_bytes: int) -> None:
        self._index = index
        self._blobs = blobs
        self._max_bytes = max_bytes

    async def give(self, project: str, name: str, directory: Path) -> str:
        """Make a build's input directory, with the cache in it where there is one; returns the cache's digest."""
        directory.mkdir(parents=True)
        cache = self._index.get(project, name)
        if cache is None:
            return ""
        tree = Tree((TreeEntry(FILE, cache.digest, cache.size),))
        try:
            await in_thread(materialize, self._blobs.of(project), tree, directory)
        except (EnginehouseError, OSError) as error:
            _log.warning("a timing cache cannot be read: the build begins without", cache=name, error=str(error))
            (directory / FILE).unlink(missing_ok=True)
            if self._index.get(project, name) == cache:
                self._index.forget(project, name)
            return ""
        return cache.digest

    def tree(self, project: str, name: str) -> Tree:
        """The cache as a build's input; without a file where there is none."""
        cache = self._index.get(project, name)
        return Tree(()) if cache is None else Tree((TreeEntry(FILE, cache.digest, cache.size),))

    def take(self, project: str, name: str, made: Tree, given: Tree) -> Tree:
        """Keep the cache among the stored files that a build made; returns those less the cache."""
        entry, before = made.find(FILE), given.find(FILE)
        if entry is not None:
            self._keep(project, name, TimingCache(entry.digest, entry.size), before.digest if before else "")
        return made.without(FILE)

    async def take_back(self, project: str, name: str, output: Path, given: str) -> None:
        """Keep what a build left among its files, and take it out of there.

        Args:
            given: the digest that `give` returned. Where another build has given a cache back meanwhile, neither holds
                what the other measured: the larger one stays.
        """
        file = output / FILE
        if not file.is_file():
            return
        try:
            size = file.stat().st_size
            keep = size <= self._max_bytes
            digest = await in_thread(self._blobs.of(project).put_file, file, move=True) if keep else ""
            self._keep(project, name, TimingCache(digest, size), given)
        except (EnginehouseError, OSError) as error:
            _log.warning("a timing cache cannot be kept", cache=name, error=str(error))
        file.unlink(missing_ok=True)

    def _keep(self, project: str, name: str, cache: TimingCache, given: str) -> None:
        if cache.size > self._max_bytes:
            if self._max_bytes:
                _log.info("a timing cache is full: the next build begins it anew", cache=name, bytes=cache.size)
            self._index.forget(project, name)
            return
        now = self._index.get(project, name)
        if now is None or now.digest == given or now.size <= cache.size:
            self._index.put(project, name, cache)
