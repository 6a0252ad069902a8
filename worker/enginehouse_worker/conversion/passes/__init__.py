"""Rewritings of an FP32 graph, each one function over an `EditableGraph`. None changes what the graph computes."""
