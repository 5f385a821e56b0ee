"""The four transaction machines of RFC 3261 §17 with RFC 6026 and RFC 4320 (sans-IO).

                INVITE client                          non-INVITE client
    CALLING ──1xx──► PROCEEDING                 TRYING ──1xx──► PROCEEDING
       │ 2xx ──────► ACCEPTED  (M, 32 s)           │ final ───► gone, K needs nothing: a late answer matches nothing
       │ 300-699 ──► COMPLETED (D, ACK again)      │ F ───────► timeout
       │ B ────────► timeout

                INVITE server                          non-INVITE server
    PROCEEDING ──2xx──► ACCEPTED  (L, 32 s)     TRYING ──1xx──► PROCEEDING
       │ 300-699 ─────► COMPLETED (G, H)           │ final ───► gone; on UDP J leaves key → octets of the answer
       └── ACK ───────► CONFIRMED (I)

Every machine has one timer in the wheel, set to whichever of its deadlines comes first; a deadline that moves away is
left to be found out when the old one passes. `now` is an argument.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import Protocol

from edge.connections import Connection
from edge.sip.answers import build_trying
from edge.sip.message import Message
from edge.timers import Timed, TimerWheel

T1 = 0.5
T2 = 4.0
T4 = 5.0
TIMEOUT_S = 64 * T1  # B, F, H, J, L, M
TIMER_C_S = 185.0  # RFC 3261 §16.6 step 11: more than three minutes
TIMER_D = 32.0
TRYING_DELAY_S = 3.5  # RFC 4320 §4.1
_FINALS_STEP_S = 0.5
_SLACK_S = 1e-6  # the wheel may call that much too early


class State(IntEnum):
    """States of the four machines; each uses its part."""

    TRYING = 0  # CALLING for an INVITE client
    PROCEEDING = 1
    COMPLETED = 2
    CONFIRMED = 3
    ACCEPTED = 4
    TERMINATED = 5


class ServerUser(Protocol):
    """What a server transaction tells whoever answers it."""

    def handle_server_ended(self, now: float) -> None: ...


class ClientUser(Protocol):
    """What a client transaction tells whoever sent the request."""

    def handle_response(self, client: ClientTransaction, message: Message, now: float) -> None: ...

    def handle_timeout(self, client: ClientTransaction, now: float) -> None: ...

    def handle_failure(self, client: ClientTransaction, reason: str, now: float) -> None: ...

    def build_ack(self, client: ClientTransaction, message: Message) -> bytes: ...


class Nobody:
    """Whom a transaction tells when nobody waits for it: one that is over, or a CANCEL, whose INVITE is what counts."""

    __slots__ = ()

    def handle_response(self, client: ClientTransaction, message: Message, now: float) -> None:
        """Nothing to do."""

    def handle_timeout(self, client: ClientTransaction, now: float) -> None:
        """Nothing to do."""

    def handle_failure(self, client: ClientTransaction, reason: str, now: float) -> None:
        """Nothing to do."""

    def build_ack(self, client: ClientTransaction, message: Message) -> bytes:
        """Never asked for: neither has an ACK."""
        return b""


NOBODY = Nobody()


class ServerTransaction(Timed):
    """One request we are answering. `connection` is where its answers go."""

    __slots__ = (
        "_ends_at", "_interval", "_retransmit_at", "connection", "invite", "key", "last", "layer", "reliable", "state",
        "status", "trying", "user",
    )  # fmt: skip

    def __init__(self, layer: Transactions, key: bytes, invite: bool, connection: Connection) -> None:
        self._slot = None
        self.layer = layer
        self.key = key
        self.invite = invite
        self.connection = connection
        self.reliable = connection.transport != 0
        self.state = State.PROCEEDING if invite else State.TRYING
        self.last: bytes | None = None
        self.status = 0
        self.trying: Message | None = None  # the non-INVITE that gets a 100 after 3.5 s
        self.user: ServerUser | None = None
        self._interval = self._retransmit_at = self._ends_at = 0.0

    def receive_retransmission(self) -> None:
        """The request came again: repeat the last answer, if any (§17.2.1, §17.2.2; RFC 6026 §7.1)."""
        self.layer.retransmissions_absorbed += 1
        if self.last is not None and self.state is not State.ACCEPTED and self.state is not State.CONFIRMED:
            self.connection.send(self.last)

    def respond(self, status: int, data: bytes, now: float) -> None:
        """Send an answer; what the machine does not allow any more is discarded."""
        if self.state >= State.COMPLETED and not (self.state is State.ACCEPTED and 200 <= status < 300):
            return
        self.connection.send(data)
        self.status = status
        if status < 200:
            self.state = State.PROCEEDING
            self.last = data
        elif self.state is not State.ACCEPTED:
            self._enter_final(status, data, now)

    def _enter_final(self, status: int, data: bytes, now: float) -> None:
        if not self.invite:
            self.layer.end_server(self)
            if not self.reliable:
                self.layer.remember_final(self.key, data, now)
            return
        self._ends_at = now + TIMEOUT_S
        if status < 300:
            self.state = State.ACCEPTED
            self.last = None
            self._retransmit_at = 0.0
        else:
            self.state = State.COMPLETED
            self.last = data
            self._interval = T1
            self._retransmit_at = 0.0 if self.reliable else now + T1
        self._arm()

    def receive_ack(self, now: float) -> bool:
        """An ACK for this INVITE. True: absorbed. False: it belongs to the core (2xx, RFC 6026 §7.1)."""
        if self.state is State.ACCEPTED:
            return False
        if self.state is State.COMPLETED:
            if self.reliable:
                self.layer.end_server(self)
            else:
                self.state = State.CONFIRMED
                self.last = None
                self._retransmit_at = 0.0
                self._ends_at = now + T4
                self._arm()
        return True

    def start_trying_timer(self, request: Message, now: float) -> None:
        """Send a 100 when 3.5 s pass without an answer to this non-INVITE (RFC 4320 §4.1)."""
        self.trying = request
        self._retransmit_at = now + TRYING_DELAY_S
        self._ends_at = now + TIMEOUT_S
        self._arm()

    def _arm(self) -> None:
        due = self._ends_at
        if self._retransmit_at and self._retransmit_at < due:
            due = self._retransmit_at
        self.layer.wheel.start(self, due)

    def handle_timer(self, now: float) -> None:
        """End, send once more, or wait on, whichever is due."""
        if now + _SLACK_S >= self._ends_at:
            self._handle_end(now)
            return
        if not self.invite:
            if self.state is State.TRYING and self.trying is not None:
                self.respond(100, build_trying(self.trying), now)
            self._retransmit_at = 0.0
        elif self.state is State.COMPLETED and self.last is not None:
            self.connection.send(self.last)
            self.layer.retransmissions_sent += 1
            self._interval = min(2 * self._interval, T2)
            self._retransmit_at += self._interval
        self._arm()

    def _handle_end(self, now: float) -> None:
        if self.state is State.COMPLETED:
            self.layer.acks_missing += 1
        user = self.user
        self.layer.end_server(self)
        if user is not None:
            user.handle_server_ended(now)


class ClientTransaction(Timed):
    """One request we sent. `user` is told of answers; `connection` is where it went."""

    __slots__ = (
        "_interval", "_retransmit_at", "ack", "branch", "connection", "ends_at", "invite", "layer", "reliable",
        "request", "state", "user",
    )  # fmt: skip

    def __init__(
        self, layer: Transactions, branch: bytes, invite: bool, request: bytes, connection: Connection, user: ClientUser
    ) -> None:
        self._slot = None
        self.layer = layer
        self.branch = branch
        self.invite = invite
        self.request = request
        self.connection = connection
        self.reliable = connection.transport != 0
        self.state = State.TRYING
        self.user: ClientUser = user
        self.ack: bytes | None = None
        self.ends_at = 0.0
        self._interval = T1
        self._retransmit_at = 0.0

    def start(self, now: float) -> None:
        """Send the request and start timers A and B, or E and F."""
        self.layer.clients[self.branch] = self
        self.ends_at = now + TIMEOUT_S
        if not self.reliable:
            self._retransmit_at = now + T1
        self._arm()
        self.connection.send(self.request)

    def receive_response(self, message: Message, now: float) -> None:
        """An answer that matches this transaction (§17.1.1.2, §17.1.2.2; RFC 6026 §7.2)."""
        status = message.status
        state = self.state
        if status < 200:
            if state <= State.PROCEEDING:
                self._enter_proceeding(now)
                self.user.handle_response(self, message, now)
        elif not self.invite:
            if state <= State.PROCEEDING:
                user = self.user
                self.layer.end_client(self)
                user.handle_response(self, message, now)
        elif status < 300:
            if state <= State.PROCEEDING or state is State.ACCEPTED:
                self._enter_accepted(now)
                self.user.handle_response(self, message, now)
        else:
            self._receive_refusal(message, now)

    def _enter_proceeding(self, now: float) -> None:
        if self.state is State.PROCEEDING:
            return
        self.state = State.PROCEEDING
        if self.invite:
            self._retransmit_at = 0.0
            self.ends_at = now + TIMER_C_S
        elif not self.reliable:
            self._interval = T2
            self._arm()

    def _enter_accepted(self, now: float) -> None:
        if self.state is not State.ACCEPTED:
            self.state = State.ACCEPTED
            self.request = b""
            self._retransmit_at = 0.0
            self.ends_at = now + TIMEOUT_S
            self._arm()

    def _receive_refusal(self, message: Message, now: float) -> None:
        if self.state is State.COMPLETED:
            if self.ack is not None:
                self.connection.send(self.ack)
            return
        if self.state > State.PROCEEDING:
            return
        user = self.user
        self.ack = user.build_ack(self, message)
        self.connection.send(self.ack)
        if self.reliable:
            self.layer.end_client(self)
        else:
            self.user = NOBODY
            self.state = State.COMPLETED
            self.request = b""
            self._retransmit_at = 0.0
            self.ends_at = now + TIMER_D
            self._arm()
        user.handle_response(self, message, now)

    def hurry(self, deadline: float) -> None:
        """Give up at `deadline` already, where nothing is heard by then; a 1xx for an INVITE starts timer C as ever."""
        self.ends_at = deadline
        self._arm()

    def restart_timer_c(self, deadline: float) -> None:
        """Run until `deadline` without a final answer (§16.6 step 11); only an INVITE that is proceeding."""
        if self.state is State.PROCEEDING:
            self.ends_at = deadline
            self._arm()

    def _arm(self) -> None:
        """Have the wheel call at the next deadline; a call that comes too early does no harm and saves moving it."""
        due = self.ends_at
        if self._retransmit_at and self._retransmit_at < due:
            due = self._retransmit_at
        if self._slot is None or self.timer_deadline > due:
            self.layer.wheel.start(self, due)

    def handle_timer(self, now: float) -> None:
        """End, send once more, or wait on, whichever is due."""
        if now + _SLACK_S >= self.ends_at:
            self._handle_end(now)
            return
        if self._retransmit_at and now + _SLACK_S >= self._retransmit_at:
            self.connection.send(self.request)
            self.layer.retransmissions_sent += 1
            if self.invite:
                self._interval *= 2
            elif self.state is State.TRYING:
                self._interval = min(2 * self._interval, T2)
            self._retransmit_at += self._interval
        self._arm()

    def _handle_end(self, now: float) -> None:
        """Timer B, D, F or M, or what stands for timer C: an INVITE that proceeds is its user's to end."""
        user = self.user
        waiting = self.state <= State.PROCEEDING
        if not (self.invite and self.state is State.PROCEEDING):
            self.layer.end_client(self)
        if waiting:
            user.handle_timeout(self, now)

    def fail(self, reason: str, now: float) -> None:
        """The transport could not carry the request, or lost its connection before any final answer."""
        if self.state <= State.PROCEEDING:
            user = self.user
            self.layer.end_client(self)
            user.handle_failure(self, reason, now)


