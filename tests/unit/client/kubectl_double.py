"""A `kubectl port-forward` for tests: it says what kubectl says, and forwards connections to a port of this machine.

`kubectl_double.py STATE --namespace NS [--context C] port-forward --address 127.0.0.1 TARGET [LOCAL]:PORT`. STATE is a
folder: `targets.json` maps targets to real ports; each start appends its arguments to `starts`, its process to `pids`.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from pathlib import Path


def pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def main(state: Path, arguments: list[str]) -> int:
    with (state / "starts").open("a") as file:
        file.write(json.dumps(arguments) + "\n")
    with (state / "pids").open("a") as file:
        file.write(f"{os.getpid()}\n")
    namespace = arguments[arguments.index("--namespace") + 1]
    target, ports = arguments[-2:]
    local, port = ports.split(":")
    targets = json.loads((state / "targets.json").read_text())
    if "error" in targets:
        print(targets["error"], file=sys.stderr)
        return 1
    if target not in targets:
        print(f'Error from server (NotFound): services "{target.split("/")[1]}" not found', file=sys.stderr)
        return 1
    listener = socket.create_server(("127.0.0.1", int(local or 0)))
    print(f"Forwarding from 127.0.0.1:{listener.getsockname()[1]} -> {port}", flush=True)
    assert namespace == "tests"
    while True:
        incoming, _ = listener.accept()
        outgoing = socket.create_connection(("127.0.0.1", targets[target]))
        for pair in ((incoming, outgoing), (outgoing, incoming)):
            threading.Thread(target=pump, args=pair, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
