"""The rules of RFC 3263 and RFC 2782 without a server: answers come from a dictionary."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.connections import Transport
from edge.sip.locating import ABSENT, FAILED, Answer, Destination, Located, Naptr, Question, Srv, locate, order_srvs
from edge.sip.uri import parse_uri

UDP, TCP, TLS = Transport.UDP, Transport.TCP, Transport.TLS
ALL = frozenset((UDP, TCP, TLS))
PLAIN = frozenset((UDP, TCP))
LIMIT = 8

Zone = Mapping[tuple[str, str], Answer]


def a(*addresses: str) -> Answer:
    return Answer(addresses=addresses)


def srv(*records: tuple[int, int, int, str]) -> Answer:
    return Answer(srvs=tuple(Srv(*record) for record in records))


def naptr(*records: tuple[int, int, str, str, str]) -> Answer:
    return Answer(naptrs=tuple(Naptr(*record) for record in records))


def run(
    uri: bytes,
    zone: Zone | None = None,
    *,
    transports: frozenset[Transport] = ALL,
    families: Sequence[int] = (4, 6),
) -> tuple[Located, list[list[Question]]]:
    """Drive `locate` with a zone; return what it found and the questions of each step."""
    zone = zone or {}
    asked: list[list[Question]] = []
    search = locate(parse_uri(uri), transports, families, random.Random(1).randbytes, LIMIT)
    try:
        questions = next(search)
        while True:
            asked.append(list(questions))
            questions = search.send([zone.get(question, ABSENT) for question in questions])
    except StopIteration as end:
        return end.value, asked


def places(located: Located) -> list[tuple[Transport, str, int]]:
    return [(d.transport, d.address, d.port) for d in located.destinations]


# ------------------------------------------------------------------------------------------ nothing to ask


@pytest.mark.parametrize(
    ("uri", "transport", "address", "port"),
    [
        (b"sip:192.0.2.1", UDP, "192.0.2.1", 5060),
        (b"sip:bob@192.0.2.1:5070", UDP, "192.0.2.1", 5070),
        (b"sips:192.0.2.1", TLS, "192.0.2.1", 5061),
        (b"sips:192.0.2.1:5070", TLS, "192.0.2.1", 5070),
        (b"sips:192.0.2.1;transport=tcp", TLS, "192.0.2.1", 5061),
        (b"sip:192.0.2.1;transport=TCP", TCP, "192.0.2.1", 5060),
        (b"sip:192.0.2.1;transport=tls", TLS, "192.0.2.1", 5061),
        (b"sip:192.0.2.1:5060;transport=tls", TLS, "192.0.2.1", 5060),
        (b"sip:[2001:DB8::1]", UDP, "2001:db8::1", 5060),
        (b"sip:example.com;maddr=192.0.2.9", UDP, "192.0.2.9", 5060),
        (b"sip:example.com:5080;maddr=[2001:db8::9]", UDP, "2001:db8::9", 5080),
    ],
)
def test_numeric_host_needs_no_question(uri: bytes, transport: Transport, address: str, port: int) -> None:
    located, asked = run(uri)
    assert asked == []
    assert places(located) == [(transport, address, port)]
    assert located.status == 0


def test_without_udp_a_numeric_host_is_reached_by_tcp_and_never_by_tls() -> None:
    assert places(run(b"sip:192.0.2.1", transports=frozenset((TCP, TLS)))[0]) == [(TCP, "192.0.2.1", 5060)]
    assert run(b"sip:192.0.2.1", transports=frozenset((TLS,)))[0] == Located([], 480)


@pytest.mark.requirement("SIP-WSS-04")
@pytest.mark.parametrize(
    "uri",
    [
        b"sip:example.com;transport=ws",
        b"sip:192.0.2.1:80;transport=ws",
        b"sip:example.com;transport=wss",
        b"sips:example.com;transport=ws",
        b"sip:example.com;transport=sctp",
        b"sips:example.com;transport=udp",
        b"sip:example.com;maddr=a..b",
    ],
)
def test_uri_nobody_can_dial_is_480_without_a_question(uri: bytes) -> None:
    assert run(uri) == (Located([], 480), [])


def test_transport_we_cannot_send_is_480() -> None:
    assert run(b"sips:example.com", transports=PLAIN) == (Located([], 480), [])
    assert run(b"sip:192.0.2.1;transport=tls", transports=PLAIN) == (Located([], 480), [])


def test_numeric_host_of_a_family_not_in_use_is_480() -> None:
    assert run(b"sip:[2001:db8::1]", families=(4,)) == (Located([], 480), [])


# ------------------------------------------------------------------------------------------ names


@pytest.mark.requirement("SIP-DNS-01")
def test_rfc3263_4_1_explicit_port_asks_for_addresses_only() -> None:
    zone = {("h.example", "A"): a("192.0.2.1"), ("h.example", "NAPTR"): naptr((1, 1, "s", "sip+d2t", "x.example"))}
    for uri, transport in (
        (b"sip:h.example:5070", UDP),
        (b"sips:h.example:5070", TLS),
        (b"sip:h.example:5070;transport=tcp", TCP),
    ):
        located, asked = run(uri, zone)
        assert asked == [[("h.example", "A"), ("h.example", "AAAA")]]
        assert places(located) == [(transport, "192.0.2.1", 5070)]
    assert places(run(b"sip:192.0.2.1")[0]) == [(UDP, "192.0.2.1", 5060)]
    assert places(run(b"sips:192.0.2.1")[0]) == [(TLS, "192.0.2.1", 5061)]
    assert run(b"sip:h.example", zone)[1][0] == [("h.example", "NAPTR")]


NAPTR_EXAMPLE = {
    ("example.com", "NAPTR"): naptr(
        (100, 50, "s", "sip+d2u", "_sip._udp.example.com"),
        (50, 70, "s", "sips+d2t", "_sips._tcp.example.com"),  # the order counts first
        (90, 60, "s", "sip+d2t", "_sip._tcp.example.com"),
    ),
    ("_sips._tcp.example.com", "SRV"): srv((0, 1, 5061, "secure.example.com")),
    ("_sip._tcp.example.com", "SRV"): srv((0, 1, 5060, "server1.example.com"), (1, 2, 5062, "server2.example.com")),
    ("_sip._udp.example.com", "SRV"): srv((0, 1, 5060, "server1.example.com")),
    ("secure.example.com", "A"): a("192.0.2.3"),
    ("server1.example.com", "A"): a("192.0.2.1"),
    ("server2.example.com", "A"): a("192.0.2.2"),
}


@pytest.mark.requirement("SIP-DNS-02")
def test_rfc3263_4_1_naptr_example() -> None:
    located, asked = run(b"sip:example.com", NAPTR_EXAMPLE)
    assert places(located) == [(TLS, "192.0.2.3", 5061)]
    assert asked[:2] == [[("example.com", "NAPTR")], [("_sips._tcp.example.com", "SRV")]]
    located, asked = run(b"sip:example.com", NAPTR_EXAMPLE, transports=PLAIN)
    assert places(located) == [(TCP, "192.0.2.1", 5060), (TCP, "192.0.2.2", 5062)]
    assert places(run(b"sips:example.com", NAPTR_EXAMPLE)[0]) == [(TLS, "192.0.2.3", 5061)]
    equal_order = {
        **NAPTR_EXAMPLE,
        ("example.com", "NAPTR"): naptr(
            (50, 20, "s", "sip+d2u", "_sip._udp.example.com"),
            (50, 10, "s", "sip+d2t", "_sip._tcp.example.com"),
            (40, 10, "s", "sip+d2w", "_ws.example.com"),
            (40, 10, "u", "sip+d2u", "_sip._udp.wrong.example"),
            (40, 10, "s", "smtp+d2t", "_smtp._tcp.example.com"),
        ),
    }
    located, asked = run(b"sip:example.com", equal_order)
    assert [d.transport for d in located.destinations] == [TCP, TCP, UDP]
    assert asked[1] == [("_sip._tcp.example.com", "SRV"), ("_sip._udp.example.com", "SRV")]


@pytest.mark.requirement("SIP-DNS-02")
def test_rfc3263_4_1_sips_keeps_only_sips_services() -> None:
    zone = {
        ("example.com", "NAPTR"): naptr((10, 10, "s", "sip+d2t", "_sip._tcp.x.example")),
        ("_sip._tcp.x.example", "SRV"): srv((0, 0, 5060, "x.example")),
        ("x.example", "A"): a("192.0.2.7"),
        ("example.com", "A"): a("192.0.2.1"),
    }
    located, asked = run(b"sips:example.com", zone)
    assert asked[1] == [("_sips._tcp.example.com", "SRV")]
    assert places(located) == [(TLS, "192.0.2.1", 5061)]


@pytest.mark.requirement("SIP-DNS-09", "SIP-TLS-03")
@pytest.mark.parametrize(
    ("uri", "name"),
    [
        (b"sips:Example.com", "example.com"),
        (b"sips:example.com.;transport=tcp", "example.com"),
        (b"sip:example.com:5071;transport=tls", "example.com"),
        (b"sips:example.com;maddr=192.0.2.9", "example.com"),
        (b"sips:example.com;maddr=other.example", "example.com"),
        (b"sips:192.0.2.4", "192.0.2.4"),
    ],
)
def test_rfc5922_7_3_a_certificate_is_to_name_the_host_of_the_uri_wherever_that_leads(uri: bytes, name: str) -> None:
    zone = {**NAPTR_EXAMPLE, ("example.com", "A"): a("192.0.2.8"), ("other.example", "A"): a("192.0.2.9")}
    located, _ = run(uri, zone)
    assert {destination.server_name for destination in located.destinations} == {name}


def test_naptr_that_leads_nowhere_makes_way_for_the_next_order() -> None:
    zone = dict(NAPTR_EXAMPLE)
    del zone[("_sips._tcp.example.com", "SRV")]
    assert places(run(b"sip:example.com", zone)[0])[0] == (TCP, "192.0.2.1", 5060)


def test_rfc3263_4_2_naptr_without_srv_leads_to_the_name_itself() -> None:
    zone = {
        ("example.com", "NAPTR"): naptr((10, 10, "s", "sip+d2t", "_sip._tcp.example.com")),
        ("example.com", "A"): a("192.0.2.1"),
    }
    assert places(run(b"sip:example.com", zone)[0]) == [(TCP, "192.0.2.1", 5060)]


@pytest.mark.requirement("SIP-DNS-03")
def test_rfc3263_4_1_without_naptr_every_srv_is_asked() -> None:
    zone = {
        ("_sip._udp.example.com", "SRV"): srv((0, 0, 5070, "u.example.com")),
        ("_sip._tcp.example.com", "SRV"): srv((0, 0, 5080, "t.example.com")),
        ("u.example.com", "A"): a("192.0.2.1"),
        ("t.example.com", "A"): a("192.0.2.2"),
        ("example.com", "A"): a("192.0.2.3"),
    }
    located, asked = run(b"sip:example.com", zone)
    assert asked[:2] == [
        [("example.com", "NAPTR")],
        [("_sips._tcp.example.com", "SRV"), ("_sip._tcp.example.com", "SRV"), ("_sip._udp.example.com", "SRV")],
    ]
    assert places(located) == [(TCP, "192.0.2.2", 5080), (UDP, "192.0.2.1", 5070)]
    _, asked = run(b"sip:example.com", zone, transports=PLAIN)
    assert asked[1] == [("_sip._tcp.example.com", "SRV"), ("_sip._udp.example.com", "SRV")]
    only_address = {("example.com", "A"): a("192.0.2.3"), ("example.com", "AAAA"): a("2001:db8::3")}
    assert places(run(b"sip:example.com", only_address)[0]) == [(UDP, "192.0.2.3", 5060), (UDP, "2001:db8::3", 5060)]
    assert places(run(b"sips:example.com", only_address, families=(4,))[0]) == [(TLS, "192.0.2.3", 5061)]


@pytest.mark.requirement("SIP-DNS-04")
@pytest.mark.parametrize(
    ("uri", "service", "transport", "default_port"),
    [
        (b"sip:example.com;transport=tcp", "_sip._tcp", TCP, 5060),
        (b"sip:example.com;transport=udp", "_sip._udp", UDP, 5060),
        (b"sip:example.com;transport=tls", "_sips._tcp", TLS, 5061),
        (b"sips:example.com;transport=tcp", "_sips._tcp", TLS, 5061),
    ],
)
def test_rfc3263_4_2_explicit_transport_asks_for_its_srv_only(
    uri: bytes, service: str, transport: Transport, default_port: int
) -> None:
    name = f"{service}.example.com"
    zone = {
        (name, "SRV"): srv((0, 0, 5070, "s.example.com")),
        ("s.example.com", "A"): a("192.0.2.1"),
        ("example.com", "A"): a("192.0.2.2"),
    }
    located, asked = run(uri, zone)
    assert asked == [[(name, "SRV")], [("s.example.com", "A"), ("s.example.com", "AAAA")]]
    assert places(located) == [(transport, "192.0.2.1", 5070)]
    del zone[(name, "SRV")]
    assert places(run(uri, zone)[0]) == [(transport, "192.0.2.2", default_port)]


def test_rfc3261_16_5_maddr_is_the_only_target_and_the_certificate_is_the_hosts() -> None:
    zone = {("m.example", "A"): a("192.0.2.5"), ("example.com", "A"): a("192.0.2.1")}
    located, asked = run(b"sip:bob@example.com:5070;maddr=M.example", zone)
    assert located.destinations == [Destination(UDP, "192.0.2.5", 5070, "example.com")]
    assert asked == [[("m.example", "A"), ("m.example", "AAAA")]]


def test_rfc5922_7_3_certificate_name_is_the_host_of_the_uri() -> None:
    located, _ = run(b"sip:Example.COM.", NAPTR_EXAMPLE)
    assert located.destinations == [Destination(TLS, "192.0.2.3", 5061, "example.com")]
    assert run(b"sips:[2001:db8::1]")[0].destinations[0].server_name == "2001:db8::1"


def test_rfc7984_3_1_families_in_use_are_asked_and_take_turns() -> None:
    zone = {
        ("h.example", "A"): a("192.0.2.1", "192.0.2.2", "192.0.2.3"),
        ("h.example", "AAAA"): a("2001:db8::1"),
    }
    uri = b"sip:h.example:5060"
    addresses = [d.address for d in run(uri, zone, families=(6, 4))[0].destinations]
    assert addresses == ["2001:db8::1", "192.0.2.1", "192.0.2.2", "192.0.2.3"]
    located, asked = run(uri, zone, families=(6,))
    assert asked == [[("h.example", "AAAA")]]
    assert [d.address for d in located.destinations] == ["2001:db8::1"]


def test_srv_targets_looked_up_are_bounded() -> None:
    many = srv(*((1, 1, 5060, f"s{n}.example") for n in range(60)))
    zone = {("_sip._udp.e.example", "SRV"): many, ("_sip._tcp.e.example", "SRV"): many}
    _, asked = run(b"sip:e.example;transport=udp", zone)
    assert len(asked[1]) == 2 * LIMIT
    _, asked = run(b"sip:e.example", zone)
    assert len(asked[2]) == 2 * LIMIT


def test_same_destination_is_listed_once() -> None:
    zone = {
        ("_sip._udp.e.example", "SRV"): srv((1, 1, 5060, "one.example"), (2, 1, 5060, "two.example")),
        ("one.example", "A"): a("192.0.2.1"),
        ("two.example", "A"): a("192.0.2.1"),
    }
    assert places(run(b"sip:e.example;transport=udp", zone)[0]) == [(UDP, "192.0.2.1", 5060)]


# ------------------------------------------------------------------------------------------ nothing found


def test_name_without_records_is_480() -> None:
    located, asked = run(b"sip:nobody.example")
    assert located == Located([], 480)
    assert len(asked) == 3


def test_failed_naptr_counts_as_none() -> None:
    zone = {("e.example", "NAPTR"): FAILED, ("e.example", "A"): a("192.0.2.1")}
    assert places(run(b"sip:e.example", zone)[0]) == [(UDP, "192.0.2.1", 5060)]


def test_failed_srv_does_not_lead_to_the_bare_name() -> None:
    zone = {("_sip._udp.e.example", "SRV"): FAILED, ("e.example", "A"): a("192.0.2.1")}
    assert run(b"sip:e.example", zone)[0] == Located([], 504)
    assert run(b"sip:e.example;transport=udp", zone)[0] == Located([], 504)


def test_one_failed_family_does_not_spoil_the_other() -> None:
    zone = {("h.example", "AAAA"): FAILED, ("h.example", "A"): a("192.0.2.1")}
    assert places(run(b"sip:h.example:5060", zone)[0]) == [(UDP, "192.0.2.1", 5060)]
    assert run(b"sip:h.example:5060", {("h.example", "AAAA"): FAILED})[0] == Located([], 504)


def test_srv_whose_targets_have_no_address_does_not_lead_to_the_bare_name() -> None:
    zone = {("_sip._udp.e.example", "SRV"): srv((0, 0, 5060, "gone.example")), ("e.example", "A"): a("192.0.2.1")}
    assert run(b"sip:e.example", zone)[0] == Located([], 480)


# ------------------------------------------------------------------------------------------ SRV order


def draws(records: list[Srv], count: int) -> Counter[str]:
    source = random.Random(2782).randbytes
    return Counter(order_srvs(records, source, LIMIT)[0].target for _ in range(count))


@pytest.mark.requirement("SIP-DNS-05")
def test_rfc2782_priority_weight_and_the_dot() -> None:
    light, heavy = Srv(1, 1, 5060, "light"), Srv(1, 3, 5060, "heavy")
    assert draws([light, heavy], 1000)["light"] == pytest.approx(250, abs=50)
    assert draws([heavy, light], 1000)["light"] == pytest.approx(250, abs=50)
    later = Srv(2, 60000, 5060, "later")
    assert draws([later, light, heavy], 200)["later"] == 0
    assert [s.target for s in order_srvs([later, light], random.Random(1).randbytes, LIMIT)] == ["light", "later"]
    zero = Srv(1, 0, 5060, "zero")
    assert order_srvs([heavy, zero], bytes, LIMIT) == [zero, heavy]  # a draw of 0 takes what comes first in the sum
    dot = {("_sip._udp.e.example", "SRV"): srv((0, 0, 5060, ".")), ("e.example", "A"): a("192.0.2.1")}
    for uri in (b"sip:e.example", b"sip:e.example;transport=udp"):
        located, asked = run(uri, dot)
        assert located == Located([], 480)
        assert {question.kind for step in asked for question in step} <= {"NAPTR", "SRV"}
    assert places(run(b"sip:e.example;transport=tcp", dot)[0]) == [(TCP, "192.0.2.1", 5060)]


def test_rfc2782_weight_zero_is_drawn_rarely_but_not_never() -> None:
    records = [Srv(1, 0, 5060, "zero"), Srv(1, 1, 5060, "one")]
    assert 0 < draws(records, 3000)["zero"] < 100


def test_rfc2782_all_weights_zero_keep_their_order() -> None:
    records = [Srv(1, 0, 5060, name) for name in "abc"]
    assert order_srvs(records, random.Random(1).randbytes, LIMIT) == records


SRVS = st.builds(Srv, st.integers(0, 3), st.integers(0, 65535), st.just(5060), st.text("abc.", max_size=3))


@given(st.lists(SRVS, max_size=12), st.integers(0, 2**32), st.integers(1, 15))
def test_order_is_a_permutation_sorted_by_priority(records: list[Srv], seed: int, limit: int) -> None:
    ordered = order_srvs(records, random.Random(seed).randbytes, limit)
    assert [s.priority for s in ordered] == sorted(s.priority for s in records)[:limit]
    assert not Counter(ordered) - Counter(records)


HOSTS = st.sampled_from(
    ["e.example", "_sip._udp.e.example", "_sip._tcp.e.example", "_sips._tcp.e.example", "x.example"]
)
NAPTRS = st.builds(
    Naptr,
    st.integers(0, 2),
    st.integers(0, 2),
    st.sampled_from(["s", "a", "u", ""]),
    st.sampled_from(["sip+d2u", "sip+d2t", "sips+d2t", "sips+d2w", ""]),
    HOSTS | st.just(""),
)
TARGETED = st.builds(Srv, st.integers(0, 2), st.integers(0, 2), st.integers(0, 9), HOSTS | st.just("."))
ANSWERS = st.builds(
    Answer,
    st.lists(st.sampled_from(["192.0.2.1", "192.0.2.2"])).map(tuple),
    st.lists(TARGETED, max_size=4).map(tuple),
    st.lists(NAPTRS, max_size=4).map(tuple),
) | st.just(FAILED)
URIS = st.sampled_from([b"sip:e.example", b"sips:e.example", b"sip:e.example;transport=tcp", b"sip:e.example:1"])


@given(URIS, st.dictionaries(st.tuples(HOSTS, st.sampled_from(["A", "AAAA", "SRV", "NAPTR"])), ANSWERS))
def test_any_zone_ends_in_destinations_or_a_status(uri: bytes, zone: Zone) -> None:
    located, asked = run(uri, zone)
    assert bool(located.destinations) == (located.status == 0)
    assert located.status in (0, 480, 504)
    assert len(asked) <= 8
    if uri.startswith(b"sips"):
        assert {d.transport for d in located.destinations} <= {TLS}
    assert all(d.port for d in located.destinations)
