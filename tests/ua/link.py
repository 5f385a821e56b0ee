"""Connections of the simulated user agents: UDP, TCP, TLS, WS and WSS behind one small face.

A `Link` carries bytes both ways and knows no protocol above it. On a stream `on_data` gets whatever a read
gave; on UDP and WebSocket each call is one datagram or one whole message. `send` never blocks: a WebSocket
link queues for its writer task, `drain` waits until the transport took everything.
"""

import asyncio
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Any, cast

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server as WebSocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.ua.wait import deadline

Address = tuple[str, int]

STREAMS = ("tcp", "tls", "ws", "wss")
SECURE = ("tls", "wss")
WEBSOCKETS = ("ws", "wss")


def trusting_context() -> ssl.SSLContext:
    """Return a client context that believes any certificate: for tests that are not about certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Link:
    """One connection, or one remote address of a UDP socket."""

    def __init__(
        self, transport: str, on_data: Callable[["Link", bytes], None], on_closed: Callable[["Link"], None] | None
    ) -> None:
        self.transport = transport
        self.local: Address = ("", 0)
        self.remote: Address = ("", 0)
        self.reason: str | None = None
        self.octets_received = 0
        self.last_kind: str | None = None  # WebSocket: "text" or "binary", of the message given last
        self._on_data = on_data
        self._on_closed = on_closed
        self._closed = asyncio.Event()

    @property
    def closed(self) -> bool:
        """Whether the connection has ended; `reason` then says how."""
        return self._closed.is_set()

    def send(self, data: bytes, *, binary: bool | None = None) -> None:
        """Queue bytes. `binary` forces the kind of a WebSocket message; None sends text where it is UTF-8."""
        raise NotImplementedError

    async def drain(self) -> None:
        """Wait until what was sent has left our own buffers, as far as the transport lets us know."""

    def pause_reading(self) -> None:
        """Take nothing more from the kernel, so that the sender stalls."""
        raise NotImplementedError

    def resume_reading(self) -> None:
        """Read on."""
        raise NotImplementedError

    async def close(self) -> None:
        """End the connection in an orderly way and wait for it."""
        raise NotImplementedError

    def reset(self) -> None:
        """Tear the connection down with a TCP reset: no FIN, no TLS or WebSocket goodbye."""
        raise NotImplementedError

    async def wait_closed(self, seconds: float = 5.0) -> str:
        """Wait until the connection has ended, by whichever side, and return the reason."""
        async with deadline(seconds):
            await self._closed.wait()
        return self.reason or ""

    def _received(self, data: bytes) -> None:
        self.octets_received += len(data)
        self._on_data(self, data)

    def _ended(self, reason: str) -> None:
        if self.closed:
            return
        self.reason = reason
        self._closed.set()
        if self._on_closed is not None:
            self._on_closed(self)


class StreamLink(Link, asyncio.Protocol):
    """TCP or TLS."""

    _wire: asyncio.Transport
    on_open: Callable[["StreamLink"], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast(asyncio.Transport, transport)
        self._writable = asyncio.Event()
        self._writable.set()
        self.local = transport.get_extra_info("sockname")[:2]
        self.remote = transport.get_extra_info("peername")[:2]
        if self.on_open is not None:
            self.on_open(self)

    def data_received(self, data: bytes) -> None:
        self._received(data)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        self._ended("closed" if exc is None else f"{type(exc).__name__}: {exc}")

    @property
    def ssl_object(self) -> ssl.SSLObject | None:
        """The TLS state (certificate of the peer, version, cipher), None on plain TCP."""
        return self._wire.get_extra_info("ssl_object")

    def send(self, data: bytes, *, binary: bool | None = None) -> None:
        if self.closed or self._wire.is_closing():
            raise ConnectionError(f"the {self.transport} connection has ended: {self.reason or 'closing'}")
        self._wire.write(data)

    async def drain(self) -> None:
        await self._writable.wait()

    def pause_reading(self) -> None:
        self._wire.pause_reading()

    def resume_reading(self) -> None:
        self._wire.resume_reading()

    async def close(self) -> None:
        self._wire.close()
        try:
            await self.wait_closed(2.0)
        except TimeoutError:
            self._wire.abort()
            await self.wait_closed()

    def reset(self) -> None:
        _linger_zero(self._wire)
        self._wire.abort()


class WebSocketLink(Link):
    """WS or WSS, either end. One `send` is one WebSocket message."""

    def __init__(
        self,
        transport: str,
        socket_: ClientConnection | ServerConnection,
        on_data: Callable[[Link, bytes], None],
        on_closed: Callable[[Link], None] | None,
    ) -> None:
        super().__init__(transport, on_data, on_closed)
        self.websocket = socket_
        self.local = socket_.local_address[:2]
        self.remote = socket_.remote_address[:2]
        self.subprotocol = socket_.subprotocol
        self._queue: asyncio.Queue[str | bytes] = asyncio.Queue()
        self._reading = asyncio.Event()
        self._reading.set()
        self._writer = asyncio.create_task(self._write())
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            while True:
                await self._reading.wait()
                message = await self.websocket.recv()
                await self._reading.wait()
                self.last_kind = "text" if isinstance(message, str) else "binary"
                self._received(message.encode() if isinstance(message, str) else message)
        except ConnectionClosed as error:
            close = error.rcvd
            self._ended(f"closed {close.code} {close.reason}".strip() if close else "lost without a close frame")
        finally:
            self._writer.cancel()

    async def _write(self) -> None:
        while True:
            message = await self._queue.get()
            try:
                await self.websocket.send(message)
            except ConnectionClosed:
                return
            finally:
                self._queue.task_done()

    def send(self, data: bytes, *, binary: bool | None = None) -> None:
        if self.closed:
            raise ConnectionError(f"the {self.transport} connection has ended: {self.reason}")
        message: str | bytes = data
        if not binary:
            try:
                message = data.decode()
            except UnicodeDecodeError:
                if binary is False:
                    raise
        self._queue.put_nowait(message)

    async def drain(self) -> None:
        if not self._writer.done():
            await asyncio.wait(
                [asyncio.ensure_future(self._queue.join()), self._writer], return_when=asyncio.FIRST_COMPLETED
            )

    def pause_reading(self) -> None:
        self._reading.clear()

    def resume_reading(self) -> None:
        self._reading.set()

    async def close(self) -> None:
        self._reading.set()
        await self.websocket.close()
        await asyncio.wait([self._reader])
        await asyncio.gather(self._writer, return_exceptions=True)

    def reset(self) -> None:
        wire = self.websocket.transport
        _linger_zero(wire)
        self._reading.set()
        wire.abort()


class UdpLink(Link):
    """One remote address seen from a UDP socket."""

    def __init__(self, endpoint: "UdpEndpoint", remote: Address) -> None:
        super().__init__("udp", endpoint.on_data, None)
        self._endpoint = endpoint
        self.local = endpoint.local
        self.remote = remote

    @property
    def closed(self) -> bool:
        return self._endpoint.closed.is_set()

    def send(self, data: bytes, *, binary: bool | None = None) -> None:
        self._endpoint.send(data, self.remote)

    def pause_reading(self) -> None:
        self._endpoint.muted = True

    def resume_reading(self) -> None:
        self._endpoint.muted = False

    async def close(self) -> None:
        await self._endpoint.close()

    def reset(self) -> None:
        raise NotImplementedError("UDP knows no reset")


class UdpEndpoint(asyncio.DatagramProtocol):
    """A UDP socket that makes a `UdpLink` for every address it hears from or speaks to."""

    _wire: asyncio.DatagramTransport

    def __init__(self, on_data: Callable[[Link, bytes], None]) -> None:
        self.on_data = on_data
        self.local: Address = ("", 0)
        self.closed = asyncio.Event()
        self.muted = False
        self.errors: list[Exception] = []
        self._links: dict[Address, UdpLink] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast(asyncio.DatagramTransport, transport)  # uvloop and asyncio do not inherit from it
        self.local = transport.get_extra_info("sockname")[:2]

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        if not self.muted:
            self.link(addr[:2])._received(data)

    def error_received(self, exc: Exception) -> None:
        self.errors.append(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()

    def link(self, remote: Address) -> UdpLink:
        """Return the link to an address, the same one every time."""
        if remote not in self._links:
            self._links[remote] = UdpLink(self, remote)
        return self._links[remote]

    def send(self, data: bytes, remote: Address) -> None:
        """Send one datagram. Raises ConnectionError on a socket that was closed."""
        if self.closed.is_set() or self._wire.is_closing():
            raise ConnectionError("the UDP socket is closed")
        self._wire.sendto(data, remote)

    async def close(self) -> None:
        """Close the socket and wait for it."""
        self._wire.close()
        async with deadline():
            await self.closed.wait()


class LinkServer:
    """A listening TCP, TLS, WS or WSS port; `links` holds what was accepted, oldest first."""

    def __init__(self, server: asyncio.Server | WebSocketServer, links: list[Link]) -> None:
        self._server = server
        self.links = links
        self.address: Address = next(iter(server.sockets)).getsockname()[:2]

    async def close(self) -> None:
        """Stop listening and end every accepted connection."""
        if isinstance(self._server, asyncio.Server):
            self._server.close()
            await asyncio.gather(*(link.close() for link in self.links if not link.closed))
            await self._server.wait_closed()
        else:
            for link in self.links:
                link.resume_reading()
            self._server.close()
            await self._server.wait_closed()


async def open_udp(host: str, port: int, on_data: Callable[[Link, bytes], None]) -> UdpEndpoint:
    """Bind a UDP socket (port 0: any)."""
    loop = asyncio.get_running_loop()
    _, endpoint = await loop.create_datagram_endpoint(lambda: UdpEndpoint(on_data), local_addr=(host, port))
    return endpoint


async def open_link(
    transport: str,
    server: Address,
    on_data: Callable[[Link, bytes], None],
    on_closed: Callable[[Link], None] | None = None,
    *,
    subprotocols: tuple[str, ...] = (),
    path: str = "/",
    local: Address | None = None,
    ssl_context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    http_headers: dict[str, str] | None = None,
) -> Link:
    """Connect to a stream server.

    Args:
        subprotocols: of WebSocket, in order of preference.
        local: bind address, port 0 for any; pins the source address a test wants to see.
        ssl_context: for TLS and WSS; default believes any certificate.
        server_hostname: SNI and name to verify; default the server's host.
    """
    options: dict[str, Any] = {"local_addr": local} if local else {}
    if transport in SECURE:
        options |= {
            "ssl": ssl_context or trusting_context(),
            "server_hostname": server_hostname or server[0],
            "ssl_shutdown_timeout": 1.0,
        }
    async with deadline(10):
        if transport in WEBSOCKETS:
            return await _open_websocket(
                transport, server, on_data, on_closed, subprotocols, path, http_headers, options
            )
        loop = asyncio.get_running_loop()
        _, link = await loop.create_connection(
            lambda: StreamLink(transport, on_data, on_closed), server[0], server[1], **options
        )
        return link


async def listen(
    transport: str,
    host: str,
    port: int,
    on_data: Callable[[Link, bytes], None],
    on_closed: Callable[[Link], None] | None = None,
    *,
    subprotocol: str = "",
    ssl_context: ssl.SSLContext | None = None,
) -> LinkServer:
    """Listen for stream connections (port 0: any). TLS and WSS need a server context."""
    links: list[Link] = []
    if transport in SECURE and ssl_context is None:
        raise ValueError(f"a {transport} listener needs an ssl_context with a certificate")
    if transport in WEBSOCKETS:

        async def handle(websocket: ServerConnection) -> None:
            link = WebSocketLink(transport, websocket, on_data, on_closed)
            links.append(link)
            await websocket.wait_closed()
            await asyncio.wait([link._reader])
            await asyncio.gather(link._writer, return_exceptions=True)

        websocket_server = await serve(
            handle,
            host,
            port,
            ssl=ssl_context if transport == "wss" else None,
            subprotocols=[Subprotocol(subprotocol)] if subprotocol else None,
            compression=None,
            max_size=None,
            ping_interval=None,
            close_timeout=2,
        )
        return LinkServer(websocket_server, links)

    def accept() -> StreamLink:
        link = StreamLink(transport, on_data, on_closed)
        link.on_open = links.append
        return link

    secure = {"ssl": ssl_context, "ssl_shutdown_timeout": 1.0} if transport == "tls" else {}
    server = await asyncio.get_running_loop().create_server(accept, host, port, **secure)
    return LinkServer(server, links)


async def _open_websocket(
    transport: str,
    server: Address,
    on_data: Callable[[Link, bytes], None],
    on_closed: Callable[[Link], None] | None,
    subprotocols: tuple[str, ...],
    path: str,
    http_headers: dict[str, str] | None,
    options: dict[str, Any],
) -> WebSocketLink:
    host = f"[{server[0]}]" if ":" in server[0] else server[0]
    websocket = await connect(
        f"{transport}://{host}:{server[1]}{path}",
        subprotocols=[Subprotocol(name) for name in subprotocols] or None,
        additional_headers=http_headers,
        compression=None,
        max_size=None,
        max_queue=1,
        ping_interval=None,
        close_timeout=2,
        proxy=None,
        **options,
    )
    return WebSocketLink(transport, websocket, on_data, on_closed)


def _linger_zero(transport: asyncio.BaseTransport) -> None:
    """Make the next close a reset: SO_LINGER with no time to linger."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
