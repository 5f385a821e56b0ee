"""One request on its way: branches, forking, the choice of the answer (RFC 3261 §16.6 to §16.10, RFC 5626 §7), sans-IO.

    groups      alternatives, highest q first; those of equal q are rung together
    one group   one instance: its flows in order, the next is tried only where the one before failed as a flow
    branches    what was sent, each a client transaction

The context keeps the best refusal until every branch has ended and no group is left; 2xx and 101-199 go up at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from edge.connections import Connection
from edge.sip import headers as h
from edge.sip.answers import build_answer
from edge.sip.forward import Draft, derive_request, strip_top_via
from edge.sip.location import Binding
from edge.sip.message import Message
from edge.sip.stamping import Stamper
from edge.sip.transaction import TIMEOUT_S, ClientTransaction, ServerTransaction, State, Transactions
from edge.sip.uri import SipUri

TIMER_C_S = 185.0
ELSEWHERE = b'Reason: SIP;cause=200;text="Call completed elsewhere"'
_PREFERRED = (401, 407, 415, 420, 484)
FLOW_FAILED = 430
_NO_VALUES: list[bytes] = []


class Target:
    """One place a request may go.

    `uri` becomes the Request-URI; `routes` go before the Route values left. `connection` is the flow to use; without one
    `locate` (the URI that decides about address and transport) is resolved. `token` is what to record-route towards it.
    `strict` is the value to append as last Route for a next hop without `lr`.
    """

    __slots__ = ("binding", "connection", "locate", "q", "routes", "strict", "token", "uri")

    def __init__(self, uri: bytes, connection: Connection | None = None, locate: SipUri | None = None) -> None:
        self.uri = uri
        self.connection = connection
        self.locate = locate
        self.routes: tuple[bytes, ...] = ()
        self.token: bytes | None = None
        self.binding: Binding | None = None
        self.strict = b""
        self.q = 1000


Group = list[Target]
Opener = Callable[[], Connection]
Reached = Callable[[list[Opener], int], None]


class Core(Protocol):
    """What a context needs of the core that owns it."""

    transactions: Transactions
    stamper: Stamper

    def reach(self, target: Target, size: int, reached: Reached) -> None:
        """Find ways to a target, in the order to try them, perhaps later; none and a status when there are none."""

    def record_routes(self, context: ProxyContext, target: Target, connection: Connection) -> list[bytes]: ...

    def flow_failed(self, target: Target, now: float) -> None: ...

    def count_answer(self, status: int) -> None: ...

    def tag_for(self, message: Message) -> bytes: ...

    def clock(self) -> float: ...


class Branch:
    """One client transaction of a context; see `ClientUser`."""

    __slots__ = ("_later", "cancel_wanted", "cancelled", "client", "context", "group", "target")

    def __init__(self, context: ProxyContext, target: Target, group: Group, later: list[Opener]) -> None:
        self.context = context
        self.target = target
        self.group = group
        self.cancelled = False
        self.cancel_wanted: list[bytes] | None = None
        self._later = later
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
            path=context.path,
            routes=self.target.routes,
            strict=self.target.strict,
            breadth=context.breadth,
        )
        self.client = ClientTransaction(core.transactions, branch, context.server.invite, request, connection, self)
        self.client.start(now)

    def handle_response(self, client: ClientTransaction, message: Message, now: float) -> None:
        """An answer came to this branch."""
        if message.status < 200:
            self._handle_provisional(client, message, now)
        else:
            self.context.handle_final(self, message, now)

    def _handle_provisional(self, client: ClientTransaction, message: Message, now: float) -> None:
        if not client.invite:
            return
        if self.cancelled:
            return
        client.restart_timer_c(now + TIMER_C_S)
        if self.cancel_wanted is not None:
            self.cancel(self.cancel_wanted, now)
        elif message.status > 100:
            self.context.forward(message, now)

    def handle_timeout(self, client: ClientTransaction, now: float) -> None:
        """Timer B, F or C, or silence behind our CANCEL."""
        if client.state is State.PROCEEDING and not self.cancelled:
            self.cancel([], now)
            return
        if client.state is State.PROCEEDING:
            self.context.core.transactions.end_client(client)
            self.context.handle_silence(self, 487 if self.context.cancelled else 408, now)
            return
        if self._later:
            self._try_next_address(now)
        else:
            self.context.handle_flow_failure(self, 408, now)

    def handle_failure(self, client: ClientTransaction, reason: str, now: float) -> None:
        """The request could not be carried, or the connection went before any answer (§16.9)."""
        if client.request and self._later:
            self._try_next_address(now)
        else:
            self.context.handle_flow_failure(self, FLOW_FAILED, now)

    def _try_next_address(self, now: float) -> None:
        self.send(self._later.pop(0)(), now)

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
        request = derive_request(client.request, b"CANCEL", extra=reasons)
        layer = client.layer
        ClientTransaction(layer, cancel_key(client.branch), False, request, client.connection, _CANCEL_USER).start(now)
        client.restart_timer_c(now + TIMEOUT_S)


def cancel_key(branch: bytes) -> bytes:
    """Return the key of the client transaction of a CANCEL: it shares the branch of its INVITE."""
    return branch + b"~CANCEL"


class _CancelUser:
    """Nobody waits for the answer to our CANCEL; the INVITE's answer is what counts."""

    def handle_response(self, client: ClientTransaction, message: Message, now: float) -> None:
        """Nothing to do."""

    def handle_timeout(self, client: ClientTransaction, now: float) -> None:
        """Nothing to do."""

    def handle_failure(self, client: ClientTransaction, reason: str, now: float) -> None:
        """Nothing to do."""

    def build_ack(self, client: ClientTransaction, message: Message) -> bytes:
        """Never asked for: CANCEL has no ACK."""
        return b""