class Transactions:
    """All live transactions, found by branch; what lingers for timer J is a key and the octets of one answer."""

    __slots__ = (
        "_finals_due", "_finals_now", "_finals_until", "acks_missing", "clients", "finals", "retransmissions_absorbed",
        "retransmissions_sent", "servers", "wheel",
    )  # fmt: skip

    def __init__(self, wheel: TimerWheel) -> None:
        self.wheel = wheel
        self.servers: dict[bytes, ServerTransaction] = {}
        self.clients: dict[bytes, ClientTransaction] = {}
        self.finals: dict[bytes, bytes] = {}
        self._finals_due: deque[tuple[float, list[bytes]]] = deque()
        self._finals_now: list[bytes] = []  # the keys of the newest part of a second
        self._finals_until = 0.0
        self.retransmissions_absorbed = 0
        self.retransmissions_sent = 0
        self.acks_missing = 0

    def add_server(self, key: bytes, invite: bool, connection: Connection) -> ServerTransaction:
        """Open a server transaction."""
        server = self.servers[key] = ServerTransaction(self, key, invite, connection)
        connection.uses += 1
        return server

    def end_server(self, server: ServerTransaction) -> None:
        """Forget a server transaction."""
        if self.servers.pop(server.key, None) is not None:
            server.state = State.TERMINATED
            server.trying = server.user = None
            self.wheel.stop(server)
            server.connection.release_use()

    def end_client(self, client: ClientTransaction) -> None:
        """Forget a client transaction."""
        client.state = State.TERMINATED
        client.user = NOBODY
        self.clients.pop(client.branch, None)
        self.wheel.stop(client)

    def awaits(self, connection: Connection) -> bool:
        """Whether an answer is still to come on a connection; looks at every request under way."""
        for client in self.clients.values():
            if client.connection is connection and client.state <= State.PROCEEDING:
                return True
        return False

    def remember_final(self, key: bytes, data: bytes, now: float) -> None:
        """Keep the answer of a finished non-INVITE for timer J. Keys that end within half a second leave together."""
        self.finals[key] = data
        if now >= self._finals_until:
            if not self._finals_due and self.wheel.wake is not None:
                self.wheel.wake()
            self._finals_until = now + _FINALS_STEP_S
            self._finals_now = []
            self._finals_due.append((self._finals_until + TIMEOUT_S, self._finals_now))
        self._finals_now.append(key)

    def handle_deadline(self, now: float) -> None:
        """Let timers fire and forget answers whose timer J has passed."""
        self.wheel.advance(now)
        due = self._finals_due
        while due and due[0][0] <= now:
            for key in due.popleft()[1]:
                self.finals.pop(key, None)

    @property
    def lingering(self) -> bool:
        """Whether `handle_deadline` is still needed."""
        return bool(self._finals_due) or self.wheel.count > 0
