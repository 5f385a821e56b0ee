"""What is fuzzed of MSRP: frames, WebSocket frames, and the relay with all it forwards read by an independent parser.

The second octet of an input says how it is cut; the rest is the input itself, or for `relay_body` the body of a message.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from edge.connections import Transport
from edge.msrp.frame import Head
from edge.msrp.framing import Frame, FrameReader
from edge.msrp.handler import MsrpHandler
from edge.wsframes import FrameDecoder, Part
from tests.msrp.parser import Parsed, parse_frames
from tests.msrp.recorder import MINA, NORA, PABLO, XM, XN, Bench, E, Recorder, send
from tests.ua.clock import FakeClock

_PIECES = 4000
_XP = XN.replace("Ub3n", "Pb3n")
_TABLE = Bench.make_table(FakeClock())
_GOOD = send(f"{XM} {XN} {NORA}", MINA, b"probe", tid="prob0001")


def cut(mode: int, data: bytes) -> list[bytes]:
    """Cut an input in pieces of one size, or of many; in a bounded number of them."""
    least = len(data) // _PIECES + 1
    if mode % 2:
        size = max(mode // 2 + 1, least)
        return [data[at : at + size] for at in range(0, len(data), size)]
    source, pieces = random.Random(mode), []
    while data:
        size = max(source.choice((1, 2, 9, 100, 3000)), least)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


class Sink:
    """Writes down what a reader says of a stream; bodies are joined, however they come."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def handle_frame(self, frame: Frame, now: float) -> None:
        self.begin_send(frame.head, now)
        self.handle_body(memoryview(frame.data)[frame.body_at : frame.stop], frame.plain, now)
        self.end_send(frame.flag, now)

    def begin_send(self, head: Head, now: float) -> None:
        start = head.start
        self.told.append(("head", start.transaction_id, start.method, start.code, head.paths + head.rest, b""))

    def handle_body(self, body: memoryview, plain: bool, now: float) -> None:
        *head, before = self.told[-1]
        assert isinstance(before, bytes)
        self.told[-1] = (*head, before + bytes(body))

    def end_send(self, flag: bytes, now: float) -> None:
        self.told.append(("end", flag))

    def handle_broken(self, label: str, head: Head | None, now: float) -> None:
        self.told.append(("broken",))


def read_frames(mode: int, data: bytes) -> None:
    """What ends well is the same however the stream is cut."""
    whole, pieces = Sink(), Sink()
    FrameReader(whole).receive(data, 0.0)
    reader = FrameReader(pieces)
    for piece in cut(mode, data):
        reader.receive(piece, 0.0)
    ends = [index for index, told in enumerate(whole.told) if told[0] == "end"]
    if ends:
        assert pieces.told[: ends[-1] + 1] == whole.told[: ends[-1] + 1]


def read_websocket(mode: int, data: bytes) -> None:
    """A WebSocket says the same however it is cut, and breaks at the same place."""

    def join(pieces: list[bytes]) -> tuple[list[Part], int]:
        decoder, joined = FrameDecoder(0), [(0, b"", True)]
        for piece in pieces:
            for part in decoder.receive_data(piece):
                opcode, before, last = joined[-1]
                if last or opcode != part[0]:
                    joined.append(part)
                else:
                    joined[-1] = (opcode, before + part[1], part[2])
        return [part for part in joined if part[1] or part[2]], decoder.error

    assert join([data]) == join(cut(mode, data))


