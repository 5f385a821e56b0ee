"""The hostile clients do what they say, seen from an ordinary asyncio server."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ua.certs import Authority
from tests.ua.hostile import HostileClient, HostileUdp, octets, pieces, random_pieces
from tests.ua.link import Link, UdpLink, open_udp
from tests.ua.wait import eventually


class Server(asyncio.Protocol):
    """Notes reads and how the connection ended; echoes."""

    def __init__(self) -> None:
        self.reads: list[bytes] = []
        self.lost: list[Exception | None] = []
        self.transports: list[asyncio.Transport] = []

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transports.append(transport)

    def data_received(self, data: bytes) -> None:
        self.reads.append(data)
        self.transports[-1].write(data.upper())

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


@asynccontextmanager
async def serving(context: ssl.SSLContext | None = None) -> AsyncIterator[tuple[Server, tuple[str, int]]]:
    protocol = Server()
    server = await asyncio.get_running_loop().create_server(lambda: protocol, "127.0.0.1", 0, ssl=context)
    try:
        yield protocol, server.sockets[0].getsockname()
    finally:
        server.close()
        for transport in protocol.transports:
            transport.abort()
        await eventually(lambda: len(protocol.lost) == len(protocol.transports))


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    authority = Authority(tmp_path_factory.mktemp("certs"))
    return authority.server_context(authority.issue("hostile", ips=["127.0.0.1"]))


@given(st.binary(min_size=1, max_size=200), st.integers(0, 10))
def test_pieces_join_to_the_whole(data: bytes, seed: int) -> None:
    assert b"".join(octets(data)) == b"".join(random_pieces(data, seed)) == data
    assert b"".join(pieces(data, 0, -1, len(data) // 2)) == data
    assert all(random_pieces(data, seed))


async def test_each_piece_is_a_read_of_its_own() -> None:
    async with serving() as (server, address), HostileClient(address) as client:
        for piece in pieces(b"one two three", 4, 8):
            await client.send(piece)
            await client.read_exactly(len(piece))
        assert server.reads == [b"one ", b"two ", b"three"]


async def test_tls_and_half_open_handshake(context: ssl.SSLContext) -> None:
    async with serving(context) as (server, address):
        async with HostileClient(address, tls=True) as client:
            await client.send(octets(b"abc"))
            assert await client.read_until(b"C") == b"ABC"
        half = await HostileClient(address).connect()
        hello = await half.send_client_hello(40)
        assert (hello[0], len(hello) > 40) == (0x16, True)
        assert len(server.transports) == 1
        half.close()


async def test_reset_arrives_as_reset() -> None:
    async with serving() as (server, address):
        client = await HostileClient(address).connect()
        await client.send(b"x")
        await eventually(lambda: server.reads)
        client.reset()
        await eventually(lambda: server.lost)
        assert isinstance(server.lost[0], ConnectionResetError)


async def test_read_until_close_and_drip() -> None:
    async with serving() as (server, address), HostileClient(address) as client:
        assert await client.drip(b"ab", 0) == 2
        await eventually(lambda: b"".join(server.reads) == b"ab")
        server.transports[0].close()
        assert await client.read_until_close() == b"AB"


async def test_read_until_close_has_a_deadline() -> None:
    async with serving() as (_, address), HostileClient(address) as client:
        with pytest.raises(TimeoutError):
            await client.read_until_close(0.05)


async def test_never_reading_client_and_stall() -> None:
    async with serving() as (server, address), HostileClient(address, receive_buffer=4096) as client:
        await client.send(b"x")
        await eventually(lambda: server.transports)
        server.transports[0].pause_reading()
        assert await client.send_until_stalled(bytes(65536), quiet_s=0.05) > 65536


async def test_udp() -> None:
    def echo(link: Link, data: bytes) -> None:
        assert isinstance(link, UdpLink)
        link.send(data.upper())

    endpoint = await open_udp("127.0.0.1", 0, echo)
    async with HostileUdp(endpoint.local) as client:
        await client.send([b"a", b"b"])
        assert [await client.read(), await client.read()] == [b"A", b"B"]
    await endpoint.close()
