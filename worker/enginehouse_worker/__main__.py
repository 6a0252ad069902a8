"""The worker's command line: a build stage, or an engine runner (PROTOCOL.md)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one build stage or serve engines; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m enginehouse_worker", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    stage = commands.add_parser("stage", help="run one build stage and exit")
    stage.add_argument("--spec", type=Path, required=True, help="JSON file that says what to do")
    stage.add_argument(
        "--events-fd", type=int, required=True, help="descriptor that takes events, one JSON object a line"
    )
    serve = commands.add_parser("serve", help="run engines for a front process")
    serve.add_argument("--fd", type=int, required=True, help="one end of a Unix stream socket pair")
    serve.add_argument("--device", default="cpu", help="the device to run on (default: cpu)")
    options = parser.parse_args(arguments)
    if options.command == "stage":
        # Before anything starts a thread (NumPy's BLAS does): threads inherit the blocked signal.
        from enginehouse_worker.stages.cancellation import block_termination

        block_termination()
        from enginehouse_worker.stages.run import main as run_stage

        return run_stage(options.spec, options.events_fd)
    from enginehouse_worker.runner.server import main as run_engines

    status: int | None = run_engines(options.fd, options.device)
    return status or 0


if __name__ == "__main__":
    sys.exit(main())