class Desk:
    """One relay with Nora on TLS, Mina on a WebSocket, and Pablo whom nobody may write to; used for one input."""

    def __init__(self, mode: int) -> None:
        self.bench = Bench(table=_TABLE, max_chunk_size=(0, 2048, 5000)[mode % 3])
        self.nora, self.mina = self.bench.connect(), self.bench.connect(Transport.WSS)
        self.pablo = self.bench.connect()
        self.bench.open(self.nora, XN, NORA)
        self.bench.open(self.mina, XM, MINA, user="mina")
        self.bench.open(self.pablo, _XP, PABLO, user="pablo")

    def say(self, who: Recorder, pieces: list[bytes]) -> None:
        """Hand over a stream, or one WebSocket message in parts."""
        for number, piece in enumerate(pieces, 1):
            handler = who.handler
            assert isinstance(handler, MsrpHandler)
            if who.closed:
                return
            if who.transport.websocket:
                handler.receive_part(who, piece, number == len(pieces), self.bench.clock.now)
            else:
                who.receive(piece)

    def heard(self) -> list[Parsed]:
        """Every frame that left, after both have gone: all must be whole."""
        self.bench.run_turns()
        frames = [frame for message in self.mina.messages() for frame in parse_one(message)]
        self.nora.close("eof")
        self.mina.close("eof")
        return frames + parse_frames(self.nora.take())

    def check_rest(self) -> None:
        """Nobody heard what was not for him, and of those who have gone nothing is kept."""
        assert self.pablo.sent == []
        for who in (self.nora, self.mina):
            who.close("eof")
            handler = who.handler
            assert isinstance(handler, MsrpHandler)
            assert (handler.buffered, who.registered) == (0, 0)
            assert [*handler.outbox.pending, *handler.outbox.streams, *handler.outbox.lanes, *handler.routes] == []
        assert len(self.bench.relay.table) == 1


def parse_one(message: bytes) -> list[Parsed]:
    """A WebSocket message is one frame."""
    frames = parse_frames(message)
    assert len(frames) == 1
    return frames


def relay_octets(mode: int, data: bytes) -> None:
    """Any octets, from a client over TLS or WebSocket: what leaves parses, and the other client is still served."""
    desk = Desk(mode)
    who = desk.nora if mode % 2 else desk.mina
    desk.say(who, cut(mode // 2, data))
    if who is desk.nora and not desk.mina.closed:
        before = len(desk.mina.sent)
        desk.say(desk.mina, [_GOOD])
        assert len(desk.mina.sent) > before
    streaming = desk.nora.handler.outbox.open  # type: ignore[attr-defined]
    if streaming is None:
        desk.heard()
    desk.check_rest()


def relay_body(mode: int, data: bytes) -> None:
    """A message with this body, in chunks and pieces: not an octet is lost or made up, ranges tile, every frame parses."""
    source = random.Random(mode)
    body = (data + b"\r\n-------tid00001$\r\n" + data) * source.choice((1, 1, 40))
    desk = Desk(mode)
    sender, receiver, to_path, path = (
        (desk.nora, desk.mina, f"{XN} {XM} {MINA}", NORA)
        if mode % 2
        else (desk.mina, desk.nora, f"{XM} {XN} {NORA}", MINA)
    )
    at, number = 0, 0
    while at < len(body) or not number:
        size = min(source.choice((1, 700, 2049, 70_000)) if number < 50 else len(body), len(body) - at)
        flag = "$" if at + size == len(body) else "+"
        chunk, end = body[at : at + size], source.choice(("*", str(at + size)))
        tid = next(
            name for name in (f"id{number:06}", f"no{number:06}", f"so{number:06}") if name.encode() not in chunk
        )
        frame = send(to_path, path, chunk, tid=tid, flag=flag, byte_range=f"{at + 1}-{end}/{len(body)}")
        desk.say(sender, cut(source.randrange(256), frame))
        at, number = at + size, number + 1
    desk.bench.run_turns()
    messages = receiver.messages() if receiver is desk.mina else [receiver.take()]
    frames = [frame for message in messages for frame in parse_frames(message) if frame.method == "SEND"]
    joined = b""
    for frame in frames:
        assert frame.range[0] == len(joined) + 1
        joined += frame.body or b""
    assert joined == body
    desk.check_rest()
    assert [frame.flag for frame in frames] == ["+"] * (len(frames) - 1) + ["$"]


MSRP_TARGETS: list[Callable[[int, bytes], None]] = [read_frames, read_websocket, relay_octets, relay_body]


def msrp_seeds(first: int) -> list[bytes]:
    """The worked exchanges for every target; `first` is the number of the first target."""
    return [
        bytes((first + target, 11 * number % 256)) + data
        for target in range(len(MSRP_TARGETS))
        for number, data in enumerate(
            [*E.values(), _GOOD, b"\x82\x85abcdhello", b"\x01\x80abcd\x89\x80abcd\x80\x81abcdx"]
        )
    ]
