"""Install the peers, each into a virtual environment of its own.

    python benchmarks/serving/environments.py [--into .venv/peers] [--python python3.11] [NAME ...]

`constraints/{name}.txt` holds every version: on Python 3.10 for pytriton (`--python python3.10 pytriton`), on 3.11 for
the others. All together take about 2 GB; `rm -r` removes them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEFAULT = HERE.parents[1] / ".venv" / "peers"
PACKAGES = {
    "bare": ("grpcio", "protobuf", "numpy", "tritonclient", "onnxruntime"),
    "kserve": ("kserve", "onnxruntime"),
    "mlserver": ("mlserver", "onnxruntime"),
    "pytriton": ("nvidia-pytriton", "onnxruntime"),
}


def install(name: str, folder: Path, python: str) -> None:
    """Make one environment.

    Raises:
        subprocess.CalledProcessError: pip could not.
    """
    place = folder / name
    subprocess.run([python, "-m", "venv", str(place)], check=True)
    pip = [str(place / "bin" / "pip"), "install", "--quiet", "--constraint", str(HERE / "constraints" / f"{name}.txt")]
    subprocess.run([*pip, *PACKAGES[name]], check=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PACKAGES)}; all when none is given")
    parser.add_argument("--into", type=Path, default=DEFAULT)
    parser.add_argument("--python", default=sys.executable)
    chosen = parser.parse_args(arguments)
    if unknown := sorted(set(chosen.names) - set(PACKAGES)):
        parser.error(f"unknown peer {unknown[0]!r}: expected one of {', '.join(PACKAGES)}")
    failed = []
    for name in chosen.names or PACKAGES:
        try:
            install(name, chosen.into, chosen.python)
        except subprocess.CalledProcessError as error:
            failed.append(f"{name}: {error}")
    print(*(failed or [f"installed into {chosen.into}"]), sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
