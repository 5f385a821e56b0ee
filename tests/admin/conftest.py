"""A whole edge in the test's own process, on loopback ports: the real listener, SIP core, MSRP relay and admin server."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import md5
from typing import Any

import aiohttp
import pytest

from edge.admin.http import AdminServer
from edge.admin.rows import Source
from edge.auth.authenticator import MSRP, Authenticator
from edge.auth.credentials import Credential, CredentialCache
from edge.auth.lockout import Lockout
from edge.auth.nonce import Nonces
from edge.config import Limits
from edge.connections import Connection, ConnectionTable, Handler, Transport
from edge.demux import Protocol
from edge.events import EventBus
from edge.listener import ListenerRules, TcpListener
from edge.metrics import EdgeCollector, LoopLag, build_registry, expose
from edge.msrp.relay import Relay, RelaySettings
from edge.outbound.flows import FlowTable
from edge.outbound.path import Force
from edge.outbound.token import TokenKeys
from edge.policy.tools import Tools
from edge.sip.access import Access
from edge.sip.addresses import Addresses
from edge.sip.answering import Answerer
from edge.sip.answers import ToTags
from edge.sip.core import SipCore
from edge.sip.devices import Devices
from edge.sip.framing import SipFraming
from edge.sip.granting import Grants
from edge.sip.gruu import Gruus
from edge.sip.location import Location
from edge.sip.message import MessageLimits
from edge.sip.registrar import Registrar, RegistrarSettings
from edge.sip.registration import Registration, RegistrationPolicy
from edge.sip.targets import TargetFinder
from edge.sip.transaction import State, Transactions
from edge.sip.uri import SipUri, UriCache
from edge.storage.memory import MemoryStorage
from edge.timers import TimerWheel
from edge.websocket import UpgradeRules
from tests.conftest import Metrics
from tests.ua.link import Link
from tests.ua.sip import SipUA
from tests.ua.wait import eventually, scaled, within

BOOT = 0x6560A3F1
DOMAIN = "example.com"


class Nowhere:
    """The world beyond the edge: nothing in it can be reached."""

    def reach(self, uri: SipUri, size: int, reached: Callable[[list[Connection], int], None]) -> None:
        reached([], 503)

    def reply_flow(self, connection: Connection, host: str, port: int) -> Connection:
        return connection


class Counted(Tools):
    """What a runner counts, with so many `async` hooks under way."""

    running = 4


class Edge:
    """The parts `edge.server` puts together, of role single, for TCP and WS; SIP asks for no password, MSRP does."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.bus = EventBus()
        self.table = ConnectionTable(self.loop, Limits(), self.bus, boot=BOOT)
        self.wheel = TimerWheel(self.loop.time())
        self.storage = MemoryStorage()
        keys = TokenKeys([os.urandom(32)])
        self.flows = FlowTable(self.table.connections, self.wheel, self.bus.publish, keys, boot=BOOT)
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        self.address: tuple[str, int] = sock.getsockname()
        self.core = self._build_core()
        self.relay = self._build_relay()
        self.listener = TcpListener(self.table, 0, sock, self.address, self._rules())
        self.lag = LoopLag(self.loop)
        self.tools = Counted(self.core, self.relay, self.bus)
        self.tools.errors["sip_request"] = 1
        self.tools.count("greetings")
        self.collector = EdgeCollector(
            self.bus,
            self.table,
            self.storage,
            self.lag,
            core=self.core,
            relay=self.relay,
            commits=lambda: 17,
            hooks=lambda: {("firewall", "done"): 3},
            missed=lambda: 2,
            policy=self.tools,
        )
        self.listening, self.draining = True, False
        self.source = Source(
            self.table,
            self.flows,
            self.storage,
            core=self.core,
            relay=self.relay,
            listening=lambda: self.listening,
            draining=lambda: self.draining,
        )

    def _build_core(self) -> SipCore:
        clock, publish, uris = self.loop.time, self.bus.publish, UriCache()
        addresses, location = Addresses([DOMAIN], [self.address]), Location(self.wheel)
        gruus = Gruus(bytes(32), os.urandom, addresses, uris)
        access = Access(
            enabled=False, addresses=addresses, authenticators={}, users=self.storage.users, cache=CredentialCache(),
            lockout=Lockout(), uris=uris, gruus=gruus, clock=clock, publish=publish,
        )  # fmt: skip
        tags = ToTags(os.urandom(16))
        registration = Registration(
            addresses=addresses, location=location,
            registrar=Registrar(location, uris, RegistrarSettings(), addresses.serves),
            access=access, flows=self.flows, uris=uris, keeper=None, trusted_edge=lambda address: False,
            policy=RegistrationPolicy(), gruus=gruus,
            grants=Grants(addresses, self.flows, gruus, service_route=(), flow_timer=120, wall_clock=time.time),
            clock=clock, publish=publish,
            random=os.urandom, tag_for=tags,
        )  # fmt: skip
        force = Force("streams")
        devices = Devices(addresses, self.flows, uris, force, order="recent", branches=12)
        targets = TargetFinder(
            addresses, location, self.flows, uris, force=force, devices=devices, gruus=gruus,
            known_user=lambda aor, done: done(False),
        )  # fmt: skip
        transactions, reach = Transactions(self.wheel), Nowhere()
        return SipCore(
            addresses=addresses, limits=MessageLimits(), transactions=transactions, location=location,
            access=access, registration=registration, targets=targets, flows=self.flows, reach=reach, clock=clock,
            random=os.urandom, uris=uris, soon=self.loop.call_soon, answers=Answerer(transactions, reach, tags),
        )  # fmt: skip

    def _build_relay(self) -> Relay:
        realm, cache = DOMAIN.encode(), CredentialCache()
        ha1 = md5(b"alice:" + realm + b":wonderland").hexdigest().encode()
        self.storage.users.put("alice", DOMAIN, Credential(ha1=ha1, ha1_sha256=None))
        nonces = Nonces(realm, ["MD5"], os.urandom(32), os.urandom)
        return Relay(
            RelaySettings(require_tls=False),
            authenticator=Authenticator(realm, ["MD5"], nonces, cache, os.urandom, dialect=MSRP),
            cache=cache,
            users=self.storage.users,
            dial=self._never_dial,
            wheel=self.wheel,
            random=os.urandom,
            clock=self.loop.time,
            soon=self.loop.call_soon,
            publish=self.bus.publish,
        )

    @staticmethod
    def _never_dial(*arguments: Any) -> Connection:
        raise AssertionError("nothing here is to be dialled")

    def _rules(self) -> ListenerRules:
        framing = SipFraming(self.core, self.wheel, 20.0)

        def sip(connection: Connection) -> Handler:
            return framing.handler()

        return ListenerRules(
            transports=frozenset((Transport.TCP, Transport.WS)),
            handlers={Protocol.SIP: sip, Protocol.MSRP: self.relay.handler_for},
            upgrades=UpgradeRules(),
            websocket=lambda subprotocol, connection: sip(connection),
            tls=ssl.create_default_context,
            is_proxy=lambda address: False,
        )

    async def stop(self) -> None:
        """End every connection, then what ticks."""
        self.listener.close()
        self.table.close_all("shutdown")
        await eventually(lambda: not self.table.streams)
        self.lag.stop()
        self.table.stop()


