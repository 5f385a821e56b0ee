"""The SIP element without sockets: connections that record, a clock that stands still, and peers written from the RFC.

`Rig` is the element as the server builds it, with nothing but the world outside replaced. `Wire` is a connection.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Mapping
from typing import Any, cast

from edge.auth.credentials import CredentialCache
from edge.auth.lockout import Lockout
from edge.connections import Connection, ConnectionTable, Listener, Transport
from edge.events import EventBus
from edge.outbound.flows import FlowTable
from edge.outbound.token import TokenKeys
from edge.settings import Auth, Limits, Listen, Outbound, Role, Settings, Sip
from edge.sip.addresses import Addresses
from edge.sip.branch import Opener, Reached
from edge.sip.message import MessageLimits, frame_datagram
from edge.sip.uri import SipUri
from edge.sipstack import World, build_sip
from edge.storage.memory import MemoryStorage
from edge.timers import TimerWheel
from tests.outbound.links import BOOT, KEY, StillLoop, TableLimits
from tests.ua.clock import FakeClock
from tests.ua.sip_message import HeaderList, Request, Response, encode, parse

EDGE = "edge.example:5060"
_serials = itertools.count(1)
_STEP_S = 0.05


class Port:
    """The listener everything comes by."""

    def __init__(self, index: int, address: tuple[str, int], advertised: tuple[str, int]) -> None:
        self.index = index
        self.address = address
        self.advertised = advertised


PORT: Listener = Port(0, ("192.0.2.1", 5060), ("edge.example", 5060))


class Wire(Connection):
    """A connection whose other end is the test: `sent` holds (time, octets) of what we wrote."""

    def __init__(
        self,
        table: ConnectionTable,
        transport: Transport,
        remote: tuple[str, int],
        clock: FakeClock,
        port: Listener = PORT,
    ) -> None:
        super().__init__(table, transport, remote, port.address, port, cast("Any", None))
        self.clock = clock
        self.sent: list[tuple[float, bytes]] = []

    def send(self, data: bytes) -> None:
        if not self.closed:
            self.sent.append((self.clock.now, data))

    def close(self, reason: str) -> None:
        self.table.end(self, reason, failed=False)

    def fail(self, reason: str) -> None:
        self.table.end(self, reason, failed=True)

    def take(self) -> list[bytes]:
        """What was sent since the last look."""
        taken = [data for _, data in self.sent]
        self.sent.clear()
        return taken

    def times(self, since: float = 0.0) -> list[float]:
        """When something was sent, in seconds since `since`."""
        return [round(at - since, 3) for at, _ in self.sent]

    def requests(self, method: str = "") -> list[Request]:
        """The requests among what was sent, and not taken yet."""
        found = [parse(data) for _, data in self.sent if not data.startswith(b"SIP/2.0 ")]
        return [request for request in found if isinstance(request, Request) and method in ("", request.method)]

    def statuses(self, method: str = "") -> list[int]:
        """The statuses among what was sent, and not taken yet."""
        return [response.status for response in self.responses(method)]

    def responses(self, method: str = "") -> list[Response]:
        """The responses among what was sent, and not taken yet."""
        found = [parse(data) for _, data in self.sent if data.startswith(b"SIP/2.0 ")]
        return [one for one in found if isinstance(one, Response) and method in ("", one.cseq.method)]


class _Handler:
    """Tells the core of ends."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    def handle_lost(self, connection: Connection, reason: str, now: float) -> None:
        self._rig.core.handle_lost(connection, reason, now)


