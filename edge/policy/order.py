"""Keeps the order of a connection while an `async` hook thinks about one of its messages.

    message ─► nothing waits on this connection ─► the core ─► the hook begins ─► reading stops
            └─ something does ─► its queue ─────────────────────────────────────► the core, once the hook is done

A stream is not read meanwhile, so what waits is what one read brought; a UDP flow has a bounded queue.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from edge.connections import Connection, Transport
from edge.errors import RemoteError
from edge.sip.core import SipCore
from edge.sip.message import Message, MessageLimits

MOST_WAITING = 1000  # hooks that run at the same time

Call = Callable[[], Awaitable[None] | None]
Done = Callable[[BaseException | None], None]
Refuse = Callable[[Connection, Message, int], None]


class Line:
    """What waits on one connection: for how many hooks, and which SIP messages."""

    __slots__ = ("hooks", "messages")

    def __init__(self) -> None:
        self.hooks = 0
        self.messages: deque[tuple[Connection, Message]] = deque()


class OrderedReceiver:
    """Stands before the core (`edge.sip.framing.Receiver`) while a policy looks at SIP."""

    def __init__(self, core: SipCore, refuse: Refuse) -> None:
        self.limits: MessageLimits = core.limits
        self.limit = 64
        self.timeout_s = 5.0
        self._core = core
        self._refuse = refuse
        self._closed = False
        self._lines: dict[int, Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.running = 0  # hooks

    @property
    def closed(self) -> bool:
        """Whether the server stops, and no hook is begun any more."""
        return self._closed

    # -- what framing calls

    def receive_message(self, connection: Connection, message: Message, now: float) -> bool:
        """Take a message, or let it wait behind one that a hook thinks about."""
        line = self._lines.get(connection.id) if self._lines else None
        if line is None:
            return self._core.receive_message(connection, message, now)
        if connection.transport is Transport.UDP and len(line.messages) >= self.limit:
            self._core.stats.reject("policy_queue")
        else:
            line.messages.append((connection, message))
        return True

    def receive_refresh(self, connection: Connection, data: bytes, now: float) -> bool:
        """Let no REGISTER past the hooks."""
        return False

    def refuse_unframed(self, connection: Connection, message: Message | None, error: RemoteError) -> None:
        """Answer what cannot be framed."""
        self._core.refuse_unframed(connection, message, error)

    def handle_lost(self, connection: Connection, reason: str, now: float) -> None:
        """Forget what waited."""
        line = self._lines.get(connection.id)
        if line is not None:
            line.messages.clear()
        self._core.handle_lost(connection, reason, now)

    # -- hooks that wait

    def start(self, connection: Connection | None, call: Call, done: Done) -> bool:
        """Run a hook; `done` gets what it raised, in time. False when too many are running."""
        if self.running >= MOST_WAITING or self._closed:
            return False
        self.running += 1
        if connection is not None:
            line = self._lines.setdefault(connection.id, Line())
            line.hooks += 1
            connection.pause_reading()
        task = asyncio.get_running_loop().create_task(self._run(connection, call, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _run(self, connection: Connection | None, call: Call, done: Done) -> None:
        problem: BaseException | None = None
        try:
            async with asyncio.timeout(self.timeout_s):
                work = call()
                if work is not None:
                    await work
        except asyncio.CancelledError as error:
            if self._closed:
                raise
            problem = error  # of something the hook waited for
        except Exception as error:  # noqa: BLE001 - the operator's code may raise anything
            problem = error
        self.running -= 1  # what waited behind it may have its place
        try:
            done(problem)
        finally:
            if connection is not None:
                self._go_on(connection)

    def _go_on(self, connection: Connection) -> None:
        """Let the messages that waited go on, up to one that a hook thinks about again."""
        line = self._lines[connection.id]
        line.hooks -= 1
        now = self._core.clock()
        while not line.hooks and line.messages:
            self._core.receive_message(*line.messages.popleft(), now)
        if not line.hooks:
            del self._lines[connection.id]
        connection.resume_reading()

    async def close(self) -> None:
        """Cancel what is running, and begin nothing more."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
