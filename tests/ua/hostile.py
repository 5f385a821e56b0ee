"""Clients that misbehave on purpose: chosen split points, dribbles, never reading, resets, half a TLS handshake.

They know no protocol; a test hands them bytes. All waits have a scaled deadline.
"""

import asyncio
import random
import socket
import ssl
import struct
from collections.abc import Iterable, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Self

from tests.ua.link import Address, trusting_context
from tests.ua.wait import deadline


def pieces(data: bytes, *cuts: int) -> list[bytes]:
    """Cut at these offsets; negative ones count from the end."""
    places = sorted({cut % len(data) if cut < 0 else cut for cut in cuts} | {0, len(data)})
    return [data[left:right] for left, right in pairwise(places)]


def octets(data: bytes) -> list[bytes]:
    """Cut into single octets."""
    return [data[position : position + 1] for position in range(len(data))]


def random_pieces(data: bytes, seed: int, mean: int = 7) -> list[bytes]:
    """Cut at random places, the same for the same seed."""
    source = random.Random(seed)
    count = max(1, len(data) // mean)
    return pieces(data, *(source.randrange(len(data)) for _ in range(count))) if data else []


class HostileClient:
    """A raw TCP connection, with TLS inside if a context is given.

    The socket has TCP_NODELAY, so that each piece leaves in a segment of its own. Reading happens only on request:
    without `read*` calls this is a client that never reads.

    Args:
        receive_buffer: SO_RCVBUF in octets, small to make a receiver that stalls soon.
        tls: True for TLS that believes any certificate, or a client context.
    """

    def __init__(
        self,
        server: Address,
        *,
        tls: bool | ssl.SSLContext = False,
        server_hostname: str | None = None,
        local_host: str | None = None,
        receive_buffer: int | None = None,
    ) -> None:
        self.server = server
        self.context = trusting_context() if tls is True else tls or None
        self.server_hostname = server_hostname or server[0]
        self.local_host = local_host
        self.receive_buffer = receive_buffer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        self._socket: socket.socket | None = None

    async def __aenter__(self) -> Self:
        await self.connect()
        if self.context is not None:
            await self.handshake()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def socket(self) -> socket.socket:
        """The socket, for what this class does not offer."""
        assert self._socket is not None, "not connected"
        return self._socket

    @property
    def local(self) -> Address:
        """Our own address."""
        return self.socket.getsockname()[:2]

    async def connect(self) -> Self:
        """Open the TCP connection and send nothing."""
        family = socket.AF_INET6 if ":" in self.server[0] else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        if self.receive_buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)
        if self.local_host is not None:
            self._socket.bind((self.local_host, 0))
        async with deadline():
            await asyncio.get_running_loop().sock_connect(self._socket, self.server)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self

    # -- TLS ----------------------------------------------------------------------------------------------

    async def handshake(self) -> None:
        """Do the whole TLS handshake; raises ssl.SSLError, or ConnectionError if the server hangs up."""
        tls = self._start_tls()
        while True:
            try:
                tls.do_handshake()
                await self._flush()
                return
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._fill():
                    raise ConnectionError("the server closed during the handshake") from None

    async def send_client_hello(self, size: int | None = None) -> bytes:
        """Send the first `size` octets of a ClientHello (default: all), then stop: a half-open handshake.

        Returns the whole ClientHello; the handshake is not continued.
        """
        tls = self._start_tls(trusting_context() if self.context is None else self.context)
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            pass
        hello = self._outgoing.read()
        await self._send_all(hello[:size])
        self._tls = None
        return hello

    def _start_tls(self, context: ssl.SSLContext | None = None) -> ssl.SSLObject:
        chosen = context or self.context
        assert chosen is not None
        self._tls = chosen.wrap_bio(self._incoming, self._outgoing, server_hostname=self.server_hostname)
        return self._tls

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self._send_all(self._outgoing.read())

    async def _fill(self) -> bool:
        async with deadline():
            data = await asyncio.get_running_loop().sock_recv(self.socket, 65536)
        self._incoming.write(data) if data else self._incoming.write_eof()
        return bool(data)

    # -- sending ------------------------------------------------------------------------------------------

    async def send(self, data: bytes | Sequence[bytes], *, pause_s: float = 0.0) -> None:
        """Send bytes, or each piece by itself, in TLS each in a record of its own.

        With `pause_s` this much time passes after every piece; zero still gives the server a turn of the loop.
        """
        for piece in [data] if isinstance(data, bytes) else data:
            if self._tls is not None:
                self._tls.write(piece)
                await self._flush()
            else:
                await self._send_all(piece)
            await asyncio.sleep(pause_s)

    async def drip(self, data: bytes, interval_s: float) -> int:
        """Send octet by octet with a pause after each, until done or the server hangs up; return octets sent."""
        for count, octet in enumerate(octets(data)):
            try:
                await self.send(octet, pause_s=interval_s)
            except ConnectionError:
                return count
        return len(data)

    async def send_until_stalled(self, piece: bytes, *, quiet_s: float = 0.2, limit: int = 1 << 30) -> int:
        """Send `piece` again and again until the kernel takes nothing for `quiet_s`; return octets taken.

        For plain TCP. Raises AssertionError at `limit` octets: the other side reads without end.
        """
        loop, taken = asyncio.get_running_loop(), 0
        while taken < limit:
            writable = loop.create_future()
            loop.add_writer(self.socket, lambda f=writable: f.done() or f.set_result(None))
            try:
                async with deadline(quiet_s):
                    await writable
                taken += self.socket.send(piece)
            except TimeoutError:
                return taken
            finally:
                loop.remove_writer(self.socket)
        raise AssertionError(f"{taken} octets taken and no end")

    def send_eof(self) -> None:
        """Close our direction only (TCP FIN)."""
        self.socket.shutdown(socket.SHUT_WR)

    async def _send_all(self, data: bytes) -> None:
        async with deadline(30):
            await asyncio.get_running_loop().sock_sendall(self.socket, data)

    # -- receiving ----------------------------------------------------------------------------------------

    async def read(self, seconds: float = 5.0) -> bytes:
        """Read what there is, at least one octet; b"" at the end of the stream. Raises TimeoutError."""
        async with deadline(seconds):
            if self._tls is None:
                return await asyncio.get_running_loop().sock_recv(self.socket, 65536)
            while True:
                try:
                    return self._tls.read(65536)
                except ssl.SSLWantReadError:
                    if not await self._fill():
                        return b""
                except ssl.SSLZeroReturnError:
                    return b""

    async def read_exactly(self, size: int, seconds: float = 5.0) -> bytes:
        """Read that many octets on plain TCP. Raises EOFError if the stream ends before, TimeoutError."""
        collected = bytearray()
        async with deadline(seconds):
            while len(collected) < size:
                data = await asyncio.get_running_loop().sock_recv(self.socket, size - len(collected))
                if not data:
                    raise EOFError(bytes(collected))
                collected += data
        return bytes(collected)

    async def read_until(self, marker: bytes, seconds: float = 5.0) -> bytes:
        """Read until `marker` has come; what follows it in the same read is returned with it."""
        collected = bytearray()
        async with deadline(seconds):
            while marker not in collected:
                data = await self.read(seconds)
                if not data:
                    raise EOFError(bytes(collected))
                collected += data
        return bytes(collected)

    async def read_until_close(self, seconds: float = 5.0) -> bytes:
        """Read until the server closes or resets, and return everything. Raises TimeoutError if it does not."""
        collected = bytearray()
        async with deadline(seconds):
            while True:
                try:
                    data = await self.read(seconds)
                except (ConnectionError, ssl.SSLError):
                    return bytes(collected)
                if not data:
                    return bytes(collected)
                collected += data

    # -- ends ---------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Close with a reset: SO_LINGER with no time to linger."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Close the socket without a TLS goodbye."""
        if self._socket is not None:
            self._socket.close()


class HostileUdp:
    """A raw UDP socket. `connected=False` also takes answers from other addresses."""

    def __init__(self, server: Address, *, local_host: str | None = None, connected: bool = False) -> None:
        self.server = server
        family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind((local_host or ("::1" if family == socket.AF_INET6 else "127.0.0.1"), 0))
        if connected:
            self.socket.connect(server)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.socket.close()

    @property
    def local(self) -> Address:
        """Our own address."""
        return self.socket.getsockname()[:2]

    async def send(self, datagrams: bytes | Iterable[bytes]) -> None:
        """Send one datagram or several."""
        for datagram in [datagrams] if isinstance(datagrams, bytes) else datagrams:
            await asyncio.get_running_loop().sock_sendto(self.socket, datagram, self.server)

    async def read(self, seconds: float = 5.0) -> bytes:
        """Return the next datagram. Raises TimeoutError."""
        return (await self.read_from(seconds))[0]

    async def read_from(self, seconds: float = 5.0) -> tuple[bytes, Address]:
        """Return the next datagram and where it came from. Raises TimeoutError."""
        async with deadline(seconds):
            data, address = await asyncio.get_running_loop().sock_recvfrom(self.socket, 65536)
            return data, address[:2]
