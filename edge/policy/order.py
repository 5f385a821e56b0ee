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


class OrderedReceiver:
    """Stands before the core (`edge.sip.framing.Receiver`) while a policy looks at SIP."""

    def __init__(self, core: SipCore, refuse: Refuse) -> None:
        self.limits: MessageLimits = core.limits
        self.limit = 64
        self.timeout_s = 5.0
        self._core = core
        self._refuse = refuse
        self._queues: dict[int, deque[tuple[Connection, Message]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> bool:
        """Whether a hook is running."""
        return bool(self._tasks)

    # -- what framing calls

    def receive_message(self, connection: Connection, message: Message, now: float) -> bool:
        """Take a message, or let it wait behind one that a hook thinks about."""
        queue = self._queues.get(connection.id) if self._queues else None
        if queue is None:
            return self._core.receive_message(connection, message, now)
        if connection.transport is Transport.UDP and len(queue) >= self.limit:
            self._core.stats.reject("policy_queue")
        else:
            queue.append((connection, message))
        return True

    def receive_refresh(self, connection: Connection, data: bytes, now: float) -> bool:
        """Let no REGISTER past the hooks."""
        return False

    def refuse_unframed(self, connection: Connection, message: Message | None, error: RemoteError) -> None:
        """Answer what cannot be framed."""
        self._core.refuse_unframed(connection, message, error)

    def handle_lost(self, connection: Connection, reason: str, now: float) -> None:
        """Forget what waited."""
        queue = self._queues.get(connection.id)
        if queue is not None:
            queue.clear()
        self._core.handle_lost(connection, reason, now)

    # -- hooks that wait

    def start(self, connection: Connection | None, call: Call, done: Done) -> bool:
        """Run a hook; `done` gets what it raised, in time. False when too many are running."""
        if len(self._tasks) >= MOST_WAITING:
            return False
        if connection is not None:
            if connection.id not in self._queues:
                self._queues[connection.id] = deque()
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
        except Exception as error:  # noqa: BLE001 - the operator's code may raise anything
            problem = error
        try:
            done(problem)
        finally:
            if connection is not None:
                self._go_on(connection)

    def _go_on(self, connection: Connection) -> None:
        """Let the messages that waited go on, up to one that a hook thinks about again."""
        queue = self._queues.pop(connection.id, deque())
        now = self._core.clock()
        while queue and connection.id not in self._queues:
            self._core.receive_message(*queue.popleft(), now)
        if queue:
            self._queues[connection.id].extendleft(reversed(queue))
        connection.resume_reading()

    async def close(self) -> None:
        """Cancel what is running."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
