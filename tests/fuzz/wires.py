"""The fuzzer's end of a connection, over TCP or WebSocket: octets out in pieces of any size, frames in."""

from __future__ import annotations

import asyncio
import random
import socket
import struct

from tests.fuzz.frames import STRANGER
from tests.ua import digest
from tests.ua.link import Address
from tests.ua.msrp_frame import Frame, FrameReader
from tests.ua.wait import deadline

_UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: msrp\r\n\r\n"
)
_HEARD = 20  # transaction ids of requests that are remembered, to be answered


class Wire(asyncio.Protocol):
    """One TCP connection. All that the relay says is read by the parser of `tests/ua`.

    `heard` are the ids of requests that came, `answered` is the status of the answer that `expect` waits for, `codes`
    counts all answers. `wrong` says what the relay must never say; what it sends to strangers cannot be a 200.
    """

    transport_name = "tcp"

    def __init__(self, stranger: bool) -> None:
        self.stranger = stranger
        self.heard: list[bytes] = []
        self.codes: dict[int, int] = {}
        self.wrong: list[str] = []
        self.closed = asyncio.Event()
        self.challenges: list[str] = []
        self.use_path = ""
        self._awaited = ""
        self._answer: asyncio.Future[int] | None = None
        self._reader = FrameReader(lambda frame: None, lambda frame, piece: None, self._read)
        self._writable = asyncio.Event()
        self._writable.set()

    # -- what the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.wire = transport
        self.local: Address = transport.get_extra_info("sockname")[:2]

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
        except ValueError as error:
            self.wrong.append(f"what the relay says cannot be read: {error}")
            self.wire.abort()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()
        self._writable.set()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(0)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _read(self, frame: Frame) -> None:
        if STRANGER in frame.head + frame.body and not self.stranger:
            self.wrong.append(f"a stranger was heard: {frame.head!r}")
        if not frame.status:
            self.heard[_HEARD:] = [frame.transaction_id.encode()]
            return
        self.codes[frame.status] = self.codes.get(frame.status, 0) + 1
        if frame.status == 200 and self.stranger:
            self.wrong.append(f"a stranger was told 200: {frame.head!r}")
        if self._answer is not None and frame.transaction_id == self._awaited and not self._answer.done():
            self.challenges, self.use_path = frame.all("WWW-Authenticate"), frame.get("Use-Path") or ""
            self._answer.set_result(frame.status)

    # -- what the fuzzer calls

    async def begin(self) -> None:
        """Be ready for MSRP."""

    def expect(self, tid: bytes) -> asyncio.Future[int]:
        """A future for the status of the answer to a request about to be sent; 0 when the connection ends before."""
        self._awaited, self._answer = tid.decode(), asyncio.get_running_loop().create_future()
        if self.closed.is_set():
            self._answer.set_result(0)
        return self._answer

    def challenge(self) -> digest.Challenge | None:
        """The challenge of the answer that came last."""
        return digest.choose(self.challenges)

    async def say(self, frames: list[bytes], source: random.Random) -> None:
        """Send frames, cut anywhere over writes, or all in one."""
        await self._write(b"".join(frames), source)

    async def _write(self, data: bytes, source: random.Random) -> None:
        cuts = sorted(source.randrange(len(data) + 1) for _ in range(source.choice((0, 0, 1, 2, 7, 25))))
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            if self.closed.is_set() or self.wire.is_closing():
                return
            self.wire.write(data[start:end])
            await asyncio.sleep(0)
        async with deadline(30):
            await self._writable.wait()

    def finish(self) -> None:
        """Send nothing more (FIN); the relay has to close then."""
        if not self.closed.is_set() and not self.wire.is_closing():
            self.wire.write_eof()

    def reset(self) -> None:
        """Tear the connection down."""
        if not self.closed.is_set():
            self.wire.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.wire.abort()


class WebSocketWire(Wire):
    """One WebSocket connection, framed by hand: a message for each frame, in fragments of any size."""

    transport_name = "ws"

    def __init__(self, stranger: bool) -> None:
        super().__init__(stranger)
        self._upgraded = asyncio.Event()
        self._buffer = bytearray()

    async def begin(self) -> None:
        self.wire.write(_UPGRADE)
        async with deadline(10):
            await self._upgraded.wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._upgraded.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._upgraded.is_set():
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            if not self._buffer.startswith(b"HTTP/1.1 101 "):
                self.wrong.append(f"no upgrade: {bytes(self._buffer)!r}")
            del self._buffer[: end + 4]
            self._upgraded.set()
        while (size := self._frame_size()) and len(self._buffer) >= size:
            self._read_frame(size)

    def _frame_size(self) -> int:
        """Octets of the frame at the start of the buffer; 0 while its head is not complete."""
        buffer = self._buffer
        short = buffer[1] if len(buffer) > 1 else 0
        head = {126: 4, 127: 10}.get(short, 2)
        if len(buffer) < head:
            return 0
        return head + (int.from_bytes(buffer[2:head], "big") if head > 2 else short)

    def _read_frame(self, size: int) -> None:
        first, short = self._buffer[0], self._buffer[1]
        payload = bytes(self._buffer[{126: 4, 127: 10}.get(short, 2) : size])
        del self._buffer[:size]
        opcode = first & 0x0F
        if opcode in (0, 1, 2):
            super().data_received(payload)
            if first & 0x80 and not self._reader.idle and not self.wrong:
                self.wrong.append(f"a message that is not exactly one frame: {payload[:200]!r}")
        elif opcode == 9 and not self.wire.is_closing():
            self.wire.write(_masked(0x8A, payload, 7))

    async def say(self, frames: list[bytes], source: random.Random) -> None:
        await self._write(b"".join(_message(frame, source) for frame in frames if frame), source)


def _message(data: bytes, source: random.Random) -> bytes:
    """One WebSocket message: text or binary where both are possible, whole or in fragments."""
    opcode = 1 if data.isascii() and source.random() < 0.5 else 2
    cuts = sorted(source.randrange(len(data) + 1) for _ in range(source.choice((0, 0, 0, 0, 0, 1, 2, 5))))
    starts, parts = [0, *cuts], []
    for number, (start, end) in enumerate(zip(starts, [*cuts, len(data)], strict=True), 1):
        fin = 0x80 if number == len(starts) else 0
        parts.append(_masked(fin | opcode, data[start:end], source.getrandbits(32)))
        opcode = 0
    return b"".join(parts)


def _masked(first: int, data: bytes, key: int) -> bytes:
    """One frame as a client sends it."""
    size = len(data)
    if size < 126:
        head = struct.pack("!BB", first, 0x80 | size)
    elif size < 65536:
        head = struct.pack("!BBH", first, 0xFE, size)
    else:
        head = struct.pack("!BBQ", first, 0xFF, size)
    octets = key.to_bytes(4, "big")
    mask = int.from_bytes((octets * (size // 4 + 1))[:size], "big")
    return head + octets + (int.from_bytes(data, "big") ^ mask).to_bytes(size, "big")
