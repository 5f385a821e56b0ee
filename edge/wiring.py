"""Which handler a listener gives to which protocol, and what the relay needs of the settings."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable

from edge.config import Listen, Settings
from edge.connections import Address, Connection, Handler, Transport
from edge.datagram import DatagramHandler
from edge.demux import Protocol
from edge.listener import Authorize, HandlerFactory, ListenerRules
from edge.msrp.accounts import Accounts
from edge.msrp.relay import Relay, RelaySettings
from edge.networks import NetworkSet
from edge.refusal import MsrpRefusal, SipDatagramRefusal, SipRefusal
from edge.sipstack import SipStack
from edge.websocket import UpgradeRules


def build_rules(
    listen: Listen,
    settings: Settings,
    stack: SipStack,
    relay: Relay,
    tls: Callable[[], ssl.SSLContext],
    authorize: Authorize | None = None,
) -> ListenerRules:
    """Say what the streams of one listener may carry; `tls` gives the context of now, `authorize` is a policy's."""
    limits = settings.limits
    refusals: dict[Protocol, HandlerFactory] = {
        Protocol.SIP: lambda connection: SipRefusal(stack.core.limits),
        Protocol.MSRP: lambda connection: MsrpRefusal(),
    }
    servers: dict[Protocol, HandlerFactory] = {
        Protocol.SIP: lambda connection: stack.framing.handler(),
        Protocol.MSRP: relay.handler_for,
    }
    handlers = {
        protocol: server if protocol.value in listen.protocols else refusals[protocol]
        for protocol, server in servers.items()
    }

    def websocket(subprotocol: str, connection: Connection) -> Handler:
        return handlers[Protocol(subprotocol)](connection)

    return ListenerRules(
        transports=frozenset(Transport[name.upper()] for name in listen.transports),
        handlers=handlers,
        refusals=refusals,
        upgrades=UpgradeRules(
            subprotocols=listen.protocols,
            tls_only=("msrp",) if settings.msrp.require_tls else (),
            origins=listen.origins,
            max_message=limits.websocket_message,
        ),
        authorize=authorize,
        websocket=websocket,
        tls=tls,
        is_proxy=NetworkSet(listen.proxy_networks).contains,
        handshake_timeout=limits.handshake_timeout,
        first_message_timeout=limits.first_message_timeout,
        proxy_header_timeout=limits.proxy_header_timeout,
        start_line=limits.start_line,
        start_line_timeout=limits.start_line_timeout,
        handshakes=limits.handshakes,
    )


def build_datagram_handler(listen: Listen, stack: SipStack) -> DatagramHandler:
    """Return what takes the datagrams of one listener."""
    return SipDatagrams(stack) if "sip" in listen.protocols else SipDatagramRefusal(stack.core.limits)


class SipDatagrams:
    """The handler of UDP flows: every datagram is a whole message."""

    def __init__(self, stack: SipStack) -> None:
        self._stack = stack

    def receive_data(self, connection: Connection, data: bytes, now: float) -> None:
        """Take one datagram."""
        self._stack.framing.receive_datagram(connection, data, now)

    def receive_eof(self, connection: Connection, now: float) -> bool:
        """Datagrams have no end."""
        return False

    def handle_writable(self, connection: Connection, now: float) -> None:
        """Datagrams do not wait."""

    def handle_lost(self, connection: Connection, reason: str, now: float) -> None:
        """The flow failed or went idle."""
        self._stack.core.handle_lost(connection, reason, now)


def build_relay_settings(settings: Settings, names: Iterable[Address]) -> RelaySettings:
    """Say what the relay may do; `names` are the (host, port) pairs that mean us, besides the domains."""
    msrp = settings.msrp
    domains = [(domain.lower(), listen.port) for domain in settings.domains for listen in settings.listen]
    use_path = read_host_port(msrp.use_path) if msrp.use_path else None
    issued = [use_path] if use_path is not None else []
    return RelaySettings(
        names=frozenset((host.lower(), port) for host, port in [*names, *domains, *issued]),
        use_path=use_path,
        min_expires=msrp.min_expires,
        max_expires=msrp.max_expires,
        default_expires=msrp.default_expires,
        max_chunk_size=msrp.max_chunk_size,
        require_tls=msrp.require_tls,
        allow_targets=msrp.allowed_networks,
        share_links=msrp.share_links,
        report_timeout=msrp.report_timeout,
        chunk_sizes=msrp.next_hop_chunk_sizes,
        link_grace=msrp.link_grace,
        websocket_piece=msrp.websocket_piece,
        max_message_size=msrp.max_message_size,
        blocked_methods=frozenset(method.encode() for method in msrp.blocked_methods),
        sessions_per_connection=msrp.sessions_per_connection,
        sessions_per_user=msrp.sessions_per_user,
        octets_per_user=msrp.octets_per_user,
        connects_per_second=msrp.connects_per_second,
        content_types=frozenset(name.lower().encode() for name in msrp.content_types),
        auth_failures=settings.limits.auth_failures,
    )


def build_accounts(settings: Settings, write: Callable[[str, tuple[object, ...]], None] | None) -> Accounts | None:
    """Make what the relay tells accounting by; None where nobody wants to know."""
    records = settings.accounting.records
    if write is None or not {"session", "message"} & set(records):
        return None
    return Accounts(write, "message" in records)


def build_permission(users: tuple[str, ...]) -> Callable[[bytes], bool]:
    """Make the answer to whether a user may use the relay; without a list everybody may who has a password."""
    names = frozenset(user.encode() for user in users)
    return lambda username: not names or username in names


def read_host_port(text: str) -> Address:
    """Split a checked `host:port` of the settings; brackets of IPv6 are taken off."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)
