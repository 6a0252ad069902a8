"""Real certificates, made by openssl: a CA, and what it signs."""

from __future__ import annotations

import subprocess
from pathlib import Path

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def openssl(*arguments: str, cwd: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=cwd, check=True, capture_output=True)


def make_ca(folder: Path, name: str = "ca") -> Path:
    """Make `{name}.pem` and `{name}.key`; returns the certificate."""
    openssl(
        "req", "-x509", *_KEY, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}", "-days", "2",
        cwd=folder,
    )  # fmt: skip
    return folder / f"{name}.pem"


def sign(
    folder: Path,
    name: str,
    subject: str | None = None,
    *,
    ca: str = "ca",
    alternatives: str = "DNS:localhost,IP:127.0.0.1",
) -> tuple[Path, Path]:
    """Make `{name}.pem` and `{name}.key`, signed by a CA of the folder; returns both.

    Args:
        subject: such as "/CN=server"; `/CN={name}` when None.
    """
    openssl(
        "req", *_KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", subject or f"/CN={name}", cwd=folder
    )
    (folder / "ext").write_text(f"subjectAltName={alternatives}")
    openssl(
        "x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial",
        "-days", "2", "-extfile", "ext", "-out", f"{name}.pem", cwd=folder,
    )  # fmt: skip
    return folder / f"{name}.pem", folder / f"{name}.key"
