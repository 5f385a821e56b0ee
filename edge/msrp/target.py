"""Which addresses this relay dials for its users (RFC 4976 §9.3, RFC 4975 §14.5)."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network

_NAT64 = IPv6Network("64:ff9b::/96")
_6TO4 = IPv6Network("2002::/16")
_DISCARD_PORT = 9  # written by endpoints that only dial themselves (RFC 6135 §4.2.2)


def is_permitted(address: str, allowed: Sequence[Network]) -> bool:
    """Tell whether an address may be dialled: a public unicast one, or one in a network that is allowed.

    An IPv4 address inside an IPv6 one counts as that IPv4 address.
    """
    ip = _unwrap(ip_address(address.partition("%")[0]))
    if any(ip in network for network in allowed):
        return not ip.is_unspecified and not ip.is_multicast
    return ip.is_global and not ip.is_multicast


def _unwrap(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    if isinstance(ip, IPv6Address):
        if ip.ipv4_mapped:
            return ip.ipv4_mapped
        if ip in _NAT64:
            return IPv4Address(int(ip) & 0xFFFFFFFF)
        if ip in _6TO4:
            return IPv4Address(int(ip) >> 80 & 0xFFFFFFFF)
    return ip


def is_dialable(transport: bytes, host: str, port: int) -> bool:
    """Tell whether a URI names something that listens at all (RFC 7977 §5.1: a WebSocket client never does)."""
    return transport == b"tcp" and port != _DISCARD_PORT and not host.endswith(".invalid")
