"""Look-ups against a real DNS server: questions on the wire, cache, joined questions, failures, addresses to avoid."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from edge.connections import Transport
from edge.sip.resolver import ALL_AVOIDED, Destination, Expiring, Resolver
from edge.sip.resolver_client import parse_nameserver, system_nameservers
from edge.sip.uri import SipUri, parse_uri
from tests.ua.clock import FakeClock
from tests.ua.dns import DnsServer
from tests.ua.wait import deadline, eventually, scaled, within

UDP, TCP, TLS = Transport.UDP, Transport.TCP, Transport.TLS
Outcome = tuple[list[Destination], int]

LONG_S = 60.0  # a limit no test should reach
SHORT_S = 0.25  # one that is reached on purpose


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with DnsServer() as server:
        yield server


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


MakeResolver = Callable[..., Resolver]


@pytest.fixture
async def make_resolver(dns: DnsServer, clock: FakeClock, tmp_path: Path) -> AsyncIterator[MakeResolver]:
    """Make resolvers that ask `dns`, know no hosts file, and live in a cache time of their own."""
    made: list[Resolver] = []

    def make(**options: Any) -> Resolver:
        options.setdefault("transports", frozenset((UDP, TCP, TLS)))
        options.setdefault("nameservers", [dns.address])
        options.setdefault("random", random.Random(3263).randbytes)
        options.setdefault("hosts_file", tmp_path / "none")
        options.setdefault("timeout_s", scaled(LONG_S))
        made.append(Resolver(asyncio.get_running_loop(), clock=clock, **options))
        return made[-1]

    yield make
    for resolver in made:
        await resolver.close()


@pytest.fixture
async def resolver(make_resolver: MakeResolver) -> Resolver:
    return make_resolver()


def start(resolver: Resolver, uri: bytes | SipUri) -> asyncio.Future[Outcome]:
    """Begin a look-up; a second call of `done` fails as InvalidStateError."""
    outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    resolver.resolve(
        parse_uri(uri) if isinstance(uri, bytes) else uri, lambda found, status: outcome.set_result((found, status))
    )
    return outcome


def find(resolver: Resolver, uri: bytes) -> Awaitable[Outcome]:
    return within(start(resolver, uri), 20)


def places(outcome: Outcome) -> list[tuple[Transport, str, int]]:
    return [(d.transport, d.address, d.port) for d in outcome[0]]


A_ONLY = "h.example. 300 IN A 192.0.2.1"


# ------------------------------------------------------------------------------------------ the way there


async def test_numeric_host_is_done_before_resolve_returns(resolver: Resolver, dns: DnsServer) -> None:
    outcome = start(resolver, b"sip:192.0.2.1;transport=tcp")
    assert outcome.done()
    assert outcome.result() == ([Destination(TCP, "192.0.2.1", 5060, "192.0.2.1")], 0)
    assert start(resolver, b"sip:example.com;transport=ws").result() == ([], 480)
    assert dns.questions == []


@pytest.mark.requirement("SIP-DNS-01")
async def test_rfc3263_4_1_port_asks_for_addresses_only(resolver: Resolver, dns: DnsServer) -> None:
    dns.set(A_ONLY)
    assert await find(resolver, b"sip:bob@h.example:5070") == ([Destination(UDP, "192.0.2.1", 5070, "h.example")], 0)
    assert sorted(dns.questions) == [("h.example", "A"), ("h.example", "AAAA")]


@pytest.mark.requirement("SIP-DNS-02")
async def test_rfc3263_4_1_naptr_leads_to_srv_leads_to_address(resolver: Resolver, dns: DnsServer) -> None:
    dns.set(
        'example.com. 300 IN NAPTR 90 50 "s" "SIP+D2T" "" _sip._tcp.example.com.',
        'example.com. 300 IN NAPTR 50 50 "S" "SIPS+D2T" "" _sips._tcp.example.com.',
        'example.com. 300 IN NAPTR 10 50 "u" "E2U+sip" "!^.*$!sip:x@wrong.example!" .',
        "_sips._tcp.example.com. 300 IN SRV 1 1 5071 Proxy.provider.example.",
        "_sip._tcp.example.com. 300 IN SRV 1 1 5070 proxy.provider.example.",
        "proxy.provider.example. 300 IN CNAME real.provider.example.",
        "real.provider.example. 300 IN A 192.0.2.1",
        "real.provider.example. 300 IN AAAA 2001:db8::1",
    )
    destinations, status = await find(resolver, b"sip:bob@Example.com")
    assert status == 0
    assert destinations == [
        Destination(TLS, "192.0.2.1", 5071, "example.com"),
        Destination(TLS, "2001:db8::1", 5071, "example.com"),
    ]


@pytest.mark.requirement("SIP-DNS-03")
async def test_rfc3263_4_2_zone_with_addresses_only(resolver: Resolver, dns: DnsServer) -> None:
    dns.set(A_ONLY)
    assert places(await find(resolver, b"sip:h.example")) == [(UDP, "192.0.2.1", 5060)]
    assert {name for name, kind in dns.questions if kind == "SRV"} == {
        f"{service}.h.example" for service in ("_sip._udp", "_sip._tcp", "_sips._tcp")
    }
    assert places(await find(resolver, b"sips:h.example")) == [(TLS, "192.0.2.1", 5061)]


async def test_answer_too_long_for_udp_is_asked_for_over_tcp(make_resolver: MakeResolver, dns: DnsServer) -> None:
    dns.set(*(f"h.example. 300 IN A 192.0.2.{n}" for n in range(1, 201)))
    outcome = await find(make_resolver(families=(4,)), b"sip:h.example:5060")
    assert dns.over_tcp == [("h.example", "A")]
    assert len(outcome[0]) == 8
    assert len({d.address for d in outcome[0]}) == 8


async def test_junk_and_forged_answers_are_ignored(resolver: Resolver, dns: DnsServer) -> None:
    dns.set(A_ONLY)
    dns.lying = True
    assert places(await find(resolver, b"sip:h.example:5060")) == [(UDP, "192.0.2.1", 5060)]


async def test_rfc6891_7_server_without_edns_is_asked_without(resolver: Resolver, dns: DnsServer) -> None:
    dns.set(A_ONLY)
    dns.edns = False
    assert places(await find(resolver, b"sip:h.example:5060")) == [(UDP, "192.0.2.1", 5060)]


async def test_name_that_cannot_exist_is_480_without_a_question(resolver: Resolver, dns: DnsServer) -> None:
    assert await find(resolver, b"sip:" + b"a" * 64 + b".example:5060") == ([], 480)
    assert await find(resolver, b"sip:" + b".".join([b"a" * 60] * 4) + b".example;transport=tcp") == ([], 480)
    assert {kind for _, kind in dns.questions} <= {"A", "AAAA"}


# ------------------------------------------------------------------------------------------ cache


async def test_answers_are_kept_for_their_ttl(resolver: Resolver, dns: DnsServer, clock: FakeClock) -> None:
    dns.set("h.example. 100 IN A 192.0.2.1", "h.example. 100 IN AAAA 2001:db8::1")
    await find(resolver, b"sip:h.example:5060")
    clock.advance(99)
    cached = start(resolver, b"sip:h.example:5060")
    assert cached.done()
    assert dns.count("h.example", "A") == 1
    clock.advance(1)
    dns.set("h.example. 100 IN A 192.0.2.2", "h.example. 100 IN AAAA 2001:db8::1")
    assert places(await find(resolver, b"sip:h.example:5060"))[0] == (UDP, "192.0.2.2", 5060)
    assert dns.count("h.example", "A") == 2


@pytest.mark.parametrize(("ttl", "kept_s"), [(0, 1), (1_000_000, 3600)])
async def test_ttl_is_clamped(
    make_resolver: MakeResolver, dns: DnsServer, clock: FakeClock, ttl: int, kept_s: int
) -> None:
    resolver = make_resolver(families=(4,))
    dns.set(f"h.example. {ttl} IN A 192.0.2.1")
    await find(resolver, b"sip:h.example:5060")
    clock.advance(kept_s - 0.5)
    assert start(resolver, b"sip:h.example:5060").done()
    clock.advance(0.5)
    again = start(resolver, b"sip:h.example:5060")
    assert not again.done()
    await within(again)


@pytest.mark.parametrize(("minimum", "kept_s"), [(300, 30), (10, 10)])
async def test_rfc2308_5_negative_answers_are_kept_briefly(
    resolver: Resolver, dns: DnsServer, clock: FakeClock, minimum: int, kept_s: int
) -> None:
    dns.negative_ttl_s = minimum
    assert await find(resolver, b"sip:h.example:5060") == ([], 480)
    clock.advance(kept_s - 1)
    assert start(resolver, b"sip:h.example:5060").result() == ([], 480)
    assert dns.count("h.example", "A") == 1
    dns.set(A_ONLY)
    clock.advance(1)
    assert places(await find(resolver, b"sip:h.example:5060")) == [(UDP, "192.0.2.1", 5060)]


async def test_callers_join_a_question_under_way(resolver: Resolver, dns: DnsServer) -> None:
    dns.set(A_ONLY)
    dns.hold()
    outcomes = [start(resolver, b"sip:h.example:%d" % port) for port in range(5060, 5160)]
    await eventually(lambda: len(dns.questions) == 2)
    outcomes.append(start(resolver, b"sip:h.example;transport=udp;maddr=h.example"))
    dns.release()
    found = await within(asyncio.gather(*outcomes), 20)
    assert [places(outcome) for outcome in found[:100]] == [[(UDP, "192.0.2.1", port)] for port in range(5060, 5160)]
    assert dns.count("h.example", "A") == 1
    assert resolver.asked == len(dns.questions)


async def test_one_callers_error_does_not_reach_the_others(resolver: Resolver, dns: DnsServer) -> None:
    dns.set(A_ONLY)
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))

    def fail(found: list[Destination], status: int) -> None:
        raise RuntimeError("a caller's error")

    resolver.resolve(parse_uri(b"sip:h.example:5060"), fail)
    assert places(await find(resolver, b"sip:h.example:5060")) == [(UDP, "192.0.2.1", 5060)]
    assert [str(context["exception"]) for context in errors] == ["a caller's error"]


async def test_cache_is_bounded(make_resolver: MakeResolver, dns: DnsServer) -> None:
    resolver = make_resolver(cache_size=10, families=(4,))
    for number in range(30):
        await find(resolver, b"sip:h%d.example:5060" % number)
    assert start(resolver, b"sip:h29.example:5060").done()
    await find(resolver, b"sip:h0.example:5060")
    assert dns.count("h0.example", "A") == 2


def test_full_map_loses_its_oldest_entry() -> None:
    kept: Expiring[int, str] = Expiring(2)
    for number in (1, 2, 1, 3):
        kept.put(number, str(number), 10.0)
    assert [kept.get(number, 9.9) for number in (1, 2, 3)] == ["1", None, "3"]
    assert kept.get(1, 10.0) is None
    assert len(kept) == 1


# ------------------------------------------------------------------------------------------ failures


@pytest.mark.requirement("SIP-DNS-10")
async def test_resolver_that_never_answers_gives_504_and_blocks_nobody(
    make_resolver: MakeResolver, dns: DnsServer
) -> None:
    dns.silent = True
    resolver = make_resolver(timeout_s=SHORT_S)
    outcome = start(resolver, b"sip:h.example")
    turns = 0
    async with deadline(20):
        while not outcome.done():
            turns += 1
            await asyncio.sleep(0)
    assert outcome.result() == ([], 504)
    assert turns > 100
    assert dns.questions


@pytest.mark.requirement("SIP-DNS-10")
async def test_one_time_limit_covers_all_steps_of_a_look_up(make_resolver: MakeResolver, dns: DnsServer) -> None:
    services = ((1, "SIPS+D2T", "_sips._tcp"), (2, "SIP+D2T", "_sip._tcp"), (3, "SIP+D2U", "_sip._udp"))
    dns.set(
        *(f'e.example. 300 IN NAPTR {order} 1 "s" "{kind}" "" {name}.e.example.' for order, kind, name in services),
        "_sip._udp.e.example. 300 IN SRV 1 1 5060 h.example.",
        A_ONLY,
    )
    dns.silent = {"_sips._tcp.e.example", "_sip._tcp.e.example"}
    limit_s = scaled(0.8)
    dns.delay_s = limit_s / 4  # NAPTR is known at 0.45 of the limit, the first SRV given up at 0.95
    assert await find(make_resolver(timeout_s=limit_s), b"sip:e.example") == ([], 504)
    assert dns.count("_sip._udp.e.example", "SRV") == 0


@pytest.mark.requirement("SIP-DNS-10")
async def test_at_most_eight_addresses_and_brief_negative_results(
    make_resolver: MakeResolver, dns: DnsServer, clock: FakeClock
) -> None:
    dns.set(*(f"_sip._udp.e.example. 300 IN SRV {n} 1 5060 s{n}.e.example." for n in range(12)), *hosts(12))
    outcome = await find(make_resolver(), b"sip:e.example;transport=udp")
    assert [d.address for d in outcome[0]] == [f"192.0.2.{n}" for n in range(8)]
    outcome = await find(make_resolver(max_addresses=3), b"sip:e.example;transport=udp")
    assert [d.address for d in outcome[0]] == ["192.0.2.0", "192.0.2.1", "192.0.2.2"]
    dns.set(*(f"many.example. 300 IN A 192.0.2.{n}" for n in range(20)))
    outcome = await find(make_resolver(), b"sip:many.example:5060")
    assert len({d.address for d in outcome[0]}) == 8
    resolver = make_resolver()
    assert await find(resolver, b"sip:nobody.example:5060") == ([], 480)
    assert start(resolver, b"sip:nobody.example:5060").result() == ([], 480)
    clock.advance(30)
    again = start(resolver, b"sip:nobody.example:5060")
    assert not again.done()
    await within(again, 20)


def hosts(count: int) -> Iterable[str]:
    return (f"s{n}.e.example. 300 IN A 192.0.2.{n}" for n in range(count))


async def test_servfail_is_504_and_kept_for_a_second(resolver: Resolver, dns: DnsServer, clock: FakeClock) -> None:
    dns.failing = True
    assert await find(resolver, b"sip:h.example:5060") == ([], 504)
    assert start(resolver, b"sip:h.example:5060").result() == ([], 504)
    assert resolver.failed == 2
    dns.failing = False
    dns.set(A_ONLY)
    clock.advance(1)
    assert places(await find(resolver, b"sip:h.example:5060")) == [(UDP, "192.0.2.1", 5060)]


async def test_what_is_found_counts_although_another_question_is_not_answered(
    make_resolver: MakeResolver, dns: DnsServer
) -> None:
    dns.set("_sip._tcp.e.example. 300 IN SRV 1 1 5070 h.example.", A_ONLY)
    dns.failing = {"e.example"}
    dns.silent = {"_sips._tcp.e.example"}
    outcome = await find(make_resolver(timeout_s=scaled(2.0)), b"sip:e.example")
    assert places(outcome) == [(TCP, "192.0.2.1", 5070)]


async def test_cname_loop_is_504(resolver: Resolver, dns: DnsServer) -> None:
    dns.set("a.example. 300 IN CNAME b.example.", "b.example. 300 IN CNAME a.example.")
    assert await find(resolver, b"sip:a.example:5060") == ([], 504)


async def test_nobody_listens_is_504(make_resolver: MakeResolver) -> None:
    async with DnsServer() as gone:
        address = gone.address
    assert await find(make_resolver(nameservers=[address]), b"sip:h.example") == ([], 504)


async def test_slow_answer_is_waited_for(resolver: Resolver, dns: DnsServer) -> None:
    dns.set(A_ONLY)
    dns.delay_s = 0.05
    assert places(await find(resolver, b"sip:h.example:5060")) == [(UDP, "192.0.2.1", 5060)]


@pytest.mark.parametrize("trouble", ["silent", "failing"])
async def test_second_name_server_answers_for_the_first(
    make_resolver: MakeResolver, dns: DnsServer, trouble: str
) -> None:
    async with DnsServer(A_ONLY, "g.example. 300 IN A 192.0.2.2") as second:
        setattr(dns, trouble, True)
        resolver = make_resolver(nameservers=[dns.address, second.address], timeout_s=scaled(2.0), families=(4,))
        assert places(await find(resolver, b"sip:h.example:5060")) == [(UDP, "192.0.2.1", 5060)]
        assert dns.count("h.example", "A") == 1
        await find(resolver, b"sip:g.example:5060")
        assert dns.count("g.example", "A") == 0  # the one that answered is asked first from now on


async def test_too_many_questions_at_once_fail_at_once(resolver: Resolver, dns: DnsServer) -> None:
    dns.hold()
    outcomes = [start(resolver, b"sip:h%d.example;transport=tcp" % number) for number in range(600)]
    assert [outcome.result() for outcome in outcomes if outcome.done()] == [([], 504)] * 88


async def test_close_drops_what_is_under_way(resolver: Resolver, dns: DnsServer) -> None:
    dns.hold()
    outcome = start(resolver, b"sip:h.example")
    await eventually(lambda: dns.questions)
    await resolver.close()
    assert not outcome.done()
    assert start(resolver, b"sip:g.example:5060").result() == ([], 504)
    assert start(resolver, b"sip:192.0.2.1").result()[1] == 0


# ------------------------------------------------------------------------------------------ reload, hosts, avoid


async def test_reload_changes_servers_and_forgets(resolver: Resolver, dns: DnsServer) -> None:
    dns.set(A_ONLY, "g.example. 300 IN A 192.0.2.1")
    await find(resolver, b"sip:h.example:5060")
    async with DnsServer("h.example. 300 IN A 192.0.2.9", "g.example. 300 IN A 192.0.2.9") as other:
        dns.hold()
        before = start(resolver, b"sip:g.example:5060")
        await eventually(lambda: dns.count("g.example", "A"))
        resolver.reload([other.address])
        assert places(await find(resolver, b"sip:h.example:5060")) == [(UDP, "192.0.2.9", 5060)]
        await find(resolver, b"sip:g.example:5060")
        assert other.count("g.example", "A") == 1  # not joined to the question to the old server
        dns.release()
        assert places(await within(before)) == [(UDP, "192.0.2.1", 5060)]
        assert places(start(resolver, b"sip:g.example:5060").result()) == [(UDP, "192.0.2.9", 5060)]


async def test_reload_with_a_name_changes_nothing(resolver: Resolver, dns: DnsServer) -> None:
    dns.set(A_ONLY)
    with pytest.raises(ValueError, match=r"ns\.example"):
        resolver.reload(["ns.example"])
    assert places(await find(resolver, b"sip:h.example:5060")) == [(UDP, "192.0.2.1", 5060)]


@pytest.mark.requirement("SIP-WSS-04")
async def test_rfc6761_6_localhost_and_invalid_are_never_asked_for(resolver: Resolver, dns: DnsServer) -> None:
    for uri in (b"sip:localhost", b"sip:bob@a.LOCALHOST;transport=udp"):
        assert places(start(resolver, uri).result()) == [(UDP, "127.0.0.1", 5060), (UDP, "::1", 5060)]
    assert start(resolver, b"sips:df7jal23ls0d.invalid").result() == ([], 480)
    assert dns.questions == []


async def test_name_of_the_hosts_file_is_never_asked_for(
    make_resolver: MakeResolver, dns: DnsServer, tmp_path: Path
) -> None:
    hosts_file = tmp_path / "hosts"
    hosts_file.write_text(
        "# a comment\n127.0.0.1\tlocalhost\n192.0.2.1 Edge2.example edge2 # x\n2001:DB8::1 edge2\nbad line\n\n"
    )
    resolver = make_resolver(hosts_file=hosts_file)
    assert places(start(resolver, b"sip:edge2").result()) == [(UDP, "192.0.2.1", 5060), (UDP, "2001:db8::1", 5060)]
    assert places(start(resolver, b"sips:edge2.EXAMPLE").result()) == [(TLS, "192.0.2.1", 5061)]
    assert places(start(resolver, b"sip:localhost:5070").result()) == [(UDP, "127.0.0.1", 5070)]
    assert dns.questions == []
    dns.set("_sip._tcp.e.example. 300 IN SRV 1 1 5070 edge2.")
    assert places(await find(resolver, b"sip:e.example;transport=tcp"))[0] == (TCP, "192.0.2.1", 5070)
    hosts_file.write_text("192.0.2.3 edge2\n")
    resolver.reload([dns.address])
    assert places(start(resolver, b"sip:edge2").result()) == [(UDP, "192.0.2.3", 5060)]


@pytest.mark.requirement("SIP-PRX-28")
async def test_rfc3261_21_5_4_avoided_destination_is_left_out_for_a_while(
    resolver: Resolver, dns: DnsServer, clock: FakeClock
) -> None:
    dns.set(*(f"_sip._tcp.e.example. 9999 IN SRV {n} 1 5060 s{n}.e.example." for n in range(2)), *hosts(2))
    uri = b"sip:e.example;transport=tcp"
    first, second = (await find(resolver, uri))[0]
    resolver.avoid(first.address, first.port, first.transport, 60)
    assert (await find(resolver, uri))[0] == [second]
    assert len(start(resolver, b"sip:192.0.2.0").result()[0]) == 1  # another transport of the same machine
    resolver.avoid(second.address, second.port, second.transport, 1_000_000)
    assert await find(resolver, uri) == ([], ALL_AVOIDED)
    assert start(resolver, b"sip:192.0.2.0;transport=tcp").result() == ([], ALL_AVOIDED)
    clock.advance(60)
    assert (await find(resolver, uri))[0] == [first]
    clock.advance(240)
    assert (await find(resolver, uri))[0] == [first, second]


# ------------------------------------------------------------------------------------------ the rest


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", ("192.0.2.1", 53)),
        ("192.0.2.1:5353", ("192.0.2.1", 5353)),
        ("2001:db8::1", ("2001:db8::1", 53)),
        ("[2001:db8::1]", ("2001:db8::1", 53)),
        ("[2001:db8::1]:5353", ("2001:db8::1", 5353)),
    ],
)
def test_name_servers_are_read(text: str, address: tuple[str, int]) -> None:
    assert parse_nameserver(text) == address


@pytest.mark.parametrize("text", ["", "ns.example", "ns.example:53", "192.0.2.1:", "192.0.2.1:0", "192.0.2.1:65536"])
def test_name_server_that_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_nameserver(text)


def test_system_has_a_name_server() -> None:
    assert all(port == 53 and host for host, port in system_nameservers())
    assert system_nameservers()


def test_all_of_it_on_uvloop(tmp_path: Path) -> None:
    async def scenario() -> tuple[Outcome, Outcome, Outcome]:
        async with DnsServer(*(f"h.example. 300 IN A 192.0.2.{n}" for n in range(200))) as server:
            async with DnsServer() as gone:
                address = gone.address
            resolver = Resolver(
                asyncio.get_running_loop(),
                transports=frozenset((UDP,)),
                random=random.Random(1).randbytes,
                nameservers=[address, server.address],
                hosts_file=tmp_path / "none",
                timeout_s=scaled(LONG_S),
            )
            found = await find(resolver, b"sip:h.example")
            server.failing = True
            failed = await find(resolver, b"sip:g.example")
            server.hold()
            start(resolver, b"sip:f.example")
            await eventually(lambda: server.count("f.example", "NAPTR"))
            await resolver.close()
            return found, failed, start(resolver, b"sip:h.example").result()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found, failed, after = runner.run(scenario())
    assert len({d.address for d in found[0]}) == 8
    assert failed == ([], 504)
    assert after == found
