"""`python -m enginehouse_worker stage --spec F --events-fd N`, in the tests' own interpreter.

How a stage behaves is in its parameter `behave`, or, for whole pipelines, in the JSON that follows the first four bytes
of the uploaded model: `{"convert": "crash"}`. Each stage hands that JSON on to the next.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


class Stage:
    def __init__(self, spec: dict[str, Any], events: int) -> None:
        self.name: str = spec["stage"]
        self.inputs = {name: Path(path) for name, path in spec["inputs"].items()}
        self.output = Path(spec["output"])
        self.params: dict[str, Any] = spec["params"]
        self.events = events
        self.orders = self._orders()

    def _orders(self) -> dict[str, str]:
        for directory in self.inputs.values():
            for path in sorted(directory.glob("*")):
                if path.name == "orders.json":
                    return dict(json.loads(path.read_text()))
                if path.suffix in (".keras", ".h5") and self.name == "freeze":
                    return dict(json.loads(path.read_bytes()[4:] or b"{}"))
        return {}

    def send(self, **event: Any) -> None:
        os.write(self.events, json.dumps(event).encode() + b"\n")

    def write(self, name: str, value: Any) -> None:
        (self.output / name).write_text(value if isinstance(value, str) else json.dumps(value))

    def run(self) -> int:
        print(f"{self.name} starts", file=sys.stderr)
        self.send(event="progress", fraction=0.1, message="started")
        behave = self.params.get("behave") or self.orders.get(self.name, "")
        status = getattr(self, f"do_{behave}")() if behave else None
        if status is not None:
            return int(status)
        self.output.mkdir(parents=True, exist_ok=True)
        self.write("orders.json", self.orders)
        getattr(self, f"stage_{self.name}", lambda: None)()
        self.send(event="progress", fraction=1.0, message="done")
        self.write("result.json", {"stage": self.name, "pid": os.getpid(), "seconds": 0.01})
        return 0

    # The real stages' files, with nothing in them.

    def stage_freeze(self) -> None:
        self.write("frozen.pb", "graph")

    def stage_convert(self) -> None:
        self.write("model.onnx", "onnx")

    def stage_calibrate(self) -> None:
        self.write("calibration.json", {"method": self.params["method"]})

    def stage_quantize(self) -> None:
        self.write("model.onnx", f"onnx {self.params['dialect']}")

    def stage_reference(self) -> None:
        self.write("outputs.npz", "outputs")

    def stage_build(self) -> None:
        if cache := self.inputs.get("timing_cache"):
            known = cache / "timing.cache"
            self.write("timing.cache", (known.read_text() if known.exists() else "") + "measured;")
        tensor = {"name": "x", "dtype": "FP32", "shape": [-1, 4]}
        self.write("model.bin", f"{self.params['backend']} {self.params['precision']}" * 100)
        self.write(
            "engine.json",
            {
                "backend": self.params["backend"],
                "backend_version": "1.0",
                "precision": self.params["precision"],
                "inputs": [tensor],
                "outputs": [{**tensor, "name": "y"}],
                "batched": True,
                "max_batch_size": self.params["profile"]["max"],
                "payload": "model.bin",
                "device": {"kind": "cpu", "product": "test"},
            },
        )

    def stage_verify(self) -> None:
        self.write("verification.json", {"samples": 32, "sqnr_db": 40.0, "cosine": 0.99, "top1_agreement": 1.0})

    # Misbehaviour.

    def do_slow(self) -> None:
        for step in range(20):
            time.sleep(0.07)
            self.send(event="progress", fraction=step / 20, message=f"step {step}")

    def do_error(self) -> int:
        self.send(event="error", code="FAILED_PRECONDITION", message="cannot do it", details={"why": "a test"})
        return 1

    def do_crash(self) -> int:
        print("about to crash", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGSEGV)
        return 0

    def do_silent(self) -> int:
        print("no event", file=sys.stderr)
        return 3

    def do_resultless(self) -> int:
        return 0

    def do_hang(self) -> None:
        while True:
            time.sleep(60)

    def do_gate(self) -> None:
        """Goes on once the file that the order `gate` names is there."""
        while not Path(self.orders["gate"]).exists():
            time.sleep(0.01)

    def do_full(self) -> int:
        """Writes until the disk is full, and says so as the real worker does."""
        try:
            with (self.output / "model.bin").open("wb") as file:
                while True:
                    file.write(bytes(1 << 20))
                    file.flush()
        except OSError as error:
            self.send(event="error", code="RESOURCE_EXHAUSTED", message=f"{self.name}: {error}", details={})
            return 1

    def do_hog_child(self) -> None:
        """A child takes the memory."""
        hoard = "import os,time; hoard = [os.urandom(1 << 20) * 4 for _ in range(100)]; time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-c", hoard])
        self.send(event="progress", fraction=0.5, message=f"child {child.pid}")
        self.do_hang()

    def do_stubborn(self) -> None:
        """Ignores SIGTERM, and has a child that does too."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(
            [sys.executable, "-c", "import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"],
            pass_fds=[self.events],
        )
        self.send(event="progress", fraction=0.5, message=f"child {child.pid}")
        self.do_hang()

    def do_orphan(self) -> None:
        """Succeeds, but leaves a child that holds the event pipe."""
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], pass_fds=[self.events])
        self.send(event="progress", fraction=0.5, message=f"child {child.pid}")

    def do_hog(self) -> None:
        hoard = []
        while True:
            hoard.append(bytearray(os.urandom(1 << 20)) * 8)
            time.sleep(0.01)

    def do_garbage(self) -> None:
        os.write(self.events, b"not json\n{}\n[1]\n" + b"x" * (3 << 20) + b"\n")
        self.send(event="progress", fraction=7, message="past the garbage")


def main() -> int:
    parser = argparse.ArgumentParser()
    stage = parser.add_subparsers(dest="command", required=True).add_parser("stage")
    stage.add_argument("--spec", type=Path)
    stage.add_argument("--events-fd", type=int)
    options = parser.parse_args()
    return Stage(json.loads(options.spec.read_text()), options.events_fd).run()


if __name__ == "__main__":
    sys.exit(main())
