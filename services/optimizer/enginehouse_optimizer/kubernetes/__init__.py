"""Stages as Jobs of a Kubernetes cluster."""
