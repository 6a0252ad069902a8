"""How many nodes the telemetry aggregator keeps up with."""
