"""MSRP URIs: reading and comparing them (RFC 4975 §6, §9).

    msrps://user@edge.example.com:2855/session-id;tcp;name=value
    scheme  user host             port session-id transport params

A URI is forwarded as the octets it came in (`raw`); nothing here ever rebuilds one from its parts. A general RFC 3986
parser would take `;tcp` into the host where there is no session-id, so this is one of our own.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from edge.errors import RemoteError

_URI = re.compile(
    rb"(msrps?)://"
    rb"(?:([^/\s\x00-\x1f\x7f]*)@)?"  # ends at the last "@" before the first "/"
    rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.\-_~!$&'()*+,=%]+)"
    rb"(?::([0-9]+))?"
    rb"(?:/([A-Za-z0-9\-._~+=/]+))?"
    rb";([A-Za-z0-9]+)"
    rb"((?:;[A-Za-z0-9.\-+%=_~!*'\[\]:]+)*)",
    re.IGNORECASE,
)
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")

UriKey = tuple[bool, str, int, bytes, bytes]
HopKey = tuple[bool, str, int, bytes]


@dataclass(frozen=True, slots=True)
class MsrpUri:
    """One MSRP URI.

    `host` is lower case, escapes of unreserved characters decoded, an IP address in its canonical form and IPv6 without
    brackets. `port` is 0 and `session_id` empty where the URI has none. `transport` is lower case.
    """

    raw: bytes
    secure: bool
    host: str
    port: int
    session_id: bytes
    transport: bytes

    @property
    def key(self) -> UriKey:
        """What two equal URIs have in common (RFC 4975 §6.1): user part and parameters do not count."""
        return self.secure, self.host, self.port, self.session_id, self.transport

    @property
    def hop(self) -> HopKey:
        """What a connection to this URI's host has to match to be used again (RFC 4975 §5.4)."""
        return self.secure, self.host, self.port, self.transport


def parse_uri(raw: bytes) -> MsrpUri:
    """Read one URI (RFC 4975 §9).

    Raises:
        RemoteError: not an MSRP URI, a numeric host without port, or a port that is none (status 400, label "uri").
    """
    found = _URI.fullmatch(raw)
    if found is None:
        raise RemoteError(400, "uri", "Bad URI")
    scheme, _user, host, digits, session_id, transport, _params = found.groups()
    port = _parse_port(digits)
    name, numeric = _parse_host(host)
    if numeric and not port:
        raise RemoteError(400, "uri", "Bad URI")
    return MsrpUri(raw, len(scheme) == 5, name, port, session_id or b"", transport.lower())


def _parse_port(digits: bytes | None) -> int:
    if digits is None:
        return 0
    if len(digits) > 5 or not 1 <= int(digits) <= 65535:
        raise RemoteError(400, "uri", "Bad port")
    return int(digits)


def _parse_host(host: bytes) -> tuple[str, bool]:
    """Bring a host into its one form; tells also whether it is an IP address."""
    text = host.decode("ascii")
    if text.startswith("["):
        try:
            return str(ipaddress.IPv6Address(text[1:-1])), True
        except ValueError:
            raise RemoteError(400, "uri", "Bad host") from None
    text = _ESCAPE.sub(_decode_unreserved, text).lower()
    try:
        return str(ipaddress.IPv4Address(text)), True
    except ValueError:
        return text, False


def _decode_unreserved(escape: re.Match[str]) -> str:
    character = chr(int(escape[1], 16))
    return character if character in _UNRESERVED else escape[0]


def format_host(host: str) -> bytes:
    """Write a host for a URI: IPv6 in brackets."""
    return (f"[{host}]" if ":" in host else host).encode("ascii")


def is_same_uri(one: bytes, other: bytes) -> bool:
    """Compare two URIs (RFC 4975 §6.1); what cannot be read is equal to nothing but its own octets."""
    if one == other:
        return True
    try:
        return parse_uri(one).key == parse_uri(other).key
    except RemoteError:
        return False
