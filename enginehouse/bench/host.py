"""The scopes engine and host: worker processes run engines back to back, on this machine."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from enginehouse.bench.environment import Machine
from enginehouse.bench.interleave import interleave, warm_up
from enginehouse.bench.plan import ALL_GPUS, Contender
from enginehouse.bench.pool import Placed, Pool
from enginehouse.bench.recording import Measured, Recording, utc
from enginehouse.bench.rows import Lane
from enginehouse.bench.seams import Engine, Workers
from enginehouse.bench.statistics import Window
from enginehouse.errors import EnginehouseError, FailedPreconditionError


@dataclass(frozen=True)
class Loadable:
    """A contender's engine, downloaded."""

    contender: Contender
    engine: Engine
    directory: Path

    def placed(self, gpus: Sequence[int]) -> tuple[Placed, ...]:
        """Where it runs: on one device, or on each of `gpus`."""
        device, mode = self.contender.device, self.contender.mode
        devices = [f"gpu:{index}" for index in gpus] if device == ALL_GPUS else [device]
        return tuple(Placed(mode, self.engine, self.directory, one) for one in devices)


class HostBench:
    """Measures the contenders of one model in one scope after the other, with the engines loaded all the while."""

    def __init__(self, workers: Workers, recording: Recording, machine: Machine, gpus: Sequence[int]) -> None:
        self._pool, self._recording, self._gpus = Pool(workers, machine), recording, gpus

    async def run(self, model: str, loadables: Sequence[Loadable], wanted: Mapping[Contender, Sequence[Lane]]) -> None:
        """Load all engines, then measure the wanted lanes, one batch size after another, contenders interleaved."""
        try:
            with self._recording.phase(f"load {model}", "load", model=model):
                for loadable in loadables:
                    for placed in loadable.placed(self._gpus):
                        await self._pool.load(placed)
            # All GPUs at once is a round of its own: single GPUs would wait, and measure a machine of another heat.
            groups = sorted({
                (lane.device == ALL_GPUS, lane.scope, lane.batch) for lanes in wanted.values() for lane in lanes
            })  # fmt: skip
            for together, scope, batch in groups:
                lanes = {
                    lane: loadable.placed(self._gpus)
                    for loadable in loadables
                    for lane in wanted.get(loadable.contender, ())
                    if (lane.device == ALL_GPUS, lane.scope, lane.batch) == (together, scope, batch)
                }
                await self._round(model, scope, batch, lanes)
        finally:
            await self._pool.close()

    async def _round(self, model: str, scope: str, batch: int, lanes: Mapping[Lane, Sequence[Placed]]) -> None:
        usable: dict[Lane, Sequence[Placed]] = {}
        for lane, several in lanes.items():
            error = next((found for placed in several if (found := self._pool.failure(placed))), None)
            error = error or _too_large(several[0].engine, batch)
            if error is None:
                usable[lane] = several
            else:
                self._recording.not_run([lane], error)
        if not usable:
            return
        spec, round_id = self._recording.suite.measure, f"{utc()}/{model}/{scope}/{batch}"
        facts: dict[str, str | int] = {"model": model, "batch": batch, "scope": scope}
        what = f"{model} {scope} batch {batch}"
        warmed: dict[Lane, float] = {}
        with self._recording.phase(f"warm up {what}", "warm-up", **facts):
            for lane, several in usable.items():
                try:
                    warmed[lane] = await warm_up(functools.partial(self._window, lane, several), spec)
                except EnginehouseError as error:
                    self._recording.not_run([lane], error)
        with self._recording.phase(f"measure {what}", "measure", **facts):
            outcomes = await interleave(
                list(warmed),
                lambda lane, index: self._window(lane, usable[lane]),
                spec,
                lambda lane, index, window: self._recording.window(lane, round_id, index, window),
                seed=f"{self._recording.suite.seed}/{model}/{scope}/{batch}",
            )
        self._recording.rows(outcomes, {lane: self._measured(usable[lane], warmed[lane]) for lane in warmed}, round_id)

    def _measured(self, several: Sequence[Placed], warmup_seconds: float) -> Measured:
        first, devices = several[0], [placed.device for placed in several]
        return Measured(
            first.engine,
            self._pool.environment(first),
            warmup_seconds=warmup_seconds,
            gpus=len(several) if len(several) > 1 else None,
            own=self._pool.pids(devices),
        )

    async def _window(self, lane: Lane, several: Sequence[Placed]) -> Window:
        suite = self._recording.suite
        seconds = suite.measure.window_seconds
        if len(several) == 1:
            return await self._pool.window(
                several[0], batch=lane.batch, seconds=seconds, seed=suite.seed, scope=lane.scope
            )
        return await self._pool.together(several, batch=lane.batch, seconds=seconds, seed=suite.seed, scope=lane.scope)


def _too_large(engine: Engine, batch: int) -> EnginehouseError | None:
    if 0 < engine.max_batch_size < batch:
        return FailedPreconditionError(f"the engine takes at most batch {engine.max_batch_size}")
    return None
