"""A relay without sockets: connections that record, a clock that is told, a random source with a script."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import cast

from edge.auth.authenticator import MSRP, Authenticator
from edge.auth.credentials import Credential, CredentialCache, derive_credential
from edge.auth.lockout import Lockout
from edge.auth.nonce import Nonces, NonceState
from edge.connections import Connection, ConnectionTable, Transport
from edge.events import Event, EventBus
from edge.msrp.handler import MsrpHandler
from edge.msrp.relay import Relay, RelaySettings
from edge.msrp.session import Session
from edge.msrp.uri import parse_uri
from edge.settings import Limits
from edge.timers import TimerWheel
from tests.msrp.parser import parse_frames
from tests.ua.clock import FakeClock

Step = tuple[str, bytes]


class Listener:
    """What an accepted connection knows of its listener."""

    index = 0
    address = ("0.0.0.0", 2855)
    advertised = ("edge.loom.example", 2855)


class StillLoop:
    """As much of an event loop as the connection table needs while no time passes by itself."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.time = clock

    def call_soon(self, call: Callable[..., object], *arguments: object) -> None:
        """Whoever tests a relay looks at what was sent at once."""

    def call_later(self, delay: float, call: Callable[..., object], *arguments: object) -> None:
        """The clock is told, and the wheel with it."""


class Recorder(Connection):
    """A connection that keeps what is sent, and counts how often it is not read."""

    def __init__(self, table: ConnectionTable, transport: Transport, clock: FakeClock) -> None:
        super().__init__(table, transport, ("192.0.2.17", 49320), ("192.0.2.1", 2855), Listener(), None)  # type: ignore[arg-type]
        self.clock = clock
        self.sent: list[bytes] = []
        self.pauses = 0
        self.backlog = 0
        self.queue_limit = 1
        self.end = ""

    def send(self, data: bytes) -> None:
        assert isinstance(data, bytes)
        if not self.closed:
            self.sent.append(data)

    def send_parts(self, parts: Sequence[bytes | memoryview]) -> None:
        self.send(b"".join(parts))

    def unsent(self) -> int:
        return self.backlog

    def pause_reading(self) -> None:
        self.pauses += 1

    def resume_reading(self) -> None:
        self.pauses -= 1
        assert self.pauses >= 0

    def close(self, reason: str) -> None:
        if not self.closed:
            self.closed = True
            self.end = reason
            self.handler.handle_lost(self, reason, self.clock.now)

    fail = close

    # -- for tests

    def receive(self, data: bytes) -> None:
        """Hand octets to the handler, unless the connection was closed or is not read."""
        assert self.pauses == 0, "octets would still be in the socket"
        self.last_received = self.clock.now
        if not self.closed:
            self.handler.receive_data(self, data, self.clock.now)

    def take(self) -> bytes:
        """What was sent since the last call, as one run of octets."""
        data, self.sent = b"".join(self.sent), []
        return data

    def messages(self) -> list[bytes]:
        """What was sent since the last call, message by message (WebSocket)."""
        sent, self.sent = self.sent, []
        return sent

    def drain(self) -> None:
        """The transport takes octets again."""
        self.writable = True
        self.backlog = 0
        self.handler.handle_writable(self, self.clock.now)


class ScriptedRandom:
    """A random source that says first what it was told to say."""

    def __init__(self, ids: Sequence[str] = (), session_ids: Sequence[str] = (), seed: int = 1) -> None:
        self.ids = list(ids)
        self.session_ids = list(session_ids)
        self._rest = random.Random(seed)

    def __call__(self, count: int) -> bytes:
        if count == 17 and self.session_ids:
            return base64.urlsafe_b64decode(self.session_ids.pop(0) + "A=")
        script, self.ids = b"".join(bytes.fromhex(identifier) for identifier in self.ids), []
        return (script + self._rest.randbytes(count))[:count]


class ScriptedNonces(Nonces):
    """Nonces from a script; counts are judged for real, age by the script."""

    def __init__(self, realm: bytes, algorithms: Sequence[str], opaque: bytes, script: Sequence[bytes]) -> None:
        super().__init__(realm, algorithms, b"0123456789abcdef", random.Random(1).randbytes)
        self.opaque = opaque
        self.script = list(script)
        self.counts: dict[bytes, int] = {}

    def issue(self, now: float) -> bytes:
        return self.script.pop(0)

    def check(self, nonce: bytes, now: float) -> NonceState:
        return NonceState.VALID

    def accept(self, nonce: bytes, count: int, now: float, *, rising: bool) -> bool:
        good = count > self.counts.get(nonce, 0)
        self.counts[nonce] = max(count, self.counts.get(nonce, 0))
        return good


