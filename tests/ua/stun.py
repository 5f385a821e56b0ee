"""STUN Binding as a keep-alive of SIP over UDP (RFC 8489, RFC 5626 §4.4.2), written from the RFC."""

import asyncio
import ipaddress
import secrets
import struct
from dataclasses import dataclass

from tests.ua.wait import deadline

MAGIC = 0x2112A442
BINDING_REQUEST = 0x0001
BINDING_SUCCESS = 0x0101
BINDING_ERROR = 0x0111
XOR_MAPPED_ADDRESS = 0x0020

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class StunMessage:
    """A STUN message; `attributes` in order, values without padding."""

    kind: int
    transaction: bytes
    attributes: tuple[tuple[int, bytes], ...] = ()

    def get(self, attribute: int) -> bytes | None:
        """Return the first value of an attribute, or None."""
        return next((value for kind, value in self.attributes if kind == attribute), None)

    def encode(self) -> bytes:
        """Write the message; each attribute is padded with zeros to four octets (RFC 8489 §14)."""
        body = b"".join(
            struct.pack("!HH", kind, len(value)) + value + bytes(-len(value) % 4) for kind, value in self.attributes
        )
        return struct.pack("!HHI", self.kind, len(body), MAGIC) + self.transaction + body


def is_stun(data: bytes) -> bool:
    """Tell STUN from SIP: two zero bits first and the magic cookie (RFC 8489 §5)."""
    return len(data) >= 20 and data[0] < 0x40 and data[4:8] == MAGIC.to_bytes(4, "big")


def parse(data: bytes) -> StunMessage:
    """Read one datagram. Raises ValueError if it is no STUN message or its lengths do not add up."""
    if not is_stun(data):
        raise ValueError("not a STUN message")
    kind, length = struct.unpack_from("!HH", data)
    if length != len(data) - 20 or length % 4:
        raise ValueError(f"length says {length}, there are {len(data) - 20} octets")
    attributes, position = [], 20
    while position < len(data):
        attribute, size = struct.unpack_from("!HH", data, position)
        value = data[position + 4 : position + 4 + size]
        if len(value) != size:
            raise ValueError("attribute longer than the message")
        attributes.append((attribute, value))
        position += 4 + size + (-size % 4)
    return StunMessage(kind, data[8:20], tuple(attributes))


def binding_request(transaction: bytes | None = None) -> StunMessage:
    """Return a Binding request without attributes and with 96 random bits of transaction id."""
    return StunMessage(BINDING_REQUEST, transaction or secrets.token_bytes(12))


def binding_success(request: StunMessage, address: Address) -> StunMessage:
    """Return the answer that tells the requester its address."""
    return StunMessage(BINDING_SUCCESS, request.transaction, ((XOR_MAPPED_ADDRESS, xor(address, request.transaction)),))


def xor(address: Address, transaction: bytes) -> bytes:
    """Write an XOR-MAPPED-ADDRESS value (RFC 8489 §14.2)."""
    ip = ipaddress.ip_address(address[0])
    key = (MAGIC.to_bytes(4, "big") + transaction)[: len(ip.packed)]
    masked = bytes(left ^ right for left, right in zip(ip.packed, key, strict=True))
    return struct.pack("!BBH", 0, 1 if ip.version == 4 else 2, address[1] ^ (MAGIC >> 16)) + masked


def mapped_address(answer: StunMessage) -> Address:
    """Read XOR-MAPPED-ADDRESS of a success answer. Raises ValueError for any other message."""
    value = answer.get(XOR_MAPPED_ADDRESS)
    if answer.kind != BINDING_SUCCESS or value is None:
        raise ValueError(f"no success with XOR-MAPPED-ADDRESS: type {answer.kind:#06x}")
    family, port = struct.unpack_from("!xBH", value)
    packed = value[4:]
    if len(packed) != {1: 4, 2: 16}.get(family):
        raise ValueError(f"address of family {family} with {len(packed)} octets")
    key = (MAGIC.to_bytes(4, "big") + answer.transaction)[: len(packed)]
    ip = ipaddress.ip_address(bytes(left ^ right for left, right in zip(packed, key, strict=True)))
    return str(ip), port ^ (MAGIC >> 16)


async def exchange(host: str, port: int, datagram: bytes, *, local_host: str | None = None) -> bytes:
    """Send one datagram from a fresh socket and return the first answer; raises TimeoutError."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bytes] = loop.create_future()

    class Once(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: Address) -> None:
            if not answer.done():
                answer.set_result(data)

    wire, _ = await loop.create_datagram_endpoint(
        Once, remote_addr=(host, port), local_addr=(local_host, 0) if local_host else None
    )
    try:
        wire.sendto(datagram)
        async with deadline():
            return await answer
    finally:
        wire.close()


async def stun_binding(host: str, port: int, *, local_host: str | None = None) -> Address:
    """Ask a STUN server for our address as it sees it. Raises ValueError for an error or foreign answer."""
    request = binding_request()
    answer = parse(await exchange(host, port, request.encode(), local_host=local_host))
    if answer.transaction != request.transaction:
        raise ValueError("answer to another transaction")
    return mapped_address(answer)
