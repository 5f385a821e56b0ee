"""One request on its way: forking and the choice of the answer (RFC 3261 §16.6 to §16.10, RFC 5626 §7), sans-IO.

    groups      alternatives, highest q first; those of equal q are rung together, as many as Max-Breadth allows
    one group   one instance: its flows in order, the next is tried only where the one before failed as a flow
    branches    what was sent, each a client transaction

The context keeps the best refusal until every branch has ended and no group is left; 2xx and 101-199 go up at once.
When all is over it lets go of the request: what lingers for late 2xx is small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.connections import Connection, Transport
from edge.sip.answers import build_answer
from edge.sip.branch import FLOW_FAILED, Branch, Core, Group, Opener, Target
from edge.sip.calls import Call
from edge.sip.forward import MAX_BREADTH, NO_ROUTES, Draft, strip_top_via
from edge.sip.keep import settle
from edge.sip.message import Message, MessageLimits, split_head
from edge.sip.redirection import Redirections
from edge.sip.refusals import Refusals
from edge.sip.sessiontimer import SessionTimers
from edge.sip.transaction import T1, ServerTransaction, State

if TYPE_CHECKING:
    from edge.sip.latecomers import Waiter

ELSEWHERE = b'Reason: SIP;cause=200;text="Call completed elsewhere"'
_PATIENCE_S = 30.0  # below the 32 s a caller waits
_UDP_PATIENCE_S = 8.0
_ADDED_OCTETS = 300  # what we write into a request that leaves: Via, Record-Route
_NOBODY: list[Waiter] = []
# they stand in for a request that is over
_OVER_MESSAGE = split_head(b"OVER sip:nobody SIP/2.0", MessageLimits())
_OVER_MESSAGE.uri = b""
_OVER_MESSAGE.uri = b""  # no address is shown for what is over
_OVER_DRAFT = Draft(_OVER_MESSAGE, NO_ROUTES)


class ProxyContext:
    """The response context of one request (§16.7). `breadth` is what Max-Breadth allows in all (RFC 5393 §5)."""

    __slots__ = (
        "_declined", "_groups", "_late", "_patience_ends", "_reaching", "_refusals", "_waiting", "branches", "breadth",
        "call", "cancelled", "core", "draft", "final_sent", "keep", "mark", "message", "record", "redirections",
        "server", "session", "source", "source_token",
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
        self.mark = b""
        self.breadth = MAX_BREADTH
        self.call: Call | None = None
        self.keep = 0  # seconds to answer a `keep` of the caller with; below 0, others may not (RFC 6223 §4.4)
        self.session = 0  # seconds for a 2xx without Session-Expires (RFC 4028 §8.2)
        self.branches: list[Branch] = []
        self.cancelled = False
        self.final_sent = False
        self.redirections: Redirections | None = None  # where those that are followed lead
        self._declined = False
        self._groups: list[Group] = []
        self._waiting: list[Group] = []  # of the same q as those under way, for want of breadth
        self._refusals: Refusals | None = None
        self._reaching = 0
        self._late: list[Waiter] = _NOBODY  # requests for devices that may come back
        self._patience_ends = 0.0  # when the flows of a group must all have been tried
        server.user = self

    @property
    def closed(self) -> bool:
        """Whether no new branch may start: answered, cancelled, or declined by a 6xx."""
        return self.final_sent or self.cancelled or self._declined

    @property
    def closes_after(self) -> bool:
        """Whether a policy wants the streams this request left on to end once it was answered."""
        directions = self.message.directions
        return directions is not None and directions.close_after

    def start(self, groups: list[Group], now: float) -> None:
        """Begin with the groups of the highest q."""
        if len(groups) == 1:
            self._launch(groups[0], self.breadth, now)
        else:
            self._groups = groups
            self._start_groups(now)

    def _start_groups(self, now: float) -> None:
        """Launch every group that shares the highest q left, and share the breadth out among them (RFC 5393 §5.3.3)."""
        highest = max(group[0].q for group in self._groups)
        chosen = [group for group in self._groups if group[0].q == highest]
        self._groups = [group for group in self._groups if group[0].q != highest]
        count = min(len(chosen), self.breadth)
        share, more = divmod(self.breadth, count)
        self._waiting = chosen[count:]
        self._reaching += 1  # nothing is concluded before all are on their way
        for number, group in enumerate(chosen[:count]):
            self._launch(group, share + 1 if number < more else share, now)
        self._reaching -= 1
        self._conclude(now)

    def _launch(self, group: Group, breadth: int, now: float) -> None:
        """Send to the first flow of a group that is alive (RFC 5626 §7)."""
        last: Target | None = None
        while group and not self.closed and len(self.branches) < self.core.max_branches:
            target = last = group.pop(0)
            connection = target.connection
            if connection is None and not target.gone:
                self._locate(target, group, breadth)
                return
            if connection is not None and self.core.is_active(connection, now):
                self._send(Branch(self, target, group, [], breadth), connection, now)
                return
            self.core.flow_failed(target, now)
        self._end_group(last, 480, breadth, now)

    def _end_group(self, target: Target | None, status: int, breadth: int, now: float) -> None:
        """No flow of a device is left: wait for it to come back, where that is wanted, or note how it ended."""
        if target is not None and target.flow and not self.closed and (status == 480 or self._patience_ends > 0.0):
            self._patience_ends = self._patience_ends or now + _PATIENCE_S
            waiter = self.core.await_flow(self, target, breadth, now, self._patience_ends)
            if waiter is not None:
                self._late = [*self._late, waiter]
                self._reaching += 1
                return
        self._note(status, None)
        self._go_on(breadth, now)

    def handle_late_flow(self, waiter: Waiter, group: Group, now: float) -> None:
        """A device that was waited for has come back over the flow in `group`, or has not come."""
        self._late = [other for other in self._late if other is not waiter]
        self._reaching -= 1
        if group and not self.closed:
            self._launch(group, waiter.breadth, now)
        else:
            self._note(480, None)
            self._go_on(waiter.breadth, now)

    def _end_waiting(self) -> None:
        for waiter in self._late:
            self.core.end_waiting(waiter)
            self._reaching -= 1
        self._late = _NOBODY

    def patience(self, target: Target, group: Group, now: float) -> float:
        """Return how many seconds to wait for any response of a flow, 0 for as long as the transaction lives.

        All flows of a group get their turn while the caller still waits (RFC 5626 §7, RFC 4320 §4.2).
        """
        if not target.flow or not (group or self._patience_ends):
            return 0.0
        if not self._patience_ends:
            self._patience_ends = now + _PATIENCE_S
        share = max(T1, (self._patience_ends - now) / (len(group) + 1))
        udp = target.connection is not None and target.connection.transport is Transport.UDP
        return min(share, _UDP_PATIENCE_S) if udp and group else share

    def _locate(self, target: Target, group: Group, breadth: int) -> None:
        self._reaching += 1

        def reached(ways: list[Opener], status: int) -> None:
            self._reaching -= 1
            now = self.core.clock()
            if self.closed:
                self._conclude(now)
            elif ways:
                self._send(Branch(self, target, group, ways[1:], breadth), ways[0](), now)
            else:
                self._note(480 if target.flow else status, None)
                self._launch(group, breadth, now) if group else self._go_on(breadth, now)

        size = sum(map(len, self.message.lines)) + 2 * len(self.message.lines) + len(self.message.body)
        self.core.reach(target, size + _ADDED_OCTETS, reached)

    def _send(self, branch: Branch, connection: Connection, now: float) -> None:
        self.branches.append(branch)
        branch.send(connection, now)

    def avoids(self, alternative: bool) -> bool:
        """Whether an address that answered 503 is left alone for as long as it asks to; is there an `alternative`?"""
        return True

    def path_towards(self, connection: Connection) -> bytes:
        """Return the Path value to add to what leaves by `connection`, b"" for none; a policy may want one."""
        directions = self.message.directions
        if directions is None or not directions.path:
            return b""
        return self.core.stamper.path_value(connection, directions.path, directions.ob)

    def set_aside(self, branch: Branch) -> None:
        """A policy thinks about a branch: it counts as one that is being looked for."""
        self.branches.remove(branch)
        self._reaching += 1

    def take_back(self, branch: Branch, now: float) -> bool:
        """The policy has decided; False when there is nothing to send any more."""
        self._reaching -= 1
        if self.closed:
            self._conclude(now)
            return False
        self.branches.append(branch)
        return True

    def leave_out(self, branch: Branch, now: float) -> None:
        """A policy does not want this branch: whatever would follow it does."""
        self.branches.remove(branch)
        if branch.group and not self.closed:
            self._launch(branch.group, branch.breadth, now)
        else:
            self.handle_silence(branch, 480, now)

    # -- answers from the branches

    def forward(self, message: Message, now: float) -> None:
        """Pass an answer up without our Via (§16.7 steps 3, 9)."""
        if self.keep:
            settle(message, self.keep if self.keep > 0 and 100 < message.status < 300 else 0)
        data = strip_top_via(message)
        if data is None:
            return
        self.core.count_answer(message.status)
        self.server.respond(message.status, data, now)

    def handle_final(self, branch: Branch, message: Message, now: float) -> None:
        """A final answer: pass it up, try the next flow, follow it elsewhere, or keep it for the choice."""
        status = message.status
        if status < 300:
            self._handle_success(branch, message, now)
        elif branch.passed_over and branch.group and not self.closed:
            self._launch(branch.group, branch.breadth, now)
        elif status == FLOW_FAILED:
            self.handle_flow_failure(branch, status, now)
        elif status == 408 and branch.group and not branch.rang and not self.closed:
            self._launch(branch.group, branch.breadth, now)  # it was told so: nothing is known of the flow itself
        elif status < 400 and not self.closed and self._follow(branch, message, now):
            return
        else:
            self._note(status, message)
            if status >= 600:
                self._declined = True
                self._end_waiting()
                self.cancel_branches([], now)
            self._go_on(branch.breadth, now)

    def _handle_success(self, branch: Branch, message: Message, now: float) -> None:
        if self.call is not None:
            self.call.establish(branch.client.connection, message, now)
        if self.session:
            SessionTimers.complete(message, self.session)
        if not self.final_sent:
            self.final_sent = True
            self._end_waiting()
            self.forward(message, now)
            if len(self.branches) > 1:
                self.cancel_branches([ELSEWHERE], now)
        elif self.server.invite:
            self.forward(message, now)
        self._settle(now)

    def _follow(self, branch: Branch, message: Message, now: float) -> bool:
        """Try where a 3xx points to, where we are to (§16.7 step 4); what is not tried of it stays for the choice."""
        groups = self.core.redirected(self, message)
        if groups is None:
            return False
        self._groups += groups
        self._go_on(branch.breadth, now)
        return True

    def handle_flow_failure(self, branch: Branch, status: int, now: float) -> None:
        """The flow of a branch failed (430, own time-out, transport error): the next of its group takes its place."""
        if branch.target.flow:
            self.core.flow_failed(branch.target, now)
        if branch.group and not self.closed:
            self._launch(branch.group, branch.breadth, now)
        else:
            self._end_group(branch.target, self._verdict(branch.target, status), branch.breadth, now)

    def _verdict(self, target: Target, status: int) -> int:
        """Say what it means that the last flow of somebody failed: never 430, and no answer comes too late (OB-TGT-11).

        Where a token named the flow, whoever sent it may know others (OB-FAIL-12).
        """
        binding = target.binding
        if target.flow and binding is None:
            return status
        in_time = self.server.invite or self._patience_ends > 0.0
        outbound = binding is not None and (binding.reg_id > 0 or len(binding.path) > 0)
        return 480 if status == FLOW_FAILED or (outbound and in_time) else status

    def handle_silence(self, branch: Branch, status: int, now: float) -> None:
        """A branch ended without an answer that could be passed up."""
        self._note(status, None)
        self._go_on(branch.breadth, now)

    def _note(self, status: int, message: Message | None) -> None:
        if self._refusals is None:
            self._refusals = Refusals(status, message)
        else:
            self._refusals.note(status, message)

    def _go_on(self, breadth: int, now: float) -> None:
        """A branch has ended: what waited for its breadth takes its place."""
        if self._waiting and not self.closed:
            self._launch(self._waiting.pop(0), breadth, now)
        else:
            self._conclude(now)

    def _conclude(self, now: float) -> None:
        """Answer with the best there is, when nothing is pending and no group is left."""
        if self._reaching or self._is_pending():
            return
        if self._groups and not self.closed:
            self._start_groups(now)
            return
        if not self.final_sent:
            self.final_sent = True
            self._send_best(now)
        self._settle(now)

    def _is_pending(self) -> bool:
        for branch in self.branches:  # noqa: SIM110 - no generator for what is nearly always one branch
            if branch.client.state <= State.PROCEEDING:
                return True
        return False

    def _send_best(self, now: float) -> None:
        if self.redirections is not None and not self.cancelled:
            for left in self.redirections.settle():
                self._note(left.status, left)
        refusals = self._refusals
        status, message = (408, None) if refusals is None else (refusals.status, refusals.message)
        if self.cancelled and status < 600 and message is None:
            status = 487
        if status == 408 and not self.server.invite:
            return  # RFC 4320 §4.2: silence, not 408
        if message is None or status == 503:
            self.refuse(status, message, now)
        elif refusals is not None and status in (401, 407):
            self.forward(refusals.with_challenges(message), now)
        else:
            self.forward(message, now)

    def refuse(self, status: int, message: Message | None, now: float) -> None:
        """Say in our own words that nobody took it; a lone 503 of others says nothing of us (§16.7 step 6)."""
        self.answer(500 if status == 503 else status, now)

    def answer(self, status: int, now: float, extra: tuple[bytes, ...] = (), reason: str = "") -> None:
        """Answer the request ourselves."""
        self.final_sent = True
        self.core.count_answer(status)
        tag = self.core.tag_for(self.message)
        self.server.respond(status, build_answer(self.message, status, tag, extra, reason), now)

    def _settle(self, now: float) -> None:
        """Let go of everything once a final answer has gone up and nothing is pending; only late 2xx still pass."""
        if self._reaching or self._is_pending():
            return
        if self.call is not None:
            self.call.settle(self.server.status, self.cancelled, now)
            self.call = None
        if self.closes_after:
            for branch in self.branches:
                branch.close_connection()
        self.message = _OVER_MESSAGE
        self.draft = _OVER_DRAFT
        self.branches = []
        self._groups = []
        self._waiting = []
        self._refusals = None
        self.redirections = None

    # -- from the caller's side

    def cancel(self, reasons: list[bytes], now: float) -> None:
        """The caller sent CANCEL (§16.10)."""
        self.cancelled = True
        self._end_waiting()
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
