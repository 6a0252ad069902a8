"""Generate the Python of `protos/enginehouse/v1` into `enginehouse/v1`: `make protos`.

`--check` writes nothing and fails when the committed code is stale. `--image FILE` writes the descriptor set that `buf`
lints and compares with `protos/baseline.binpb`, the last released API.
"""

from __future__ import annotations

import argparse
import filecmp
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROTOS = ROOT / "protos"
PACKAGE = Path("enginehouse") / "v1"


def protoc(options: list[str], protos: Path = PROTOS) -> None:
    """Run protoc over every file of `protos`, in a process of its own (it crashes beside some frameworks)."""
    site = Path(sysconfig.get_paths()["purelib"])
    sources = sorted(str(p.relative_to(protos)) for p in (protos / PACKAGE).glob("*.proto"))
    with tempfile.TemporaryDirectory() as include:
        # The package ships this file under another name than the one its generated code registers.
        operations = Path(include) / "google" / "longrunning" / "operations.proto"
        operations.parent.mkdir(parents=True)
        operations.write_bytes((site / "google" / "longrunning" / "operations_proto.proto").read_bytes())
        paths = [f"-I{protos}", f"-I{site}", f"-I{include}"]
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *paths, *options, *sources], check=True)


def image(out: Path, protos: Path = PROTOS) -> None:
    """Write the descriptor set of `protos` with its imports."""
    protoc(["--include_imports", f"--descriptor_set_out={out}"], protos)


def generate(out: Path) -> None:
    """Write `enginehouse/v1/*_pb2*.py[i]` under `out`."""
    options = [f"--python_out={out}", f"--grpc_python_out={out}"]
    for name, flag in (("protoc-gen-mypy", "mypy_out"), ("protoc-gen-mypy_grpc", "mypy_grpc_out")):
        options += [f"--plugin={name}={Path(sys.executable).parent / name}", f"--{flag}=quiet:{out}"]
    protoc(options)
    (out / PACKAGE / "__init__.py").write_text(
        '"""Generated from protos/enginehouse/v1 by `make protos`. Do not edit."""\n'
    )


def differences(fresh: Path) -> list[str]:
    """Names of generated files that are missing, stale or left over in the committed tree."""
    committed, new = ROOT / PACKAGE, fresh / PACKAGE
    names = {p.name for folder in (committed, new) for p in folder.glob("*.py*") if p.is_file()}
    same, _, _ = filecmp.cmpfiles(committed, new, sorted(names), shallow=False)
    return sorted(names - set(same))


def main() -> int:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--check", action="store_true")
    cli.add_argument("--image", type=Path)
    arguments = cli.parse_args()
    if arguments.image:
        image(arguments.image)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        stale = differences(fresh)
        if arguments.check:
            if stale:
                print(f"generated code is stale: {', '.join(stale)}: run `make protos` and commit", file=sys.stderr)
            return 1 if stale else 0
        (ROOT / PACKAGE).mkdir(parents=True, exist_ok=True)
        for name in stale:
            target, source = ROOT / PACKAGE / name, fresh / PACKAGE / name
            if source.exists():
                target.write_bytes(source.read_bytes())
            else:
                target.unlink()
        print(f"{len(stale)} files changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
