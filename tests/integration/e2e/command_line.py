"""Commands as a user types them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-c", "from enginehouse.cli.entry import main; main()"]


def enginehouse(
    home: Path, *arguments: str, status: int = 0, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command against a stack; its exit status is checked."""
    variables = {**os.environ, "ENGINEHOUSE_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "200"}
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, env=variables, cwd=cwd or home, timeout=400
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done