class Admin:
    """An admin server and a client for it."""

    def __init__(self, edge: Edge, token: str) -> None:
        registry = build_registry(edge.collector)
        self.server = AdminServer("127.0.0.1:0", token, edge.source, lambda: expose(registry))
        self.token = token
        self.client: aiohttp.ClientSession

    @property
    def url(self) -> str:
        host, port = self.server.address
        return f"http://{host}:{port}"

    async def ask(
        self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None
    ) -> tuple[aiohttp.ClientResponse, bytes]:
        """Send one request, with the token unless there are other headers; return the response and its body."""
        own = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        timeout = aiohttp.ClientTimeout(scaled(10))
        async with self.client.request(
            method, self.url + path, headers=own if headers is None else headers, timeout=timeout
        ) as response:
            return response, await response.read()

    async def get(self, path: str) -> Any:
        """The JSON at a path; the test fails where it is not 200."""
        response, body = await self.ask(path)
        assert response.status == 200, body
        assert response.content_type == "application/json"
        return json.loads(body)

    async def items(self, kind: str) -> list[dict[str, Any]]:
        """One list."""
        return list((await self.get(f"/api/{kind}"))["items"])

    async def metrics(self) -> Metrics:
        """One scrape."""
        response, body = await self.ask("/metrics")
        assert response.status == 200, body
        return Metrics(body.decode())


class Deaf:
    """A handler for connections nobody speaks over."""

    def receive_data(self, connection: Connection, data: bytes, now: float) -> None: ...

    def receive_eof(self, connection: Connection, now: float) -> bool:
        return False

    def handle_writable(self, connection: Connection, now: float) -> None: ...

    def handle_lost(self, connection: Connection, reason: str, now: float) -> None: ...


class SilentFlow(Connection):
    """A UDP flow without a socket: there is one of those for all of them."""

    __slots__ = ()

    def close(self, reason: str) -> None:
        self.table.end(self, reason, failed=False)


def fill(edge: Edge, count: int) -> None:
    """Enter UDP flows nobody speaks over."""
    handler = Deaf()
    for port in range(count):
        edge.table.add(SilentFlow(edge.table, Transport.UDP, ("127.0.0.1", port), edge.address, None, handler))


def link_of(agent: SipUA) -> Link:
    """The connection of an agent to its server."""
    assert agent.link is not None
    return agent.link


@asynccontextmanager
async def ringing(edge: Edge, caller: SipUA, callee: SipUA) -> AsyncIterator[None]:
    """Have `caller` call `callee`, who registers and lets it ring until the end of the block."""
    callee.on_request = lambda ua, request: 180 if request.method == "INVITE" else 200
    await callee.register()
    calling = asyncio.create_task(caller.request("INVITE", callee.uri))
    clients = edge.core.transactions.clients
    try:
        await eventually(lambda: any(client.state is State.PROCEEDING for client in clients.values()))
        yield
    finally:
        calling.cancel()


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    made = Edge()
    yield made
    await made.stop()


@pytest.fixture
async def admin(edge: Edge, request: pytest.FixtureRequest) -> AsyncIterator[Admin]:
    """The admin server of `edge`; parametrize indirectly with a token to have one asked for."""
    made = Admin(edge, getattr(request, "param", ""))
    await made.server.start()
    async with aiohttp.ClientSession() as made.client:
        yield made
        await within(made.server.stop(), 10)
