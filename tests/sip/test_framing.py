"""Where messages end on streams, in WebSocket messages and in datagrams, however the octets are cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.connections import Connection, Transport
from edge.errors import RemoteError
from edge.sip.framing import SipFraming
from edge.sip.message import Message, MessageLimits, frame_datagram
from edge.timers import TimerWheel
from tests.sip.desk import MESSAGE, Desk, Stream, answer_line_by_line, body_of, sip, status_of
from tests.sip.rig import Rig, Wire
from tests.ua.clock import FakeClock

VECTORS = Path(__file__).parent.parent / "vectors"


class Recorder:
    """Takes what the framer hands out, as (start line, header lines, body) and (label, status)."""

    def __init__(self) -> None:
        self.limits = MessageLimits()
        self.events: list[tuple[object, ...]] = []
        self.refreshes: list[bytes] = []
        self.good = True

    def receive_message(self, connection: Connection, message: Message, now: float) -> bool:
        label = message.error.label if message.error is not None else ""
        self.events.append((message.lines[0], tuple(message.lines[1:]), message.body, label))
        return self.good

    def receive_refresh(self, connection: Connection, data: bytes, now: float) -> bool:
        self.refreshes.append(data)
        return False

    def refuse_unframed(self, connection: Connection, message: Message | None, error: RemoteError) -> None:
        self.events.append((error.status, error.label, None if message is None else message.lines[0]))

    def handle_lost(self, connection: Connection, reason: str, now: float) -> None:
        self.events.append(("lost", reason))


RIG = Rig()  # for its table and clock, which a closed stream leaves as they are


class Loose(Wire):
    """A connection that is in no table."""

    def close(self, reason: str) -> None:
        self.closed = True


class Line:
    """One stream into a recorder."""

    def __init__(self, transport: Transport = Transport.TCP) -> None:
        self.clock = FakeClock()
        self.wheel = TimerWheel(self.clock.now, tick_s=0.05)
        self.recorder = Recorder()
        self.framing = SipFraming(self.recorder, self.wheel, 20.0)
        self.wire = Loose(RIG.table, transport, ("198.51.100.1", 5060), self.clock)
        self.handler = self.framing.handler()

    def feed(self, pieces: Sequence[bytes]) -> list[tuple[object, ...]]:
        for piece in pieces:
            if not self.wire.closed:
                self.handler.receive_data(self.wire, piece, self.clock.now)
        return self.recorder.events

    def outcome(self, pieces: Sequence[bytes]) -> tuple[object, ...]:
        """Everything that came of it: messages, refusals, octets sent, the end."""
        return list(self.feed(pieces)), b"".join(self.wire.take()), self.wire.closed


def octets(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def three_ways(data: bytes) -> tuple[object, ...]:
    """Feed `data` whole, octet by octet and in two halves at every place; returns the one outcome all must have."""
    whole = Line().outcome([data])
    assert Line().outcome(octets(data)) == whole
    for cut in range(1, len(data), max(1, len(data) // 100)):
        assert Line().outcome([data[:cut], data[cut:]]) == whole
    return whole


ONE = sip(body=b"hello\r\n\r\nMESSAGE x SIP/2.0\r\n\r\n")
TWO = sip(b"SIP/2.0 200 OK", cseq=b"CSeq: 1 INVITE")
GET_ON = sip(b"OPTIONS sip:example.com SIP/2.0")


def bodies(events: object) -> list[object]:
    assert isinstance(events, list)
    return [event[2] for event in events]


# ------------------------------------------------------------------------------------------ whole messages


@pytest.mark.requirement("SIP-TRP-13")
@pytest.mark.parametrize("between", [b"", b"\r\n", b"\r\n\r\n", b"\r\n\r\n\r\n"])
def test_rfc3261_18_3_messages_are_cut_by_their_length_whole_in_pieces_and_glued(between: bytes) -> None:
    events, sent, closed = three_ways(between + ONE + between + TWO + between + GET_ON)
    assert bodies(events) == [body_of(ONE), b"", b""]
    assert not closed
    pings = len(between) // 4
    assert sent == b"\r\n" * pings * 3


@pytest.mark.requirement("SIP-TRP-13")
@given(st.lists(st.binary(max_size=30), max_size=5), st.data())
@settings(max_examples=50, deadline=None)
def test_any_bodies_cut_anywhere_come_out_as_they_went_in(contents: list[bytes], data: st.DataObject) -> None:
    fixed = {"via": b"Via: SIP/2.0/TCP h.example;branch=z9hG4bK1", "call_id": b"Call-ID: 1"}
    whole = b"".join(sip(body=content, **fixed) for content in contents)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    events, sent, closed = Line().outcome([piece for piece in pieces if piece])
    assert bodies(events) == contents
    assert (sent, closed) == (b"", False)


@pytest.mark.parametrize("vector", sorted(VECTORS.glob("rfc*/*.dat")), ids=lambda path: path.stem)
def test_every_torture_message_comes_out_the_same_however_it_is_cut(vector: Path) -> None:
    data = vector.read_bytes()
    three_ways(data + GET_ON)
    glued, _, closed = Line().outcome([GET_ON + data + GET_ON])
    assert isinstance(glued, list)
    assert glued[0][0] == b"OPTIONS sip:example.com SIP/2.0"
    if not closed:
        alone = Line().outcome([data])[0]
        assert isinstance(alone, list)
        assert glued[1 : 1 + len(alone)] == alone


# ------------------------------------------------------------------------------------------ the end is not known

LOST = {
    "no length": (sip(content_length=None), 400),
    "two lengths": (sip(MESSAGE, b"l: 0"), 400),
    "signed": (sip(content_length=b"Content-Length: -1"), 400),
    "list": (sip(content_length=b"Content-Length: 0, 0"), 400),
    "no digits": (sip(content_length=b"Content-Length: x"), 400),
    "over ten digits": (sip(content_length=b"Content-Length: 00000000000"), 400),
    "body too long": (sip(content_length=b"Content-Length: 65537"), 413),
    "bare line feed": (sip(MESSAGE, b"X: a\nb"), 400),
    "rows": (sip(MESSAGE, *[b"X: y"] * 300), 513),
    "row": (sip(MESSAGE, b"X: " + b"y" * 9000), 513),
    "section": (sip(MESSAGE, *[b"X: " + b"y" * 8000] * 5), 513),
}


@pytest.mark.requirement("SIP-TRP-14")
@pytest.mark.parametrize("which", LOST)
def test_rfc3261_18_3_where_the_end_is_lost_one_answer_leaves_and_all_behind_it_is_thrown_away(which: str) -> None:
    data, status = LOST[which]
    register = sip(b"REGISTER sip:example.com SIP/2.0", b"Contact: <sip:x@h.example>")
    for pieces in ([data + register], [*octets(data)[:2000], data[2000:] + register], [GET_ON + data, register]):
        desk = Desk()
        stream = desk.stream()
        statuses = stream.statuses(*pieces)
        assert statuses[-1] == status
        assert statuses[:-1] in ([], [200])
        assert stream.closed
        assert not desk.rig.stack.location.bindings(b"bob@example.com")[1:]
        assert desk.relayed() == []


def test_a_header_section_without_end_is_answered_where_its_via_has_come() -> None:
    endless = sip(MESSAGE, *[b"X: " + b"y" * 1000] * 40).partition(b"\r\n\r\n")[0]
    for pieces in ([endless], [endless[:5000], endless[5000:20000], endless[20000:]]):
        stream = Desk().stream()
        assert stream.statuses(*pieces) == [513]
        assert stream.closed
    late_via = MESSAGE + b"\r\n" + b"X: y\r\n" * 8000
    stream = Desk().stream()
    assert stream.send(late_via) == b""
    assert stream.closed


def test_a_start_line_without_end_is_closed_in_silence() -> None:
    for data in (b"MESSAGE sip:" + b"a" * 5000, b"A" * 5000, b"SIP/2.0 200 " + b"x" * 5000):
        for pieces in ([data], octets(data)):
            stream = Desk().stream()
            assert stream.send(*pieces) == b""
            assert stream.closed


@pytest.mark.parametrize("data", [b"MSRP a1 SEND\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\n\n", b"\rx", b"one\r\n\r\n"])
def test_another_protocol_is_no_message(data: bytes) -> None:
    for pieces in ([GET_ON + data], [GET_ON, *octets(data)]):
        stream = Desk().stream()
        assert stream.statuses(*pieces) == [200]
        assert stream.closed


@pytest.mark.requirement("SIP-DMX-07")
def test_a_message_that_does_not_come_whole_in_time_ends_the_stream_in_silence() -> None:
    for data, due in ((ONE[:30], 10.0), (ONE[:-1], 20.0), (b"\r", 10.0)):
        line = Line()
        line.feed([data])
        line.wheel.advance(line.clock.advance(due - 1))
        assert not line.wire.closed
        line.handler.receive_data(line.wire, b"", line.clock.now)
        line.wheel.advance(line.clock.advance(2.0))
        assert line.wire.closed
        assert line.wire.take() == []
    whole = Line()
    whole.feed([*octets(ONE)])
    assert whole.wheel.count == 0  # nothing waits for what has come
    whole.wheel.advance(whole.clock.advance(60.0))
    assert not whole.wire.closed


@pytest.mark.requirement("SIP-DMX-07")
def test_an_octet_a_second_buys_no_time() -> None:
    """The clock runs from the first octet of a message, whatever comes behind it."""
    line_end = ONE.index(b"\r\n") + 2
    for first, due in ((1, 10), (line_end, 20)):
        line = Line()
        line.feed([ONE[:first]])
        seconds = 0
        while not line.wire.closed:
            line.wheel.advance(line.clock.advance(1.0))
            seconds += 1
            if not line.wire.closed:
                line.feed([b"x" if first == 1 else ONE[first + seconds : first + seconds + 1]])
        assert seconds in (due, due + 1)


@pytest.mark.requirement("SIP-DMX-07")
def test_a_stream_that_is_always_in_the_middle_of_a_message_goes_on() -> None:
    line = Line()
    line.feed([ONE[:-5]])
    for _ in range(10):
        line.wheel.advance(line.clock.advance(5.0))
        line.feed([ONE[-5:] + ONE[:-5]])
    assert not line.wire.closed


def test_the_end_of_a_stream_drops_half_a_message() -> None:
    line = Line()
    line.feed([ONE + ONE[:40]])
    assert line.handler.receive_eof(line.wire, line.clock.now) is True
    line.handler.handle_lost(line.wire, "eof", line.clock.now)
    assert [event[0] for event in line.recorder.events] == [MESSAGE, "lost"]
    assert line.wheel.count == 0


# ------------------------------------------------------------------------------------------ the end is known


def test_bad_messages_inside_known_bounds_are_answered_and_the_stream_goes_on() -> None:
    bad = sip(cseq=b"CSeq: x MESSAGE")
    desk = Desk()
    stream = desk.stream()
    assert stream.statuses(bad + GET_ON + bad + GET_ON) == [400, 200, 400, 200]
    assert stream.statuses(sip(b"MESSAGE sip:bob@example.com SIP/3.0") + GET_ON) == [505, 200]
    response = answer_line_by_line(sip(), b"SIP/2.0 2000 OK")
    assert stream.statuses(response + GET_ON) == [200]
    assert not stream.closed


def test_twenty_one_bad_ones_in_a_row_are_too_many() -> None:
    bad = sip(cseq=b"CSeq: x MESSAGE")
    patient = Desk().stream()
    assert patient.statuses(*([bad] * 20 + [GET_ON]) * 3) == ([400] * 20 + [200]) * 3
    assert not patient.closed
    stream = Desk().stream()
    assert stream.statuses(bad * 30) == [400] * 21
    assert stream.closed


@pytest.mark.requirement("SIP-KA-01", "SIP-KA-02", "SIP-KA-03")
@pytest.mark.parametrize("transport", [Transport.TCP, Transport.TLS])
def test_rfc5626_4_4_1_pings_are_found_in_the_octets_not_in_the_reads(transport: Transport) -> None:
    def pongs(*pieces: bytes) -> int:
        stream = Stream(Rig(), transport)
        sent = stream.send(*pieces)
        assert sent.replace(b"\r\n", b"") == b""
        return len(sent) // 2

    ping = b"\r\n\r\n"
    assert pongs(ping) == pongs(*octets(ping)) == pongs(b"\r\n\r", b"\n") == pongs(b"\r", b"\n\r\n") == 1
    assert pongs(ping * 3) == pongs(*octets(ping * 3)) == 3
    assert pongs(b"\r\n") == pongs(b"\r", b"\n") == 0
    stream = Stream(Rig(), transport)
    glued = stream.send(ping + GET_ON + ping + GET_ON)
    assert glued.startswith(b"\r\nSIP/2.0 200 ")
    assert glued.count(b"\r\n\r\n\r\nSIP/2.0 200 ") == 1
    assert stream.send(b"\r\n", GET_ON, b"\r\n", GET_ON).startswith(b"SIP/2.0 200 ")  # no ping was whole


# ------------------------------------------------------------------------------------------ WebSocket, datagrams


@pytest.mark.parametrize("transport", [Transport.WS, Transport.WSS])
def test_rfc7118_5_one_websocket_message_is_one_sip_message(transport: Transport) -> None:
    line = Line(transport)
    bare = sip(content_length=None, body=b"to the end")
    short = sip(content_length=b"Content-Length: 50", body=b"short")
    events = line.feed([ONE + TWO, bare, short, b"junk"])
    assert bodies(events[:3]) == [body_of(ONE), b"to the end", b"short"]
    assert [event[3] for event in events[:3]] == ["", "", "short_body"]
    assert events[3] == (0, "start_line", None)
    assert not line.wire.closed


def test_a_register_is_shown_to_those_who_know_it_before_it_is_read() -> None:
    data = sip(b"REGISTER sip:example.com SIP/2.0")
    line = Line()
    line.feed([data, data[:50], data[50:], GET_ON + data])
    assert line.recorder.refreshes == [data, data[:50]]  # only where it may be the whole of what came
    assert len(line.recorder.events) == 4


# ------------------------------------------------------------------------------------------ properties

PIECES = st.sampled_from(
    [b"\r\n", b"\r\n\r\n", b"\r", b"\n", b" ", b":", b"MESSAGE sip:bob@example.com SIP/2.0\r\n", b"SIP/2.0 200 OK\r\n",
     b"Content-Length: 3\r\n", b"l: 0\r\n", b"Via: SIP/2.0/UDP h;branch=z9hG4bK1\r\n", b"Via: ;;\r\n", b"f: <sip:a@b>;tag=1\r\n",
     b"t: <sip:c@example.com>\r\n", b"i: x\r\n", b"CSeq: 1 MESSAGE\r\n", b'To: "\r\n', b" Route: x\r\n", b"\0", b"abc", ONE, TWO]
)  # fmt: skip
SOUP = st.lists(PIECES | st.binary(max_size=12), max_size=12).map(b"".join)


@pytest.mark.requirement("SIP-DOS-01")
@given(SOUP)
@settings(max_examples=300, deadline=None)
def test_any_octets_make_a_message_or_a_remote_error(data: bytes) -> None:
    try:
        message = frame_datagram(data, MessageLimits())
    except RemoteError as error:
        status = error.status
    else:
        status = 0
        assert message.lines
        assert len(message.body) <= len(data)
        assert message.error is not None or message.encode().startswith(message.lines[0])
    assert status == 0  # only what has no start line at all raises, and that cannot be answered


@pytest.mark.requirement("SIP-DOS-01")
@given(SOUP, st.data())
@settings(max_examples=300, deadline=None)
def test_a_stream_takes_any_octets_and_what_comes_of_them_does_not_depend_on_the_cuts(
    data: bytes, draw: st.DataObject
) -> None:
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=8)))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b]
    line = Line()
    outcome = line.outcome(pieces)
    assert outcome == Line().outcome([data] if data else [])
    assert len(line.handler._buffer) <= len(data)
    if line.wire.closed:
        assert line.wheel.count == 0


@pytest.mark.requirement("SIP-DOS-01")
@given(st.lists(SOUP, max_size=4), st.sampled_from([Transport.UDP, Transport.TCP, Transport.WS]))
@settings(max_examples=150, deadline=None)
def test_the_whole_element_survives_any_octets_and_serves_the_next(soups: list[bytes], transport: Transport) -> None:
    desk = Desk()
    for data in soups:
        if transport is Transport.UDP:
            desk.send(data)
        elif data:
            desk.stream(transport).send(data)
    desk.bob.take()
    assert [status_of(one) for one in desk.send(GET_ON)] == [200]
    desk.rig.advance(70)
    assert desk.rig.idle()


HEADERS = st.lists(
    st.tuples(
        st.sampled_from([b"X-New", b"Subject", b"s", b"Contact", b"Date", b"k", b"P-Odd.!%*", b"e", b"Accept"]),
        st.sampled_from([b":", b" :", b": ", b"\t:  "]),
        st.binary(max_size=20).map(lambda value: value.translate(None, b"\r\n\0")),
        st.sampled_from([b"", b"\r\n fold", b"\r\n\t: x", b"  "]),
    ).map(b"".join),
    max_size=6,
)


@pytest.mark.requirement("SIP-MSG-20", "SIP-MSG-21", "SIP-MSG-25")
@given(HEADERS, st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_forwarding_keeps_every_octet_it_does_not_own(headers: list[bytes], body: bytes) -> None:
    desk = Desk()
    data = sip(MESSAGE, *headers, body=body)
    arrived = desk.relay(data)
    head, _, sent_body = arrived.partition(b"\r\n\r\n")
    assert sent_body == body
    via, rest = data.split(b"\r\n", 2)[1:]
    rest = rest.partition(b"\r\n\r\n")[0].replace(b"Max-Forwards: 70", b"Max-Forwards: 69", 1)
    ours, breadth, theirs, kept = head.split(b"\r\n", 4)[1:]
    assert breadth == b"Max-Breadth: 60"
    assert ours.startswith(b"Via: SIP/2.0/TCP edge.example:5060;branch=z9hG4bK")
    assert theirs.startswith(via)
    assert kept == rest
    (answer,) = desk.reply(answer_line_by_line(arrived, b"SIP/2.0 200 OK", *headers, body=body))
    assert b"\r\n".join(headers) in answer
    assert body_of(answer) == body
    assert ours not in answer


def test_the_recorder_sees_what_the_element_sees() -> None:
    make: Callable[[], Line] = Line
    assert make().outcome([ONE])[0] == [
        (MESSAGE, tuple(ONE.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]), body_of(ONE), "")
    ]
