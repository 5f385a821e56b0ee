"""Read the PROXY header that a load balancer puts in front of a connection, versions 1 and 2 (sans-IO).

The header comes before TLS, so not one octet behind it may be taken from the socket: the TLS layer has to find them
there. `needed` says how many are safe to read; for version 1, whose end is only known when it is there, a caller that
can peek asks `consume_v1`.

    version 1   PROXY TCP4 203.0.113.77 192.0.2.11 40112 5061 CRLF            one line, at most 107 octets
    version 2   0D 0A 0D 0A 00 0D 0A 51 55 49 54 0A | 2c | ff | length (2) | addresses | TLVs
                c: 0 LOCAL, 1 PROXY     ff: 11 TCP4, 21 TCP6, others carry no address we can use

Whoever is not configured as a balancer is never asked: its octets go to the demultiplexer. Specification: HAProxy,
"The PROXY protocol", sections 2.1 and 2.2.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge.errors import LocalError, RemoteError

if TYPE_CHECKING:
    from edge.connections import Address

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"

_V1_PREFIX = b"PROXY "
_V1_LIMIT = 107
_V1_SHORTEST = len(b"PROXY UNKNOWN\r\n")
_V2_FIXED = 16
_V2_LIMIT = 2048  # room for the certificate data some balancers add; the addresses take 36
_FAMILIES = {0x00: 0, 0x11: 12, 0x12: 12, 0x21: 36, 0x22: 36, 0x31: 216, 0x32: 216}  # octets of the addresses
_V1_LINE = re.compile(rb"PROXY (TCP4|TCP6) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})")
_V1_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?")

_TLV_ALPN = 0x01
_TLV_AUTHORITY = 0x02
_TLV_CRC32C = 0x03
_TLV_UNIQUE_ID = 0x05
_TLV_TLS = 0x20
_TLV_TLS_VERSION = 0x21
_TLV_TLS_NAME = 0x22


@dataclass(frozen=True, slots=True)
class ProxyTls:
    """What the balancer says of the client's TLS: `verified` only if a client certificate was shown and is good."""

    version: bytes
    verified: bool
    common_name: bytes


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """A whole header. Addresses are None for LOCAL, UNKNOWN and families that are not TCP: the socket's own count.

    `tlvs` maps the type of each value of a version 2 header to its octets.
    """

    version: int
    local: bool
    source: Address | None
    destination: Address | None
    tlvs: dict[int, bytes] = field(default_factory=dict)

    @property
    def authority(self) -> bytes:
        """The host name the client asked for (its SNI), empty if not given."""
        return self.tlvs.get(_TLV_AUTHORITY, b"")

    @property
    def unique_id(self) -> bytes:
        """The balancer's name for this connection, up to 128 octets, empty if not given."""
        return self.tlvs.get(_TLV_UNIQUE_ID, b"")

    @property
    def alpn(self) -> bytes:
        """The application protocol the client negotiated, empty if not given."""
        return self.tlvs.get(_TLV_ALPN, b"")

    @property
    def tls(self) -> ProxyTls | None:
        """The client's TLS as the balancer saw it, None without TLS."""
        value = self.tlvs.get(_TLV_TLS, b"")
        if len(value) < 5 or not value[0] & 0x01:
            return None
        inner = _parse_tlvs(value[5:])
        verified = bool(value[0] & 0x06) and value[1:5] == b"\x00\x00\x00\x00"
        return ProxyTls(inner.get(_TLV_TLS_VERSION, b""), verified, inner.get(_TLV_TLS_NAME, b""))


