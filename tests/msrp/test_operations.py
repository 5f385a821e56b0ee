"""What a policy can do with a request."""

from __future__ import annotations

import pytest

from edge.errors import RemoteError
from edge.msrp.framing import Frame, FrameReader
from edge.msrp.operations import Operations
from tests.msrp.parser import parse_frames
from tests.msrp.recorder import MINA, NORA, TARIQ, XM, XN, Bench, Recorder, send

GATE = "msrps://gate.fjord.example:2855/g;tcp"
OTHER = b"msrps://other.fjord.example:9000;tcp"


class Sink:
    """Takes the one frame."""

    frame: Frame

    def handle_frame(self, frame: Frame, now: float) -> None:
        self.frame = frame

    def begin_send(self, head: object, now: float) -> None:
        raise AssertionError

    handle_body = end_send = handle_broken = begin_send


def operations(connection: Recorder, data: bytes) -> Operations:
    """Read one request as the policy would be given it."""
    sink = Sink()
    FrameReader(sink).receive(data, 0.0)
    return Operations(connection.handler, sink.frame)


def start() -> tuple[Bench, Recorder]:
    """Nora, enrolled."""
    bench = Bench()
    nora = bench.connect()
    bench.open(nora, XN, NORA)
    return bench, nora


def test_a_reply_has_headers_of_our_own_and_no_line_ends() -> None:
    _, nora = start()
    request = operations(nora, send(f"{XN} {GATE}", NORA, tid="asked001"))
    assert request.attributes.body_size == 2
    request.reply(403, b"Not today", ((b"X-Why", b"quota"),))
    (frame,) = parse_frames(nora.take())
    assert (frame.identifier, frame.method) == ("asked001", "403 Not today")
    assert ("X-Why", "quota") in frame.headers
    for bad in (b"a\r\nb", b"a\nb"):
        with pytest.raises(ValueError, match="line ends"):
            request.reply(200, bad)
    quiet = operations(nora, send(f"{XN} {GATE}", NORA, extra="Failure-Report: no\r\n"))
    quiet.reply(403)
    assert not nora.take()


def test_another_next_hop_is_connected_to_and_the_paths_stay() -> None:
    bench, nora = start()
    now = bench.clock.now
    for number in range(2):
        request = operations(nora, send(f"{XN} {GATE} {TARIQ}", NORA, tid=f"asked00{number}"))
        request.relay(now, next_hop=OTHER)
    (dialled,) = bench.dialled
    assert (dialled.host, dialled.port) == ("other.fjord.example", 9000)
    nora.receive(send(f"{XN} {GATE} {TARIQ}", NORA, tid="asked002"))  # and what follows goes there, too
    assert len(bench.dialled) == 1
    frames = parse_frames(dialled.connection.take())
    assert [dict(frame.headers)["To-Path"] for frame in frames] == [f"{GATE} {TARIQ}"] * 3
    (session,) = bench.relay.table
    assert len(session.routes) == 1  # however often that is said


def test_without_a_connection_nothing_is_dialled_when_that_is_asked() -> None:
    bench, nora = start()
    now = bench.clock.now
    request = operations(nora, send(f"{XN} {GATE} {TARIQ}", NORA))
    with pytest.raises(RemoteError) as refused:
        request.relay(now, existing_only=True)
    assert (refused.value.status, refused.value.label, bench.dialled) == (481, "no_connection", [])
    nora.receive(send(f"{XN} {GATE} {TARIQ}", NORA))
    operations(nora, send(f"{XN} {GATE} {TARIQ}", NORA)).relay(now, existing_only=True)
    assert len(parse_frames(bench.dialled[0].connection.take())) == 2


def test_a_session_of_ours_that_is_gone_is_no_next_hop() -> None:
    bench, nora = start()
    mina = bench.connect()
    session = bench.open(mina, XM, MINA, user="mina")
    nora.receive(send(f"{XN} {XM} {MINA}", NORA))
    mina.take()
    bench.relay.table.close(session, "expired", bench.clock.now)
    request = operations(nora, send(f"{XN} {XM} {MINA}", NORA))
    with pytest.raises(RemoteError) as refused:
        request.relay(bench.clock.now, existing_only=True)
    assert (refused.value.status, refused.value.label) == (481, "session")
    assert mina.take() == b""
    assert not bench.dialled


def test_the_connection_ends_after_the_message_that_says_so() -> None:
    bench, nora = start()
    operations(nora, send(f"{XN} {GATE} {TARIQ}", NORA)).relay(bench.clock.now, close_after=True)
    bench.run_turns()
    far = bench.dialled[0].connection
    assert far.closed
    assert len(parse_frames(far.take())) == 1


def test_a_session_is_saved_for_a_sender_and_found_again() -> None:
    bench = Bench()
    nora, now = bench.connect(), bench.clock.now
    request = operations(nora, send("msrps://edge.loom.example:2855;tcp", NORA, None))
    session = request.save_session("nora", 60, now)
    assert request.look_up(session.uri.raw, now) is session
    assert (session.user, session.owner) == ("nora", nora.handler)
    assert request.look_up(session.uri.raw, now + 61) is None
    with pytest.raises(RemoteError):
        operations(nora, send("msrps://stranger.example:2855;tcp", NORA, None)).save_session("nora", 60, now)
    nora.receive(send(f"{session.uri.raw.decode()} {GATE} {TARIQ}", NORA))
    assert len(bench.dialled) == 1
