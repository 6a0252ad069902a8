"""Dynamic batching: a pure queue that decides (queue), device turns, and the shell that waits and runs (batcher)."""
