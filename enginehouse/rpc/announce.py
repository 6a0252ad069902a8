"""How a service tells the process that started it where it listens: a JSON file, written once it is ready."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

ANNOUNCE_VARIABLE = "ENGINEHOUSE_ANNOUNCE_FILE"


def announce_file(variables: Mapping[str, str]) -> Callable[[Mapping[str, int]], None]:
    """What a service calls with its ports (such as `{"port": 8020, "metrics_port": 9400}`) once it is ready.

    The call writes them and `pid` as one JSON object to the file that `variables["ENGINEHOUSE_ANNOUNCE_FILE"]` names,
    in one step, so that a reader sees nothing or everything. It does nothing when the variable is not set.

    Raises (the returned function):
        OSError: the file cannot be written.
    """
    target = variables.get(ANNOUNCE_VARIABLE, "")

    def announce(ports: Mapping[str, int]) -> None:
        if not target:
            return
        path = Path(target)
        # In the same folder: a rename is atomic only within a file system.
        descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump({**ports, "pid": os.getpid()}, file)
            Path(draft).replace(path)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise

    return announce
