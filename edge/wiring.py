"""Which handler a listener gives to which protocol: the one that serves it, or the one that refuses it."""

from __future__ import annotations

import ssl
from collections.abc import Callable

from edge.config import Listen, Settings
from edge.connections import Connection, Handler, Transport
from edge.datagram import DatagramHandler
from edge.demux import Protocol
from edge.listener import HandlerFactory, ListenerRules
from edge.msrp.relay import Relay
from edge.networks import NetworkSet
from edge.refusal import MsrpRefusal, SipDatagramRefusal, SipRefusal
from edge.sipstack import SipStack
from edge.websocket import UpgradeRules


def build_rules(
    listen: Listen, settings: Settings, stack: SipStack, relay: Relay, tls: Callable[[], ssl.SSLContext]
) -> ListenerRules:
    """Say what the streams of one listener may carry; `tls` gives the context of now."""
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
            max_message=limits.websocket_message,
        ),
        websocket=websocket,
        tls=tls,
        is_proxy=NetworkSet(listen.proxy_networks).contains,
        handshake_timeout=limits.handshake_timeout,
        first_message_timeout=limits.first_message_timeout,
        proxy_header_timeout=limits.proxy_header_timeout,
        start_line=limits.start_line,
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
