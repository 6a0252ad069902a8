"""A worker without a framework: obeys section 1 of worker/PROTOCOL.md, and misbehaves when asked to."""
