"""`GET /api/events`: events as they happen, as server-sent events (WHATWG HTML, "Server-sent events").

    ?name=flow.*&name=auth.flood     only these; without any, all
    id: 6b00c160-17
    event: flow.failed
    data: {"event":"flow.failed","time":"2026-11-20T21:53:38.045Z","id":"6b00c160-17",...}

Each reader has a queue of 256 events. What does not fit in is lost to it, and an event `lost` says how many that were.
A comment comes every 15 seconds, so that both ends notice when the other one is gone.
"""

from __future__ import annotations

import asyncio
from collections import deque

from aiohttp import web

from edge.admin.api import json_response
from edge.events import EVENTS, events_named
from edge.hooks.dispatcher import Dispatcher
from edge.hooks.selection import Occurrence, Selection

QUEUE = 256
READERS = 16
QUIET_S = 15.0
STALL_S = 30.0


class Reader:
    """The queue of one reader."""

    def __init__(self) -> None:
        self.lost = 0  # since it was told
        self.missed = 0  # in all
        self.closed = False
        self._queue: deque[Occurrence] = deque()
        self._ready = asyncio.Event()

    def offer(self, occurrence: Occurrence) -> None:
        """Take an event, or count it as lost."""
        if len(self._queue) >= QUEUE:
            self.lost += 1
            self.missed += 1
        else:
            self._queue.append(occurrence)
        self._ready.set()

    def close(self) -> None:
        """Wake whoever waits, for the last time."""
        self.closed = True
        self._ready.set()

    async def take(self) -> bytes:
        """Wait for something to send: events, what was lost, or a comment when there is nothing."""
        try:
            async with asyncio.timeout(QUIET_S):
                await self._ready.wait()
        except TimeoutError:
            return b": quiet\n\n"
        self._ready.clear()
        events = b"".join(map(_encode, self._queue))
        self._queue.clear()
        lost, self.lost = self.lost, 0
        return events + (b'event: lost\ndata: {"lost":%d}\n\n' % lost if lost else b"")


def _encode(occurrence: Occurrence) -> bytes:
    fields = occurrence.id.encode(), occurrence.name.encode(), occurrence.encode()
    return b"id: %b\nevent: %b\ndata: %b\n\n" % fields


class EventStream:
    """The handler of `/api/events`."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._missed = 0  # by readers that are gone
        self._dispatcher = dispatcher
        self._readers: set[Reader] = set()

    def __len__(self) -> int:
        """How many read."""
        return len(self._readers)

    @property
    def missed(self) -> int:
        """How many events did not fit into the queue of a reader."""
        return self._missed + sum(reader.missed for reader in self._readers)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Send events until the reader goes, reads nothing for half a minute, or the server stops."""
        names = request.query.getall("name", ["*"])
        unknown = [name for name in names if not events_named(name)]
        if unknown:
            return json_response({"error": f"no such event: {unknown[0]}; there are {', '.join(EVENTS)}"}, 400)
        if len(self._readers) >= READERS:
            return json_response({"error": f"there are {READERS} readers already"}, 503)
        reader = Reader()
        end = self._dispatcher.subscribe(Selection(names), reader.offer)
        self._readers.add(reader)
        try:
            return await self._send(request, reader)
        finally:
            end()
            self._readers.discard(reader)
            self._missed += reader.missed

    async def _send(self, request: web.Request, reader: Reader) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            await response.write(b": edge\n\n")
            while not reader.closed:
                data = await reader.take()
                async with asyncio.timeout(STALL_S):
                    await response.write(data)
        except (ConnectionError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()
        return response

    def close(self) -> None:
        """End every stream."""
        for reader in self._readers:
            reader.close()
