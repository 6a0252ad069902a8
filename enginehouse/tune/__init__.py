"""Finding a serving configuration: what to try, how to measure it against a running service, what to say of it.

`space`, `goal`, `search`, `levels` and `outcome` are pure; `load`, `service` and `run` do the measuring.
"""