_CANCEL_USER = _CancelUser()


class ProxyContext:
    """The response context of one request (§16.7)."""

    __slots__ = (
        "_best", "_challenges", "_groups", "_reaching", "_unheard", "branches", "breadth", "cancelled", "core", "draft",
        "final_sent", "mark", "message", "path", "record", "server", "source", "source_token",
    )  # fmt: skip

    def __init__(
        self, core: Core, server: ServerTransaction, message: Message, draft: Draft, source: Connection
    ) -> None:
        self.core = core
        self.server = server
        self.message = message
        self.draft = draft
        self.source = source
        self.source_token: bytes | None = None
        self.record = False
        self.path = b""
        self.mark = b""
        self.breadth = 0
        self.branches: list[Branch] = []
        self.cancelled = False
        self.final_sent = False
        self._groups: list[Group] = []
        self._best: tuple[int, Message | None] | None = None
        self._challenges: list[bytes] | None = None
        self._reaching = 0
        self._unheard = False
        server.user = self

    def start(self, groups: list[Group], now: float) -> None:
        """Begin with the groups of the highest q."""
        self._groups = groups
        self._start_groups(now)

    def _start_groups(self, now: float) -> None:
        """Launch every group that shares the highest q left."""
        groups = self._groups
        if len(groups) == 1:
            self._groups = []
            self._launch(groups[0], now)
            return
        highest = max(group[0].q for group in groups)
        self._groups = [group for group in groups if group[0].q != highest]
        for group in groups:
            if group[0].q == highest:
                self._launch(group, now)

    def _launch(self, group: Group, now: float) -> None:
        """Send to the first flow of a group that is alive (RFC 5626 §7)."""
        while group:
            target = group.pop(0)
            connection = target.connection
            if connection is None:
                self._locate(target, group)
                return
            if not connection.closed:
                self._send(target, group, connection, [], now)
                return
            self.core.flow_failed(target, now)
        self._note(480, None)
        self._conclude(now)

    def _locate(self, target: Target, group: Group) -> None:
        self._reaching += 1

        def reached(ways: list[Opener], status: int) -> None:
            self._reaching -= 1
            now = self.core.clock()
            if self.cancelled or (self.final_sent and not self.branches):
                self._conclude(now)
            elif ways:
                self._send(target, group, ways[0](), ways[1:], now)
            else:
                self._note(status, None)
                self._launch(group, now) if group else self._conclude(now)

        self.core.reach(target, len(self.message.body) + 600, reached)

    def _send(self, target: Target, group: Group, connection: Connection, later: list[Opener], now: float) -> None:
        branch = Branch(self, target, group, later)
        self.branches.append(branch)
        branch.send(connection, now)

    # -- answers from the branches

    def forward(self, message: Message, now: float) -> None:
        """Pass an answer up without our Via (§16.7 steps 3, 9)."""
        data = strip_top_via(message)
        if data is None:
            return
        self.core.count_answer(message.status)
        self.server.respond(message.status, data, now)

    def handle_final(self, branch: Branch, message: Message, now: float) -> None:
        """A final answer: pass it up, try the next flow, or keep it for the choice."""
        status = message.status
        if status < 300:
            if not self.final_sent or self.server.invite:
                first = not self.final_sent
                self.final_sent = True
                self.forward(message, now)
                if first and len(self.branches) > 1:
                    self.cancel_branches([ELSEWHERE], now)
            self._settle()
            return
        if status == FLOW_FAILED:
            self.handle_flow_failure(branch, status, now)
            return
        self._note(status, message)
        if status >= 600:
            self._groups = []
            self.cancel_branches([], now)
        self._conclude(now)

    def handle_flow_failure(self, branch: Branch, status: int, now: float) -> None:
        """The flow of a branch failed (430, own time-out, transport error): the next of its group takes its place."""
        self.core.flow_failed(branch.target, now)
        if branch.group and not self.cancelled and not self.final_sent:
            self._launch(branch.group, now)
            return
        self.handle_silence(branch, 480 if status == FLOW_FAILED else status, now)

    def handle_silence(self, branch: Branch, status: int, now: float) -> None:
        """A branch ended without an answer that could be passed up."""
        if status == 408:
            self._unheard = True
        self._note(status, None)
        self._conclude(now)

    def _note(self, status: int, message: Message | None) -> None:
        if message is not None and status in (401, 407):
            self._gather_challenges(message)
        if self._best is None or _rank(status) < _rank(self._best[0]):
            self._best = (status, message)

    def _gather_challenges(self, message: Message) -> None:
        rows = [message.lines[i] for kind in (h.WWW_AUTHENTICATE, h.PROXY_AUTHENTICATE) for i in message.indexes(kind)]
        self._challenges = rows if self._challenges is None else self._challenges + rows

    def _conclude(self, now: float) -> None:
        """Answer with the best there is, when nothing is pending and no group is left."""
        if self._reaching or self._is_pending():
            return
        if self._groups and not self.cancelled and not self.final_sent:
            self._start_groups(now)
            return
        if not self.final_sent:
            self.final_sent = True
            self._send_best(now)
        self._settle()

    def _is_pending(self) -> bool:
        for branch in self.branches:  # noqa: SIM110 - no generator for what is nearly always one branch
            if branch.client.state <= State.PROCEEDING:
                return True
        return False

    def _send_best(self, now: float) -> None:
        status, message = self._best or (408, None)
        if self.cancelled and status < 600 and message is None:
            status = 487
        if status == 408 and not self.server.invite:
            return  # RFC 4320 §4.2: silence, not 408
        if message is None or status == 503:
            self.answer(500 if status == 503 else status, now)
        elif status in (401, 407) and self._challenges:
            self.forward(_with_challenges(message, self._challenges), now)
        else:
            self.forward(message, now)

    def answer(self, status: int, now: float, extra: tuple[bytes, ...] = (), reason: str = "") -> None:
        """Answer the request ourselves."""
        self.final_sent = True
        self.core.count_answer(status)
        self.server.respond(
            status, build_answer(self.message, status, self.core.tag_for(self.message), extra, reason), now
        )

    def _settle(self) -> None:
        """Drop what is no longer needed once a final answer has gone up; only late 2xx still pass."""
        if self.final_sent and not self._is_pending():
            self._groups = []
            self._best = None
            if not self.server.invite:
                self.branches = []

    # -- from the caller's side

    def cancel(self, reasons: list[bytes], now: float) -> None:
        """The caller sent CANCEL (§16.10)."""
        self.cancelled = True
        self._groups = []
        self.cancel_branches(reasons, now)
        self._conclude(now)

    def cancel_branches(self, reasons: list[bytes], now: float) -> None:
        """Cancel every pending branch of an INVITE, once each."""
        if self.server.invite:
            for branch in self.branches:
                branch.cancel(reasons, now)

    def handle_server_ended(self, now: float) -> None:
        """The server transaction is over; late answers have nowhere to go."""
        self.final_sent = True


def _rank(status: int) -> tuple[int, int]:
    """Order of preference among refusals (§16.7 step 6): lower is better."""
    if status >= 600:
        return 0, 0
    if status in _PREFERRED:
        return status // 100, 0
    return status // 100, 1 if status != 480 else 2


def _with_challenges(message: Message, rows: list[bytes]) -> Message:
    """Return the chosen 401 or 407 with every challenge of all branches in it (§16.7 step 7)."""
    drop = set(message.indexes(h.WWW_AUTHENTICATE)) | set(message.indexes(h.PROXY_AUTHENTICATE))
    lines = [line for i, line in enumerate(message.lines) if i not in drop]
    last_via = max(message.indexes(h.VIA))
    message.lines = lines[: last_via + 1] + lines[last_via + 1 :] + rows
    return message
