"""Dynamic batching: a pure queue that decides (policy), and the asyncio shell that waits and runs (batcher)."""
