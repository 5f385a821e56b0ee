"""One branch of a request: where it goes, its client transaction, its CANCEL (RFC 3261 §16.6, §9.1), sans-IO.

send ─► CALLING ─► 1xx ─► final              ─► the context chooses
           │        └──── timer C ─► CANCEL ─► 32 s of silence ─► as if it had ended
           ├─ no way, no answer, 503 ─► the next address of the same target, in a new transaction
           └─ none left ─► the context: the next flow, else 430 (a flow), 503 or 408
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from edge.connections import Connection, Transport
from edge.sip import headers as h
from edge.sip.forward import derive_request
from edge.sip.location import Binding
from edge.sip.message import Message
from edge.sip.stamping import Stamper
from edge.sip.transaction import NOBODY, TIMEOUT_S, TIMER_C_S, ClientTransaction, State, Transactions
from edge.sip.uri import SipUri

if TYPE_CHECKING:
    from edge.sip.latecomers import Waiter
    from edge.sip.proxy import ProxyContext

FLOW_FAILED = 430
_NO_VALUES: list[bytes] = []


class Target:
    """One place a request may go.

    `uri` becomes the Request-URI; `routes` go before the Route values left. `connection` is the flow to use; without
    one `locate` (the URI that decides about address and transport) is resolved. `token` is what to record-route
    towards it. `binding` is where it comes from, as it was refreshed at `refreshed_at` with `cseq`.
    `strict` is the value to append as last Route for a next hop without `lr`.
    """

    __slots__ = (
        "binding", "connection", "cseq", "existing", "failover", "gone", "locate", "q", "refreshed_at", "routes",
        "sips", "strict", "token", "uri",
    )  # fmt: skip

    def __init__(self, uri: bytes, connection: Connection | None = None, locate: SipUri | None = None) -> None:
        self.uri = uri
        self.connection = connection
        self.locate = locate
        self.routes: tuple[bytes, ...] = ()
        self.token: bytes | None = None
        self.binding: Binding | None = None
        self.refreshed_at = 0.0
        self.cseq = 0
        self.gone = False  # a flow of ours that is known to have ended
        self.sips = False  # the topmost Route is sips (RFC 3261 §16.6 step 4)
        self.strict = b""
        self.q = 1000
        self.failover = False  # a 503 from here leads on to the next of its group
        self.existing = False  # no connection is opened for it

    @property
    def flow(self) -> bool:
        """Whether it is a flow: one that fails is gone, and another of the same client may be tried (RFC 5626 §7)."""
        return self.connection is not None or (self.binding is not None and len(self.binding.path) > 0)


Group = list[Target]
Opener = Callable[[], Connection]
Reached = Callable[[list[Opener], int], None]


BranchHook = Callable[["Branch", bytes, Connection], bytes | None]  # None: `Branch.decide` is called later


class Core(Protocol):
    """What a context and its branches need of the core that owns them."""

    transactions: Transactions
    stamper: Stamper
    max_branches: int
    branch_hook: BranchHook | None

    def reach(self, target: Target, size: int, reached: Reached) -> None:
        """Find ways to a target, in the order to try them, perhaps later; none and a status when there are none."""

    def record_routes(self, context: ProxyContext, target: Target, connection: Connection) -> list[bytes]: ...

    def redirected(self, context: ProxyContext, message: Message) -> list[Group] | None:
        """Return what to try for a 3xx, which is kept in `redirections` of the context; None: relay it."""

    def flow_failed(self, target: Target, now: float) -> None: ...

    def is_active(self, connection: Connection, now: float) -> bool: ...

    def await_flow(
        self, context: ProxyContext, target: Target, breadth: int, now: float, until: float
    ) -> Waiter | None:
        """Wait for the device of a target to come back, and call `handle_late_flow`; None where that is not done."""

    def end_waiting(self, waiter: Waiter) -> None: ...

    def avoid(self, connection: Connection, seconds: float) -> None: ...

    def retry_line(self) -> bytes: ...

    def count_answer(self, status: int) -> None: ...

    def tag_for(self, message: Message) -> bytes: ...

    def clock(self) -> float: ...


class Branch:
    """One client transaction of a context; see `ClientUser`. `breadth` is its share of Max-Breadth."""

    __slots__ = (
        "_full", "_heard", "_id", "_later", "breadth", "cancel_wanted", "cancelled", "client", "context", "group",
        "passed_over", "rang", "target",
    )  # fmt: skip

    def __init__(self, context: ProxyContext, target: Target, group: Group, later: list[Opener], breadth: int) -> None:
        self.context = context
        self.target = target
        self.group = group
        self.breadth = breadth
        self.cancelled = False
        self.cancel_wanted: list[bytes] | None = None
        self._later = later
        self._heard = False
        self._id = b""  # of the transaction that a policy decides about
        self._full = 0.0  # when a try that is cut short ends if anything is heard
        self.rang = False
        self.passed_over = False  # a policy wants the next flow in place of the answer that came
        self.client: ClientTransaction

    def send(self, connection: Connection, now: float) -> None:
        """Send the request of the context here as a new client transaction."""
        context = self.context
        core = context.core
        branch = core.stamper.new_branch(context.mark)
        request = context.draft.build(
            self.target.uri,
            core.stamper.via_line(connection, branch),
            record_routes=core.record_routes(context, self.target, connection) if context.record else _NO_VALUES,
            path=context.path_towards(connection),
            routes=self.target.routes,
            strict=self.target.strict,
            breadth=self.breadth,
        )
        if core.branch_hook is not None:
            self._id = branch
            decided = core.branch_hook(self, request, connection)
            if decided is None:
                return
            request = decided
            if not request:
                context.leave_out(self, now)
                return
        self._launch(branch, request, connection, now)

    def set_aside(self) -> None:
        """A policy takes its time with what was written: nothing of this context is over before `decide`."""
        self.context.set_aside(self)

    def decide(self, request: bytes, connection: Connection, now: float) -> None:
        """Send what a policy made of the request, b"" to leave this branch out."""
        context = self.context
        if not context.take_back(self, now):
            return
        if not request:
            context.leave_out(self, now)
        elif connection.closed:
            context.branches.remove(self)
            context.handle_flow_failure(self, FLOW_FAILED if self.target.flow else 503, now)
        else:
            self._launch(self._id, request, connection, now)

    def _launch(self, branch: bytes, request: bytes, connection: Connection, now: float) -> None:
        context, core = self.context, self.context.core
        self.client = ClientTransaction(core.transactions, branch, context.server.invite, request, connection, self)
        self.client.start(now)
        wait_s = context.patience(self.target, self.group, now)
        if wait_s:
            self._full = self.client.ends_at
            self.client.hurry(now + wait_s)

    def handle_response(self, client: ClientTransaction, message: Message, now: float) -> None:
        """An answer came to this branch."""
        if message.status < 200:
            self._handle_provisional(client, message, now)
        elif message.status != 503 or self.target.connection is not None or not self._leave_address(message, now):
            self.context.handle_final(self, message, now)

    def _handle_provisional(self, client: ClientTransaction, message: Message, now: float) -> None:
        self._heard = True
        if self._full and not client.invite:
            client.ends_at = self._full
        if not client.invite or self.cancelled:
            return
        self.rang = self.rang or message.status > 100
        if self.cancel_wanted is not None:
            self.cancel(self.cancel_wanted, now)
        elif message.status > 100:
            client.restart_timer_c(now + TIMER_C_S)
            self.context.forward(message, now)

    def _leave_address(self, message: Message, now: float) -> bool:
        """A 503: keep away for as long as it says; True when another address is tried (RFC 3263 §4.3, §21.5.4)."""
        seconds = retry_after(message)
        if seconds and self.context.avoids(len(self._later) > 0):
            self.context.core.avoid(self.client.connection, seconds)
        if self._try_next_address(now):
            return True
        if self.target.failover and self.group:
            self.context.handle_flow_failure(self, 503, now)
            return True
        return False

    def handle_timeout(self, client: ClientTransaction, now: float) -> None:
        """Timer B, F or C, or silence behind our CANCEL."""
        if client.state is not State.PROCEEDING:  # B or F; an address that spoke is not given up for another
            if self._heard:
                self.context.handle_silence(self, 408, now)
            elif not self._try_next_address(now):
                self.context.handle_flow_failure(self, 408, now)
        elif self.cancelled:
            self.context.core.transactions.end_client(client)
            self.context.handle_silence(self, 487 if self.context.cancelled else 408, now)
        else:
            self.cancel([], now)

    def handle_failure(self, client: ClientTransaction, reason: str, now: float) -> None:
        """The request could not be carried, or the connection went before any answer (§16.9)."""
        if not self._try_next_address(now):
            status = FLOW_FAILED if self.target.flow else 503
            self.context.handle_flow_failure(self, status, now)

    def _try_next_address(self, now: float) -> bool:
        if not self._later or self.cancel_wanted is not None or self.context.closed:
            return False
        if self.context.closes_after:
            self.close_connection()
        self.send(self._later.pop(0)(), now)
        return True

    def close_connection(self) -> None:
        """End the stream it left on, unless others wait for answers on it, or it is a flow that took a call.

        The ACK to a 2xx has no other way to whom we cannot dial; to others it opens a connection.
        """
        client, connection = self.client, self.client.connection
        if connection.transport is Transport.UDP or connection.closed:
            return
        took_call = client.state is State.ACCEPTED and self.target.connection is not None
        if not took_call and not client.layer.awaits(connection):
            connection.close("policy")

    def build_ack(self, client: ClientTransaction, message: Message) -> bytes:
        """Write the ACK for a refusal."""
        return derive_request(client.request, b"ACK", message.lines[message.first[h.TO]])

    def cancel(self, reasons: list[bytes], now: float) -> None:
        """Cancel this branch once it has a provisional answer (§9.1)."""
        client = self.client
        if self.cancelled or client.state > State.PROCEEDING:
            return
        if client.state is not State.PROCEEDING:
            self.cancel_wanted = reasons
            return
        self.cancelled = True
        if client.connection.closed:  # nobody is left to ask (OB-FAIL-15)
            client.layer.end_client(client)
            self.context.handle_silence(self, 487 if self.context.cancelled else 408, now)
            return
        request = derive_request(client.request, b"CANCEL", extra=reasons)
        layer = client.layer
        ClientTransaction(layer, cancel_key(client.branch), False, request, client.connection, NOBODY).start(now)
        client.restart_timer_c(now + TIMEOUT_S)


def cancel_key(branch: bytes) -> bytes:
    """Return the key of the client transaction of a CANCEL: it shares the branch of its INVITE."""
    return branch + b"~CANCEL"


def retry_after(message: Message) -> int:
    """Return the seconds of Retry-After, 0 without one that can be read (RFC 3261 §20.33)."""
    value = message.value(h.RETRY_AFTER)
    return 0 if value is None else h.parse_delta(value.partition(b";")[0].partition(b"(")[0].strip(), 0)
