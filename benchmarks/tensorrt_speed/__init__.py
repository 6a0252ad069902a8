"""How fast TensorRT engines run here: against the chip, TensorRT's own calibration, a minimal script, and PyTorch.

`models.py prepare` makes the models, `measure.py` builds and times engines, `table.py` prints the tables. Not named
`tensorrt`, which would hide the package of that name from whatever has this folder's parent on its path.
"""
