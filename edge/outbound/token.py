"""Flow tokens: names for flows that nobody else can read or make (RFC 5626 §5.2, sans-IO).

    user part  f1.  base64url( FP (2) | AES-SIV( P ) )        no padding; 40 to 70 characters
    P          transport (1) | worker (1) | node (2) | boot stamp (4) | serial number of the connection (4)
               UDP adds: listener number (1) | remote address (4 or 16) | remote port (2)
    FP         first two octets of SHA-256( "f1-fp" | key ): which key this may be under

Bit 3 of the transport says that the remote address of a UDP flow is IPv6. AES-SIV (RFC 5297) is deterministic, so the
same flow has the same token, and its 16-octet tag is compared inside the library, in constant time.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from urllib.parse import unquote_to_bytes

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from edge.connections import Transport
from edge.errors import LocalError

PREFIX = b"f1."
MAX_TOKEN = 80

_KEY_OCTETS = 32
_IPV6 = 0x08
_TAG_OCTETS = 16
_FLOW = struct.Struct("!BBHII")
_SEALED = re.compile(rb"[A-Za-z0-9_-]+")
_MAPPED = bytes(10) + b"\xff\xff"


class TokenFault(Enum):
    """Why the user part of a URI of ours names no flow.

    NOT_A_TOKEN: it has not the form of a token, flow procedures do not apply (RFC 5626 §5.3). FORGED: it is under one
    of our keys and we did not make it (403). UNKNOWN_KEY: made under a key we do not have, so its flow is gone (430).
    """

    NOT_A_TOKEN = "not_a_token"
    FORGED = "forged"
    UNKNOWN_KEY = "unknown_key"


@dataclass(frozen=True, slots=True)
class FlowId:
    """What a token says.

    `boot` is the start stamp of the process and `serial` the number of the connection in it; `listener` and `remote` (4
    or 16 octets of address, port) are set for UDP only.
    """

    transport: Transport
    worker: int
    node: int
    boot: int
    serial: int
    listener: int = 0
    address: bytes = b""
    port: int = 0

    @property
    def remote(self) -> tuple[str, int]:
        """Address as text and port of a UDP flow."""
        return str(ipaddress.ip_address(self.address)), self.port


def pack_address(host: str) -> bytes:
    """Turn the text of an address into its octets; an IPv4-mapped one becomes IPv4.

    The interface of a link-local address does not travel: the serial number leads to the connection, which has it.
    """
    address = ipaddress.ip_address(host.partition("%")[0]).packed
    return address[12:] if address.startswith(_MAPPED) and len(address) == 16 else address


class TokenKeys:
    """Seal with the first key, unseal with any. Keys are 32 octets each; rotation makes a new object.

    Raises LocalError without a key or for one of another length.
    """

    __slots__ = ("_ciphers", "_fingerprint", "_seal")

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys or any(len(key) != _KEY_OCTETS for key in keys):
            raise LocalError(f"token keys are {_KEY_OCTETS} octets each, and there is at least one")
        self._ciphers: dict[bytes, list[AESSIV]] = {}
        for key in keys:
            self._ciphers.setdefault(sha256(b"f1-fp" + key).digest()[:2], []).append(AESSIV(key))
        self._fingerprint = sha256(b"f1-fp" + keys[0]).digest()[:2]
        self._seal = self._ciphers[self._fingerprint][0]

    def seal(self, flow: FlowId) -> bytes:
        """Make the token of `flow`, ready for the user part of a URI."""
        sealed = self._seal.encrypt(_encode(flow), [self._fingerprint])
        return PREFIX + base64.urlsafe_b64encode(self._fingerprint + sealed).rstrip(b"=")

    def unseal(self, token: bytes) -> FlowId | TokenFault:
        """Read the user part of a URI as a token; percent escapes are understood (RFC 3261 §19.1.4)."""
        if b"%" in token:
            token = unquote_to_bytes(token)
        if not token.startswith(PREFIX):
            return TokenFault.NOT_A_TOKEN
        raw = _decode_base64(token[len(PREFIX) :]) if len(token) <= MAX_TOKEN else None
        if raw is None or len(raw) <= 2 + _TAG_OCTETS:
            return TokenFault.FORGED
        ciphers = self._ciphers.get(raw[:2])
        if ciphers is None:
            return TokenFault.UNKNOWN_KEY
        for cipher in ciphers:
            try:
                return _decode(cipher.decrypt(raw[2:], [raw[:2]]))
            except InvalidTag:
                continue
        return TokenFault.FORGED


def _decode_base64(text: bytes) -> bytes | None:
    """Decode base64url without padding; None for other characters and for a spelling we would not have written."""
    if not _SEALED.fullmatch(text):
        return None
    try:
        raw = base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    except binascii.Error:
        return None
    return raw if base64.urlsafe_b64encode(raw).rstrip(b"=") == text else None


def _encode(flow: FlowId) -> bytes:
    kind = flow.transport | (_IPV6 if len(flow.address) == 16 else 0)
    head = _FLOW.pack(kind, flow.worker, flow.node, flow.boot, flow.serial)
    if flow.transport is not Transport.UDP:
        return head
    return head + bytes([flow.listener]) + flow.address + flow.port.to_bytes(2, "big")


def _decode(data: bytes) -> FlowId | TokenFault:
    """Read P. What is authentic but has another shape was sealed by another version with our key: that flow is gone."""
    if len(data) < _FLOW.size:
        return TokenFault.UNKNOWN_KEY
    kind, worker, node, boot, serial = _FLOW.unpack_from(data)
    rest = data[_FLOW.size :]
    if kind & ~_IPV6 > Transport.WSS or len(rest) != _rest_length(kind):
        return TokenFault.UNKNOWN_KEY
    transport = Transport(kind & ~_IPV6)
    if not rest:
        return FlowId(transport, worker, node, boot, serial)
    return FlowId(transport, worker, node, boot, serial, rest[0], rest[1:-2], int.from_bytes(rest[-2:], "big"))


def _rest_length(kind: int) -> int:
    if kind & ~_IPV6 != Transport.UDP:
        return 0
    return 19 if kind & _IPV6 else 7
