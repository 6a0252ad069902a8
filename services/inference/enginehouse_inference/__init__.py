"""The inference service.

gRPC's handlers of fork() are turned off before it is imported: they start threads in every child between fork and exec,
where that crashes, and a worker process then does not start. Our children exec at once and need none of them.
"""

from __future__ import annotations

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
