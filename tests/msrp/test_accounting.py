"""Every octet that the relay has taken is confirmed by the next hop or told to be lost, once (RFC 4976 §3, §6.4)."""

from __future__ import annotations

import os
import random
import time
from collections import defaultdict

import pytest

from edge.connections import Transport
from tests.msrp.parser import Parsed, parse_first, parse_frames
from tests.msrp.recorder import MINA, NORA, PABLO, XM, XN, Bench, Recorder, send

IN_TIME_S = 25
MODES = ("yes", "absent", "partial", "no")


class Account:
    """What became of each octet of one message; octet 1 is at index 0."""

    def __init__(self, mode: str, size: int) -> None:
        self.mode = mode
        self.size = size
        self.confirmed = [0] * size
        self.told = [0] * size
        self.waiting = [0] * size  # came to the next hop whole, and it says nothing while its connection lives
        self.chunks: list[tuple[str, int, int]] = []  # transaction id, first and one past the last octet

    def mark(self, counts: list[int], frame: Parsed, length: int) -> None:
        start = frame.range[0] - 1
        for at in range(start, start + length):
            counts[at] += 1


class Story:
    """Nora sends to Pablo, who is dialled, or to Mina on a WebSocket of the same relay.

    The one who gets it answers, refuses, is slow, says nothing, or goes, as the seed wants it.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.bench = Bench(max_chunk_size=self.random.choice([0, 2048, 4096, 20_000]))
        self.nora = self.bench.connect()
        self.bench.open(self.nora, XN, NORA, lifetime=100_000)
        self.path, self.local, self.hop = PABLO, PABLO, XN
        self.mina: list[Recorder] = []
        if self.random.random() < 0.3:
            self.path, self.local, self.hop = f"{XM} {MINA}", MINA, XM
            self.mina = [self.bench.connect(Transport.WSS)]
            self.bench.open(self.mina[0], XM, MINA, lifetime=100_000, user="mina")
        self.accounts: dict[str, Account] = {}
        self.buffers: defaultdict[Recorder, bytes] = defaultdict(bytes)
        self.refused: set[str] = set()  # frames that got their answer before their end
        self.unanswered: list[tuple[Recorder, Parsed, float]] = []
        self.wire = b""
        self.serial = 0

    @property
    def all_hops(self) -> list[Recorder]:
        return self.mina + [dialled.connection for dialled in self.bench.dialled]

    @property
    def hops(self) -> list[Recorder]:
        return [hop for hop in self.all_hops if not hop.closed]

    def tell(self) -> None:
        """Send one message, in chunks."""
        mode, size = self.random.choice(MODES), self.random.choice([1, 500, 3000, 9000, 30_000])
        account = self.accounts[f"m{len(self.accounts)}"] = Account(mode, size)
        at = 0
        while at < size:
            stop = min(size, at + self.random.choice([400, 2500, 8000, 30_000]))
            self.serial += 1
            identifier = f"tid{self.serial:06}"
            account.chunks.append((identifier, at, stop))
            extra = self.random.choice(["", "X: 1"]) if mode == "absent" else f"Failure-Report: {mode}"
            self.wire += send(
                f"{XN} {self.path}", NORA, self.random.randbytes(stop - at), tid=identifier,
                mid=f"m{len(self.accounts) - 1}", flag="$" if stop == size else "+", extra=extra,
                byte_range=f"{at + 1}-{self.random.choice(['*', stop])}/{size}",
            )  # fmt: skip
            if self.random.random() < 0.7:  # else it comes together with the next one
                self.flush()
            at = stop

    def flush(self) -> None:
        """Bring what Nora has written, in reads of some size, with something happening between them."""
        wire, self.wire = self.wire, b""
        while wire:
            count = self.random.choice([100, 3000, 50_000])
            self.bring(wire[:count])
            wire = wire[count:]
            if self.random.random() < 0.4:
                self.happen(between=not wire)

    def bring(self, data: bytes) -> None:
        while self.nora.pauses:  # what holds her is a hop that takes nothing
            for hop in self.hops:
                hop.drain()
            self.bench.run_turns()
        assert not self.nora.closed
        self.nora.receive(data)

    def happen(self, between: bool = True) -> None:
        """Let something happen, between two chunks or in the middle of one."""
        self.take()
        fate = self.random.random()
        if fate < 0.12 and self.hops:
            hop = self.random.choice(self.hops)
            hop.close(self.random.choice(["reset", "refused", "tls", "stalled"]))
            self.unanswered = [entry for entry in self.unanswered if entry[0] is not hop]
            self.bench.advance(1)
        elif fate < 0.2:
            self.bench.advance(self.random.choice([1, 31]) if between else 1)  # a slow sender would be closed
        elif fate < 0.35 and self.hops:
            hop = self.random.choice(self.hops)
            hop.writable, hop.backlog = False, self.random.choice([0, 300_000])
        elif fate < 0.6:
            for hop in self.hops:
                hop.drain()
            self.bench.run_turns()
        else:
            self.answer()

    def take(self) -> None:
        """Read what came to Pablo, frame by frame."""
        for hop in self.all_hops:
            self.buffers[hop] += hop.take()
            while found := parse_first(self.buffers[hop]):
                frame, self.buffers[hop] = found
                assert frame.method == "SEND"
                if frame.identifier not in self.refused:
                    self.unanswered.append((hop, frame, self.bench.clock.now))

    def answer(self) -> None:
        self.take()
        kept = []
        for hop, frame, since in self.unanswered:
            in_time = self.bench.clock.now - since < IN_TIME_S
            if hop.closed or not in_time:
                continue
            if hop.pauses or self.random.random() < 0.3:
                kept.append((hop, frame, since))
                continue
            refused = self.random.random() < 0.15
            account = self.accounts[frame["Message-ID"]]
            if not refused:
                account.mark(account.confirmed, frame, len(frame.body or b""))
            self.say(hop, frame.identifier, "413 Stop" if refused else "200 OK")
        self.unanswered = kept
        for hop, buffer in self.buffers.items():
            identifier = buffer[5:].partition(b" ")[0].decode()
            if b"\r\n\r\n" in buffer and identifier not in self.refused and self.random.random() < 0.05:
                if not hop.closed and not hop.pauses:
                    self.refused.add(identifier)
                    self.say(hop, identifier, "413 Stop")

    def say(self, hop: Recorder, identifier: str, status: str) -> None:
        paths = f"To-Path: {self.hop}", f"From-Path: {self.local}"
        lines = f"MSRP {identifier} {status}", *paths, f"-------{identifier}$", ""
        hop.receive("\r\n".join(lines).encode())

    def end(self) -> None:
        """Let everything come to its end, then look at each octet."""
        self.flush()
        for _ in range(3):
            for hop in self.hops:
                hop.drain()
            self.bench.run_turns()
            self.answer()
        self.take()
        for _, frame, _ in self.unanswered:
            account = self.accounts[frame["Message-ID"]]
            account.mark(account.waiting, frame, len(frame.body or b""))
        self.bench.advance(70)
        responses: defaultdict[str, list[str]] = defaultdict(list)
        for frame in parse_frames(self.nora.take()):
            if frame.method == "REPORT":
                start, stop, _ = frame.range
                account = self.accounts[frame["Message-ID"]]
                account.mark(account.told, frame, int(stop) - start + 1)
                assert frame["Status"].startswith(("000 408", "000 413"))
            else:
                responses[frame.identifier].append(frame.method[:3])
        for account in self.accounts.values():
            for identifier, start, stop in account.chunks:
                self.check(account, responses[identifier], start, stop)

    @staticmethod
    def check(account: Account, said: list[str], start: int, stop: int) -> None:
        told, confirmed = account.told[start:stop], account.confirmed[start:stop]
        if account.mode == "no":
            assert said == []
            assert not any(told)
        elif said and said != ["200"]:  # an error while the chunk came: nothing of it is reported as well
            assert len(said) == 1
            assert not any(told)
        elif account.mode == "partial":
            assert said == []
            assert max(t + c for t, c in zip(told, confirmed, strict=True)) <= 1
        else:
            assert said == ["200"]
            assert {t + c for t, c in zip(told, confirmed, strict=True)} == {1}


def _tell(seed: int) -> None:
    story = Story(seed)
    for _ in range(story.random.randint(1, 6)):
        story.tell()
        story.happen()
    story.end()


@pytest.mark.requirement("MSRP-RPT-06", "MSRP-RPT-12", "MSRP-SEND-09")
@pytest.mark.parametrize("first", range(0, 300, 100))
def test_every_octet_is_confirmed_or_reported_once(first: int) -> None:
    for seed in range(first, first + 100):
        try:
            _tell(seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}") from error


def test_every_octet_for_as_long_as_asked() -> None:
    end = time.monotonic() + float(os.environ.get("EDGE_FUZZ_SECONDS", "0"))
    seed = int(time.time()) << 20
    while time.monotonic() < end:
        seed += 1
        try:
            _tell(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
