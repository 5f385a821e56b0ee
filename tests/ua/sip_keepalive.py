"""Keep-alives of the simulated SIP UA, both directions: CRLF on streams, STUN on UDP (RFC 5626 §3.5, §4.4)."""

import asyncio

from tests.ua import stun
from tests.ua.link import Address, Link
from tests.ua.wait import deadline


class KeepAlive:
    """Pings, and answers pings unless `answering` is off.

    `log` holds ("sent" | "received", bytes) of every keep-alive.
    """

    def __init__(self) -> None:
        self.log: list[tuple[str, bytes]] = []
        self.answering = True
        self._line_ends: dict[Link, int] = {}
        self._pongs: list[tuple[Link, asyncio.Future[None]]] = []
        self._bindings: dict[bytes, asyncio.Future[stun.StunMessage]] = {}

    async def ping(self, link: Link, seconds: float) -> Address | None:
        """Ping and wait for the answer; on UDP return the mapped address. Raises TimeoutError, ConnectionError."""
        if link.transport == "udp":
            return await self._ping_stun(link, seconds)
        waiting = (link, asyncio.get_running_loop().create_future())
        self._pongs.append(waiting)
        self._send(b"\r\n\r\n", link)
        try:
            async with deadline(seconds):
                await waiting[1]
        finally:
            self._pongs.remove(waiting)
        return None

    async def _ping_stun(self, link: Link, seconds: float) -> Address:
        request = stun.binding_request()
        answer: asyncio.Future[stun.StunMessage] = asyncio.get_running_loop().create_future()
        self._bindings[request.transaction] = answer
        self._send(request.encode(), link)
        try:
            async with deadline(seconds):
                return stun.mapped_address(await answer)
        finally:
            del self._bindings[request.transaction]

    def receive_stun(self, link: Link, data: bytes) -> None:
        """Take a STUN datagram. Raises ValueError if it is malformed."""
        self.log.append(("received", data))
        message = stun.parse(data)
        waiting = self._bindings.get(message.transaction)
        if message.kind == stun.BINDING_REQUEST:
            if self.answering:
                self._send(stun.binding_success(message, link.remote).encode(), link)
        elif waiting is not None and not waiting.done():
            waiting.set_result(message)

    def receive_line_end(self, link: Link) -> None:
        """Take one CRLF between messages: a pong if we wait for one, else half a ping."""
        pong = next((future for owner, future in self._pongs if owner is link and not future.done()), None)
        if pong is not None:
            self.log.append(("received", b"\r\n"))
            pong.set_result(None)
            return
        self._line_ends[link] = self._line_ends.get(link, 0) + 1
        if self._line_ends[link] == 2:
            self._line_ends[link] = 0
            self.log.append(("received", b"\r\n\r\n"))
            if self.answering:
                self._send(b"\r\n", link)

    def receive_message(self, link: Link) -> None:
        """Note that a message came between two line ends: they are no ping."""
        self._line_ends[link] = 0

    def link_lost(self, link: Link) -> None:
        """Fail the pings of a connection that has ended."""
        for owner, pong in self._pongs:
            if owner is link and not pong.done():
                pong.set_exception(ConnectionError(f"connection ended before the pong: {link.reason}"))

    def _send(self, data: bytes, link: Link) -> None:
        self.log.append(("sent", data))
        link.send(data)
