"""A registrar to register at: the SIP element as the server builds it, over connections that record and storage that obeys.

`Counter` is the element with a clock that stands still. `Shelf` keeps bindings, and fails or waits when told so.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from edge.auth.authenticator import Authenticator
from edge.auth.credentials import Credential, CredentialCache, derive_credential
from edge.auth.lockout import Lockout
from edge.auth.nonce import Nonces
from edge.connections import Connection, ConnectionTable, Transport
from edge.events import Event, EventBus
from edge.outbound.flows import FlowTable
from edge.outbound.token import TokenKeys
from edge.settings import Auth, Limits, Outbound, Settings, Sip
from edge.sip.addresses import Addresses
from edge.sip.branch import Reached
from edge.sip.location import Binding
from edge.sip.uri import SipUri
from edge.sipstack import World, build_sip
from edge.storage.base import BindingChange, BindingRow, FetchDone, PutBinding, SaveDone, StorageError
from edge.storage.memory import MemoryBindingStore, MemorySecretStore, MemoryStorage
from edge.timers import TimerWheel
from tests.outbound.links import KEY, StillLoop, TableLimits
from tests.sip.rig import Wire
from tests.ua import digest
from tests.ua.clock import FakeClock
from tests.ua.sip_message import HeaderList, Request, Response, encode, parse

_serials = itertools.count(1)
BOB = "<sip:bob@198.51.100.7:5070;transport=tcp>"
INSTANCE = "urn:uuid:6f1c2a58-0000-4000-8000-00000000abcd"


def flow_contact(reg_id: object = 1, uri: str = "sip:bob@198.51.100.7:5070;transport=tcp", **changes: str) -> str:
    """A Contact value with instance and reg-id."""
    return f'<{uri}>;reg-id={reg_id};+sip.instance="<{changes.get("instance", INSTANCE)}>"'


class Shelf:
    """Bindings in a dictionary. `error` is what every save ends with; while `held` is a list, saves wait in it."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], BindingRow] = {}
        self.error: Exception | None = None
        self.held: list[Callable[[], None]] | None = None

    def load(self) -> list[BindingRow]:
        return list(self.rows.values())

    def save(self, changes: Sequence[BindingChange], done: SaveDone | None) -> None:
        def finish() -> None:
            if self.error is None:
                for change in changes:
                    if isinstance(change, PutBinding):
                        self.rows[change.row.aor, change.row.key] = change.row
                    else:
                        self.rows.pop((change.aor, change.key), None)
            if done is not None:
                done(self.error)

        if self.held is None:
            finish()
        else:
            self.held.append(finish)

    def release(self) -> None:
        """Let what waits end, and nothing wait any more."""
        held, self.held = self.held or [], None
        for finish in held:
            finish()


