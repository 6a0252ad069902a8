"""Which layers cost accuracy when they are quantized, and which to leave in FP32."""
