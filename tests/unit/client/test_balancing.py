"""Which server gets a request and what happens when it cannot take it, with simulated servers and time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_servers import Simulated, World
from simulated_time import simulate

from enginehouse import Balancing, Hedging, Retry
from enginehouse.errors import (
    CancelledError,
    DeadlineExceededError,
    EnginehouseError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)


async def outcomes(work: list[Coroutine[Any, Any, int]]) -> list[int | EnginehouseError]:
    found: list[Any] = await asyncio.gather(*work, return_exceptions=True)
    assert all(isinstance(item, (int, EnginehouseError)) for item in found), found
    return found


def test_the_server_with_the_fewest_requests_gets_the_next() -> None:
    async def go() -> None:
        servers = [Simulated(), Simulated(), Simulated(seconds=0.05)]
        world = World(servers)
        await outcomes([world.infer(n) for n in range(30)])
        assert [len(s.began) for s in servers] == [10, 10, 10] == [s.most for s in servers]
        # In a closed loop a server that is five times as slow gets about a fifth.
        for server in servers:
            server.began.clear()

        async def caller(first: int) -> None:
            for n in range(60):
                await world.infer(first + n)

        await asyncio.gather(*(caller(1000 * k) for k in range(1, 7)))
        fast, other, slow = (len(s.began) for s in servers)
        assert 3 < fast / slow < 8 and 0.8 < fast / other < 1.25

    simulate(go())


def test_a_server_that_dies_loses_nothing_and_gets_requests_again() -> None:
    async def go() -> None:
        servers = [Simulated(), Simulated(), Simulated()]
        world = World(servers)
        running = [asyncio.create_task(world.infer(n)) for n in range(90)]
        await asyncio.sleep(0.005)
        servers[0].die(3.0)
        assert await asyncio.gather(*running) == list(range(90))
        dead = len(servers[0].began)
        for n in range(200):
            await world.infer(100 + n)
        # Nobody but the probes went there meanwhile.
        assert len(servers[0].began) == dead
        await asyncio.sleep(3.0)
        await outcomes([world.infer(1000 + n) for n in range(30)])
        assert len(servers[0].began) == dead + 10

    simulate(go())


def test_a_request_that_kills_servers_kills_two_at_most() -> None:
    async def go() -> None:
        servers = [Simulated(raises=UnavailableError("the worker died")) for _ in range(5)]
        world = World(servers)
        with pytest.raises(UnavailableError, match="tried 2 times, at 10"):
            await world.infer(1)
        assert world.sends == 2
        # One server alone is not asked again.
        alone = World([Simulated(raises=UnavailableError("the worker died"))])
        with pytest.raises(UnavailableError, match=r"the worker died$"):
            await alone.infer(1)
        assert alone.sends == 1
        # Nor any other, when two must not work on it.
        again = World([Simulated(raises=UnavailableError("the worker died")) for _ in range(3)])
        with pytest.raises(UnavailableError):
            await again.infer(1, exclusive=True)
        assert again.sends == 1

    simulate(go())


@pytest.mark.parametrize("error", [InvalidArgumentError("x"), FailedPreconditionError("x"), InternalError("x")])
def test_what_may_not_be_sent_again_is_not(error: EnginehouseError) -> None:
    async def go() -> None:
        world = World([Simulated(raises=error) for _ in range(3)])
        with pytest.raises(type(error)):
            await world.infer(1)
        assert world.sends == 1

    simulate(go())


def test_a_request_that_came_while_its_server_stopped_goes_to_another() -> None:
    async def go() -> None:
        world = World([Simulated(raises=CancelledError("CANCELLED")), Simulated()])
        await world.infer(1)
        await world.infer(1)

    simulate(go())


def test_a_limit_without_a_time_is_final() -> None:
    async def go() -> None:
        world = World([Simulated(raises=ResourceExhaustedError("message larger than max")) for _ in range(3)])
        with pytest.raises(ResourceExhaustedError):
            await world.infer(1)
        assert world.sends == 1

    simulate(go())


def test_models_that_some_servers_have() -> None:
    async def go() -> None:
        servers = [Simulated(models={"a"}), Simulated(models={"a", "b"}), Simulated(models=set())]
        world = World(servers)
        for n in range(40):
            assert await world.infer(n, model="b") == n
        assert sum(servers[1].done.values()) == 40
        # The others were asked once, and then left alone.
        assert len(servers[0].began) <= 1 and len(servers[2].began) <= 1
        with pytest.raises(NotFoundError):
            await world.infer(99, model="c")
        # It comes: a mark of before does not hide it for long.
        servers[2].models = {"c"}
        await asyncio.sleep(2.0)
        assert await world.infer(100, model="c") == 100

    simulate(go())


def test_a_full_server_is_left_alone_for_as_long_as_it_says() -> None:
    async def go() -> None:
        servers = [Simulated(places=0), Simulated(places=1000, seconds=0.2)]
        world = World(servers)
        for _ in range(5):
            await outcomes([world.infer(n) for n in range(4)])
        times = [at for at, _ in servers[0].began]
        assert times and all(later - earlier >= 0.1 for earlier, later in pairwise(times))
        # All are full: wait for as long, then try again.
        both = World([Simulated(places=1, seconds=0.08), Simulated(places=1, seconds=0.08)])
        assert await outcomes([both.infer(n) for n in range(3)]) == [0, 1, 2]
        # No longer than the deadline; it is known at once that it would be too long.
        full = World([Simulated(places=0)])
        with pytest.raises(ResourceExhaustedError):
            await full.infer(1, timeout=0.05)
        assert asyncio.get_running_loop().time() < 3 and full.sends == 1

    simulate(go())


def test_the_budget_ends_a_storm() -> None:
    async def go() -> None:
        retry = Retry(max_attempts=10, budget_burst=20, budget_ratio=0.1)
        world = World([Simulated(places=0), Simulated(places=0)], Balancing(retry=retry))
        results = await outcomes([world.infer(n) for n in range(500)])
        assert all(isinstance(result, ResourceExhaustedError) for result in results)
        assert world.sends <= 500 + 20 + 50

    simulate(go())


@pytest.mark.parametrize("attempts", [1, 4])
def test_a_server_that_still_loads_the_model_passes_a_request_on(attempts: int) -> None:
    loading = UnavailableError("LOADING", details={"model_state": "LOADING"}, retry_after_seconds=1.0)

    async def go() -> None:
        servers = [Simulated(raises=loading), Simulated(raises=loading), Simulated()]
        world = World(servers, Balancing(retry=Retry(max_attempts=attempts)))
        results = [await world.infer(n) for n in range(20)]
        assert results == list(range(20))

    simulate(go())


def test_one_attempt_says_that_every_server_loads_the_model() -> None:
    loading = UnavailableError("LOADING", details={"model_state": "LOADING"}, retry_after_seconds=1.0)

    async def go() -> None:
        world = World([Simulated(raises=loading), Simulated(raises=loading)], Balancing(retry=Retry(max_attempts=1)))
        with pytest.raises(UnavailableError, match="LOADING"):
            await world.infer(1)
        assert world.sends == 2

    simulate(go())


def test_a_server_that_only_fails_does_not_draw_all_requests() -> None:
    async def go() -> None:
        broken, well = Simulated(raises=InternalError("device lost")), Simulated(seconds=0.02)
        world = World([broken, well])

        async def caller(first: int) -> int:
            failed = 0
            for n in range(100):
                try:
                    await world.infer(first + n)
                except InternalError:
                    failed += 1
                    await asyncio.sleep(0.001)
            return failed

        failed = sum(await asyncio.gather(*(caller(1000 * k) for k in range(8))))
        assert failed == len(broken.began) < 80 and len(well.began) > 700

    simulate(go())


def test_hedging_cuts_the_tail() -> None:
    async def go() -> None:
        slow, quick = Simulated(seconds=5.0), Simulated(seconds=0.01)
        world = World([slow, quick], Balancing(hedging=Hedging(0.1)))
        loop = asyncio.get_running_loop()
        for n in range(20):
            start = loop.time()
            assert await world.infer(n) == n
            assert loop.time() - start < 0.2
        # The slow one's were cancelled, and none of them counts any more.
        assert slow.began and not slow.done and not slow.running
        assert [server.outstanding for server in await world.pool.servers()] == [0, 0]
        # Not where two servers must not work on it.
        slow.began.clear()
        for n in range(5):
            await world.infer(100 + n, exclusive=True)
        assert sum(slow.done.values()) == len(slow.began)

    simulate(go())


def test_a_hedge_that_fails_does_not_fail_the_request() -> None:
    async def go() -> None:
        servers = [Simulated(seconds=0.3), Simulated(seconds=0.3)]
        world = World(servers, Balancing(hedging=Hedging(0.05)))
        request = asyncio.create_task(world.infer(1))
        await asyncio.sleep(0.1)
        assert all(server.running for server in servers)
        servers[1].die(1.0)
        assert await request == 1

    simulate(go())


def test_a_cancelled_request_leaves_nothing() -> None:
    async def go() -> None:
        world = World([Simulated(seconds=5.0), Simulated(seconds=5.0)], Balancing(hedging=Hedging(0.1)))
        request = asyncio.create_task(world.infer(1))
        await asyncio.sleep(0.5)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert not any(server.running for server in world.servers.values())
        assert [server.outstanding for server in await world.pool.servers()] == [0, 0]

    simulate(go())


SERVERS = st.lists(
    st.builds(
        Simulated,
        seconds=st.sampled_from([0.001, 0.02, 0.3, 3.0]),
        places=st.sampled_from([0, 2, 1000]),
        models=st.sampled_from([None, set(), {"m"}]),
        raises=st.sampled_from([None, None, None, InternalError("x"), UnavailableError("x", retry_after_seconds=0.5)]),
    ),
    min_size=1,
    max_size=4,
)
POLICIES = st.builds(
    Balancing,
    retry=st.builds(
        Retry,
        max_attempts=st.integers(1, 5),
        initial_backoff=st.sampled_from([0.0, 0.05]),
        budget_burst=st.sampled_from([0.0, 5.0, 256.0]),
        budget_ratio=st.sampled_from([0.0, 0.2]),
    ),
    hedging=st.sampled_from([None, Hedging(0.0), Hedging(0.05, max_extra=3)]),
    connections=st.sampled_from([1, 3]),
    max_connection_age=st.sampled_from([0.05, 1800.0]),
)


@settings(deadline=None)
@given(SERVERS, POLICIES, st.integers(0, 2**32))
def test_whatever_the_servers_do_every_request_ends_once_and_in_time(
    servers: list[Simulated], policy: Balancing, seed: int
) -> None:
    async def go() -> None:
        dice = random.Random(seed)
        world = World([Simulated(s.seconds, s.places, s.models, raises=s.raises) for s in servers], policy, seed)
        loop = asyncio.get_running_loop()
        deadlines = [dice.choice([0.01, 0.5, 5.0]) for _ in range(25)]

        async def one(number: int) -> None:
            await asyncio.sleep(dice.uniform(0, 1))
            start = loop.time()
            hears_in_time = deadlines[number] + 1e-6
            with suppress(EnginehouseError):
                assert await world.infer(number, timeout=deadlines[number]) == number
            assert loop.time() - start <= hears_in_time

        async def trouble() -> None:
            for _ in range(4):
                await asyncio.sleep(dice.uniform(0, 0.5))
                dice.choice(list(world.servers.values())).die(dice.uniform(0, 1))

        await asyncio.gather(*(one(n) for n in range(25)), trouble())
        await asyncio.sleep(0)
        for server in await world.pool.servers():
            assert server.outstanding == 0
        budget = policy.retry.budget_burst + 25 * policy.retry.budget_ratio
        # Asking on because a model is not there is bounded by the connections, and all else by the budget.
        absent = sum(len(s.began) for s in world.servers.values() if s.models == set())
        assert world.sends <= 25 + budget + absent
        extra = policy.hedging.max_extra if policy.hedging is not None else 0
        for number in range(25):
            sent = sum(request == number for s in world.servers.values() if s.models != set() for _, request in s.began)
            assert sent <= policy.retry.max_attempts * (1 + extra)

    simulate(go())


@pytest.mark.parametrize(
    "wrong",
    [lambda: Retry(max_attempts=0), lambda: Hedging(-1), lambda: Balancing(connections=0), lambda: Retry(0.5)],  # type: ignore[arg-type]
)
def test_policies_that_make_no_sense_are_refused(wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="expected"):
        wrong()


def test_late_is_late() -> None:
    async def go() -> None:
        world = World([Simulated(seconds=1.0)])
        with pytest.raises(DeadlineExceededError):
            await world.infer(1, timeout=0.1)
        assert asyncio.get_running_loop().time() < 0.2

    simulate(go())