class Directory:
    """Users in a dictionary. `error` is what every look-up ends with; while `held` is a list, they wait in it."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], Credential] = {}
        self.error: Exception | None = None
        self.held: list[Callable[[], None]] | None = None
        self.asked: list[tuple[str, str]] = []

    def fetch(self, username: str, domain: str, done: FetchDone) -> None:
        self.asked.append((username, domain))

        def finish() -> None:
            done(self.error if self.error is not None else self.known.get((username, domain)))

        if self.held is None:
            finish()
        else:
            self.held.append(finish)


class Cabinet:
    """The storage: a directory and a shelf, or no shelf."""

    healthy, last_error, commits = True, "", 0

    def __init__(self, shelf: Shelf | None) -> None:
        self.users = Directory()
        self.bindings = shelf or MemoryBindingStore()
        self.secrets = MemorySecretStore()
        self.on_change = MemoryStorage().on_change
        self.close = MemoryStorage().close


class Counter:
    """The element. `users` maps addresses to passwords and switches digest on."""

    def __init__(
        self,
        *,
        users: Mapping[str, str] | None = None,
        shelf: Shelf | None = None,
        sip: Mapping[str, Any] | None = None,
        outbound: Mapping[str, Any] | None = None,
        limits: Mapping[str, Any] | None = None,
        auth: Mapping[str, Any] | None = None,
        domains: tuple[str, ...] = ("example.com",),
        clock: FakeClock | None = None,
        boot: int = 0x6710A3C0,
        seed: int = 5,
    ) -> None:
        self.clock = clock or FakeClock()
        self.events: list[Event] = []
        self.asked: list[str] = []
        self.realm = str((auth or {}).get("realm", ""))
        self.settings = Settings(
            domains=domains,
            auth=Auth(required=users is not None, **(auth or {})),
            sip=Sip(**(sip or {})),
            outbound=Outbound(**(outbound or {})),
            limits=Limits(**(limits or {})),
        )
        self.storage = Cabinet(shelf)
        for address, password in (users or {}).items():
            self.add_user(address, password)
        bus = EventBus()
        bus.subscribe(Event, self.events.append)
        unlimited = TableLimits(
            first_message_timeout=1e6, idle_timeout=1e6
        )  # what ends connections is not looked at here
        loop = cast("asyncio.AbstractEventLoop", StillLoop(self.clock))
        self.table = ConnectionTable(loop, unlimited, bus, boot=boot)
        self.flows = FlowTable(
            self.table.connections, self.table.wheel, bus.publish, TokenKeys([KEY]), boot=boot, revive=self._revive
        )
        self.cache = CredentialCache()
        self.lockout = Lockout(exempt=())
        source = random.Random(seed)
        world = World(
            wheel=TimerWheel(self.clock.now),
            slow_wheel=self.table.wheel,
            bus=bus,
            storage=self.storage,
            flows=self.flows,
            cache=self.cache,
            authenticators=self._authenticators(source),
            lockout=self.lockout,
            clock=self.clock,
            random=source.randbytes,
            soon=lambda work: work(),
            gruu_key=bytes(32),
        )
        self.stack = build_sip(self.settings, world, Addresses(domains, [("edge.example", 5060)]), self)
        self.core, self.location = self.stack.core, self.stack.location
        self.registration, self.framing = self.stack.registration, self.stack.framing

    def _authenticators(self, source: random.Random) -> dict[bytes, Authenticator]:
        found, nonces, auth = {}, {}, self.settings.auth
        for domain in self.settings.domains:
            realm = (auth.realm or domain).encode()
            if realm not in nonces:
                nonces[realm] = Nonces(
                    realm, auth.algorithms, source.randbytes(32), source.randbytes, lifetime_s=auth.nonce_lifetime
                )
            found[domain.encode()] = Authenticator(
                realm, auth.algorithms, nonces[realm], self.cache, source.randbytes, domain=domain.encode()
            )
        return found

    def add_user(self, address: str, password: str) -> None:
        name, _, domain = address.partition("@")
        realm = self.realm or domain
        self.storage.users.known[name, domain] = derive_credential(name.encode(), realm.encode(), password.encode())

    # -- what the element asks of the world

    def reach(self, uri: SipUri, size: int, reached: Reached) -> None:
        self.asked.append(uri.raw.decode(errors="backslashreplace"))
        reached([], 480)

    def reply_flow(self, connection: Connection, host: str, port: int) -> Connection:
        return connection

    def avoid(self, connection: Connection, seconds: float) -> None:
        raise AssertionError("nobody asks for it here")

    def _revive(self, listener: int, remote: tuple[str, int]) -> Connection:
        return self.wire(Transport.UDP, remote)

    # -- what a test does

    def wire(self, transport: Transport = Transport.TCP, remote: tuple[str, int] = ("198.51.100.7", 5070)) -> Wire:
        """Open a connection, or a UDP flow."""
        wire = Wire(self.table, transport, remote, self.clock)
        wire.handler = cast("Any", self.framing.handler())
        self.table.admit(wire.source)
        self.table.add(wire)
        return wire

    def give(self, wire: Wire, data: bytes) -> list[Response]:
        """Let octets arrive, and return what is answered at once."""
        wire.last_received = self.clock.now
        if wire.transport is Transport.UDP:
            self.framing.receive_datagram(wire, data, self.clock.now)
        else:
            wire.handler.receive_data(wire, data, self.clock.now)
        return self.answers(wire)

    def answers(self, wire: Wire) -> list[Response]:
        """What was answered since the last look."""
        found = [parse(data) for data in wire.take()]
        return [answer for answer in found if isinstance(answer, Response)]

    def ask(self, wire: Wire, data: bytes) -> Response:
        """Let a request arrive that is answered at once, once."""
        (answer,) = self.give(wire, data)
        return answer

    def register(self, wire: Wire | None = None, *contacts: str, **options: Any) -> Response:
        """Send one REGISTER; see `register`."""
        wire = wire or self.wire()
        return self.ask(wire, register(*contacts, transport=wire.transport.name, **options))

    def listed(self, user: str = "bob") -> list[str]:
        """The Contact values of a fetch."""
        answer = self.register(None, user=user)
        assert answer.status == 200
        return answer.all("Contact")

    def bindings(self, aor: bytes = b"bob@example.com") -> list[Binding]:
        return self.location.bindings(aor)

    def advance(self, seconds: float) -> float:
        """Let time pass in half seconds, as the table's wheel is driven."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.table.wheel.advance(self.clock.advance(min(0.5, end - self.clock.now)))
            self.core.transactions.handle_deadline(self.clock.now)
        return self.clock.now

    def names(self) -> list[str]:
        return [event.name for event in self.events]


