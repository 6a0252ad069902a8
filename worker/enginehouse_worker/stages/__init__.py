"""The build stages: each reads directories, writes one directory, and runs in a process of its own."""
