"""Via, name-addr and the other header values a proxy reads."""

from __future__ import annotations

from typing import Any

import pytest
import sipmessage
from hypothesis import example, given
from hypothesis import strategies as st

from edge.errors import RemoteError
from edge.sip import headers as h
from edge.sip.headers import Via, ViaCache, parse_name_addr, parse_name_addr_list, parse_via

VIA_PARTS = ("branch", "host", "key", "parameters", "port", "received", "rport", "text", "transport", "version")


def statused(call: Any, *arguments: Any) -> Any:
    """What a reader returns, or the status it refuses with."""
    try:
        return call(*arguments)
    except RemoteError as error:
        return error.status


# ------------------------------------------------------------------------------------------ Via


@pytest.mark.requirement("SIP-MSG-32")
@pytest.mark.parametrize(
    ("text", "transport", "host", "port", "branch"),
    [
        (
            b"SIP / 2.0 / UDP first.example.com: 4000;ttl=16 ;branch=z9hG4bKa",
            b"UDP",
            b"first.example.com",
            4000,
            b"z9hG4bKa",
        ),
        (b"SIP/2.0/UDP h ; branch = z9hG4bK1 ; rport", b"UDP", b"h", None, b"z9hG4bK1"),
        (b"SIP  /   2.0\r\n /UDP\r\n    192.0.2.2;branch=390skdjuw", b"UDP", b"192.0.2.2", None, b"390skdjuw"),
        (b"sip/2.0/udp H.Example", b"UDP", b"h.example", None, b""),
        (b"SIP/2.0/UNKNOWN t4.example.com;branch=x", b"UNKNOWN", b"t4.example.com", None, b"x"),
        (b"SIP/2.0/SCTP [2001:DB8::1]:5070;branch=x", b"SCTP", b"[2001:db8::1]", 5070, b"x"),
        (b"SIP/2.0/TLS-SCTP edge_1;branch=x/y=@", b"TLS-SCTP", b"edge_1", None, b"x/y=@"),
        (b"SIP/2.0/TCP\tx:5060\t;BRANCH=aB", b"TCP", b"x", 5060, b"aB"),
    ],
)
def test_rfc3261_20_42_blanks_may_stand_anywhere_in_a_via(
    text: bytes, transport: bytes, host: bytes, port: int | None, branch: bytes
) -> None:
    via = parse_via(text)
    assert (via.transport, via.host, via.port, via.branch) == (transport, host, port, branch)
    assert via.text == text


@pytest.mark.parametrize(
    "text",
    [
        b"", b"SIP/2.0/UDP", b"SIP/2.0/UDP ;branch=x", b"SIP/2.0 h", b"HTTP/1.1/TCP h", b"SIP/2.0/U(P h", b"SIP/2.0/UDP a..b",
        b"SIP/2.0/UDP -a.com", b"SIP/2.0/UDP a-:5060", b"SIP/2.0/UDP h:0", b"SIP/2.0/UDP h:65536", b"SIP/2.0/UDP h:99999;rport",
        b"SIP/2.0/UDP 444.1.1.1", b"SIP/2.0/UDP 2001:db8::1", b"SIP/2.0/UDP [::1", b"SIP/2.0/UDP [fe80::1%25eth0]",
        b"SIP/2.0/UDP h h2", b"SIP/2.0/UDP h;;rport", b"SIP/2.0/UDP h;", b"SIP/2.0/UDP h;a b", b"SIP/2.0/UDP h;=x",
        b'SIP/2.0/UDP h;branch="x', b"SIP/2.0/UDP h;rport;RPORT", b"SIP/2.0/UDP .", b"SIP/2.0/UDP 1",
    ],
)  # fmt: skip
def test_what_is_no_via(text: bytes) -> None:
    assert statused(parse_via, text) == 400
    assert statused(ViaCache().parse, text) == 400


@pytest.mark.requirement("SIP-MSG-29")
@pytest.mark.parametrize("value", [b"[2001:db8::9:255]", b"2001:db8::9:255", b"192.0.2.200"])
def test_rfc5118_4_5_received_is_read_with_brackets_and_without(value: bytes) -> None:
    for text in (
        b"SIP/2.0/UDP [2001:db8::9:1];received=%b;branch=z9hG4bKas3",
        b"SIP/2.0/UDP [2001:db8::9:1] ;branch=z9hG4bKas3; received=%b",
    ):
        via = parse_via(text % value)
        assert (via.received, via.branch, via.host) == (value, b"z9hG4bKas3", b"[2001:db8::9:1]")