def register(
    *contacts: str,
    user: str = "bob",
    to: str | None = None,
    uri: str = "sip:example.com",
    sender: str | None = None,
    expires: object = None,
    cseq: int | None = None,
    call_id: str | None = None,
    branch: str | None = None,
    transport: str = "TCP",
    sent_by: str = "198.51.100.7:5070",
    supported: str | None = None,
    require: str | None = None,
    hops: int = 1,
    path: Iterable[str] = (),
    extra: Iterable[tuple[str, str]] = (),
) -> bytes:
    """Write a REGISTER. `hops` above one: as many Via rows, as when proxies stand in front. Defaults never repeat."""
    serial = next(_serials)
    branch = branch or f"z9hG4bKr{serial}"
    lines = [("Via", f"SIP/2.0/{transport} {sent_by};branch={branch};rport")]
    lines += [("Via", f"SIP/2.0/UDP ua{n}.example;branch={branch}{n}") for n in range(hops - 1)]
    lines += [
        ("Max-Forwards", "70"),
        ("From", f"{sender or f'<sip:{user}@example.com>'};tag=a{serial}"),
        ("To", to or f"<sip:{user}@example.com>"),
        ("Call-ID", call_id or f"call-{serial}"),
        ("CSeq", f"{serial if cseq is None else cseq} REGISTER"),
    ]
    lines += [("Contact", contact) for contact in contacts]
    lines += [("Path", value) for value in path]
    lines += [
        (name, str(value))
        for name, value in (("Supported", supported), ("Require", require), ("Expires", expires))
        if value is not None
    ]
    return encode(f"REGISTER {uri} SIP/2.0", HeaderList([*lines, *extra]))


def with_credentials(
    data: bytes,
    challenge: Response,
    user: str,
    password: str,
    *,
    algorithms: tuple[str, ...] = ("SHA-256", "MD5"),
    **options: Any,
) -> bytes:
    """Add an answer to a challenge to a request, which gets a branch and CSeq of its own (RFC 3261 §22.2)."""
    asked, answered = "WWW-Authenticate", "Authorization"
    if challenge.status == 407:
        asked, answered = "Proxy-Authenticate", "Proxy-Authorization"
    chosen = digest.choose(challenge.all(asked), algorithms)
    assert chosen is not None
    request = parse(data)
    assert isinstance(request, Request)
    answer = digest.answer(chosen, user, password, request.method, request.uri, **options)
    data = re.sub(rb"(;branch=[^;\r]*)", rb"\1a", data, count=1)
    data = re.sub(rb"CSeq: (\d+)", lambda found: b"CSeq: %d" % (int(found[1]) + 1), data, count=1)
    return data.replace(b"\r\nContent-Length:", f"\r\n{answered}: {answer.header}\r\nContent-Length:".encode(), 1)


FAILURE = StorageError("the disk is gone")
