"""Backends: each a builder that makes engines and a runtime that runs them. `registry` finds them by name."""
