"""Answers that are kept for equal requests: of one version of a model, least recently used first to go."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

from enginehouse.workers.regions import RegionPart
from enginehouse.workers.shared import SharedPart
from enginehouse.workers.tensors import FilePart
from enginehouse_inference.batching.request import Answer
from enginehouse_inference.batching.rows import OutputRows
from enginehouse_inference.protocol.request import CheckedRequest

# What an answer takes beside its outputs' bytes, about.
_ENTRY_BYTES = 1024


@dataclass
class CacheCounts:
    """Since the version was loaded. `bytes` and `answers`: kept now."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    answers: int = 0
    bytes: int = 0


class ResponseCache:
    """One loaded version's answers, by a digest of what was asked.

    A version that is loaded again begins with none: what the new engine answers is its own.

    Args:
        max_bytes: of all answers; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._answers: OrderedDict[bytes, tuple[Answer, int]] = OrderedDict()
        self.counts = CacheCounts()

    def __bool__(self) -> bool:
        """Whether it keeps any."""
        return self._max_bytes > 0

    def resize(self, max_bytes: int) -> None:
        """Keep that many bytes from now on."""
        self._max_bytes = max_bytes
        self._evict()

    def find(self, key: bytes) -> Answer | None:
        """The answer of that key."""
        found = self._answers.get(key)
        if found is None:
            self.counts.misses += 1
            return None
        self.counts.hits += 1
        self._answers.move_to_end(key)
        return found[0]

    def keep(self, key: bytes, answer: Answer) -> None:
        """Keep an answer, if it fits: a copy, since its own memory is the worker's again when it has been read."""
        size = _ENTRY_BYTES + sum(output.size for output in answer.outputs)
        if size > self._max_bytes or key in self._answers:
            return
        outputs = tuple(
            OutputRows(o.name, o.dtype, o.shape, (b"".join(bytes(part) for part in o.parts),)) for o in answer.outputs
        )
        kept = Answer(outputs, results=(), queue_ns=0, input_ns=0, compute_ns=0, output_ns=0, cached=True)
        self._answers[key] = (kept, size)
        self.counts.answers += 1
        self.counts.bytes += size
        self._evict()

    def _evict(self) -> None:
        counts = self.counts
        while counts.bytes > self._max_bytes:
            _, (_, size) = self._answers.popitem(last=False)
            counts.answers -= 1
            counts.bytes -= size
            counts.evictions += 1


def cache_key(request: CheckedRequest) -> bytes | None:
    """A digest (BLAKE2b, 32 bytes) of a request's inputs and of which outputs it wants.

    None where its inputs or outputs lie in shared memory: they are not copied through this process.
    """
    digest = hashlib.blake2b(digest_size=32)
    digest.update(repr(sorted(output.name for output in request.outputs)).encode())
    for tensor in sorted(request.inputs, key=lambda t: t.name):
        if isinstance(tensor.data, (FilePart, RegionPart)):
            return None
        digest.update(repr((tensor.name, tensor.dtype, tensor.shape, len(tensor.data))).encode())
        digest.update(tensor.data.view() if isinstance(tensor.data, SharedPart) else tensor.data)
    return None if request.places else digest.digest()
