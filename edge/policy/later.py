"""Hooks that are `async`: what they decide about leaves its way, waits for them, and goes on.

a hook is called ─► what it decides about is set aside, its connection is not read ─► a task runs the hook
                                                          done, in time ─► it goes on, then what came behind it
                                                          raised, or too late ─► as for a plain hook that raises
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from edge.connections import Connection
from edge.errors import RemoteError
from edge.msrp.framing import Frame
from edge.msrp.handler import MsrpHandler
from edge.msrp.holding import admit, go_on, hold
from edge.policy.frames import MsrpFrame
from edge.policy.order import Call, Done
from edge.policy.requests import SipRequest
from edge.policy.responses import SipResponse
from edge.policy.text import decode
from edge.policy.views import Ended, NewConnection, Registering, Upgrading, User
from edge.sip.branch import Branch
from edge.sip.message import Message
from edge.sip.registrar import Plan
from edge.sip.transaction import ClientTransaction
from edge.websocket import Refusal as HttpRefusal
from edge.websocket import UpgradeRequest

if TYPE_CHECKING:
    from edge.policy.runner import Decided, PolicyRunner

Allowed = Callable[[bool], None]
V = TypeVar("V")
Hook = Callable[[V], Awaitable[None] | None]


class LaterHooks:
    """The `async` side of a runner."""

    def __init__(self, runner: PolicyRunner) -> None:
        self._runner = runner
        self._core = runner.core
        self._relay = runner.relay
        self._tools = runner.tools

    def _start(self, name: str, connection: Connection | None, call: Call, done: Done) -> bool:
        if self._runner.receiver.start(connection, call, done):
            return True
        self._runner.overrun(name)
        return False

    def _ask(
        self, name: str, connection: Connection | None, hook: Hook[V], view: V, then: Callable[[bool], None]
    ) -> bool:
        """Run a hook; `then` is told whether it worked, errors are counted and logged. False: no room for it."""

        def done(error: BaseException | None) -> None:
            if error is not None:
                self._runner.fail(name, error)
            then(error is None)

        return self._start(name, connection, lambda: hook(view), done)

    # -- SIP

    def request(self, connection: Connection, message: Message, now: float) -> bool:
        """Let a new request wait."""
        request = SipRequest(self._tools, connection, message)
        policy, waiting = self._runner.policy, self._core.access.waiting

        def done(error: BaseException | None) -> None:
            now = self._core.clock()
            waiting.discard(message.key)
            if error is not None and not isinstance(error, RemoteError):
                self._runner.fail("sip_request", error)
                self._runner.refuse_late(connection, message, 500)
            elif error is not None:
                self._core.answer(connection, message, error.status or 500, (), now)
            elif not self._runner.settle(request, now):
                self._core.proceed(connection, message, now)

        if not self._start("sip_request", connection, lambda: policy.sip_request(request), done):
            raise RemoteError(503, "policy_queue")
        waiting.add(message.key)
        return True

    def response(self, client: ClientTransaction, message: Message, now: float) -> bool:
        """Let a response wait; where there is no room for that it goes on."""
        response = SipResponse(self._tools, client, message)

        def then(_worked: bool) -> None:
            if not response.dropped:
                client.receive_response(message, self._core.clock())

        hook = self._runner.policy.sip_response
        return not self._ask("sip_response", client.connection, hook, response, then)

    def branch(self, branch: Branch, request: bytes, connection: Connection) -> bytes | None:
        """Let a branch wait before it leaves; what comes from whoever sent its request waits behind it."""
        view = self._runner.view_branch(branch, request, connection)

        def then(worked: bool) -> None:
            branch.decide(view.verdict(request) if worked else b"", connection, self._core.clock())

        hook = self._runner.policy.before_forward
        if not self._ask("before_forward", branch.context.source, hook, view, then):
            return b""
        branch.set_aside()
        return None

    def registration(self, connection: Connection, plan: Plan, decided: Callable[[RemoteError | None], None]) -> bool:
        """Let bindings wait before they are stored."""
        view = Registering(self._tools, connection, plan)

        def then(worked: bool) -> None:
            decided(view.verdict() if worked else RemoteError(500, "policy_error"))

        return self._ask("registration", connection, self._runner.policy.registration, view, then)

    def user(self, connection: Connection, name: bytes, decided: Allowed) -> bool:
        """Let a request of somebody known wait."""
        return self._know(User(self._tools, connection, "sip", decode(name)), decided)

    def _know(self, user: User, decided: Allowed) -> bool:
        def then(worked: bool) -> None:
            decided(worked and not user.code)

        return self._ask("user_known", user.connection, self._runner.policy.user_known, user, then)

    def ended(self, what: Ended) -> None:
        """Tell of what is over; nothing waits for that."""
        self._ask("ended", None, self._runner.policy.ended, what, lambda _worked: None)

    # -- connections

    def accept(self, connection: Connection) -> bool:
        """Let a connection in, and read nothing of it yet."""
        view = NewConnection(self._tools, connection)

        def then(worked: bool) -> None:
            if (view.refused or not worked) and not connection.closed:
                connection.table.refuse(connection.source, "policy")
                connection.fail("policy")

        return self._ask("connection_accepted", connection, self._runner.policy.connection_accepted, view, then)

    def upgrade(self, connection: Connection, request: UpgradeRequest, decided: Decided) -> None:
        """Let a handshake wait."""
        view = Upgrading(self._tools, connection, request)

        def then(worked: bool) -> None:
            if not worked:
                view.code = 500
            decided(view.verdict())

        if not self._ask("websocket_upgrade", connection, self._runner.policy.websocket_upgrade, view, then):
            decided(HttpRefusal(503))

    # -- MSRP

    def permit(self, source: MsrpHandler, name: bytes, decided: Allowed) -> bool:
        """Let an AUTH wait whose password was right."""
        return self._know(User(self._tools, source.connection, "msrp", decode(name)), decided)

    def frame(
        self, handler: MsrpHandler, frame: Frame | None, data: bytes, at: int, body_at: int, stop: int, now: float
    ) -> bool:
        """Let a frame wait, and read no further."""
        view = MsrpFrame(self._tools, handler, frame, data, at, body_at, stop)
        policy = self._runner.policy

        def done(error: BaseException | None) -> None:
            if not handler.lost:
                self._go_on(view, error)
                go_on(handler, self._relay.clock())

        if self._start("msrp_frame", handler.connection, lambda: policy.msrp_frame(view), done):
            hold(handler)
        else:
            self._relay.forwarder.refuse(handler, view.frame.head, RemoteError(500, "policy_queue"), now)
        return True

    def _go_on(self, view: MsrpFrame, error: BaseException | None) -> None:
        handler, now = view.handler, self._relay.clock()
        if error is not None:
            self._runner.refuse_frame(view, error, now)
        elif not view.taken and view.streamed:
            admit(handler, view.frame.head, now)
        elif not view.taken:
            self._relay.forwarder.handle_frame(handler, view.frame, now)
