"""Answer STUN Binding requests on the UDP port that takes SIP (RFC 5626 §8, RFC 8489; sans-IO).

Clients use them as keep-alives and to learn the address a NAT gave them. Only what that needs is here: no
authentication, no state, nothing over streams.

    message     type (2) | length (2) | cookie 2112A442 | transaction id (12) | attributes
    attribute   type (2) | length (2) | value, filled up to four octets
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING
from zlib import crc32

from edge.outbound.token import pack_address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge.connections import Address

_COOKIE = b"\x21\x12\xa4\x42"
_HEADER = 20
_BINDING_REQUEST = 0x0001
_BINDING_SUCCESS = 0x0101
_BINDING_ERROR = 0x0111

_MESSAGE_INTEGRITY = 0x0008
_ERROR_CODE = 0x0009
_UNKNOWN_ATTRIBUTES = 0x000A
_XOR_MAPPED_ADDRESS = 0x0020
_FINGERPRINT = 0x8028
_OPTIONAL = 0x8000  # from here on an attribute we do not know is ignored
# MAPPED-ADDRESS, USERNAME, ..., REALM, NONCE, and what RFC 8489 added for integrity and passwords
_KNOWN = frozenset((0x0001, 0x0006, _MESSAGE_INTEGRITY, _ERROR_CODE, _UNKNOWN_ATTRIBUTES, _XOR_MAPPED_ADDRESS))
_KNOWN |= {0x0014, 0x0015, 0x001C, 0x001D, 0x001E}
_FINGERPRINT_XOR = 0x5354554E
_MOST_UNKNOWN = 32  # named in one error answer, so that it stays small

_BLANK_REQUEST = b"\x00\x01\x00\x00" + _COOKIE


def answer(datagram: bytes, source: Address) -> bytes | None:
    """Return the answer to a STUN message from `source`, None when it is to be dropped.

    A Binding request gets a success response with XOR-MAPPED-ADDRESS, one that demands an attribute we do not know
    error 420. Responses, indications, other methods, a wrong FINGERPRINT and what is malformed get nothing.
    """
    if len(datagram) == _HEADER:
        return _build_success(datagram, source) if datagram.startswith(_BLANK_REQUEST) else None
    if not _is_request(datagram):
        return None
    unknown: list[int] = []
    for kind, position, end in _attributes(datagram):
        if end > len(datagram):
            return None
        if kind == _FINGERPRINT:
            if end != len(datagram) or not _check_fingerprint(datagram, position):
                return None
        elif kind < _OPTIONAL and kind not in _KNOWN:
            unknown.append(kind)
    return _build_unknown(datagram, unknown[:_MOST_UNKNOWN]) if unknown else _build_success(datagram, source)


def _is_request(datagram: bytes) -> bool:
    length = len(datagram) - _HEADER
    return (
        length >= 0
        and not length % 4
        and datagram[:2] == b"\x00\x01"
        and int.from_bytes(datagram[2:4], "big") == length
        and datagram[4:8] == _COOKIE
    )


def _attributes(datagram: bytes) -> Iterator[tuple[int, int, int]]:
    """Walk the attributes: type, where it begins and where the padding behind it ends (maybe behind the message)."""
    position = _HEADER
    while position < len(datagram):
        kind, length = struct.unpack_from("!HH", datagram, position)
        end = position + 4 + (length + 3 & ~3)
        yield kind, position, end
        position = end


def _check_fingerprint(datagram: bytes, position: int) -> bool:
    """Compare the CRC-32 over everything before the attribute, which is the last one (RFC 8489 §14.7)."""
    if datagram[position + 2 : position + 4] != b"\x00\x04":
        return False
    return crc32(datagram[:position]) ^ _FINGERPRINT_XOR == int.from_bytes(datagram[position + 4 :], "big")


def _build_success(request: bytes, source: Address) -> bytes:
    address = pack_address(source[0])
    mask = request[4:_HEADER]  # cookie and transaction id (RFC 8489 §14.2)
    port = (source[1] ^ 0x2112).to_bytes(2, "big")
    hidden = bytes(octet ^ key for octet, key in zip(address, mask, strict=False))
    value = (b"\x00\x01" if len(address) == 4 else b"\x00\x02") + port + hidden
    return _build(_BINDING_SUCCESS, request, struct.pack("!HH", _XOR_MAPPED_ADDRESS, len(value)) + value)


def _build_unknown(request: bytes, unknown: list[int]) -> bytes:
    reason = b"\x00\x00\x04\x14Unknown Attribute"  # class 4, number 20
    error = struct.pack("!HH", _ERROR_CODE, len(reason)) + reason
    names = struct.pack(f"!{len(unknown)}H", *unknown)
    return _build(
        _BINDING_ERROR, request, _pad(error) + _pad(struct.pack("!HH", _UNKNOWN_ATTRIBUTES, len(names)) + names)
    )


def _pad(attribute: bytes) -> bytes:
    return attribute + bytes(-len(attribute) % 4)


def _build(kind: int, request: bytes, attributes: bytes) -> bytes:
    return struct.pack("!HH", kind, len(attributes)) + request[4:_HEADER] + attributes
