"""Random conversations with mutated frames, slow receivers, losses and time: nothing leaks, all that leaves parses.

`EDGE_FUZZ_SECONDS` lets it go on for longer than the few hundred conversations of an ordinary run.
"""

from __future__ import annotations

import os
import random
import time

import pytest

from edge.connections import Transport
from edge.msrp.handler import MsrpHandler
from tests.msrp.parser import Parsed, parse_frames
from tests.msrp.recorder import MINA, NORA, PABLO, XM, XN, Bench, E, Recorder, send

_NAMES = [name for name in E if len(E[name]) < 6000]
_TARGETS = [f"{XN} {NORA}", f"{XN} {PABLO}", f"{XN} {XM} {MINA}", f"{XM} {XN} {NORA}", f"{XM} {MINA}", XN]
_EXTRA = ["", "Failure-Report: no", "Failure-Report: partial", "X: 1"]


class Conversation:
    """Nora, Mina on a WebSocket and somebody far, all of whom say and do what the seed tells them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        choice = self.random.choice
        self.bench = Bench(
            max_chunk_size=choice([0, 2048, 4096, 65536]), share_links=choice([True, False]),
            max_message_size=choice([0, 0, 5000]),
        )  # fmt: skip
        self.nora, self.mina, self.far = self.bench.connect(), self.bench.connect(Transport.WSS), self.bench.connect()
        self.bench.open(self.nora, XN, NORA)
        self.bench.open(self.mina, XM, MINA, user="mina")

    @property
    def all(self) -> list[Recorder]:
        return [self.nora, self.mina, self.far, *(dialled.connection for dialled in self.bench.dialled)]

    def step(self) -> None:
        who = self.random.choice(self.all)
        fate = self.random.random()
        if fate < 0.08:
            self.bench.advance(self.random.choice([0.5, 3, 31]))
        elif who.closed:
            return
        elif fate < 0.12:
            who.writable, who.backlog = False, self.random.choice([0, 300_000])
        elif fate < 0.2:
            who.drain()
            self.bench.run_turns()
        elif fate < 0.23:
            who.close(self.random.choice(["eof", "reset", "refused_target"]))
        else:
            self.say(who)
            self.answer()

    def say(self, who: Recorder) -> None:
        frame = E[self.random.choice(_NAMES)] if self.random.random() < 0.5 else self.compose(who)
        if self.random.random() < 0.3:
            at = self.random.randrange(len(frame))
            frame = (
                frame[:at] + self.random.randbytes(self.random.randint(0, 3)) + frame[at + self.random.randint(0, 5) :]
            )
        cut = self.random.randrange(len(frame) + 1) if who is not self.mina else 0
        for part in (frame[:cut], frame[cut:]):
            if part and not who.closed and not who.pauses:
                who.receive(part)

    def compose(self, who: Recorder) -> bytes:
        path = NORA if who is self.nora else MINA if who is self.mina else PABLO
        choice = self.random.choice
        return send(
            choice(_TARGETS), path, self.random.randbytes(choice([0, 10, 3000, 20_000])), extra=choice(_EXTRA),
            flag=choice("$$+#"), mid=choice("ab"), tid=f"t{self.random.randrange(10**7):07}",
        )  # fmt: skip

    def answer(self) -> None:
        for who in self.all:
            handler = who.handler
            assert isinstance(handler, MsrpHandler)
            if who.closed or who.pauses or handler.outbox.open is not None or self.random.random() < 0.5:
                continue
            for message in who.messages() if who is self.mina else [who.take()]:
                for frame in parse_frames(message):
                    if frame.method == "SEND" and not who.closed and not who.pauses:
                        who.receive(self.reply(frame))

    def reply(self, frame: Parsed) -> bytes:
        status = self.random.choice(["200 OK", "200 OK", "413 x"])
        to_path, from_path = frame["From-Path"].split()[0], frame["To-Path"].split()[0]
        text = f"MSRP {frame.identifier} {status}\r\nTo-Path: {to_path}\r\nFrom-Path: {from_path}\r\n-------{frame.identifier}$\r\n"
        return text.encode("utf-8", "surrogateescape")

    def finish(self) -> None:
        for who in self.all:
            if not who.closed:
                who.drain()
                self.bench.run_turns()
        self.bench.advance(70)
        for who in self.all:
            who.close("eof")
        for who in self.all:
            handler = who.handler
            assert isinstance(handler, MsrpHandler)
            outbox = handler.outbox
            assert (handler.buffered, len(handler.waiting), who.registered) == (0, 0, 0)
            assert [*outbox.pending, *outbox.streams, *outbox.lanes, *outbox.feeders, *outbox.routes] == []
        assert len(self.bench.relay.table) == 0


def _converse(seed: int) -> None:
    conversation = Conversation(seed)
    for _ in range(conversation.random.randint(1, 25)):
        conversation.step()
    conversation.finish()


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_conversations_leave_nothing_behind(first: int) -> None:
    for seed in range(first, first + 100):
        _converse(seed)


def test_conversations_for_as_long_as_asked() -> None:
    end = time.monotonic() + float(os.environ.get("EDGE_FUZZ_SECONDS", "0"))
    seed = int(time.time()) << 20
    while time.monotonic() < end:
        seed += 1
        try:
            _converse(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
