"""The servers behind a client's addresses: names with several addresses, servers that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from simulated_time import simulate

from enginehouse import TLS, Balancing
from enginehouse.client.balancing.discovery import Discovery, Target, host_of, look_up, split_addresses
from enginehouse.client.balancing.pool import Pool
from enginehouse.client.balancing.servers import Server, on_this_machine
from enginehouse.errors import DeadlineExceededError, FailedPreconditionError, InvalidArgumentError


class Names:
    """A name server: `ips` of every name; None: it does not answer."""

    def __init__(self, *ips: str) -> None:
        self.ips: Sequence[str] | None = ips
        self.asked = 0
        self.seconds = 0.0

    async def look(self, host: str, port: int) -> Sequence[str]:
        self.asked += 1
        await asyncio.sleep(self.seconds)
        if self.ips is None:
            raise OSError("no name server")
        return self.ips


async def down(server: Server) -> bool:
    return False


def pool_of(names: Names, *addresses: str, policy: Balancing | None = None, tls: TLS | None = None) -> Pool:
    return Pool(Discovery(addresses, names.look), policy or Balancing(), timeout=30.0, tls=tls, probe=down)


async def addresses_of(pool: Pool) -> list[str]:
    return [server.address for server in await pool.servers()]


def test_addresses_are_given_as_a_list_or_a_text() -> None:
    assert split_addresses(" a:1, b:2,,a:1") == split_addresses(["a:1", "b:2,a:1"]) == ("a:1", "b:2")
    for nothing in ("", " , ", []):
        with pytest.raises(InvalidArgumentError, match="no address"):
            split_addresses(nothing)


def test_only_a_host_name_may_stand_for_several() -> None:
    assert host_of("engines.svc:8001") == ("engines.svc", 8001)
    for one in ("10.0.0.1:1", "[::1]:1", "localhost:1", "unix:/run/x", "dns:///a:1", "ipv4:1.2.3.4:1", "name"):
        assert host_of(one) is None


def test_what_is_on_this_machine() -> None:
    assert all(on_this_machine(a) for a in ("127.0.0.1:1", "localhost:8001", "unix:/run/x", "127.3.4.5:1"))
    # TEST-NET addresses are nobody's.
    assert not any(on_this_machine(a) for a in ("192.0.2.1:1", "[2001:db8::1]:1", "elsewhere:1"))


def test_the_resolver_of_this_machine_is_asked() -> None:
    assert asyncio.run(look_up("localhost", 1)) in (["127.0.0.1"], ["::1"])


def test_servers_come_and_go_with_the_name() -> None:
    async def go() -> None:
        names = Names("10.0.0.2", "10.0.0.1")
        pool = pool_of(names, "engines:8001", "10.9.9.9:1")
        assert await addresses_of(pool) == ["10.0.0.1:8001", "10.0.0.2:8001", "10.9.9.9:1"]
        first = (await pool.servers())[0]
        pool.take(first)
        names.ips = ("10.0.0.2", "10.0.0.3")
        assert len(await pool.servers()) == 3 and names.asked == 1
        await asyncio.sleep(31)
        await pool.servers()  # begins to look, in the background
        await asyncio.sleep(0.01)
        assert set(await addresses_of(pool)) == {"10.0.0.2:8001", "10.0.0.3:8001", "10.9.9.9:1"}
        # A request of one that went is answered before its channel closes.
        first.endpoint.channel()
        pool.put_back(first)
        await asyncio.sleep(0.01)
        with pytest.raises(FailedPreconditionError):
            first.endpoint.channel()
        # A name server that is away changes nothing.
        names.ips = None
        await asyncio.sleep(31)
        await pool.servers()
        await asyncio.sleep(0.01)
        assert len(await pool.servers()) == 3 and names.asked == 3
        await pool.close()

    simulate(go())


def test_a_server_that_goes_down_has_its_name_looked_up_at_once() -> None:
    async def go() -> None:
        names = Names("10.0.0.1", "10.0.0.2")
        pool = pool_of(names, "engines:8001")
        server = (await pool.servers())[0]
        await asyncio.sleep(2)
        names.ips = ("10.0.0.2", "10.0.0.3")
        server.down = True
        pool.watch(server)
        await asyncio.sleep(0.01)
        assert set(await addresses_of(pool)) == {"10.0.0.2:8001", "10.0.0.3:8001"}
        for _ in range(20):
            pool.look_again()
            await asyncio.sleep(0.01)
        assert names.asked == 2
        await pool.close()

    simulate(go())


def test_one_address_stays_a_name_and_several_keep_its_certificate() -> None:
    async def go() -> None:
        assert await Discovery(["engines:1"], Names("10.0.0.1").look).targets() == (Target("engines:1"),)
        several = await Discovery(["engines:1"], Names("fe80::1", "fe80::2").look).targets()
        assert several == (Target("[fe80::1]:1", "engines"), Target("[fe80::2]:1", "engines"))
        pool = pool_of(Names("10.0.0.1", "10.0.0.2"), "engines:1", tls=TLS())
        servers = await pool.servers()
        assert [s.endpoint.tls for s in servers] == [TLS(server_name="engines")] * 2
        await pool.close()
        # A name that never could be looked up is gRPC's to complain of.
        nobody = Names()
        nobody.ips = None
        assert await Discovery(["nobody:1"], nobody.look).targets() == (Target("nobody:1"),)

    simulate(go())


def test_a_look_up_does_not_outlast_the_deadline() -> None:
    async def go() -> None:
        names = Names("10.0.0.1", "10.0.0.2")
        names.seconds = 60.0
        pool = pool_of(names, "engines:1")
        with pytest.raises(DeadlineExceededError, match="looked up"):
            await pool.servers(0.5)
        assert asyncio.get_running_loop().time() < 1
        await asyncio.sleep(60)
        assert len(await pool.servers(0.5)) == 2 and names.asked == 1
        await pool.close()

    simulate(go())


def test_connections_grow_old_one_after_another() -> None:
    async def go() -> None:
        pool = pool_of(Names(), "10.0.0.1:1", policy=Balancing(connections=3, max_connection_age=100.0))
        first = list(await pool.servers())
        assert len(first) == 3 and len({s.address for s in first}) == 1
        await asyncio.sleep(89)
        assert list(await pool.servers()) == first
        await asyncio.sleep(12)
        second = list(await pool.servers())
        assert not set(first) & set(second) and len(second) == 3
        await asyncio.sleep(0.01)
        with pytest.raises(FailedPreconditionError):
            first[0].endpoint.channel()
        await pool.close()
        with pytest.raises(FailedPreconditionError, match="closed"):
            await pool.servers()

    simulate(go())


def test_another_event_loop_begins_anew() -> None:
    pool = pool_of(Names(), "10.0.0.1:1", "10.0.0.2:1")

    async def first() -> None:
        server = (await pool.servers())[0]
        pool.take(server)
        server.down = True
        pool.watch(server)

    async def second() -> None:
        servers = await pool.servers()
        assert [(s.down, s.outstanding) for s in servers] == [(False, 0)] * 2
        await pool.close()

    simulate(first())
    simulate(second())
