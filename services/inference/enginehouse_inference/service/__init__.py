"""GRPCInferenceService, method by method."""
