"""Every datagram on its own: sip-core.md table 3.3."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.demux import DatagramKind, classify_datagram

BINDING = bytes.fromhex("000100002112a4423f1c77a90b52e4d86610fa2e")


@pytest.mark.requirement("OB-KA-09", "SIP-DMX-09")
@pytest.mark.parametrize(
    "data, kind",
    [
        (BINDING, DatagramKind.STUN),
        (bytes.fromhex("000100082112a4423f1c77a90b52e4d86610fa2e7ff00004deadbeef"), DatagramKind.STUN),
        (BINDING[:4] + b"\x21\x12\xa4\x43" + BINDING[8:], DatagramKind.BAD_STUN),
        (BINDING[:2] + b"\x00\x04" + BINDING[4:], DatagramKind.BAD_STUN),
        (BINDING[:2] + b"\x00\x02" + BINDING[4:] + b"xx", DatagramKind.BAD_STUN),
        (BINDING[:19], DatagramKind.BAD_STUN),
        (b"\x01\x01" + b"x" * 40, DatagramKind.BAD_STUN),
    ],
)
def test_stun_has_its_cookie_and_its_length(data: bytes, kind: DatagramKind) -> None:
    assert classify_datagram(data) is kind


@pytest.mark.requirement("SIP-DMX-09")
@pytest.mark.parametrize(
    "data",
    [
        b"OPTIONS sip:calm.example SIP/2.0\r\nVia: x\r\n\r\n",
        b"!interesting-Method0123456789_*+`.%indeed'~ sip:1@example.com SIP/2.0\r\nVia: x\r\n\r\n",
        b"1NVITE sip:ravi@calm.example SIP/2.0\r\n\r\n",
        b"\r\n\r\nOPTIONS sip:calm.example SIP/2.0\r\n\r\n",
        b"SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP h\r\n\r\n",
        b"\r\nsip/2.0 200 OK\r\nVia: SIP/2.0/UDP h\r\n\r\n",
        b"INVITE sip:ravi@calm.example SIP/7.0\r\n\r\n",
        b"GET sip:ravi@calm.example SIP/2.0\r\n\r\n",
    ],
)
def test_sip_is_known_by_its_start_line(data: bytes) -> None:
    assert classify_datagram(data) is DatagramKind.SIP


@pytest.mark.parametrize("data", [b"", b"\r\n\r\n", b"\r\n", b"\x00", b"\x00\x00\x00\x00", b"    ", b"\n" * 500])
def test_blank_datagrams_are_keepalives(data: bytes) -> None:
    assert classify_datagram(data) is DatagramKind.KEEPALIVE


@pytest.mark.parametrize(
    "data, kind",
    [
        (b"\x16\xfe\xff" + b"x" * 60, DatagramKind.DTLS),
        (b"\x14\xfe\xfd" + b"x" * 60, DatagramKind.DTLS),
        (b"\x80" * 60, DatagramKind.BINARY),
        (b"\xff", DatagramKind.BINARY),
        (b"MSRP d93kswow SEND\r\nTo-Path: msrp://x:1/a;tcp\r\n", DatagramKind.JUNK),
        (b"GET /index.html HTTP/1.1\r\nHost: e1\r\n\r\n", DatagramKind.JUNK),
        (b"PROXY TCP4 1.2.3.4 1.2.3.5 1 2\r\nmore of it", DatagramKind.JUNK),
        (b"\r\n\r\n\x00\r\nQUIT\n\x21\x11" + b"\x00" * 30 + b"x", DatagramKind.JUNK),
        (b"\x16\x03\x01\x02\x00\x01" + b"x" * 60, DatagramKind.JUNK),
        (b"A sip:x SIP/2.0\r\n\r\n", DatagramKind.SHORT),
        (b"A" * 65535, DatagramKind.JUNK),
    ],
)
def test_everything_else_is_dropped_under_a_name(data: bytes, kind: DatagramKind) -> None:
    assert classify_datagram(data) is kind


@given(st.binary(max_size=200))
def test_any_datagram_has_a_kind(data: bytes) -> None:
    assert classify_datagram(data) in DatagramKind
