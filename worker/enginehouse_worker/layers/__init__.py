"""Parts of a graph: its quantized layers one at a time, and cuts between them."""
