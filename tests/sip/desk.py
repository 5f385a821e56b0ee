"""One caller, one callee and the element between them: what comes of a message, octet by octet.

Messages are written as bytes here, because what is asserted is which octets leave.
"""

from __future__ import annotations

import itertools

from edge.connections import Transport
from edge.sip.framing import SipStream
from tests.sip.rig import Rig, Wire

_serials = itertools.count(1)
MESSAGE = b"MESSAGE sip:bob@example.com SIP/2.0"


def sip(start: bytes = MESSAGE, *extra: bytes, body: bytes = b"", **replaced: bytes | None) -> bytes:
    """Write a message: keyword arguments replace whole header lines (`via`, `sender`, `to` …), None leaves one out."""
    serial = next(_serials)
    lines: dict[str, bytes | None] = {
        "via": b"Via: SIP/2.0/UDP caller.example;branch=z9hG4bKd%d;rport" % serial,
        "max_forwards": b"Max-Forwards: 70",
        "sender": b"From: <sip:alice@example.com>;tag=a1",
        "to": b"To: <sip:bob@example.com>",
        "call_id": b"Call-ID: d%d" % serial,
        "cseq": b"CSeq: 1 " + start.partition(b" ")[0],
        "content_length": b"Content-Length: %d" % len(body),
    }
    assert replaced.keys() <= lines.keys()
    lines |= replaced
    return b"\r\n".join([start, *(line for line in lines.values() if line is not None), *extra, b"", body])


def register(*extra: bytes, user: bytes = b"carol", **replaced: bytes | None) -> bytes:
    """Write a REGISTER; `extra` are its Contact lines and others."""
    to = replaced.pop("to", b"To: <sip:%b@example.com>" % user)
    return sip(b"REGISTER sip:example.com SIP/2.0", *extra, to=to, **replaced)


def rows(message: bytes) -> list[bytes]:
    """The lines of a head, the start line among them."""
    return message.partition(b"\r\n\r\n")[0].split(b"\r\n")


def body_of(message: bytes) -> bytes:
    """What stands behind the empty line."""
    return message.partition(b"\r\n\r\n")[2]


def status_of(data: bytes) -> int:
    """The status of a response."""
    assert data.startswith(b"SIP/2.0 "), data
    return int(data[8:11])


def answer_line_by_line(request: bytes, start: bytes, *extra: bytes, body: bytes = b"") -> bytes:
    """Write a response with the Via, From, To, Call-ID and CSeq rows of a request exactly as they stand."""
    names = (b"via", b"v", b"from", b"f", b"to", b"t", b"call-id", b"i", b"cseq", b"record-route")
    kept: list[bytes] = []
    taking = False
    for line in rows(request)[1:]:
        taking = taking if line[:1] in b" \t" else line.partition(b":")[0].strip().lower() in names
        if taking:
            kept.append(line)
    return b"\r\n".join([start, *kept, *extra, b"Content-Length: %d" % len(body), b"", body])


class Desk:
    """The element with bob registered over TCP and a caller who sends datagrams."""

    def __init__(self) -> None:
        self.rig = Rig()
        self.bob = self.rig.register("bob")
        self.caller = self.rig.wire(Transport.UDP)

    def send(self, data: bytes, wire: Wire | None = None) -> list[bytes]:
        """Let one datagram arrive; returns what goes back to its sender."""
        wire = wire or self.caller
        self.rig.stack.framing.receive_datagram(wire, data, self.rig.clock.now)
        self.rig.run_soon()
        return wire.take()

    def status(self, data: bytes) -> int:
        """The status a datagram is answered with, 0 for silence."""
        back = self.send(data)
        assert len(back) <= 1, back
        return status_of(back[0]) if back else 0

    def relayed(self) -> list[bytes]:
        """What bob got."""
        return self.bob.take()

    def assert_unframed(self, data: bytes) -> None:
        """400 as a datagram; on a stream 400, and what follows is not read; bob gets nothing."""
        assert self.status(data) == 400
        stream = self.stream()
        assert stream.statuses(data + sip()) == [400]
        assert stream.closed
        assert self.relayed() == []

    def relay(self, data: bytes) -> bytes:
        """Let a request arrive that reaches bob, and return what reaches him."""
        back = self.send(data)
        assert [status_of(one) for one in back] in ([], [100]), back
        (relayed,) = self.relayed()
        return relayed

    def reply(self, data: bytes) -> list[bytes]:
        """Let bob send a response; returns what the caller gets."""
        self.rig.stack.framing.receive_datagram(self.bob, data, self.rig.clock.now)
        self.rig.run_soon()
        return self.caller.take()

    def stream(self, transport: Transport = Transport.TCP) -> Stream:
        """Open a stream to the element."""
        return Stream(self.rig, transport)


class Stream:
    """A stream whose octets come as the test cuts them."""

    def __init__(self, rig: Rig, transport: Transport) -> None:
        self.rig = rig
        self.wire = rig.wire(transport)
        self.handler: SipStream = rig.stack.framing.handler()

    def send(self, *pieces: bytes) -> bytes:
        """Let the pieces arrive one read each; returns all that goes back."""
        for piece in pieces:
            if not self.wire.closed:
                self.handler.receive_data(self.wire, piece, self.rig.clock.now)
                self.rig.run_soon()
        return b"".join(self.wire.take())

    def statuses(self, *pieces: bytes) -> list[int]:
        """The statuses of the answers to the pieces."""
        return [int(part[:3]) for part in self.send(*pieces).split(b"SIP/2.0 ")[1:] if part[:3].isdigit()]

    @property
    def closed(self) -> bool:
        return self.wire.closed
