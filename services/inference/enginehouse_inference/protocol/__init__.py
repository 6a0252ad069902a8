"""The Open Inference Protocol v2: messages in and out of what the rest of the service works with."""
