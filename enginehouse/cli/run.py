"""Runs the command line: errors become one line on standard error, never a traceback (unless --debug)."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from enginehouse.cli import errors
from enginehouse.cli.app import app
from enginehouse.cli.context import debugging
from enginehouse.errors import EnginehouseError


def run(arguments: Sequence[str]) -> int:
    """Run a command; the exit status."""
    try:
        app(args=list(arguments), prog_name="enginehouse")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except EnginehouseError as error:
        if debugging():
            raise
        print("\n".join(errors.lines(error)), file=sys.stderr)
        return errors.exit_code(error)
    except KeyboardInterrupt:
        return errors.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left (`| head`). Python would complain once more while it goes down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return errors.FAILURE
    except (OSError, ValueError) as error:
        if debugging():
            raise
        print(f"enginehouse: {error} (--debug shows where)", file=sys.stderr)
        return errors.FAILURE
    return 0