class ProxyReader:
    """Collect one PROXY header. `result` is None until it is whole.

    Every method that takes octets raises RemoteError(0, "proxy_header") as soon as no header can come of them.
    """

    __slots__ = ("_buffer", "result")

    def __init__(self) -> None:
        self._buffer = b""
        self.result: ProxyHeader | None = None

    def needed(self) -> int:
        """Say how many octets may be read without taking one behind the header; 0 once it is whole."""
        have = len(self._buffer)
        if self.result is not None:
            return 0
        if have < len(SIGNATURE):
            return len(SIGNATURE) - have
        if self.is_v1:
            return max(_V1_SHORTEST - have, 1 if self._buffer.endswith(b"\r") else 2)
        if have < _V2_FIXED:
            return _V2_FIXED - have
        return self._length() - have

    @property
    def is_v1(self) -> bool:
        """Whether what came so far begins a version 1 header."""
        return self._buffer.startswith(b"P")

    def receive_data(self, data: bytes) -> None:
        """Take octets read from the socket, never more than `needed` allowed."""
        self._buffer += data
        buffer = self._buffer
        if not buffer.startswith(SIGNATURE[: len(buffer)]) and not buffer.startswith(_V1_PREFIX[: len(buffer)]):
            raise _broken("no PROXY header")
        if self.is_v1:
            self._receive_v1()
        elif len(buffer) > len(SIGNATURE):
            self._receive_v2()

    def consume_v1(self, peeked: bytes) -> int:
        """Take what belongs to a version 1 header from octets that were only peeked at.

        Returns how many that were: they are now to be read from the socket and thrown away.
        """
        end = peeked.find(b"\n") + 1 or len(peeked)
        self.receive_data(peeked[:end])
        return end

    # -- version 1

    def _receive_v1(self) -> None:
        buffer = self._buffer
        if buffer.endswith(b"\r\n"):
            if len(buffer) > _V1_LIMIT:
                raise _broken("line too long")
            self.result = _parse_v1(buffer[:-2])
        elif b"\n" in buffer:
            raise _broken("line does not end in CRLF")
        elif len(buffer) >= _V1_LIMIT:
            raise _broken("line too long")

    # -- version 2

    def _length(self) -> int:
        return _V2_FIXED + int.from_bytes(self._buffer[14:16], "big")

    def _receive_v2(self) -> None:
        buffer = self._buffer
        if buffer[12] not in (0x20, 0x21):
            raise _broken("unknown version or command")
        if len(buffer) < _V2_FIXED:
            return
        length = self._length()
        if length > _V2_FIXED + _V2_LIMIT:
            raise _broken("header too long")
        if buffer[12] == 0x21 and buffer[13] not in _FAMILIES:
            raise _broken("unknown family")
        if len(buffer) > length:
            raise LocalError("octets behind the PROXY header were read")
        if len(buffer) == length:
            self.result = _parse_v2(buffer)


def _broken(detail: str) -> RemoteError:
    return RemoteError(0, "proxy_header", detail)


def _parse_v1(line: bytes) -> ProxyHeader:
    if _V1_UNKNOWN.fullmatch(line):
        return ProxyHeader(1, False, None, None)
    match = _V1_LINE.fullmatch(line)
    if match is None:
        raise _broken("malformed line")
    family, source, destination, source_port, destination_port = match.groups()
    return ProxyHeader(
        1, False, _parse_address(family, source, source_port), _parse_address(family, destination, destination_port)
    )


def _parse_address(family: bytes, host: bytes, port: bytes) -> Address:
    kind = ipaddress.IPv4Address if family == b"TCP4" else ipaddress.IPv6Address
    try:
        address = kind(host.decode("ascii"))
    except ValueError:
        raise _broken("malformed address") from None
    if int(port) > 65535:
        raise _broken("port out of range")
    return str(address), int(port)


def _parse_v2(header: bytes) -> ProxyHeader:
    if header[12] == 0x20:  # LOCAL: the balancer speaks for itself, whatever follows
        return ProxyHeader(2, True, None, None)
    family, block = header[13], header[_V2_FIXED:]
    size = _FAMILIES[family]
    if len(block) < size:
        raise _broken("addresses cut short")
    tlvs = _parse_tlvs(block[size:])
    if _TLV_CRC32C in tlvs:
        _check_crc(header, _V2_FIXED + size)
    _parse_tlvs(tlvs.get(_TLV_TLS, b"")[5:])  # so that reading it later cannot fail
    if family not in (0x11, 0x21):
        return ProxyHeader(2, False, None, None, tlvs)
    width = (size - 4) // 2
    source = str(ipaddress.ip_address(block[:width])), int.from_bytes(block[size - 4 : size - 2], "big")
    destination = str(ipaddress.ip_address(block[width : 2 * width])), int.from_bytes(block[size - 2 : size], "big")
    return ProxyHeader(2, False, source, destination, tlvs)


def _parse_tlvs(data: bytes) -> dict[int, bytes]:
    """Read type (1), length (2), value until the end; of a repeated type the last counts."""
    tlvs: dict[int, bytes] = {}
    position = 0
    while position < len(data):
        start = position + 3
        end = start + int.from_bytes(data[position + 1 : start], "big")
        if start > len(data) or end > len(data):
            raise _broken("values cut short")
        tlvs[data[position]] = data[start:end]
        position = end
    return tlvs


def _check_crc(header: bytes, position: int) -> None:
    """Compare the checksum, which was taken over the header with its own four octets as zeros."""
    while header[position] != _TLV_CRC32C:
        position += 3 + int.from_bytes(header[position + 1 : position + 3], "big")
    start, end = position + 3, position + 7
    zeroed = header[:start] + bytes(4) + header[end:]
    if header[position + 1 : start] != b"\x00\x04" or _crc32c(zeroed) != int.from_bytes(header[start:end], "big"):
        raise _broken("wrong checksum")


def _crc32c(data: bytes) -> int:
    """Compute CRC-32C (Castagnoli, RFC 3309), which zlib does not have."""
    crc = 0xFFFFFFFF
    for octet in data:
        crc = _CRC_TABLE[(crc ^ octet) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _crc_entry(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_CRC_TABLE = [_crc_entry(value) for value in range(256)]
