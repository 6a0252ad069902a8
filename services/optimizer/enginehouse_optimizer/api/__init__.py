"""The gRPC services: each checks requests, asks storage and the pipeline, and raises `EnginehouseError`."""
