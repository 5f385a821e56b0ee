"""A next hop for messages nobody can be expected to understand: it records octets and answers by copying lines.

Runs in a thread with a loop of its own, so that one serves all tests of a module, and answers DNS questions for its names.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import random
import re
import threading
from collections.abc import Iterator
from typing import Any

from tests.ua.dns import DnsServer
from tests.ua.wait import scaled

_COPIED = (b"via", b"v", b"from", b"f", b"to", b"t", b"call-id", b"i", b"cseq")
_LENGTH = re.compile(rb"\r\n(?:content-length|l)[ \t]*:[ \t]*([0-9]+)", re.IGNORECASE)


def answer(request: bytes) -> bytes | None:
    """Answer a request: 486 to INVITE, nothing to ACK, 200 to all else."""
    head = request.partition(b"\r\n\r\n")[0]
    method = head.partition(b" ")[0]
    if method == b"ACK":
        return None
    lines = [b"SIP/2.0 486 Busy Here" if method == b"INVITE" else b"SIP/2.0 200 OK"]
    for row in re.split(rb"\r\n(?![ \t])", head)[1:]:
        name = row.partition(b":")[0].strip().lower()
        if name in _COPIED:
            lines.append(row + b";tag=stub" if name in (b"to", b"t") and b"tag" not in row else row)
    return b"\r\n".join([*lines, b"Content-Length: 0", b"", b""])


class StubHop:
    """Listens on port 5060 of an address of its own for UDP and TCP; `received` are (transport, octets) of requests."""

    def __init__(self, *names: str) -> None:
        self.address = f"127.77.{random.randrange(1, 255)}.{random.randrange(1, 255)}"
        self.received: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.nameserver = ""
        self._names = names
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    @contextlib.contextmanager
    def running(self) -> Iterator[StubHop]:
        """Listen for as long as the context lasts."""
        self._thread.start()
        assert self._ready.wait(scaled(10))
        yield self
        assert self._loop is not None
        assert self._over is not None
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(scaled(10))

    async def next(self, seconds: float = 5.0) -> tuple[str, bytes]:
        """The next request that came. Raises queue.Empty."""
        return await asyncio.to_thread(self.received.get, True, scaled(seconds))

    async def _run(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with DnsServer(*(f"{name}. 300 IN A {self.address}" for name in self._names)) as dns:
            self.nameserver = dns.address
            udp, _ = await self._loop.create_datagram_endpoint(
                lambda: _Datagrams(self), local_addr=(self.address, 5060)
            )
            tcp = await asyncio.start_server(self._serve, self.address, 5060)
            self._ready.set()
            await self._over.wait()
            udp.close()
            tcp.close()
            for writer in self._writers:
                writer.close()
            await asyncio.sleep(0)
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if not head.strip():
                    continue
                length = _LENGTH.search(head)
                assert length is not None
                data = head + await reader.readexactly(int(length[1]))
                reply = self.take("tcp", data)
                if reply is not None:
                    writer.write(reply)
        writer.close()

    def take(self, transport: str, data: bytes) -> bytes | None:
        """Note a message; returns the answer to a request."""
        if data.startswith(b"SIP/2.0 ") or not data.strip(b"\r\n\0 "):
            return None
        self.received.put((transport, data))
        return answer(data)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, stub: StubHop) -> None:
        self._stub = stub

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        reply = self._stub.take("udp", data)
        if reply is not None:
            self._transport.sendto(reply, addr)
