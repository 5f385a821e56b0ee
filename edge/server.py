"""Builds everything from the settings; start, reload, drain, stop.

edge.process ─► Server.start ─► serving ─┬─ SIGHUP ─► reload: a new snapshot is checked, then swapped in
                                         └─ SIGTERM ─► drain ─► stop        a second SIGTERM: stop now
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from edge.accounting.opening import open_ledger
from edge.admin.http import AdminServer
from edge.admin.rows import Source
from edge.admin.stream import EventStream
from edge.auth.authenticator import MSRP, SIP, Authenticator, Dialect
from edge.auth.credentials import CredentialCache
from edge.auth.lockout import Lockout
from edge.auth.nonce import Nonces, RandomPool
from edge.config import Settings, load_settings
from edge.connections import Address, Connection, ConnectionTable, Transport
from edge.datagram import UdpPort
from edge.dialer import Dialer
from edge.errors import ConfigError
from edge.eventlog import EventLog
from edge.events import AccountingChanged, Event, EventBus, RegistrationChanged, StorageChanged
from edge.hooks.building import build_hooks
from edge.hooks.dispatcher import Dispatcher
from edge.interfaces import local_addresses
from edge.listener import TcpListener
from edge.memory import release_unused
from edge.metrics import EdgeCollector, LoopLag, build_registry, expose
from edge.msrp.handler import MsrpHandler
from edge.msrp.relay import Relay
from edge.networks import NetworkSet
from edge.outbound.flows import FlowTable
from edge.outbound.stun import answer as answer_stun
from edge.outbound.token import TokenKeys
from edge.policy.loading import load_policy
from edge.policy.runner import PolicyRunner
from edge.rates import SourceRate
from edge.relayfinder import RelayFinder
from edge.sip.addresses import Addresses
from edge.sip.reach import LateReach, SipReach
from edge.sip.resolver import Resolver
from edge.sipstack import SipStack, World, build_sip
from edge.sockets import Bound, bind_all
from edge.storage.base import Storage, UnusableUrlError
from edge.storage.opening import open_storage
from edge.timers import TimerWheel
from edge.tls import TlsContexts
from edge.wiring import (
    build_accounts,
    build_datagram_handler,
    build_permission,
    build_relay_settings,
    build_rules,
    read_host_port,
)

log = logging.getLogger("edge.server")

_TICK_S = 0.05
_HOUSEKEEPING_S = 2.0
_MANY_ENDS = 500  # connections that ended since memory was given back the last time
_TOKEN_KEY_NAME = "outbound.token_key"
_GRUU_KEY_NAME = "sip.gruu_key"


def boot_stamp(now: float) -> int:
    """Return what tells one start of this server from every other: the low 32 bits of sixteenths of a second.

    Two starts may be less than a second apart; a token of the first must not lead to a connection of the second.
    """
    return int(now * 16) & 0xFFFFFFFF


class Server:
    """One server process."""

    def __init__(self, settings: Settings, source: str, loop: asyncio.AbstractEventLoop) -> None:
        self._settings = settings
        self._source = source
        self._loop = loop
        self._random = RandomPool(os.urandom)
        self._listeners: list[TcpListener] = []
        self._ports: list[UdpPort] = []
        self._stop = asyncio.Event()
        self._draining = False
        self._listening = False
        self._ticker: asyncio.TimerHandle | None = None
        self._reach = LateReach()
        self._ends_seen = 0

    # -- start

    async def start(self) -> None:
        """Open storage, bind every address, start serving.

        Raises:
            ConfigError: something in the configuration cannot be used, named by its key.
            StorageError: the database does not answer, or refuses; starting again later may help.
        """
        settings = self._settings
        sockets = bind_all(settings.listen, self._source)
        self._tls = TlsContexts(settings, self._source)
        self._check_relay_names()
        self._storage = self._open_storage()
        self.bus = EventBus()
        EventLog(self.bus, self._loop.time)
        self._dispatcher = Dispatcher(f"{int(time.time()):x}")
        self._dispatcher.replace(build_hooks(settings.hooks, self._source, self._tls.client))
        self.bus.subscribe(Event, self._dispatcher.receive)
        self._storage.on_change(self._storage_changed)
        self._open_accounting()
        self._trusted = NetworkSet((*settings.limits.trusted_networks, *settings.sip.trusted_edge_networks))
        self.table = ConnectionTable(
            self._loop,
            settings.limits,
            self.bus,
            boot=boot_stamp(time.time()),
            trusted=self._trusted.contains,
            udp_idle=settings.sip.udp_flow_timeout,
        )
        self._wheel = TimerWheel(self._loop.time(), tick_s=_TICK_S, wake=self._wake)
        self._build_auth()
        self._build_flows()
        self._build_sip()
        self._build_relay()
        self._runner = PolicyRunner(self._sip, self._relay, self.table, self.bus)
        self._runner.install(load_policy(settings.policy.module, self._source))
        self._open_ports(sockets)
        if self._sip.keeper is not None:
            alive, dead = self._sip.keeper.restore(self._sip.location)
            log.info("bindings restored alive=%d dead=%d", alive, dead)
        await self._start_admin()
        self._housekeeping = self._loop.call_later(_HOUSEKEEPING_S, self._keep_house)
        self._listening = True

    def _check_relay_names(self) -> None:
        """Refuse a certificate that does not name what our `msrps` URIs say (RFC 4976 §9.2); warn about our own."""
        listens = [listen for listen in self._settings.listen if {"tls", "wss"} & set(listen.transports)]
        hosts = [listen.advertised_host for listen in listens if listen.advertise and "msrp" in listen.protocols]
        if self._settings.msrp.use_path:
            hosts.append(read_host_port(self._settings.msrp.use_path)[0])
        missing = self._tls.missing_names(hosts) if listens else []
        if missing and not self._tls.self_signed:
            raise ConfigError(self._source, "tls.certificate", f"does not name {missing[0]}, as URIs of ours do")
        if missing:
            log.warning("certificate does not name the relay host=%s", missing[0])

    def _open_storage(self) -> Storage:
        try:
            return open_storage(self._settings.storage, self._loop, self._settings.auth.realm)
        except UnusableUrlError as error:
            raise ConfigError(self._source, "storage.url", str(error)) from error

    def _open_accounting(self) -> None:
        self._ledger = open_ledger(self._settings.accounting, self._source, self._loop)
        self._account = self._ledger.write if self._ledger is not None else None
        if self._ledger is not None:
            self._ledger.on_change(lambda healthy, reason: self.bus.publish(AccountingChanged(healthy, reason)))
            self.bus.subscribe(RegistrationChanged, self._ledger.write_registration)

    def _storage_changed(self, healthy: bool, reason: str) -> None:
        if healthy:
            self._cache.degraded = False  # users are asked for again when their time is over
        self.bus.publish(StorageChanged(healthy, reason))

    def _build_auth(self) -> None:
        settings = self._settings
        auth = settings.auth
        self._cache = CredentialCache()
        self._lockout = Lockout(exempt=(*settings.limits.trusted, *settings.sip.trusted_edges))
        self._nonces = {
            realm: Nonces(realm, auth.algorithms, self._random(32), self._random, lifetime_s=auth.nonce_lifetime)
            for realm in {self._realm(domain) for domain in settings.domains}
        }
        self._authenticators = {
            domain.lower().encode("ascii"): self._authenticator(domain, SIP) for domain in settings.domains
        }

    def _realm(self, domain: str) -> bytes:
        return (self._settings.auth.realm or domain.lower()).encode()

    def _authenticator(self, domain: str, dialect: Dialect) -> Authenticator:
        realm, algorithms = self._realm(domain), self._settings.auth.algorithms
        return Authenticator(
            realm, algorithms, self._nonces[realm], self._cache, self._random,
            dialect=dialect, domain=domain.lower().encode("ascii"),
        )  # fmt: skip

    def _build_flows(self) -> None:
        settings = self._settings
        configured = settings.outbound.token_key_bytes
        self._made_keys = () if configured else (self._kept_key(_TOKEN_KEY_NAME),)
        self._flows = FlowTable(
            self.table.connections,
            self.table.wheel,
            self.bus.publish,
            TokenKeys(configured + self._made_keys),
            boot=self.table.boot,
            worker=self.table.worker,
            udp_timeout=settings.sip.udp_flow_timeout,
            revive=self._revive,
        )

    def _kept_key(self, name: str) -> bytes:
        """Return a key that storage keeps, made on the first start."""
        key = self._storage.secrets.get(name)
        if key is None:
            key = os.urandom(32)
            self._storage.secrets.put(name, key)
        return key

    def _revive(self, listener: int, remote: Address) -> Connection | None:
        for port in self._ports:
            if port.listener.index == listener and port.speaks_to(remote[0]):
                return port.flow_to(*remote)
        return None

    def _build_sip(self) -> None:
        limits, clock = self._settings.limits, self._loop.time
        trusted = self._trusted.contains
        self._courtesies = SourceRate(self.table.wheel, clock, limits.courtesies_per_source, 1.0, trusted)
        world = World(
            wheel=self._wheel,
            slow_wheel=self.table.wheel,
            bus=self.bus,
            storage=self._storage,
            flows=self._flows,
            cache=self._cache,
            authenticators=self._authenticators,
            lockout=self._lockout,
            clock=self._loop.time,
            random=self._random,
            soon=self._loop.call_soon,
            account=self._account,
            gruu_key=self._kept_key(_GRUU_KEY_NAME),
            courtesies=self._courtesies,
            trusted=trusted,
        )
        addresses = Addresses(self._settings.domains, self._names())
        self._sip: SipStack = build_sip(self._settings, world, addresses, self._reach)

    def _names(self) -> list[Address]:
        """Return every (host, port) that means us."""
        names: list[Address] = []
        for listen in self._settings.listen:
            names.append((listen.advertised_host, listen.advertised_port))
            hosts = [*local_addresses(), "localhost"] if listen.wildcard else [listen.host]
            names += [(host, listen.port) for host in hosts]
        return names

    def _build_relay(self) -> None:
        settings = self._settings
        self._dialer = Dialer(self.table, self._tls.client)
        self._relay = Relay(
            build_relay_settings(settings, self._names()),
            authenticator=self._authenticator(settings.domains[0], MSRP),
            cache=self._cache,
            users=self._storage.users,
            dial=self._dial_msrp,
            wheel=self._wheel,
            random=self._random,
            clock=self._loop.time,
            soon=self._loop.call_soon,
            publish=self.bus.publish,
            permits=build_permission(settings.msrp.users),
            lockout=self._lockout,
            account=build_accounts(settings, self._account),
        )
        self.table.relieve = self._relay.relieve

    def _dial_msrp(
        self, secure: bool, host: str, port: int, handler: MsrpHandler, check_address: Callable[[str], bool]
    ) -> Connection:
        transport = Transport.TLS if secure else Transport.TCP
        return self._dialer.connect(
            transport,
            host,
            port,
            handler,
            listener=self._listeners[0],
            check_address=check_address,
            locate=None if port else self._relay_finder.find,
        )

    # -- ports

    def _open_ports(self, sockets: list[Bound]) -> None:
        for index, (listen, stream, datagram) in enumerate(sockets):
            port = stream.getsockname()[1]
            advertised = (listen.advertised_host, listen.advertised_port if listen.advertise else port)
            rules = build_rules(
                listen, self._settings, self._sip, self._relay, self._tls.server, self._runner.authorize
            )
            listener = TcpListener(self.table, index, stream, advertised, rules)
            self._listeners.append(listener)
            if datagram is not None:
                handler = build_datagram_handler(listen, self._sip)
                flows = self._settings.limits.udp_flows
                self._ports.append(UdpPort(self.table, listener, datagram, handler, self._answer_stun, flows))
        settings = self._settings
        self._resolver = Resolver(
            self._loop,
            transports=frozenset((Transport.UDP, Transport.TCP, Transport.TLS)),
            families=tuple(sorted({6 if ":" in listener.address[0] else 4 for listener in self._listeners})),
            max_addresses=settings.limits.dns_addresses,
            random=self._random,
            nameservers=settings.sip.nameservers,
            timeout_s=settings.sip.dns_timeout,
        )
        self._relay_finder = RelayFinder(settings.sip.nameservers, settings.sip.dns_timeout, self._random)
        reach = SipReach(
            resolver=self._resolver,
            dialer=self._dialer,
            ports=self._ports,
            listener=self._listeners[0],
            handler=lambda connection: self._sip.framing.handler(),
            allowed=NetworkSet(settings.sip.reachable_networks).contains,
        )
        self._reach.use(reach)

    def _answer_stun(self, datagram: bytes, source: Address) -> bytes | None:
        return answer_stun(datagram, source) if self._courtesies.admits(source[0]) else None

    # -- clocks

    def _wake(self) -> None:
        if self._ticker is None:
            self._ticker = self._loop.call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticker = None
        transactions = self._sip.core.transactions
        transactions.handle_deadline(self._loop.time())
        if transactions.lingering:
            self._wake()

    def _keep_house(self) -> None:
        """Look every few seconds at what nobody tells us about: certificate files, memory that is not used any more."""
        self._tls.reload_if_changed()
        if self._sip.core.calls is not None:
            self._sip.core.calls.expire(self._loop.time())
        ends = self.table.ends
        if ends - self._ends_seen >= _MANY_ENDS:
            self._ends_seen = ends
            self._loop.run_in_executor(None, release_unused)
        self._housekeeping = self._loop.call_later(_HOUSEKEEPING_S, self._keep_house)

    # -- admin

    async def _start_admin(self) -> None:
        self._lag = LoopLag(self._loop)
        stream = EventStream(self._dispatcher)
        self._collector = EdgeCollector(
            self.bus, self.table, self._storage, self._lag, core=self._sip.core, relay=self._relay,
            commits=lambda: self._storage.commits, hooks=self._dispatcher.counts, missed=lambda: stream.missed,
            accounting=self._ledger, policy=self._runner,
        )  # fmt: skip
        self._collector.reload_timestamp = time.time()
        registry = build_registry(self._collector)
        source = Source(
            self.table,
            self._flows,
            self._storage,
            core=self._sip.core,
            relay=self._relay,
            listening=lambda: self._listening,
            draining=lambda: self._draining,
        )
        admin = self._settings.admin
        self._admin = AdminServer(
            admin.bind, admin.token, source, lambda: expose(registry), config=self._source, events=stream
        )
        await self._admin.start()

    # -- running

    async def serve(self) -> None:
        """Serve until told to stop, then drain and stop."""
        await self._stop.wait()
        await self._shut_down()

    def request_stop(self) -> None:
        """SIGTERM: the first drains, the second stops now."""
        if self._draining:
            self._stop.set()
            return
        self._draining = True
        self._sip.core.draining = True
        self._loop.create_task(self._drain())

    async def _drain(self) -> None:
        """Take nothing new; wait until what is on its way is done, at most `limits.drain_timeout`."""
        for listener in self._listeners:
            listener.close()
        busy = self._relay.drain()
        deadline = self._loop.time() + self._settings.limits.drain_timeout
        log.info("draining messages=%d transactions=%d", busy, len(self._sip.core.transactions.servers))
        while self._loop.time() < deadline and not self._stop.is_set() and self._busy():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), 0.1)
        self._stop.set()

    def _busy(self) -> bool:
        unanswered = any(server.status < 200 for server in self._sip.core.transactions.servers.values())
        return unanswered or self._relay.drain() > 0

    def reload(self) -> None:
        """SIGHUP: read the file again; what cannot change while running is named and left."""
        self._collector.reload_timestamp = time.time()
        try:
            path = Path(self._source) if self._source != "defaults" else None
            settings = load_settings(path)
            hooks = build_hooks(settings.hooks, self._source, self._tls.client)
            policy = load_policy(settings.policy.module, self._source)
            self._tls.reload(settings)
        except ConfigError as error:
            self._collector.reload_successful = False
            log.error("configuration not reloaded reason=%s", error)
            return
        self._collector.reload_successful = True
        self._dispatcher.replace(hooks)
        if self._ledger is not None:
            self._ledger.flush()  # into a new file, where the old one was moved away
        self._runner.install(policy)
        self.table.reconfigure(settings.limits)
        self._resolver.reload(settings.sip.nameservers)
        self._relay_finder.reload(settings.sip.nameservers)
        if keys := settings.outbound.token_key_bytes + self._made_keys:  # one that was made unseals until a restart
            self._flows.replace_keys(TokenKeys(keys))
        sip = msgspec.structs.replace(settings.sip, nameservers=self._settings.sip.nameservers)  # those were taken
        outbound = msgspec.structs.replace(settings.outbound, token_keys=self._settings.outbound.token_keys)
        now = msgspec.structs.replace(settings, sip=sip, outbound=outbound)
        fixed = [name for name in _FIXED if getattr(now, name) != getattr(self._settings, name)]
        if fixed:
            log.warning("configuration reloaded, but these need a restart: %s", ", ".join(fixed))
        else:
            log.info("configuration reloaded")

    async def _shut_down(self) -> None:
        self._listening = False
        for listener in self._listeners:
            listener.close()
        self.table.close_all("shutdown")
        await self._dialer.close()
        await self._dispatcher.close()
        await self._runner.close()
        await self._admin.stop()
        await self._resolver.close()
        for port in self._ports:
            port.close()
        self._lag.stop()
        self._housekeeping.cancel()
        self.table.stop()
        if self._ticker is not None:
            self._ticker.cancel()
        if self._sip.core.calls is not None:
            self._sip.core.calls.close(self._loop.time())
        if self._ledger is not None:
            await self._loop.run_in_executor(None, self._ledger.close)
        await self._loop.run_in_executor(None, self._storage.close)
        log.info("stopped")

    def describe(self) -> list[str]:
        """Return what an operator reads at the start: where we listen, what to do next."""
        lines = [f"edge is listening, domains: {', '.join(self._settings.domains)}"]
        for listen, listener in zip(self._settings.listen, self._listeners, strict=False):
            host, port = listener.address
            where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            lines.append(f"  {where}  {', '.join(listen.transports)}  for {', '.join(listen.protocols)}")
        lines.append(f"  admin  http://{self._settings.admin.bind}  (/metrics /healthz /readyz /api)")
        if self._tls.self_signed:
            lines.append("warning: self-signed certificate; set tls.certificate and tls.private_key for real clients")
        lines.append(f"next: edge user add alice@{self._settings.domains[0]}")
        return lines


_FIXED = ("domains", "role", "listen", "auth", "storage", "sip", "outbound", "msrp", "accounting", "admin")