class Users:
    """A user store that answers when told, or at once."""

    def __init__(self, passwords: dict[str, str], realm: str) -> None:
        self.passwords = passwords
        self.realm = realm
        self.later = False
        self.asked: list[tuple[str, str]] = []
        self._waiting: list[Callable[[], None]] = []

    def fetch(self, username: str, domain: str, done: Callable[[Credential | Exception | None], None]) -> None:
        self.asked.append((username, domain))
        password = self.passwords.get(username)
        found = derive_credential(username.encode(), domain.encode(), password.encode()) if password else None
        if self.later:
            self._waiting.append(lambda: done(found))
        else:
            done(found)

    def answer(self) -> None:
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()


class Dialled:
    """What the relay asked to be dialled."""

    def __init__(self, secure: bool, host: str, port: int, connection: Recorder, check: Callable[[str], bool]) -> None:
        self.secure = secure
        self.host = host
        self.port = port
        self.connection = connection
        self.check = check


class Bench:
    """One relay named edge.loom.example:2855 and everything around it."""

    def __init__(
        self,
        *,
        ids: Sequence[str] = (),
        session_ids: Sequence[str] = (),
        algorithms: Sequence[str] = ("SHA-256", "MD5"),
        nonces: Nonces | None = None,
        next_nonce: bool = False,
        passwords: dict[str, str] | None = None,
        realm: str = "loom.example",
        name: str = "edge.loom.example",
        permits: Callable[[bytes], bool] = lambda username: True,
        table: ConnectionTable | None = None,
        lockout: Lockout | None = None,
        **settings: object,
    ) -> None:
        self.clock = FakeClock()
        self.table = table or self.make_table(self.clock)
        self.wheel = TimerWheel(self.clock.now, tick_s=0.5)
        self.events: list[Event] = []
        self.turns: list[Callable[[], None]] = []
        self.dialled: list[Dialled] = []
        self.users = Users(passwords or {"nora": "teal-anchor-42", "mina": "kelp-9"}, realm)
        self.random = ScriptedRandom(ids, session_ids)
        fresh = Nonces(realm.encode(), algorithms, b"0123456789abcdef", random.Random(2).randbytes)
        cache = CredentialCache()
        authenticator = Authenticator(
            realm.encode(), algorithms, nonces or fresh, cache, random.Random(3).randbytes,
            dialect=replace(MSRP, next_nonce=next_nonce),
        )  # fmt: skip
        settings = {
            "names": frozenset({(name, 2855)}), "max_chunk_size": 0, "use_path": (name, 2855),
            "allow_targets": (ip_network("192.0.2.0/24"),), **settings,
        }  # fmt: skip
        self.relay = Relay(
            RelaySettings(**settings),  # type: ignore[arg-type]
            authenticator=authenticator,
            cache=cache,
            users=self.users,
            dial=self._dial,
            wheel=self.wheel,
            random=self.random,
            clock=self.clock,
            soon=self.turns.append,
            publish=self.events.append,
            permits=permits,
            lockout=lockout,
        )

    @staticmethod
    def make_table(clock: FakeClock) -> ConnectionTable:
        """Make a connection table, which takes longer than all the rest of a bench."""
        loop = cast("asyncio.AbstractEventLoop", StillLoop(clock))
        return ConnectionTable(loop, Limits(), EventBus(), boot=1)

    def _dial(
        self, secure: bool, host: str, port: int, handler: MsrpHandler, check_address: Callable[[str], bool]
    ) -> Connection:
        connection = Recorder(self.table, Transport.TLS if secure else Transport.TCP, self.clock)
        connection.outgoing = True
        connection.handler = handler
        connection.remote = (host, port)
        self.dialled.append(Dialled(secure, host, port, connection, check_address))
        return connection

    def connect(self, transport: Transport = Transport.TLS, identities: tuple[str, ...] = ()) -> Recorder:
        """A peer connects."""
        connection = Recorder(self.table, transport, self.clock)
        connection.identities = identities
        connection.handler = self.relay.handler_for(connection)
        return connection

    def open(self, owner: Recorder, uri: str, *path: str, lifetime: float = 600, user: str = "nora") -> Session:
        """A session as AUTH would have made it."""
        handler = owner.handler
        assert isinstance(handler, MsrpHandler)
        session = Session(self.relay.table, parse_uri(uri.encode()), handler, [part.encode() for part in path], user)
        self.relay.open_session(session, self.clock.now, lifetime)
        handler.authenticated = True
        handler.succeed()
        return session

    def advance(self, seconds: float) -> None:
        """Let time pass in steps of the wheel."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.advance(min(0.5, end - self.clock.now))
            self.wheel.advance(self.clock.now)

    def run_turns(self) -> None:
        """Let the loop take its next turns until nobody wants one."""
        while self.turns:
            self.turns.pop(0)()


class Pair:
    """Nora, who owns XN, and a far party who is connected."""

    def __init__(self, **options: object) -> None:
        self.bench = Bench(**options)  # type: ignore[arg-type]
        self.nora = self.bench.connect()
        self.session = self.bench.open(self.nora, XN, NORA)
        self.far = self.bench.connect()

    def feed(self, wire: bytes, size: int = 60_000) -> None:
        """Let octets of the far party arrive in pieces."""
        for at in range(0, len(wire), size):
            self.far.receive(wire[at : at + size])

    def codes(self, connection: Recorder | None = None) -> list[str]:
        """The first three letters of each frame sent since the last look, to the far party by default."""
        return [frame.method[:3] for frame in parse_frames((connection or self.far).take())]

    @property
    def dialled(self) -> Recorder:
        """The connection opened last."""
        return self.bench.dialled[-1].connection


NORA = "msrps://192.0.2.17:49320/nora9sKd83LqVb;tcp"
FAR = "msrps://198.51.100.9:50001/far0001;tcp"
PABLO = "msrps://pablo.harbor.example:7788/pbl0Q4w9ZtEuJ2;tcp"
MINA = "msrps://k3v9x2qp.invalid:2855/minaWs71RtYc5h;ws"
TARIQ = "msrps://192.0.2.201:40112/tarq55Hn2VbXo8;tcp"
XN = "msrps://edge.loom.example:2855/Ub3nWq8ZkT1xY5cRm7VdHg;tcp"
XM = "msrps://edge.loom.example:2855/p0Lr6JtE2vNsC9aKf4XwQy;tcp"
GT = "msrps://gate.fjord.example:2855/Zm8TqB5hVr3yLx0DnS7kWu;tcp"


def _expand(text: str) -> bytes:
    """Write `{P a..b}` out: octet p of pattern P is letter number (p-1) mod 26 of the alphabet."""
    before, brace, rest = text.partition("{P ")
    if not brace:
        return text.encode()
    numbers, _, after = rest.partition("}")
    first, last = (int(number) for number in numbers.split(".."))
    pattern = bytes(ord("a") + (p - 1) % 26 for p in range(first, last + 1))
    return before.encode() + pattern + _expand(after)


def _load_exchanges() -> dict[str, bytes]:
    frames = {}
    for block in (Path(__file__).parent / "exchanges.txt").read_text(encoding="utf-8").split("== ")[1:]:
        title, _, body = block.partition("\n")
        name, octets = title.split()
        frame = _expand(body[:-1].replace("\n", "\r\n") + "\r\n")
        assert len(frame) == int(octets), f"{name}: {len(frame)} octets, not {octets}"
        frames[name] = frame
    return frames


E = _load_exchanges()


def send(
    to_path: str, from_path: str, body: bytes | None = b"hi", *, tid: str = "tid00001", mid: str = "m1", flag: str = "$",
    byte_range: str | None = "", extra: str = "", method: str = "SEND", content_type: str | None = "text/plain",
) -> bytes:  # fmt: skip
    """Write a request as a client would; `body` None has none, an empty `byte_range` is exact, None leaves it out."""
    lines = [f"MSRP {tid} {method}", f"To-Path: {to_path}", f"From-Path: {from_path}"]
    if mid:
        lines.append(f"Message-ID: {mid}")
    if byte_range == "" and body is not None:
        lines.append(f"Byte-Range: 1-{len(body)}/{len(body)}")
    elif byte_range:
        lines.append(f"Byte-Range: {byte_range}")
    if extra:
        lines.append(extra)
    if body is not None and content_type is not None:
        lines.append(f"Content-Type: {content_type}")
    head = "\r\n".join(lines).encode() + b"\r\n"
    end = f"-------{tid}{flag}\r\n".encode()
    return head + (b"" if body is None else b"\r\n" + body + b"\r\n") + end


def answer(frame: bytes, start: str = "200 OK") -> bytes:
    """Answer a request as its receiver would: previous hop only."""
    lines = frame.split(b"\r\n")
    identifier = lines[0].split()[1].decode()
    to_path, from_path = (line.partition(b": ")[2].decode().split()[0] for line in lines[1:3])
    return f"MSRP {identifier} {start}\r\nTo-Path: {from_path}\r\nFrom-Path: {to_path}\r\n-------{identifier}$\r\n".encode()
