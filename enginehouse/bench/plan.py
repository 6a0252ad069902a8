"""Which lanes a suite wants on a machine, and which of them the machine cannot run and why. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from enginehouse.bench.environment import Gpus
from enginehouse.bench.modes import Mode
from enginehouse.bench.rows import Lane
from enginehouse.bench.suite import ModelSpec, Suite
from enginehouse.errors import EnginehouseError, FailedPreconditionError

# The device of a lane that all of the machine's GPUs work for at once.
ALL_GPUS = "gpu:all"


@dataclass(frozen=True)
class Contender:
    """A mode on a device ("cpu", "gpu:N" or "gpu:all")."""

    mode: Mode
    device: str

    def __hash__(self) -> int:
        return hash((self.mode.name, self.device))

    def __str__(self) -> str:
        return f"{self.mode.name} on {self.device}"


def wanted_gpus(suite: Suite, gpus: Gpus) -> tuple[int, ...]:
    """Indices of the GPUs that the suite is for; 0 where all are wanted and there is none."""
    return suite.gpus or tuple(gpu.index for gpu in gpus.devices) or (0,)


def contenders(suite: Suite, gpus: Gpus) -> tuple[Contender, ...]:
    """Every mode on every device wanted for it, and on several GPUs also on all at once."""
    indices = wanted_gpus(suite, gpus)
    found = []
    for mode in suite.modes:
        devices = ["cpu"] if mode.device == "cpu" else [f"gpu:{index}" for index in indices]
        if len(devices) > 1:
            devices.append(ALL_GPUS)
        found += [Contender(mode, device) for device in devices]
    return tuple(found)


def lanes(suite: Suite, model: ModelSpec, contender: Contender) -> tuple[Lane, ...]:
    """The rows wanted of a contender on a model.

    A served lane names no single GPU: the service picks among its own. A CPU has no scope "engine": its device's memory
    is the host's.
    """
    mode, found = contender.mode, []
    for scope in suite.scopes:
        served = scope == "served"
        if served and contender.device.startswith("gpu:") and contender.device != f"gpu:{(suite.gpus or (0,))[0]}":
            continue
        if scope == "engine" and mode.device == "cpu":
            continue
        for batch in suite.batches_of(mode):
            found += [
                Lane(
                    model=model.name,
                    mode=mode.name,
                    backend=mode.backend,
                    precision=mode.precision,
                    device=mode.device if served else contender.device,
                    batch=batch,
                    scope=scope,
                    concurrency=concurrency,
                    instances=suite.instances if served else 1,
                    cuda_graph=_cuda_graph(mode),
                )
                for concurrency in (suite.concurrency if served else (1,))
            ]
    return tuple(found)


def why_not(
    contender: Contender, gpus: Gpus, environment: Callable[[Mode], str] | None, scopes: Sequence[str]
) -> EnginehouseError | None:
    """Why this machine cannot run a contender, or None when it can.

    Args:
        environment: names the worker environment of a mode or raises FailedPreconditionError; None where there are no
            workers.
        scopes: those wanted; all but "served" need a worker environment here.
    """
    if contender.device != "cpu":
        if not gpus.devices:
            return FailedPreconditionError(gpus.missing or "no NVIDIA GPU")
        known = {gpu.index for gpu in gpus.devices}
        if contender.device != ALL_GPUS and int(contender.device.removeprefix("gpu:")) not in known:
            return FailedPreconditionError(f"no GPU {contender.device[4:]}: this machine has {len(known)}")
    if any(scope != "served" for scope in scopes):
        if environment is None:
            return FailedPreconditionError("no worker processes were given to measure the host scope with")
        try:
            environment(contender.mode)
        except EnginehouseError as error:
            return error
    return None


def _cuda_graph(mode: Mode) -> bool | None:
    value = mode.load_options.get("cuda_graph", mode.load_options.get("cuda_graphs"))
    return None if value is None or mode.device == "cpu" else str(value).lower() not in ("0", "false", "no", "off")
