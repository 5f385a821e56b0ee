"""Writing MSRP messages as chunks (RFC 4975 §5.1, §7.1)."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.ua.link import WEBSOCKETS, Link
from tests.ua.msrp_frame import Frame, build, end_line

if TYPE_CHECKING:
    from tests.ua.msrp_peer import MsrpPeer

WRITE_SIZE = 65536


class Abort(Exception):  # noqa: N818
    """Raised by a body iterator to give up in the middle: the chunk ends with `#`."""


@dataclass(slots=True)
class Sent:
    """One message sent: its chunks and their responses, in order. `responses` stays empty if none were awaited."""

    message_id: str
    chunks: list[Frame] = field(default_factory=list)
    responses: list[Frame] = field(default_factory=list)

    @property
    def statuses(self) -> list[int]:
        return [frame.status for frame in self.responses]

    @property
    def ok(self) -> bool:
        """Whether every chunk got its 200."""
        return self.statuses == [200] * len(self.chunks)


class OutgoingChunk:
    """A SEND being written. On WebSocket it leaves as one message at its end, on a stream as it is written."""

    def __init__(self, peer: "MsrpPeer", frame: Frame, link: Link) -> None:
        self.frame = frame
        self.response = peer.expect(frame)
        self._peer, self._link = peer, link
        self._whole = bytearray(frame.head) if link.transport in WEBSOCKETS else None
        peer.open_chunks[link] = self
        if self._whole is None:
            link.send(frame.head)

    async def write(self, data: bytes) -> None:
        """Add body octets and wait until the transport has room for more."""
        self.frame.add(data)
        if self._whole is not None:
            self._whole += data
            return
        for start in range(0, len(data), WRITE_SIZE):
            self._link.send(data[start : start + WRITE_SIZE])
            await self._link.drain()

    async def end(self, flag: str = "$") -> None:
        """Write the end-line, then what was held back while the chunk was open."""
        self.frame.flag = flag
        closing = end_line(self.frame)
        self._link.send(closing if self._whole is None else bytes(self._whole) + closing)
        self._peer.frames.append(("sent", self.frame))
        self._peer.end_chunk(self._link)
        await self._link.drain()


@dataclass(slots=True)
class MessageWriter:
    """Writes one message as one or several chunks."""

    peer: "MsrpPeer"
    to_path: list[str]
    common: list[tuple[str, str]]
    content_type: str
    link: Link
    sent: Sent
    pending: list[asyncio.Future[Frame]]

    async def bodiless(self) -> None:
        frame = build("SEND", self.to_path, [self.peer.uri], self.common, flag="$")
        self.sent.chunks.append(frame)
        self.pending.append(self.peer.expect(frame))
        self.peer.send_frame(frame, self.link)
        await self.link.drain()

    async def whole(self, body: bytes, chunk_size: int | None, byte_range: str | None) -> None:
        size = chunk_size or max(len(body), 1)
        for start in range(0, max(len(body), 1), size):
            piece = body[start : start + size]
            true_range = f"{start + 1}-{start + len(piece)}/{len(body)}"
            chunk = self._open(byte_range or true_range)
            await chunk.write(piece)
            await chunk.end("$" if start + size >= len(body) else "+")

    async def cut(self, pieces: AsyncIterator[bytes], total: int | None) -> None:
        start, held = 1, None
        async for piece in pieces:
            if held is not None:
                start = await self._numbered(held, start, total, "+")
            held = piece
        await self._numbered(held or b"", start, total, "$")

    async def stream(self, pieces: AsyncIterator[bytes], total: int | None, byte_range: str | None) -> None:
        start, flag = 1, "$"
        chunk = self._open(byte_range or f"1-*/{_star(total)}")
        try:
            async for piece in pieces:
                if _refused(chunk):
                    raise Abort
                if self.peer.is_held(self.link):
                    start += chunk.frame.body_octets
                    await chunk.end("+")
                    chunk = self._open(f"{start}-*/{_star(total)}")
                await chunk.write(piece)
        except Abort:
            flag = "#"
        await chunk.end(flag)

    async def _numbered(self, piece: bytes, start: int, total: int | None, flag: str) -> int:
        chunk = self._open(f"{start}-{start + len(piece) - 1}/{_star(total)}")
        await chunk.write(piece)
        await chunk.end(flag)
        return start + len(piece)

    def _open(self, byte_range: str) -> OutgoingChunk:
        headers = [*self.common, ("Byte-Range", byte_range)]
        chunk = self.peer.start_chunk(self.to_path, headers, self.content_type, link=self.link)
        self.sent.chunks.append(chunk.frame)
        self.pending.append(chunk.response)
        return chunk


async def pieces(body: Iterable[bytes] | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(body, AsyncIterable):
        async for piece in body:
            yield piece
    else:
        for piece in body:
            yield piece


async def regroup(pieces: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    """Give the same octets in pieces of `size`, the last one shorter."""
    buffer = bytearray()
    async for piece in pieces:
        buffer += piece
        while len(buffer) >= size:
            yield bytes(buffer[:size])
            del buffer[:size]
    if buffer:
        yield bytes(buffer)


def _refused(chunk: OutgoingChunk) -> bool:
    """Whether an error came before the chunk's end: the rest need not be sent (RFC 4975 §7.1.2)."""
    answer = chunk.response
    return answer.done() and not answer.cancelled() and not answer.exception() and answer.result().status != 200


def _star(total: int | None) -> str:
    return "*" if total is None else str(total)