class Rig:
    """The whole element. `roads` says where URIs lead: host → wires to try in order, or a status."""

    def __init__(
        self,
        *,
        sip: Mapping[str, Any] | None = None,
        limits: Mapping[str, Any] | None = None,
        outbound: Mapping[str, Any] | None = None,
        listen: tuple[Listen, ...] = (),
        seed: int = 5,
        role: Role = "single",
        boot: int = BOOT,
    ) -> None:
        self.clock = FakeClock()
        self.started = self.clock.now
        self.roads: dict[str, list[Wire] | int] = {}
        self.asked: list[str] = []
        self.sizes: list[int] = []
        self.held: list[Callable[[], None]] | None = None
        self.avoided: list[tuple[Connection, float]] = []
        self.aliases: list[tuple[Connection, int]] = []
        self._soon: list[Callable[[], None]] = []
        settings = Settings(
            domains=("example.com",),
            role=role,
            auth=Auth(required=False),
            sip=Sip(**(sip or {})),
            limits=Limits(**(limits or {})),
            outbound=Outbound(**(outbound or {})),
            **({"listen": listen} if listen else {}),
        )
        self.bus = bus = EventBus()
        self.table = ConnectionTable(
            cast("asyncio.AbstractEventLoop", StillLoop(self.clock)), TableLimits(), bus, boot=boot
        )
        self.wheel = TimerWheel(self.clock.now, tick_s=_STEP_S)
        self.storage = MemoryStorage()
        flows = FlowTable(
            self.table.connections, self.table.wheel, bus.publish, TokenKeys([KEY]), boot=boot, revive=self._revive
        )
        world = World(
            wheel=self.wheel,
            slow_wheel=self.table.wheel,
            bus=bus,
            storage=self.storage,
            flows=flows,
            cache=CredentialCache(),
            authenticators={},
            lockout=Lockout(exempt=()),
            clock=self.clock,
            random=random.Random(seed).randbytes,
            soon=self._soon.append,
        )
        self.stack = build_sip(settings, world, Addresses(settings.domains, [("edge.example", 5060)]), self)
        self.core = self.stack.core
        self.transactions = self.core.transactions

    # -- what the element asks of the world

    def reach(self, uri: SipUri, size: int, reached: Reached) -> None:
        host = uri.host.decode()
        self.asked.append(uri.raw.decode(errors="backslashreplace"))
        self.sizes.append(size)

        def answer() -> None:
            road = self.roads.get(host, 480)
            ways: list[Opener] = [] if isinstance(road, int) else [lambda wire=wire: wire for wire in road]
            reached(ways, 0 if ways else cast("int", road))

        if self.held is None:
            answer()
        else:
            self.held.append(answer)

    def reply_flow(self, connection: Connection, host: str, port: int) -> Connection:
        return self.wire(Transport.UDP, (host, port))

    def avoid(self, connection: Connection, seconds: float) -> None:
        self.avoided.append((connection, seconds))

    def note_alias(self, connection: Connection, port: int) -> None:
        self.aliases.append((connection, port))

    def _revive(self, listener: int, remote: tuple[str, int]) -> Connection:
        return self.wire(Transport.UDP, remote)

    # -- what a test does

    def wire(
        self, transport: Transport = Transport.TCP, remote: tuple[str, int] | None = None, port: Listener = PORT
    ) -> Wire:
        """Open a connection."""
        remote = remote or (f"198.51.100.{next(_serials) % 250}", 5060)
        wire = Wire(self.table, transport, remote, self.clock, port)
        wire.handler = cast("Any", _Handler(self))
        self.table.admit(wire.source)
        self.table.add(wire)
        return wire

    def give(self, wire: Wire, data: bytes) -> None:
        """Let `data` arrive on a connection."""
        self.core.receive_message(wire, frame_datagram(data, MessageLimits()), self.clock.now)
        self.run_soon()

    def run_soon(self) -> None:
        """End the turn of the loop."""
        while self._soon:
            self._soon.pop(0)()

    def advance(self, seconds: float) -> float:
        """Let time pass, tick by tick; returns the new time."""
        end = self.clock.now + seconds
        while self.clock.now + 1e-9 < end:
            self.clock.advance(min(_STEP_S, end - self.clock.now))
            self.transactions.handle_deadline(self.clock.now)
            self.run_soon()
        return self.clock.now

    def register(
        self, user: str, wire: Wire | None = None, *, contact: str | None = None, parameters: str = "", path: str = ""
    ) -> Wire:
        """Register a contact of `user`@example.com over a connection, its own by default."""
        wire = wire or self.wire()
        uri = contact or f"sip:{user}@{wire.remote[0]}:{wire.remote[1]}"
        headers = {"Contact": f"<{uri}>{parameters}", "Expires": "3600"} | ({"Path": path} if path else {})
        domain = "sips:example.com" if uri.startswith("sips:") else "sip:example.com"  # RFC 5630 §5.2
        self.give(wire, request("REGISTER", domain, user=user, to=f"<sip:{user}@example.com>", **headers))
        assert wire.statuses("REGISTER") == [200], wire.sent
        wire.take()
        return wire

    def idle(self) -> bool:
        """Whether no transaction, no timer and no kept answer is left."""
        layer = self.transactions
        return not (layer.servers or layer.clients or layer.finals or self.wheel.count)


def request(
    method: str,
    uri: str,
    *,
    user: str = "alice",
    branch: str | None = None,
    via: str | None = None,
    to: str | None = None,
    tag: str = "a1",
    call_id: str | None = None,
    cseq: int = 1,
    max_forwards: int | None = 70,
    body: bytes = b"",
    extra: tuple[tuple[str, str], ...] = (),
    **headers: str,
) -> bytes:
    """Write a request; header names in keyword arguments have underscores for hyphens."""
    serial = next(_serials)
    via = via or f"SIP/2.0/TCP caller.example:5060;branch={branch or f'z9hG4bKt{serial}'};rport"
    lines = [("Via", via)]
    if max_forwards is not None:
        lines.append(("Max-Forwards", str(max_forwards)))
    lines += [
        ("From", f"<sip:{user}@example.com>;tag={tag}"),
        ("To", to or f"<{uri}>"),
        ("Call-ID", call_id or f"call-{serial}"),
        ("CSeq", f"{cseq} {method}"),
    ]
    lines += [(name.replace("_", "-"), value) for name, value in headers.items()]
    return encode(f"{method} {uri} SIP/2.0", HeaderList([*lines, *extra]), body)


def answer(to: Request, status: int, *, tag: str | None = "b1", extra: tuple[tuple[str, str], ...] = ()) -> bytes:
    """Write the answer of a peer (RFC 3261 §8.2.6): Via rows, From, To, Call-ID, CSeq, Record-Route copied."""
    lines = [("Via", value) for value in to.all("Via")] + [("Record-Route", value) for value in to.all("Record-Route")]
    party = to["To"] if to.to_tag is not None or tag is None or status == 100 else f"{to['To']};tag={tag}"
    lines += [("From", to["From"]), ("To", party), ("Call-ID", to["Call-ID"]), ("CSeq", to["CSeq"])]
    return encode(f"SIP/2.0 {status} Reason", HeaderList([*lines, *extra]))


def follow_up(method: str, of: bytes, *, to: str | None = None) -> bytes:
    """Write the ACK to a refusal, or the CANCEL, of a request as its sender does (RFC 3261 §17.1.1.3, §9.1)."""
    first = parse(of)
    assert isinstance(first, Request)
    lines = [("Via", first.all("Via")[0]), ("Max-Forwards", "70"), ("From", first["From"]), ("To", to or first["To"])]
    lines += [("Call-ID", first["Call-ID"]), ("CSeq", f"{first.cseq.sequence} {method}")]
    lines += [("Route", value) for value in first.all("Route")]
    return encode(f"{method} {first.uri} SIP/2.0", HeaderList(lines))
