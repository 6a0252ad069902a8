"""Builds the images with podman or docker: `python k8s/images/build.py [--only NAME ...]`.

Run it anywhere; it needs Python and one of the two. Images come in the order in which they need each other. At the end
it prints each image's size, as a table for `results/`.

Behind a package index of your own: `--index-url`, and `--ca-bundle` for a CA that the base image does not know. With a
base image of your own: `--python-image` (Python 3.10 to 3.12 with venv; TensorRT 8.6 and TF-TRT have packages for 3.10
only). `debian-base.sh` makes one from Debian's packages.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
VERSION = "0.1.0"
PYTHON_IMAGE = "python:3.10-slim-bookworm"
ENVIRONMENTS = ("onnxruntime", "tensorflow", "tensorrt", "tf-trt")
# Where the host's CA bundle is laid while an image is built.
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True)
class Image:
    """An image to build.

    Attributes:
        name: without registry and tag.
        dockerfile: its file beside this one.
        arguments: build arguments of its own.
        parents: build arguments that name other images of ours.
    """

    name: str
    dockerfile: str
    arguments: dict[str, str] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)


def plan(environments: Sequence[str] = ENVIRONMENTS, extras: dict[str, str] | None = None) -> list[Image]:
    """All images, parents first.

    Args:
        environments: the worker environments to build.
        extras: packages that stand in for an environment's own: {"tensorrt": "tensorrt-rtx"}.
    """
    extras = extras or {}
    workers = [
        Image(f"worker-{name}", "worker.Dockerfile", {"ENVIRONMENT": name, "EXTRA": extras.get(name, name)})
        for name in environments
    ]
    inference = [
        Image(f"inference-{name}", "inference.Dockerfile", parents={"WORKER_IMAGE": f"worker-{name}"})
        for name in environments
    ]
    built = {
        argument: f"worker-{name}" if name in environments else f"worker-{environments[0]}"
        for argument, name in (
            ("ONNXRUNTIME_IMAGE", "onnxruntime"),
            ("TENSORFLOW_IMAGE", "tensorflow"),
            ("TENSORRT_IMAGE", "tensorrt"),
            ("TFTRT_IMAGE", "tf-trt"),
        )
    }
    stages = {name: built[name] for name in ("ONNXRUNTIME_IMAGE", "TENSORFLOW_IMAGE")}
    return [
        *workers,
        Image("telemetry", "telemetry.Dockerfile"),
        Image("client", "client.Dockerfile"),
        Image("optimizer", "optimizer.Dockerfile", parents=stages),
        *inference,
        Image("benchmark", "benchmark.Dockerfile", parents=built),
    ]


def build_command(image: Image, options: argparse.Namespace) -> list[str]:
    """The command that builds an image."""
    arguments = {"PYTHON_IMAGE": options.python_image, "VERSION": options.tag, **image.arguments}
    arguments |= {argument: reference(parent, options) for argument, parent in image.parents.items()}
    if options.index_url:
        arguments["PIP_INDEX_URL"] = options.index_url
    command = [options.engine, "build", "--file", str(HERE / image.dockerfile), "--tag", reference(image.name, options)]
    if options.ca_bundle:
        if options.engine == "podman":
            command += ["--volume", f"{options.ca_bundle}:{CA_BUNDLE}:ro"]
        arguments["PIP_CERT"] = CA_BUNDLE
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    return [*command, *options.engine_argument, str(ROOT)]


def reference(name: str, options: argparse.Namespace) -> str:
    """registry/enginehouse/name:tag."""
    registry = f"{options.registry.rstrip('/')}/" if options.registry else ""
    return f"{registry}enginehouse/{name}:{options.tag}"


def size(name: str, options: argparse.Namespace) -> int:
    """An image's bytes, all layers."""
    inspect = [options.engine, "image", "inspect", "--format", "{{.Size}}", reference(name, options)]
    return int(subprocess.run(inspect, check=True, capture_output=True, text=True).stdout)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="podman" if shutil.which("podman") else "docker")
    parser.add_argument("--engine-argument", action="append", default=[], help="more for its `build`; repeat")
    parser.add_argument("--registry", default="", help="before every name: registry.example/team")
    parser.add_argument("--tag", default=VERSION)
    parser.add_argument("--python-image", default=PYTHON_IMAGE)
    parser.add_argument("--index-url", default="", help="package index")
    parser.add_argument("--ca-bundle", default="", help="PEM file of the index's CAs, for the builds")
    parser.add_argument("--environments", nargs="+", default=list(ENVIRONMENTS), choices=ENVIRONMENTS)
    parser.add_argument("--tensorrt-rtx", action="store_true", help="TensorRT for RTX in place of TensorRT")
    parser.add_argument("--only", nargs="+", default=[], help="these images, whose parents exist")
    parser.add_argument("--push", action="store_true")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    images = plan(options.environments, {"tensorrt": "tensorrt-rtx"} if options.tensorrt_rtx else None)
    if unknown := sorted(set(options.only) - {image.name for image in images}):
        print(f"no image {unknown[0]!r}: expected of {', '.join(image.name for image in images)}", file=sys.stderr)
        return 2
    chosen = [image for image in images if not options.only or image.name in options.only]
    rows = []
    for image in chosen:
        command = build_command(image, options)
        if options.dry_run:
            print(" ".join(command))
            continue
        print(f"building {reference(image.name, options)}", flush=True)
        began = time.monotonic()
        subprocess.run(command, check=True)
        rows.append((image.name, size(image.name, options) / 1e6, time.monotonic() - began))
        if options.push:
            subprocess.run([options.engine, "push", reference(image.name, options)], check=True)
    if rows:
        print("\n| image | MB | built in s |\n|---|---|---|")
        for name, megabytes, seconds in rows:
            print(f"| {name} | {megabytes:.0f} | {seconds:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
