"""Feeds the freeze stage mutated models of every format and counts how each ends.

    python tests/worker/fuzz_freezing.py --count 10000 --seed 0

An end is the graph (FROZEN), a WorkerError's code, or a crash of the framework, which the stage's guard reports as
INVALID_ARGUMENT. Any other exception is a defect: its mutation is printed, and the status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent / "worker")]
_SECONDS = 120


def samples(directory: Path) -> dict[str, Path]:
    """A small valid file of each format, made in a child: this process must not start TensorFlow's threads."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            from models import constant_graph, packed, small_model

            model = small_model()
            model.save(directory / "keras.keras")
            model.save(directory / "keras_hdf5.h5")
            model.export(directory / "saved", verbose=False)
            packed(directory / "saved", "tar").rename(directory / "saved_model.tar")
            constant_graph(directory / "frozen_graph.pb")
            status = 0
        except Exception:
            traceback.print_exc()
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    return {path.stem: path for path in sorted(directory.iterdir()) if path.is_file()}


def mutated(data: bytes, seeded: random.Random) -> bytes:
    """Bits flipped, bytes set, a range cut out, doubled or zeroed, or the end cut off."""
    changed = bytearray(data)
    kind = seeded.randrange(6)
    if kind < 3:
        for _ in range(seeded.choice((1, 1, 2, 8, 32))):
            position = seeded.randrange(len(changed))
            changed[position] = changed[position] ^ 1 << seeded.randrange(8) if kind else seeded.randrange(256)
        return bytes(changed)
    begin = seeded.randrange(len(changed))
    end = min(len(changed), begin + seeded.choice((1, 4, 64, 1024)))
    if kind == 3:
        return bytes(changed[:begin] + changed[end:])
    if kind == 4:
        return bytes(changed[:end] + changed[begin:])
    return (
        bytes(changed[:begin]) if seeded.randrange(2) else bytes(changed[:begin] + bytes(end - begin) + changed[end:])
    )


def one(sample: Path, format_: str, number: int, seed: int, work: Path) -> str:
    """How mutation `number` of a sample ends."""
    from enginehouse_worker.errors import WorkerError
    from models import freeze

    path = work / f"model{sample.suffix}"
    path.write_bytes(mutated(sample.read_bytes(), random.Random(f"{seed} {format_} {number}")))
    output = work / "out"
    try:
        freeze(path, output, format=format_)
        return "FROZEN"
    except WorkerError as error:
        assert error.message and "Traceback" not in error.message
        return error.code
    finally:
        shutil.rmtree(output, ignore_errors=True)


def run(sample: Path, format_: str, count: int, seed: int) -> Iterator[str]:
    """The ends of `count` mutations, in a child that is replaced when the framework crashes or hangs."""
    number = 0
    while number < count:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(0)
            with tempfile.TemporaryDirectory() as work:
                for index in range(number, count):
                    signal.alarm(_SECONDS)
                    try:
                        end = one(sample, format_, index, seed, Path(work))
                    except BaseException as error:
                        traceback.print_exc()
                        end = f"DEFECT {type(error).__name__}"
                    os.write(writing, f"{end}\n".encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            for line in pipe:
                if line.startswith("DEFECT"):
                    print(f"{format_}: mutation {number} of seed {seed}: {line.strip()}")
                number += 1
                yield line.split()[0]
        status = os.waitpid(child, 0)[1]
        if number < count:
            name = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"status {status}"
            print(f"{format_}: mutation {number} of seed {seed}: the framework ended by {name}")
            number += 1
            yield "DEFECT" if name == "SIGALRM" else "INVALID_ARGUMENT"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000, help="mutations of all formats together")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as directory, contextlib.suppress(KeyboardInterrupt):
        files = samples(Path(directory))
        import keras  # noqa: F401  (once, for all children)

        for format_, sample in files.items():
            counts[format_] = Counter(run(sample, format_, options.count // len(files), options.seed))
            print(f"{format_}: {dict(counts[format_])}", flush=True)
    print(json.dumps(counts))
    return 1 if any(ends["DEFECT"] for ends in counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
