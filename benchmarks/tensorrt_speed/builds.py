"""Builds the engines that are missing, in a process of its own that a build which takes too long costs alone.

The process reads requests from its standard input, a JSON object a line, and answers on its standard output. One timing
cache (`cache/timing.cache` in the work folder) serves all builds and is brought up to date after each.
"""

from __future__ import annotations

import hashlib
import json
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "worker")]

from tensorrt_speed.variants import Variant  # noqa: E402

DONE = "build.json"
CACHE = "timing.cache"
_ANSWER = "BUILT "
_ORIGINAL: dict[str, Any] = {}


class BuildFailed(Exception):
    """A build that failed or took too long; the message says why."""


def recipe(variant: Variant) -> str:
    """A digest of everything that determines a variant's plan."""
    parts = [variant.kind, variant.model, variant.source, variant.precision, variant.profile, variant.options]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class Builds:
    """The builds of a work folder, each within `limit` seconds. `close` ends the process that builds."""

    def __init__(self, work: Path, limit_seconds: float) -> None:
        self._work = work
        self.limit = limit_seconds
        self.log = work / "builds.log"  # TensorRT's messages
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()

    def folder(self, name: str) -> Path:
        """Where a variant's plan is."""
        return self._work / "engines" / name

    def known(self, variant: Variant) -> dict[str, Any] | None:
        """What is known of a build that is there, or None."""
        path = self.folder(variant.name) / DONE
        if not path.exists():
            return None
        record: dict[str, Any] = json.loads(path.read_text())
        return record if record.get("recipe") == recipe(variant) else None

    def build(self, variant: Variant) -> dict[str, Any]:
        """Build a variant's plan, cold and again if it says so; returns its record.

        Raises:
            BuildFailed: it failed or took longer than the limit.
        """
        folder, shared = self.folder(variant.name), self._work / "cache"
        shared.mkdir(parents=True, exist_ok=True)
        warm = (shared / CACHE).exists()
        record: dict[str, Any] = {"variant": variant.name, "recipe": recipe(variant)}
        if variant.cold:
            record |= self._run(variant, folder, None)
            again = folder.with_name(f"{folder.name}-again")
            second = self._run(variant, again, folder)
            record |= {f"{name}_again": value for name, value in second.items()}
            shutil.rmtree(again, ignore_errors=True)
            record["timing_cache"] = "none, then its own"
        else:
            record |= self._run(variant, folder, shared)
            record["timing_cache"] = "shared" if warm else "empty"
        record["plan_bytes"] = (folder / "model.plan").stat().st_size
        written = folder / CACHE
        if written.exists():
            record["timing_cache_bytes"] = written.stat().st_size
            # A cold build's cache has only its own measurements.
            if not (variant.cold and warm):
                shutil.copyfile(written, shared / "timing.new")
                (shared / "timing.new").replace(shared / CACHE)
        (folder / DONE).write_text(json.dumps(record) + "\n")
        return record

    def close(self) -> None:
        """End the process that builds."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _run(self, variant: Variant, folder: Path, cache: Path | None) -> dict[str, Any]:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        request = {
            "kind": variant.kind,
            "work": str(self._work / variant.model),
            "source": variant.source,
            "output": str(folder),
            "precision": variant.precision,
            "profile": dict(variant.profile),
            "options": dict(variant.options),
            "timing_cache": None if cache is None else str(cache),
        }
        answer = self._ask(request)
        if "error" in answer:
            raise BuildFailed(f"{variant.name}: {answer['error']}")
        return answer

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self._process is None:
            self._answers = queue.Queue()
            command = [sys.executable, "-u", __file__]
            with self.log.open("a") as log:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
                )
            threading.Thread(target=self._read, args=(self._process, self._answers), daemon=True).start()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=self.limit)
        except queue.Empty:
            self.close()
            return {"error": f"took longer than {self.limit:.0f} s and was ended"}
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait() if self._process is not None else None
            self.close()
            last = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            return {"error": f"the process that builds ended ({code}): {last}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    @staticmethod
    def _read(process: subprocess.Popen[str], answers: queue.Queue[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(_ANSWER):
                answers.put(line[len(_ANSWER) :])
        answers.put("")


def run_build(request: Mapping[str, Any]) -> dict[str, Any]:
    """Build as a request says; returns the seconds that it took."""
    model, output = Path(request["work"]) / request["source"], Path(request["output"])
    cache = Path(request["timing_cache"]) if request["timing_cache"] else None
    begin = time.monotonic()
    if request["kind"] == "implicit":
        from tensorrt_speed.implicit import build_implicit

        build_implicit(Path(request["work"]), output, request["profile"], request["options"], cache)
    else:
        from enginehouse_worker.backends import registry
        from enginehouse_worker.backends.base import BatchProfile, TimingCacheBackend

        backend = registry.get("tensorrt")
        assert isinstance(backend, TimingCacheBackend)
        took = time_plans()
        profile = BatchProfile(**request["profile"])
        backend.build(
            model,
            output,
            precision=request["precision"],
            profile=profile,
            options=request["options"],
            timing_cache=cache,
        )
        return {"build_seconds": round(time.monotonic() - begin, 2), "plan_seconds": round(sum(took), 2)}
    return {"build_seconds": round(time.monotonic() - begin, 2)}


def time_plans() -> list[float]:
    """A list that gets the seconds of each plan: parsing and TensorRT's build, without the trial run after them."""
    from enginehouse_worker.backends.tensorrt import builder

    took: list[float] = []
    make = _ORIGINAL.setdefault("make_plan", builder.make_plan)

    def timed(*given: Any, **named: Any) -> Any:
        begin = time.monotonic()
        try:
            return make(*given, **named)
        finally:
            took.append(time.monotonic() - begin)

    builder.make_plan = timed
    return took


def serve() -> None:
    """Answer requests until the input ends."""
    for line in sys.stdin:
        try:
            answer = run_build(json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:2000]}
        print(_ANSWER + json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
