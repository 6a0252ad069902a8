"""Settings of the C library and of gRPC that decide what a large message costs (design decision 7).

glibc gives blocks above a threshold straight back to the system when they are freed, and trims the heap's end, so that
a server that receives 2.4 MB messages pays for fresh zeroed pages each time: more than half of its CPU time.
"""

from __future__ import annotations

import ctypes
import resource

# <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
# The largest mmap threshold that glibc takes; larger blocks go the old way.
_MMAP_THRESHOLD_BYTES = 32 << 20
_TRIM_THRESHOLD_BYTES = 512 << 20

FRAME_BYTES = (16 << 20) - 1  # HTTP/2's largest frame

GRPC_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.http2.max_frame_size", FRAME_BYTES),
    ("grpc.http2.lookahead_bytes", 16 << 20),
    ("grpc.http2.write_buffer_size", 16 << 20),
    ("grpc.experimental.tcp_read_chunk_size", 1 << 20),
    ("grpc.experimental.tcp_max_read_chunk_size", 16 << 20),
)


def tune_malloc() -> bool:
    """Keep freed blocks for reuse. Returns False where the C library has no `mallopt` (musl): all works, slower."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    done = [
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES),
        mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES),
    ]
    return all(done)


def raise_descriptor_limit() -> None:
    """Allow as many open files as the system lets us: connections and shared memory segments take one or two each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
