"""Several front processes on one port: each terminates gRPC, and hands requests to the engine host over a socket.

Tensors lie in shared memory: a front copies what it receives once, into a segment of its own that the worker reads.
"""