TOKENS = st.sampled_from(
    [b"branch", b"BRANCH", b"rport", b"received", b"Received", b"ttl", b"maddr", b"x", b"", b"a b"]
)
VALUES = st.sampled_from(
    [b"", b"=", b"=z9hG4bK1", b"=[::1]", b"=::1", b'="q;\\" ,"', b"=1.2.3.4", b" = 5", b"=a=b", b"=\xe9"]
)
PARAMETERS = st.lists(st.tuples(TOKENS, VALUES), max_size=4).map(
    lambda pairs: b"".join(b";" + name + value for name, value in pairs)
)
SENT_BY = st.sampled_from(
    [b"h.example", b"H.Example:5060", b"192.0.2.1", b"192.0.2.1:70000", b"[::1]:1", b"a..b", b"h ", b"999.1.1.1"]
)
VIAS = st.builds(
    lambda protocol, host, parameters, tail: protocol + b" " + host + parameters + tail,
    st.sampled_from([b"SIP/2.0/UDP", b"SIP/2.0/TLS", b"SIP / 2.0 / tcp", b"SIP/7.0/UDP", b"SIP/2.0/X"]),
    SENT_BY,
    PARAMETERS,
    st.sampled_from([b"", b";", b" ", b";rport"]),
)


def parts(via: Via) -> tuple[Any, ...]:
    return tuple(getattr(via, name) for name in VIA_PARTS)


@given(st.lists(VIAS, max_size=12))
@example([b"SIP/2.0/UDP h;branch=x", b"SIP/2.0/UDP h;branch=x;"])
@example([b"SIP/2.0/UDP h;branch=x", b"SIP/2.0/UDP h;branch="])
@example([b"SIP/2.0/UDP h;branch=x", b"SIP/2.0/UDP h;branch=x=y", b"SIP/2.0/UDP h;branch=x;;rport"])
def test_a_via_whose_sent_by_is_known_is_read_like_any_other(texts: list[bytes]) -> None:
    cache = ViaCache(limit=3)
    for text in texts:
        plain, remembered = statused(parse_via, text), statused(cache.parse, text)
        if isinstance(plain, Via):
            assert isinstance(remembered, Via)
            assert parts(remembered) == parts(plain)
        else:
            assert remembered == plain


@given(st.binary(max_size=60), st.sampled_from([b"", b"SIP/2.0/UDP ", b"SIP/2.0/UDP h;", b"SIP/2.0/UDP h;branch="]))
def test_any_octets_are_a_via_or_a_400(tail: bytes, head: bytes) -> None:
    found = statused(parse_via, head + tail)
    assert found == 400 or isinstance(found, Via)


# ------------------------------------------------------------------------------------------ name-addr


@pytest.mark.requirement("SIP-MSG-17", "SIP-MSG-18", "SIP-MSG-19")
@pytest.mark.parametrize(
    ("value", "uri", "tag"),
    [
        (b'"A \\"<sip:evil@x>;tag=z\\" B" <sip:alice@example.com>;tag=1', b"sip:alice@example.com", b"1"),
        (b"sip:alice@example.com;tag=1;x", b"sip:alice@example.com", b"1"),
        (b"<sip:alice@example.com;tag=no>;TAG = 1", b"sip:alice@example.com;tag=no", b"1"),
        (b"caller<sip:alice@example.com>", b"sip:alice@example.com", None),
        (b"a token `~ name  <sip:alice@example.com>;tag=a%20b", b"sip:alice@example.com", b"a%20b"),
        (b'"" <sip:alice@example.com> ; tag=1', b"sip:alice@example.com", b"1"),
        (b"<sip:alice@example.com?a=b>;tag=1", b"sip:alice@example.com?a=b", b"1"),
        (b"<tel:+1,2;x>", b"tel:+1,2;x", None),
        (b'sip:alice@example.com;x="<;tag=2>";tag=1', b"sip:alice@example.com", b"1"),
        (b'"J Rosenberg \\\\\\""       <sip:jdrosen@example.com>\r\n  ;\r\n  tag = 98asjd8', b"sip:jdrosen@example.com", b"98asjd8"),
        (b'<sip:a@h>;x="tag=2;tag=3";tag=1', b"sip:a@h", b"1"),
    ],
)  # fmt: skip
def test_rfc3261_20_10_an_address_is_what_stands_in_its_brackets(value: bytes, uri: bytes, tag: bytes | None) -> None:
    address = parse_name_addr(value)
    assert (address.uri, address.tag()) == (uri, tag)
    assert h.read_tag(b" " + value) == tag
    h.check_name_addr(value)


@pytest.mark.requirement("SIP-MSG-17", "SIP-MSG-18", "SIP-MSG-19")
@pytest.mark.parametrize(
    "value",
    [
        b"", b"<>", b"<sip:a@h", b"sip:a@h>", b'"a <sip:a@h>', b'"a" b <sip:a@h>', b"Bell, Alexander <sip:a@h>", b"< sip:a@h >",
        b"sip:a@h?x=y", b"sip:a@h,b", b"<sip:a@h> x", b"<sip:a@h>;", b"<sip:a@h>;;tag=1", b'<sip:a@h>;tag="x', b"<sip:a<b@h>",
        b'"only a name"', b"<sip:a@h>;tag=1;tag=2", b"<sip:a@h>,<sip:b@h>", b"caf\xe9 <sip:a@h>", b'a "b" <sip:c@h>', b"sip:a h@x",
    ],
)  # fmt: skip
def test_what_is_no_address(value: bytes) -> None:
    assert statused(h.check_name_addr, value) == 400
    assert statused(h.read_tag, value) == 400


