"""The cluster's telemetry: one stream from every node's agent, merged and served to many readers."""
