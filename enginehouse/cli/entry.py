"""The entry point: says what to install where the command line's own libraries are missing."""

from __future__ import annotations

import sys
from collections.abc import Sequence

NEEDED = ("typer", "rich", "psutil")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    try:
        from enginehouse.cli.run import run
    except ModuleNotFoundError as error:
        if error.name not in NEEDED:
            raise
        print(
            f"enginehouse: the command line needs {error.name}: pip install 'enginehouse[cli]'",
            file=sys.stderr,
        )
        sys.exit(1)
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))
