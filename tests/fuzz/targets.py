"""What is fuzzed, as functions that take any octets and raise nothing but a failed assertion.

first octet   which reader          second octet   how a stream is cut, which transport        the rest   the input
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edge.auth.digest import parse_credentials
from edge.connections import Transport
from edge.demux import StreamSniffer, classify_datagram
from edge.errors import RemoteError
from edge.sip import headers as h
from edge.sip.message import MessageLimits, check_request, check_response, frame_datagram
from edge.sip.uri import parse_uri, uri_equal
from tests.fuzz.msrp_targets import MSRP_TARGETS, msrp_seeds
from tests.sip.desk import Desk, answer_line_by_line, sip

LIMITS = MessageLimits()
VECTORS = Path(__file__).parent.parent / "vectors"
FOUND = Path(__file__).parent / "found"
VIA_PARTS = ("branch", "host", "key", "parameters", "port", "received", "rport", "text", "transport", "version")
_REUSES = 400


def read_datagram(mode: int, data: bytes) -> None:
    """One message by itself: every typed reader, then forwarding keeps the body."""
    message = frame_datagram(data, LIMITS)
    if message.status:
        check_response(message)
    else:
        check_request(message, LIMITS)
        message.address(h.FROM).tag()
        message.address(h.TO).tag()
    assert message.body in data
    h.parse_name_addr_list(message.values(h.CONTACT))
    h.parse_name_addr_list(message.values(h.ROUTE))


def read_values(mode: int, data: bytes) -> None:
    """Single values."""
    readers: list[Callable[[bytes], object]] = [h.parse_via, h.parse_name_addr, h.parse_cseq, parse_credentials]
    readers[mode % len(readers)](data)


def read_via(mode: int, data: bytes) -> None:
    """A Via is the same whether its sent-by is known or not."""
    cache = h.ViaCache()
    for text in data.split(b"\n"):
        known, plain = outcome(cache.parse, text), outcome(h.parse_via, text)
        if isinstance(plain, h.Via) and isinstance(known, h.Via):
            assert all(getattr(known, name) == getattr(plain, name) for name in VIA_PARTS)
        else:
            assert known == plain


def read_uri(mode: int, data: bytes) -> None:
    """A URI equals itself, and its target is a URI without headers."""
    uri = parse_uri(data)
    assert uri_equal(uri, uri)
    assert not parse_uri(uri.target()).headers


def outcome(reader: Callable[[bytes], object], text: bytes) -> object:
    """What a reader returns, or the status it refuses with."""
    try:
        return reader(text)
    except RemoteError as error:
        return error.status


class Element:
    """The whole element. One is used for many inputs, as a server is; then nothing may be left of them."""

    def __init__(self) -> None:
        self._desk = Desk()
        self._uses = 0

    def _take(self) -> Desk:
        self._uses += 1
        if self._uses > _REUSES:
            self._desk.rig.advance(400)
            assert self._desk.rig.idle()
            self.__init__()  # type: ignore[misc]
        return self._desk

    def datagram(self, mode: int, data: bytes) -> None:
        """A datagram from a stranger."""
        self._take().send(data)
        self._forget()

    def stream(self, mode: int, data: bytes) -> None:
        """A stream, WebSocket or not, cut in pieces of one size."""
        desk = self._take()
        size = mode // 4 + 1
        pieces = [data[i : i + size] for i in range(0, len(data), size)]
        transport = (Transport.TCP, Transport.TLS, Transport.WS, Transport.WSS)[mode % 4]
        stream = desk.stream(transport)
        stream.send(*pieces)
        if not stream.closed:
            stream.wire.close("over")
        desk.rig.run_soon()
        self._forget()

    def reply(self, mode: int, data: bytes) -> None:
        """A response, made of a good one and the input, to a request that waits for it."""
        desk = self._take()
        desk.send(sip(b"INVITE sip:bob@example.com SIP/2.0"))
        relayed = desk.relayed()
        good = answer_line_by_line(relayed[-1], b"SIP/2.0 %d X" % (100 + mode * 2), *data.split(b"\n"))
        desk.reply(good)
        desk.reply(data)
        self._forget()

    def sniff(self, mode: int, data: bytes) -> None:
        """What the port makes of first octets."""
        classify_datagram(data)
        sniffer = StreamSniffer()
        for i in range(0, len(data), mode + 1):
            if sniffer.receive_data(data[i : i + mode + 1], 0.0) is not None:
                break

    def _forget(self) -> None:
        desk = self._desk
        for wire in list(desk.rig.table.connections.values()):
            if wire not in (desk.bob, desk.caller) and not wire.closed:
                wire.close("over")
        desk.rig.run_soon()
        desk.bob.take()
        desk.caller.take()
        if desk.bob.closed or desk.caller.closed:
            self.__init__()  # type: ignore[misc]


_ELEMENT = Element()
TARGETS: list[Callable[[int, bytes], None]] = [
    read_datagram, read_values, read_via, read_uri, _ELEMENT.datagram, _ELEMENT.stream, _ELEMENT.reply, _ELEMENT.sniff,
    *MSRP_TARGETS,
]  # fmt: skip


def try_octets(data: bytes) -> None:
    """Give octets to the target their first one names; a remote error is a right answer."""
    if len(data) < 2:
        return
    try:
        TARGETS[data[0] % len(TARGETS)](data[1], data[2:])
    except RemoteError:
        return


def seeds() -> list[bytes]:
    """The torture messages for every target, and what once broke something."""
    vectors = [path.read_bytes() for path in sorted(VECTORS.glob("rfc*/*.dat"))]
    prefixed = [
        bytes((target, 7 * number % 256)) + data
        for target in range(len(TARGETS))
        for number, data in enumerate(vectors)
    ]
    return (
        prefixed
        + msrp_seeds(len(TARGETS) - len(MSRP_TARGETS))
        + [path.read_bytes() for path in sorted(FOUND.glob("*"))]
    )
