"""Mutated MSRP frames against a running server, over TCP and WebSocket, and what must not come of it (MSRP-SEC-10).

    alice ◄── probes ──► bob        two clients who hear each other, and nothing else
    erin, many connections ──► carol (TCP), dave (WebSocket)     each over sessions of theirs that are free
                           ──► far, an allowed target            dialled by the server
                           ──► forbidden, which is none          never dialled
    strangers ──► sessions of alice, bob, dave                   never heard

Everybody who is honest reads with the parser of `tests/ua`. Each connection of the fuzzer has a random source of its
own, made of the seed and its number, so that a seed means the same frames again, though not in the same microsecond.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from contextlib import AsyncExitStack
from itertools import islice

from tests.conftest import EdgeServer
from tests.fuzz.frames import STRANGER, Login, Person, bent, broken
from tests.fuzz.receivers import SESSION_ID, ReceivingClient, ReceivingListener
from tests.fuzz.wires import WebSocketWire, Wire
from tests.ua.msrp import MsrpEndpoint
from tests.ua.wait import deadline, eventually, within

WORKERS = 12
SESSIONS = 30  # of each receiver, at most one for each connection at a time
STRANGERS = 0.25  # of all connections; each is closed after a few frames
BREAKS = 0.6  # of all batches; they end with a frame after which most connections are closed
BATCHES = (1, 8, 30, 60)
PROBES = 10
FAR_HOST, FORBIDDEN_HOST = "127.0.0.2", "127.0.0.3"
# A connection whose sender has ended it may wait for an answer that is due (64*T1); a second more for the clock.
END_S = 33.0
# What a connection leaves behind are some 10 KiB in a cycle, for which the collector looks after 50,000 new objects: some
# 20 MiB wait at this rate, after 400,000 frames as after a million. Kept for ever, its 26,000 connections were 260 MiB.
GROWTH = 48 << 20


class Fuzz:
    """One run against one server; `sent` counts mutated frames by transport."""

    def __init__(self, server: EdgeServer, seed: int) -> None:
        self.server, self.seed = server, seed
        self.relay = ("127.0.0.1", server.port)
        self.sent: Counter[str] = Counter()
        self.connections = 0
        self.codes: Counter[int] = Counter()
        self.probes = 0
        self.recent: deque[tuple[int, list[bytes]]] = deque(maxlen=4 * WORKERS)
        self.issued: set[str] = set()
        self.dialled: list[str] = []  # where somebody connected who must not
        self._target = 0

    # -- who is there

    async def set_up(self, stack: AsyncExitStack) -> None:
        """Let everybody honest come, and talk once."""
        source = random.Random(self.seed)
        self.alice = await self._client(stack, MsrpEndpoint, "alice", "tcp")
        self.bob = await self._client(stack, MsrpEndpoint, "bob", "ws")
        for peer in (self.alice, self.bob):
            await peer.auth(3600)
            peer.frames.clear()
        self.receivers: list[ReceivingClient] = []
        for name, transport in (("carol", "tcp"), ("dave", "ws")):
            receiver = await self._client(stack, ReceivingClient, name, transport)
            receiver.prepare(random.Random(source.random()), self.issued)
            await receiver.enrol(SESSIONS)
            self.receivers.append(receiver)
        self.unused = self.receivers[1].free.pop()  # nobody is given it
        self.far = await stack.enter_async_context(ReceivingListener("far", host=FAR_HOST))
        self.far.prepare(random.Random(source.random()), self.issued)
        self.forbidden = []
        for host in (FORBIDDEN_HOST, "127.0.0.1"):
            listener = await asyncio.start_server(self._note_dialled, host, 0)
            stack.push_async_callback(listener.wait_closed)
            stack.callback(listener.close)
            self.forbidden.append(f"msrp://{host}:{listener.sockets[0].getsockname()[1]}/victim;tcp")
        await self.probe()

    async def _client(self, stack: AsyncExitStack, kind: type, name: str, transport: str):
        client = kind(name, f"{name}-secret", relay=self.relay, transport=transport)
        return await stack.enter_async_context(client)

    async def _note_dialled(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.dialled.append(str(writer.get_extra_info("sockname")))
        writer.close()

    # -- what is checked meanwhile and in the end

    async def probe(self) -> None:
        """Two who stay and two who just come talk to each other, and hear nothing else; nothing has gone wrong so far."""
        await self._talk(self.alice, self.bob)
        await self._talk(self.bob, self.alice)
        async with AsyncExitStack() as stack:
            alice = await self._client(stack, MsrpEndpoint, "alice", "ws")
            bob = await self._client(stack, MsrpEndpoint, "bob", "tcp")
            for peer in (alice, bob):
                await peer.auth()
                peer.frames.clear()
            await self._talk(alice, bob)
        self.probes += 1
        self.check()

    async def _talk(self, one: MsrpEndpoint, other: MsrpEndpoint) -> None:
        """A message, its answer and its report, which is all that the two have heard since they talked last."""
        assert not one.received(), one.received()[:3]
        assert not other.received(), other.received()[:3]
        sent = await one.send([*one.use_path, *other.path], b"still there?", success_report="yes", seconds=10)
        assert sent.statuses == [200]
        assert bytes((await other.next_message()).data) == b"still there?"
        assert (await one.next_report())["Status"] == "000 200 OK"
        assert (len(one.received()), len(other.received())) == (2, 1)
        one.frames.clear()
        other.frames.clear()

    def check(self) -> None:
        """Nothing has been said that must not, nobody was dialled who must not, and the server has logged no error."""
        heard = [*self.receivers, self.far, self.alice, self.bob]
        errors = [error for peer in heard for error in peer.errors]
        assert not errors, errors[:5]
        assert not self.dialled, f"dialled: {self.dialled}"
        for peer in (*self.receivers, self.alice, self.bob):
            assert not peer.active_link.closed, f"{peer.name} has lost his connection"
        assert self.server.process is not None
        assert self.server.process.poll() is None, "the server has ended"
        wrong = [line for line in self.server.log_text().splitlines() if " ERROR " in line or "Traceback" in line]
        assert not wrong, wrong[:5]
        metrics = self.server.metrics()
        failures = [metrics.value(name) for name in ("edge_policy_errors_total", "edge_accounting_lost_total")]
        assert failures == [0, 0]

    # -- the fuzzing

    async def send(self, frames: int) -> None:
        """Send so many mutated frames, half over each transport, and wait until all connections have ended."""
        share = frames // PROBES + 1
        end = self.sent.total() + frames
        while self.sent.total() < end:
            self._target = min(end, self.sent.total() + share)
            async with asyncio.TaskGroup() as group:
                for _ in range(WORKERS):
                    group.create_task(self._work())
            await self.probe()
            print(f"{self.sent.total()} frames sent, {self.resident() / 2**20:.1f} MiB resident")

    async def _work(self) -> None:
        while self.sent.total() < self._target:
            self.connections += 1
            await self._converse(self.connections)

    async def _converse(self, number: int) -> None:
        """One connection, from its first octet to its last."""
        source = random.Random(f"{self.seed}:{number}")
        stranger = source.random() < STRANGERS
        kind = (Wire, WebSocketWire)[number % 2]
        loop = asyncio.get_running_loop()
        async with deadline(10):
            _, wire = await loop.create_connection(lambda: kind(stranger), *self.relay)
        lent: list[str] = []
        try:
            await wire.begin()
            person = self._person(wire, source, stranger)
            if stranger:
                if source.random() < 0.5:
                    assert not await self._log_in(wire, person), "a guessed password was taken"
                self._lead_nowhere(person, kind is WebSocketWire)
                await self._fuzz(wire, person, number, [source.randint(1, 6)])
            else:
                assert await self._log_in(wire, person), "AUTH with right credentials was refused"
                self._take_session(wire, person)
                lent = [receiver.free.popleft() for receiver in self.receivers]
                self._lead_on(person, lent)
                await self._fuzz(wire, person, number, source.choices(BATCHES, k=8))
            await self._end(wire, source)
        finally:
            wire.reset()
            for receiver, uri in zip(self.receivers, lent, strict=False):
                receiver.free.append(uri)
        self.codes.update(wire.codes)
        assert not wire.wrong, f"connection {number}: {wire.wrong}"

    def _person(self, wire: Wire, source: random.Random, stranger: bool) -> Person:
        mark = STRANGER if stranger else b""
        own = f"msrp://{wire.local[0]}:{wire.local[1]}/{mark.decode()}o{source.getrandbits(64):x};tcp"
        if wire.transport_name == "ws":
            own = f"msrp://u{source.getrandbits(40):x}.invalid:2855/{mark.decode()}o{source.getrandbits(64):x};ws"
        relay = f"msrp://{self.relay[0]}:{self.relay[1]};tcp".encode()
        person = Person(
            source, relay, own.encode(), Login("frank", "guess") if stranger else Login("erin", "erin-secret"), mark
        )
        person.heard = wire.heard
        return person

    async def _log_in(self, wire: Wire, person: Person) -> bool:
        """AUTH without credentials, and once more with them, which may be a guess; whether that was granted."""
        status = 0
        for _ in range(2):
            auth = person.auth()
            answer = wire.expect(auth.tid)
            await wire.say([auth.octets()], person.source)
            status = await within(answer, 10)
            if (challenge := wire.challenge()) is not None:
                person.login.take(challenge)
        return status == 200

    def _take_session(self, wire: Wire, person: Person) -> None:
        person.issued = wire.use_path.encode()
        found = SESSION_ID.search(wire.use_path)
        assert found is not None
        self.issued.add(found[1])

    def _lead_on(self, person: Person, lent: list[str]) -> None:
        """Where one who is authorised sends to: those who may be reached, and some who may not."""
        first = person.issued
        far, forbidden = self.far.uri.encode(), [uri.encode() for uri in self.forbidden]
        reached = [
            b"%b %b %b" % (first, uri.encode(), receiver.uri.encode())
            for receiver, uri in zip(self.receivers, lent, strict=True)
        ]
        person.ways = [*reached * 4, b"%b %b" % (first, far), *(b"%b %b" % (first, uri) for uri in forbidden)]
        person.ways += [
            b"%b %b %b" % (first, peer.use_path[0].encode(), peer.uri.encode()) for peer in (self.alice, self.bob)
        ]
        person.places += [far, *forbidden, first, *(uri.encode() for uri in lent), *self._taken()]

    def _lead_nowhere(self, person: Person, websocket: bool) -> None:
        """What a stranger knows: sessions that are bound to others, or that a WebSocket has to log in for, and names."""
        alice, bob = self.alice.use_path[0].encode(), self.bob.use_path[0].encode()
        taken, far = self._taken(), self.far.uri.encode()
        person.ways = [
            b"%b %b" % (alice, self.alice.uri.encode()), b"%b %b" % (bob, self.bob.uri.encode()),
            b"%b %b %b" % (alice, bob, self.bob.uri.encode()), b"%b %b" % (alice, far),
            *(b"%b %b" % (alice, uri.encode()) for uri in self.forbidden), far, self.forbidden[0].encode(),
        ]  # fmt: skip
        if person.source.random() < 0.4:  # somebody else's name
            person.own = self.alice.uri.encode()
        if websocket:
            person.ways += [b"%b %b" % (self.unused.encode(), self.receivers[1].uri.encode())] * 4
        person.places += [*taken, far, *(uri.encode() for uri in self.forbidden)]

    def _taken(self) -> list[bytes]:
        """The sessions of alice and bob, and their own URIs."""
        return [uri.encode() for peer in (self.alice, self.bob) for uri in (peer.use_path[0], peer.uri)]

    async def _fuzz(self, wire: Wire, person: Person, number: int, sizes: list[int]) -> None:
        """Send frames in batches; after each there is an answer, or the end, unless the last one broke the stream."""
        source, frames = person.source, bent(person)
        for size in sizes:
            batch, breaks = list(islice(frames, size)), source.random() < BREAKS
            if breaks:
                batch.append(broken(person))
            ping = person.ping()
            self.recent.append((number, batch))
            self.sent[wire.transport_name] += len(batch)
            answer = wire.expect(ping.tid)
            await wire.say([*batch, ping.octets()], source)
            if not await self._is_answered(answer, breaks):
                return

    async def _is_answered(self, answer: asyncio.Future[int], broken: bool) -> bool:
        """Whether the last request was answered. After a broken frame it may have become part of that one's body."""
        if broken:
            await asyncio.wait([answer], timeout=0.1)
            return answer.done() and answer.result() > 0
        return await within(answer, 10) > 0

    async def _end(self, wire: Wire, source: random.Random) -> None:
        """End a connection: with FIN, after which the relay has to close too, or with a reset."""
        if source.random() < 0.2:
            wire.reset()
        else:
            wire.finish()
        await within(wire.closed.wait(), END_S)

    # -- growth

    async def rest(self, at_rest: dict[str, float]) -> None:
        """Wait until as much is open as there was before."""
        await eventually(lambda: self.open() == at_rest, END_S, what=f"{at_rest} as before")

    def open(self) -> dict[str, float]:
        """What is open in the server, by kind."""
        metrics = self.server.metrics()
        counts = {
            f"{t} connections": metrics.value("edge_connections", transport=t) for t in ("tcp", "ws", "tls", "wss")
        }
        counts["sessions"] = metrics.value("edge_msrp_sessions")
        counts["descriptors"] = metrics.value("process_open_fds")
        return counts

    def resident(self) -> float:
        """Octets of memory the server has."""
        return self.server.metrics().value("process_resident_memory_bytes")

    def requests_read(self) -> float:
        """Requests the server has read as such, whatever it did with them."""
        return self.server.metrics().value("edge_msrp_frames_total")


