"""NVIDIA's perf_analyzer, from the package index; where the C library is too old for it, with a newer one beside it.

`ENGINEHOUSE_PERF_ANALYZER` names one that is there already.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

WHEEL = "perf-analyzer==2.59.0"  # pip takes a placeholder, 0.1.0, where the platform does not fit
PLATFORM = "manylinux_2_38_x86_64"
DEBIAN = "trixie"  # glibc 2.41
LIBRARIES = ("libc6", "libstdc++6", "libgcc-s1")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_MULTIARCH = Path("usr/lib/x86_64-linux-gnu")
# Downloads, on a slow line.
_SECONDS = 300.0


class NotHadError(Exception):
    """It cannot be had here, and why."""


@dataclass(frozen=True)
class PerfAnalyzer:
    """A command that runs it."""

    command: tuple[str, ...]

    def run(self, *arguments: str) -> str:
        """Run it; returns what it printed. Fails the test when it does not end well."""
        ended = _run([*self.command, *arguments], seconds=120)
        assert ended.returncode == 0, ended.stdout
        return ended.stdout


def find(folder: Path) -> PerfAnalyzer:
    """One that runs here, downloaded into a folder if need be.

    Raises:
        NotHadError: none does.
    """
    if named := os.environ.get("ENGINEHOUSE_PERF_ANALYZER"):
        return _checked(PerfAnalyzer((named,)))
    binary = folder / "wheel/perf_analyzer/bin/perf_analyzer"
    if not binary.exists():
        _unpack_wheel(folder)
        binary.chmod(0o755)
    try:
        return _checked(PerfAnalyzer((str(binary),)))
    except NotHadError:  # the C library, most likely
        root = folder / "libraries"
        if not (root / _MULTIARCH / "libstdc++.so.6").exists():
            _unpack_libraries(folder, root)
        own = root / _MULTIARCH
        loader = (str(own / "ld-linux-x86-64.so.2"), "--library-path", f"{own}:/{_MULTIARCH}")
        return _checked(PerfAnalyzer((*loader, str(binary))))


def _unpack_wheel(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    _check(_run([*pip, "--platform", PLATFORM, "--dest", str(folder), WHEEL]), f"pip download {WHEEL}")
    (wheel,) = folder.glob("perf_analyzer-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "wheel")


def _unpack_libraries(folder: Path, root: Path) -> None:
    """Debian's packages, checked by apt against Debian's keys; nothing of this machine's own apt is touched."""
    if not Path(KEYRING).exists():
        raise NotHadError(f"its C library is newer than this system's, and there is no {KEYRING} to check Debian's by")
    apt = folder / "apt"
    for part in ("lists/partial", "archives/partial"):
        (apt / part).mkdir(parents=True, exist_ok=True)
    (apt / "sources.list").write_text(f"deb [signed-by={KEYRING}] http://deb.debian.org/debian {DEBIAN} main\n")
    (apt / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{apt}/sources.list";\nDir::Etc::sourceparts "-";\nDir::State "{apt}";\n'
        f'Dir::Cache "{apt}";\nDir::State::status "/dev/null";\nAPT::Sandbox::User "";\n'
    )
    for command in (["update"], ["download", *LIBRARIES]):
        _check(_run(["apt-get", "--quiet", *command], folder=apt, APT_CONFIG=str(apt / "apt.conf")), "apt-get")
    for package in apt.glob("*.deb"):
        _check(_run(["dpkg-deb", "--extract", str(package), str(root)]), "dpkg-deb")


def _checked(tool: PerfAnalyzer) -> PerfAnalyzer:
    _check(_run([*tool.command, "--version"]), "perf_analyzer --version")
    return tool


def _run(
    command: Sequence[str], *, folder: Path | None = None, seconds: float = _SECONDS, **variables: str
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotHadError(str(error)) from error


def _check(ended: subprocess.CompletedProcess[str], what: str) -> None:
    if ended.returncode != 0:
        lines = ended.stdout.strip().splitlines()
        raise NotHadError(f"{what}: {lines[-1] if lines else f'exit status {ended.returncode}'}")
