"""TensorFlow on CPU and GPU, and TF-TRT: the six networks from graphs without weights, timed in turns.

`run.py` is the command, `graphs.py` the graphs, `modes.py` what is measured, `server.py` and `clients.py` the two ends
of a process that runs one mode.
"""