async def run(server: EdgeServer, seed: int, frames: int) -> str:
    """Send a tenth of the frames, to let everything grow to its size, then the rest; return the figures.

    Raises:
        AssertionError, TimeoutError: something came of it; what was sent last lies beside the server's log.
    """
    fuzz = Fuzz(server, seed)
    async with AsyncExitStack() as stack:
        await fuzz.set_up(stack)
        at_rest = fuzz.open()
        read = fuzz.requests_read()
        try:
            await fuzz.send(frames // 10)
            await fuzz.rest(at_rest)
            before, began = fuzz.resident(), time.monotonic()
            await fuzz.send(frames - fuzz.sent.total())
            took = time.monotonic() - began
            await fuzz.rest(at_rest)
        except BaseException:
            path = server.directory / "sent-last"
            path.write_text("\n".join(f"{number} {frame!r}" for number, batch in fuzz.recent for frame in batch))
            print(f"the frames that were sent last are in {path}")
            raise
        after = fuzz.resident()
    read = fuzz.requests_read() - read
    figures = (
        f"{fuzz.sent['tcp']} frames over TCP, {fuzz.sent['ws']} over WebSocket, {fuzz.connections} connections, "
        f"{read:.0f} requests read, {took:.1f} s for the last nine tenths; resident {before / 2**20:.1f} MiB before, "
        f"{after / 2**20:.1f} MiB after; answers {dict(sorted(fuzz.codes.items()))}"
    )
    assert after - before < GROWTH, figures
    assert read > fuzz.sent.total() / 2, f"most frames were not read: {figures}"
    assert all(peer.heard for peer in (*fuzz.receivers, fuzz.far)), "somebody has heard nothing"
    return figures
