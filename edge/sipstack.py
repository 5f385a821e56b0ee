"""Puts the SIP parts together from the settings. The world (sockets, storage, clocks) is handed in."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from edge.auth.authenticator import Authenticator
from edge.auth.credentials import Credential, CredentialCache
from edge.auth.lockout import Lockout
from edge.config import Settings, parse_networks
from edge.events import ConnectionRefused, EventBus
from edge.networks import NetworkSet
from edge.outbound.flows import FlowTable
from edge.outbound.path import Force
from edge.rates import SourceBlocks, SourceRate
from edge.sip.access import Access
from edge.sip.addresses import Addresses
from edge.sip.answering import Answerer
from edge.sip.answers import ToTags
from edge.sip.calls import CallTable, Write
from edge.sip.core import Reach, SipCore
from edge.sip.devices import Devices
from edge.sip.edging import EdgeSettings, Edging
from edge.sip.framing import SipFraming
from edge.sip.granting import Grants
from edge.sip.gruu import Gruus
from edge.sip.keeper import BindingKeeper
from edge.sip.latecomers import Latecomers
from edge.sip.location import Location
from edge.sip.message import MessageLimits
from edge.sip.registrar import Registrar, RegistrarSettings
from edge.sip.registration import Registration, RegistrationPolicy
from edge.sip.sessiontimer import SessionTimers
from edge.sip.targets import TargetFinder
from edge.sip.transaction import Transactions
from edge.sip.uri import UriCache
from edge.storage.base import Storage, UserStore
from edge.storage.memory import MemoryBindingStore
from edge.timers import TimerWheel

GRUU_KEY_OCTETS = 32
_RATE_WINDOW_S = 2.0


@dataclass(slots=True)
class World:
    """What the SIP parts need from outside."""

    wheel: TimerWheel
    slow_wheel: TimerWheel
    bus: EventBus
    storage: Storage
    flows: FlowTable
    cache: CredentialCache
    authenticators: Mapping[bytes, Authenticator]
    lockout: Lockout
    clock: Callable[[], float]
    random: Callable[[int], bytes]
    soon: Callable[[Callable[[], None]], object]
    account: Callable[[str, tuple[object, ...]], None] | None = None
    gruu_key: bytes = b""  # seals temporary GRUUs; empty: one for this process
    courtesies: SourceRate | None = None
    trusted: Callable[[str], bool] = lambda source: False


@dataclass(slots=True)
class SipStack:
    """The SIP element with what it is made of."""

    core: SipCore
    framing: SipFraming
    location: Location
    registration: Registration
    keeper: BindingKeeper | None
    addresses: Addresses
    watch_calls: Callable[[Write], CallTable]  # makes a table of calls that tells `write` of them
    next_hop: bytes  # of role edge, else empty


def build_sip(settings: Settings, world: World, addresses: Addresses, reach: Reach) -> SipStack:
    """Build the SIP element of this process."""
    uris = UriCache()
    location = Location(world.slow_wheel)
    keeper = None
    if not isinstance(world.storage.bindings, MemoryBindingStore):
        keeper = BindingKeeper(world.storage.bindings, world.flows, world.clock, time.time)
    gruus = Gruus(world.gruu_key or world.random(GRUU_KEY_OCTETS), world.random, addresses, uris)
    access = _build_access(settings, world, addresses, uris, gruus)
    tags = ToTags(world.random(16))
    trusted_edge = NetworkSet(settings.sip.trusted_edge_networks).contains
    registration = _build_registration(
        settings, world, addresses, location, access, uris, keeper, tags, trusted_edge, gruus
    )
    force = _build_force(settings)
    edging = _build_edging(settings, world, addresses, uris, force)
    devices = _build_devices(settings, world.flows, addresses, uris, force)
    targets = TargetFinder(
        addresses,
        location,
        world.flows,
        uris,
        force=force,
        devices=devices,
        gruus=gruus,
        known_user=_known_user(world.storage.users),
        edging=edging,
    )
    transactions = Transactions(world.wheel)
    core = SipCore(
        addresses=addresses,
        limits=_message_limits(settings),
        transactions=transactions,
        location=location,
        access=access,
        registration=registration,
        targets=targets,
        flows=world.flows,
        reach=reach,
        clock=world.clock,
        random=world.random,
        uris=uris,
        soon=world.soon,
        answers=Answerer(transactions, reach, tags, world.courtesies, settings.sip.websocket_received),
        max_transactions=settings.limits.transactions,
        max_branches=settings.limits.branches,
        recurse=settings.sip.recurse,
        timers=_session_timers(settings),
        flow_timer=settings.outbound.flow_timer,
        edging=edging,
        calls=_build_calls(settings, world),
    )
    if settings.outbound.late_flow:
        core.latecomers = Latecomers(world.wheel, devices, settings.outbound.late_flow)
        registration.welcome = core.latecomers.welcome
    framing = _build_framing(settings, world, core)
    next_hop = edging.settings.next_hop.raw if edging is not None else b""
    watch = partial(_new_calls, settings)
    return SipStack(core, framing, location, registration, keeper, addresses, watch, next_hop)


def _build_access(settings: Settings, world: World, addresses: Addresses, uris: UriCache, gruus: Gruus) -> Access:
    return Access(
        enabled=settings.auth.required and settings.role != "edge",  # there it is the business of the registrar
        addresses=addresses,
        authenticators=world.authenticators,
        users=world.storage.users,
        cache=world.cache,
        lockout=world.lockout,
        uris=uris,
        clock=world.clock,
        publish=world.bus.publish,
        gruus=gruus,
        third_party=settings.sip.third_party,
        fallback_s=settings.auth.nonce_lifetime,
    )


def _build_devices(settings: Settings, flows: FlowTable, addresses: Addresses, uris: UriCache, force: Force) -> Devices:
    order, branches, serial = settings.outbound.flow_order, settings.limits.branches, settings.sip.forking == "serial"
    return Devices(addresses, flows, uris, force, order=order, branches=branches, serial=serial)


def _build_force(settings: Settings) -> Force:
    outbound = settings.outbound
    sources = [(parse_networks((text,))[0], mode) for text, mode in outbound.force_sources.items()]
    return Force(outbound.force, [listen.force for listen in settings.listen], sources)


def _build_edging(
    settings: Settings, world: World, addresses: Addresses, uris: UriCache, force: Force
) -> Edging | None:
    if settings.role != "edge":
        return None
    outbound = settings.outbound
    chosen = EdgeSettings(
        next_hop=settings.sip.next_hop.encode("ascii"),
        flow_timer=outbound.flow_timer,
        no_response=outbound.no_response,
        path_double=outbound.path_double,
        path_always=outbound.path_always,
        without_path=outbound.without_path,
        flows=settings.limits.bindings,
    )
    trusted_core = NetworkSet(settings.sip.trusted_core_networks)
    return Edging(addresses, world.flows, uris, force, chosen, trusted_core)


def _build_registration(
    settings: Settings,
    world: World,
    addresses: Addresses,
    location: Location,
    access: Access,
    uris: UriCache,
    keeper: BindingKeeper | None,
    tags: ToTags,
    trusted_edge: Callable[[str], bool],
    gruus: Gruus,
) -> Registration:
    sip = settings.sip
    bounds = RegistrarSettings(
        min_expires=sip.min_expires,
        max_expires=sip.max_expires,
        default_expires=sip.default_expires,
        bindings_per_aor=settings.limits.bindings_per_aor,
        flows_per_instance=settings.limits.flows_per_instance,
    )
    outbound = settings.outbound
    policy = RegistrationPolicy(
        force=outbound.force,
        flow_timer=outbound.flow_timer,
        bindings=settings.limits.bindings,
        min_expires=sip.min_expires,
        strict_path=sip.strict_path,
        ob_position=outbound.ob_position,
        lenient=outbound.lenient,
        outbound_required=outbound.required,
    )
    return Registration(
        addresses=addresses,
        location=location,
        registrar=Registrar(location, uris, bounds, addresses.serves),
        access=access,
        flows=world.flows,
        uris=uris,
        keeper=keeper,
        trusted_edge=trusted_edge,
        policy=policy,
        gruus=gruus,
        grants=Grants(
            addresses,
            world.flows,
            gruus,
            service_route=sip.service_route,
            flow_timer=outbound.flow_timer,
            wall_clock=time.time,
        ),
        clock=world.clock,
        publish=world.bus.publish,
        random=world.random,
        tag_for=tags,
    )


def _build_framing(settings: Settings, world: World, core: SipCore) -> SipFraming:
    limits = settings.limits
    blocks = None
    if limits.messages_per_source:
        rate = SourceRate(world.slow_wheel, world.clock, limits.messages_per_source, _RATE_WINDOW_S, world.trusted)

        def began(source: str) -> None:
            world.bus.publish(ConnectionRefused(source, "message_rate"))

        blocks = SourceBlocks(world.slow_wheel, world.clock, rate, limits.block_timeout, began, core.stats.reject)
    return SipFraming(core, world.wheel, limits.message_timeout, limits.start_line_timeout, blocks, world.courtesies)


def _session_timers(settings: Settings) -> SessionTimers | None:
    sip = settings.sip
    return SessionTimers(sip.session_expires, sip.min_session_expires) if sip.session_expires else None


def _build_calls(settings: Settings, world: World) -> CallTable | None:
    accounting = settings.accounting
    if world.account is None or not {"call", "answer"} & set(accounting.records):
        return None
    return _new_calls(settings, world.account)


def _new_calls(settings: Settings, write: Write) -> CallTable:
    return CallTable(write, settings.accounting.calls, settings.accounting.call_limit)


def _message_limits(settings: Settings) -> MessageLimits:
    limits = settings.limits
    return MessageLimits(
        start_line=limits.start_line,
        request_uri=limits.request_uri,
        header_line=limits.header_line,
        header_lines=limits.header_lines,
        vias=limits.vias,
        header_block=limits.header_block,
        body=limits.body,
    )


def _known_user(users: UserStore) -> Callable[[bytes, Callable[[bool], None]], None]:
    """Return the question whether a user exists; a store that cannot say counts as yes, so 480 and not 404."""

    def known(aor: bytes, done: Callable[[bool], None]) -> None:
        user, _, domain = aor.rpartition(b"@")

        def fetched(found: Credential | Exception | None) -> None:
            done(found is not None)

        try:
            name = user.decode()
        except UnicodeDecodeError:
            done(False)
            return
        users.fetch(name, domain.decode("ascii"), fetched)

    return known