@pytest.mark.requirement("SIP-MSG-10")
def test_rfc3261_7_3_1_lists_of_addresses_over_rows_and_commas() -> None:
    found = parse_name_addr_list([b'"x, y" <sip:a@h>;q="1,2" ,\r\n <sip:b@h,c>', b"sip:d@h;p"])
    assert [address.uri for address in found] == [b"sip:a@h", b"sip:b@h,c", b"sip:d@h"]
    assert [address.bracketed for address in found] == [True, True, False]
    assert found[0].parameter(b"q") == b'"1,2"'
    assert found[2].parameter(b"p") == b""
    assert found[2].parameter(b"q") is None


ADDRESS_PARTS = [
    b'"',
    b"\\",
    b"<",
    b">",
    b";",
    b"tag",
    b"=",
    b" ",
    b"sip:a@h",
    b",",
    b"x",
    b"\r\n ",
    b"?",
    b"\xe9",
    b"\0",
]


@given(st.lists(st.sampled_from(ADDRESS_PARTS), max_size=14).map(b"".join) | st.binary(max_size=40))
def test_the_short_ways_to_read_an_address_agree_with_the_long_one(value: bytes) -> None:
    address = statused(parse_name_addr, value.strip(b" \t"))
    tag = statused(address.tag) if not isinstance(address, int) else 400
    assert statused(h.read_tag, value) == tag
    assert statused(h.check_name_addr, value) == (400 if tag == 400 else None)


# Where `sipmessage` is right: a quoted name only where nothing else is quoted, no empty name.
@given(
    st.sampled_from(["", "Alice", "Alice B", '"A, B; <c>"', '"x"']),
    st.sampled_from(["sip:alice@example.com", "sips:b@h.example:5061;lr", "sip:192.0.2.1"]),
    st.lists(st.sampled_from(["tag=a1", "x=y", "flag"]), unique=True, max_size=3),
)
def test_sipmessage_reads_the_same_address(name: str, uri: str, parameters: list[str]) -> None:
    text = f"{name} <{uri}>".lstrip() + "".join(f";{parameter}" for parameter in parameters)
    ours, theirs = parse_name_addr(text.encode()), sipmessage.Address.parse(text)
    assert str(theirs.uri) == ours.uri.decode()
    tag = ours.tag()
    assert theirs.parameters.get("tag") == (tag.decode() if tag is not None else None)


@given(
    st.sampled_from(["UDP", "TCP", "TLS", "WSS"]),
    st.sampled_from(["h.example", "192.0.2.1", "[2001:db8::1]"]),
    st.none() | st.integers(1, 65535),
    st.lists(st.sampled_from(["branch=z9hG4bKa1", "rport", "received=192.0.2.9", "ttl=3"]), unique=True, max_size=4),
)
def test_sipmessage_reads_the_same_via(transport: str, host: str, port: int | None, parameters: list[str]) -> None:
    text = f"SIP/2.0/{transport} {host}{f':{port}' if port else ''}" + "".join(f";{p}" for p in parameters)
    ours, theirs = parse_via(text.encode()), sipmessage.Via.parse(text)
    assert (theirs.transport, theirs.host, theirs.port) == (ours.transport.decode(), ours.host.decode(), ours.port)
    assert theirs.parameters.get("branch", "") == ours.branch.decode()
    assert ("rport" in theirs.parameters) is (ours.rport is not None)


# ------------------------------------------------------------------------------------------ numbers, options


def test_numbers_are_ascii_digits_within_their_range() -> None:
    assert h.parse_cseq(b"4294967295  INVITE") == (4294967295, b"INVITE")
    assert h.parse_cseq(b"0009\r\n  INVITE") == (9, b"INVITE")
    assert statused(h.parse_cseq, b"4294967296 INVITE") == 400
    assert [h.parse_max_forwards(v) for v in (b"0", b"0068", b"255", b"256", b"300")] == [0, 68, 255, 70, 70]
    assert [h.parse_content_length(v) for v in (b"0", b"9999999999", b" 5\r\n ")] == [0, 9999999999, 5]
    assert [h.parse_delta(v, 7) for v in (b"60", b"4294967296", b"9" * 5000, b"-1", b"x", b"")] == [
        60, 4294967295, 4294967295, 7, 7, 7,
    ]  # fmt: skip
    for value in (b"1" * 5000 + b" INVITE", b"1", b"INVITE 1", b"1 IN(VITE"):
        assert statused(h.parse_cseq, value) == 400


def test_rfc3261_20_32_option_tags_ignore_case_and_keep_their_order() -> None:
    assert h.parse_tokens([b"path, OUTBOUND", b"x\r\n ,y"]) == [b"path", b"OUTBOUND", b"x", b"y"]
    assert h.has_option([b"Path, Outbound"], b"outbound")
    assert not h.has_option([b"xoutbound"], b"outbound")
