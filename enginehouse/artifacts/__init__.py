"""Artifacts: content-addressed blobs, directories stored as trees of blobs, and engine manifests.

Standard library only (and `enginehouse.errors`), so that a cache in any process can use it.
"""

from enginehouse.artifacts.digest import canonical_json, digest_bytes, digest_file, digest_json, parse_digest
from enginehouse.artifacts.manifest import EngineManifest
from enginehouse.artifacts.store import BlobStore
from enginehouse.artifacts.tree import Tree, TreeEntry, materialize, store_tree

__all__ = [
    "BlobStore",
    "EngineManifest",
    "Tree",
    "TreeEntry",
    "canonical_json",
    "digest_bytes",
    "digest_file",
    "digest_json",
    "materialize",
    "parse_digest",
    "store_tree",
]
