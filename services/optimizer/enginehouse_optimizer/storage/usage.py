"""What the store holds, by who needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from enginehouse.artifacts import BlobStore
from enginehouse_optimizer.storage.named import KINDS, Owner


@dataclass(frozen=True)
class Usage:
    """Bytes; a blob that several name is counted with the first of KINDS. `garbage` is named by nothing."""

    blobs: int
    bytes: int
    named: Mapping[str, int]
    garbage: int
    unfinished_uploads: int
    quarantined: int


def usage(store: BlobStore, owners: Mapping[str, Owner]) -> Usage:
    """Measure a project's store. Reads folders or asks the object store: call it from a thread.

    Args:
        owners: who names each digest, as `NamedBlobs.of` says.
    """
    named = dict.fromkeys(KINDS, 0)
    blobs = total = garbage = 0
    for blob in store.listing():
        blobs += 1
        total += blob.size
        owner = owners.get(blob.digest)
        if owner is None:
            garbage += blob.size
        else:
            named[owner.kind] += blob.size
    return Usage(blobs, total, named, garbage, store.uploads.size(), store.quarantine.size())
