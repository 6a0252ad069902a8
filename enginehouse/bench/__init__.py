"""Benchmarks: declarative suites, interleaved measurement, results as JSON lines.

    from enginehouse.bench.suite_file import load_suite
    from enginehouse.bench.run import run_suite

Importing this package loads none of its extras.
"""

from __future__ import annotations

from importlib import metadata


def package_version() -> str:
    """The version of the installed distribution, or "uninstalled" in a bare checkout."""
    try:
        return metadata.version("enginehouse")
    except metadata.PackageNotFoundError:
        return "uninstalled"
