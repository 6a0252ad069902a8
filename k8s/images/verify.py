"""Runs the images as the dev overlay says, with podman, and the demo against them.

    .venv/bin/python k8s/images/verify.py FOLDER

Needs root, podman, kubectl (`make test-manifests` installs one) and the images that the overlay names (`build.py`).
FOLDER, new or empty, gets the demo's files and `report.md`: machine, sizes of the images, what each pod's processes
may do, and what the demo printed. Pods and volumes are removed at the end. Ports 8001, 8002, 8010, 8020, 8021, 9400 and
9401 of this machine must be free.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from podman_pods import Object, playable

from enginehouse import Client
from enginehouse.errors import EnginehouseError

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / ".venv" / "k8s-tools" / "bin" / "kubectl"
SUITE = Path(__file__).with_name("served.yaml")
SERVICES = {"optimizer": "127.0.0.1:8010", "inference": "127.0.0.1:8001", "telemetry": "127.0.0.1:8020"}
AGGREGATOR = "127.0.0.1:8021"
READY_SECONDS = 120.0
DEMO = (
    "import sys, json; from pathlib import Path; from enginehouse.demo.run import run; "
    "run(Path(sys.argv[1]), suite=sys.argv[3], services=json.loads(sys.argv[2]))"
)


def output(*command: str) -> str:
    """What a command prints; it must end well."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def rendered(kubectl: str) -> list[Object]:
    """The dev overlay's objects."""
    return [
        thing for thing in yaml.safe_load_all(output(kubectl, "kustomize", str(ROOT / "k8s/overlays/dev"))) if thing
    ]


def wait_ready() -> None:
    """Until all services serve.

    Raises:
        TimeoutError: one does not.
    """
    deadline = time.monotonic() + READY_SECONDS
    with Client(*SERVICES.values(), timeout=5.0) as client:
        while not all(client.ready().values()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not ready after {READY_SECONDS:g} s: {client.ready()}")
            time.sleep(1.0)


def nodes_of_aggregator() -> list[str]:
    """The nodes that the aggregator has a sample of, once there is one.

    Raises:
        TimeoutError: there is none.
    """
    deadline = time.monotonic() + READY_SECONDS
    with Client(telemetry=AGGREGATOR) as client:
        while time.monotonic() < deadline:
            if nodes := [node.id for node in client.telemetry.cluster() if node.sample is not None]:
                return nodes
            time.sleep(1.0)
    raise TimeoutError("the aggregator has no sample of the agent")


def volumes(pods: Sequence[Any]) -> list[str]:
    """The volumes that podman makes for the pods' claims."""
    return [
        volume["persistentVolumeClaim"]["claimName"]
        for pod in pods
        for volume in pod["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    ]


def confined(podman: Sequence[str], pod: str, container: str) -> str:
    """A table's row of what a container's first process may do, as the kernel says."""
    name = f"{pod}-{container}"
    (found,) = json.loads(output(*podman, "container", "inspect", name))
    status = Path(f"/proc/{found['State']['Pid']}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    root = subprocess.run([*podman, "exec", name, "python3", "-c", "open('/written', 'w')"], capture_output=True)
    writable = "writable" if root.returncode == 0 else "read-only"
    memory = found["HostConfig"]["Memory"] / 2**30
    user = fields["Uid"].split()[0]
    return f"| {container} | {user} | {writable} | {fields['CapEff'].strip('0') or 'none'} | {memory:g} GiB |"


def sizes(podman: Sequence[str]) -> list[str]:
    """Rows of the sizes of all images that are there."""
    rows = []
    for image in json.loads(output(*podman, "images", "--format", "json")):
        for name in image.get("Names") or ():
            if "enginehouse/" in name:
                rows.append(f"| {name.rpartition('/')[2].partition(':')[0]} | {image['Size'] / 1e6:.0f} |")
    return sorted(rows)


def machine() -> str:
    """This machine, in words."""
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {model.partition(': ')[2]}, {memory:.0f} GiB, Linux {platform.release()}"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--podman", default="podman")
    parser.add_argument("--runtime", default="", help="OCI runtime, such as runc")
    parser.add_argument("--ulimit", action="append", default=[], help="nofile=20000:20000; repeat")
    parser.add_argument("--suite", default=str(SUITE), help="what the demo's benchmark runs")
    parser.add_argument("--kubectl", default=str(TOOL))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    podman = [options.podman, *(["--runtime", options.runtime] if options.runtime else [])]
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    objects = playable(rendered(options.kubectl), platform.node())
    pods: list[Any] = [thing for thing in objects if thing["kind"] == "Pod"]
    manifest = folder / "pods.yaml"
    if options.ulimit:  # `kube play` has no option for them
        configuration = folder / "containers.conf"
        configuration.write_text(f"[containers]\ndefault_ulimits = {json.dumps(options.ulimit)}\n")
        os.environ["CONTAINERS_CONF"] = str(configuration)
    manifest.write_text(yaml.safe_dump_all(objects, sort_keys=False))
    began = time.monotonic()
    try:
        subprocess.run([*podman, "kube", "play", str(manifest)], check=True)
        wait_ready()
        ready = time.monotonic() - began
        rows = [
            confined(podman, pod["metadata"]["name"], container["name"])
            for pod in pods
            for container in pod["spec"]["containers"]
        ]
        nodes = nodes_of_aggregator()
        began = time.monotonic()
        demo = [sys.executable, "-c", DEMO, str(folder / "demo"), json.dumps(SERVICES), options.suite]
        printed = subprocess.run(demo, stdout=subprocess.PIPE, text=True)
        seconds = time.monotonic() - began
    except (subprocess.CalledProcessError, TimeoutError, EnginehouseError) as error:
        print(error, file=sys.stderr)
        for pod in pods:
            subprocess.run([*podman, "pod", "logs", "--tail", "20", pod["metadata"]["name"]])
        return 1
    finally:
        subprocess.run([*podman, "kube", "down", str(manifest)], stdout=subprocess.DEVNULL)
        subprocess.run([*podman, "volume", "rm", "--force", *volumes(pods)], stdout=subprocess.DEVNULL)
    now = datetime.datetime.now(datetime.timezone.utc)
    lines = [
        f"{now:%Y-%m-%d}, {machine()}, {output(*podman, '--version').strip()}.",
        f"Pods were ready {ready:.0f} s after `podman kube play`; the demo's steps took {seconds:.0f} s and "
        f"ended with status {printed.returncode}. The aggregator had a sample of: {', '.join(nodes)}.",
        "\n| container | user | root file system | capabilities | memory limit |\n|---|---|---|---|---|",
        *rows,
        "\n| image | MB |\n|---|---|",
        *sizes(podman),
        "\n```",
        printed.stdout.replace(f"{folder}/", "").rstrip(),
        "```",
    ]
    (folder / "report.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return printed.returncode


if __name__ == "__main__":
    sys.exit(main())
