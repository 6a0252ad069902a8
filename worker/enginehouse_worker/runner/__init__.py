"""Runs engines for a front process: frames over a Unix socket, tensors in shared memory (PROTOCOL.md, section 2)."""
