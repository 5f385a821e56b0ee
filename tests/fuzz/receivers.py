"""Honest peers of the fuzzer: they answer everything, write back now and then, and judge whatever comes."""

from __future__ import annotations

import random
import re
from collections import deque

from tests.fuzz.frames import STRANGER
from tests.ua.link import Link
from tests.ua.msrp import HashSink, MsrpEndpoint, MsrpListener
from tests.ua.msrp_frame import Frame, build
from tests.ua.msrp_peer import MsrpPeer

SESSION_ID = re.compile(r"://[^/]*/([^;]+);")


class Sink(HashSink):
    """Throws a message away."""

    def write(self, offset: int, data: bytes) -> None:
        self.octets = max(self.octets, offset + len(data))


class Receiver(MsrpPeer):
    """Mixed into a peer; `heard` counts frames.

    `issued` are the session ids of those who may send here, and `mine` those of the receiver's own that they come by;
    a peer without relay has none.
    """

    def prepare(self, source: random.Random, issued: set[str]) -> None:
        self.source, self.issued = source, issued
        self.mine: set[str] = set()
        self.address_part = f"/{self.session_id};"
        self.heard = 0
        self.sink = Sink

    def _receive_end(self, frame: Frame) -> None:
        super()._receive_end(frame)
        self.heard += 1
        if frame.method:
            self._judge(frame)
        if frame.method not in ("", "SEND", "REPORT"):
            self.respond(frame, self.source.choice((200, 200, 403, 501)))
        if frame.method and self.source.random() < 0.1:
            self._write_back(frame)
        if self.heard % 256 == 0:
            self._forget()

    def _judge(self, frame: Frame) -> None:
        """Whether a request may have come here: for this peer, by a session of its own, from whom it was issued to."""
        if STRANGER in frame.head + frame.body:
            self.errors.append(ValueError(f"a stranger reached {self.name}: {frame.head!r}"))
        came_by = SESSION_ID.search(frame.from_path[0])
        if self.address_part not in frame.to_path[0] or came_by is None or came_by[1] not in (self.mine or self.issued):
            self.errors.append(ValueError(f"not for {self.name}, or not by a way of his: {frame.head!r}"))

    def _write_back(self, frame: Frame) -> None:
        """A SEND the other way, to be answered by whatever."""
        headers = [("Message-ID", frame.transaction_id), ("Success-Report", "yes"), ("Byte-Range", "1-5/5")]
        answer = build("SEND", frame.from_path, [self.uri], headers, content_type="text/plain", flag="$")
        answer.add(b"hello")
        assert frame.link is not None
        if not frame.link.closed:
            self.send_frame(answer, frame.link)

    def _forget(self) -> None:
        self.frames.clear()
        self.misrouted.clear()
        for queue in (self.messages, self.bodiless, self.reports, self.responses, self.requests):
            while not queue.empty():
                queue.get_nowait()
        if all(reader.idle for reader in self._readers.values()):
            self.partial.clear()


class ReceivingClient(Receiver, MsrpEndpoint):
    """A client of the relay, with many sessions; `free` are those nobody uses."""

    free: deque[str]

    async def enrol(self, sessions: int) -> None:
        """Get so many session URIs."""
        self.free = deque([(await self.auth(3600))[0] for _ in range(sessions)])
        self.mine = {SESSION_ID.search(uri)[1] for uri in self.free}  # type: ignore[index]


class ReceivingListener(Receiver, MsrpListener):
    """A peer that the relay dials, for any session: which of them there are it has to know itself."""

    def prepare(self, source: random.Random, issued: set[str]) -> None:
        super().prepare(source, issued)
        self.address_part = f"{self.address[0]}:{self.address[1]}/"

    def _on_data(self, link: Link, data: bytes) -> None:
        """Read MSRP; whoever begins with TLS, because a frame said msrps, has come to the wrong door."""
        if link not in self._readers and data.startswith(b"\x16"):
            link.reset()
        else:
            super()._on_data(link, data)
