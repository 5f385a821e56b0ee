"""Hooks that are `async`: what they decide about leaves its way, waits for them, and goes on.

a hook is called ─► what it decides about is set aside, its connection is not read ─► a task runs the hook
                                                          done, in time ─► it goes on, then what came behind it
                                                          raised, or too late ─► as for a plain hook that raises
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edge.connections import Connection
from edge.errors import RemoteError
from edge.msrp.framing import Frame
from edge.msrp.handler import MsrpHandler
from edge.msrp.holding import admit, go_on, hold
from edge.policy.frames import MsrpFrame
from edge.policy.messages import decode
from edge.policy.requests import SipRequest
from edge.policy.responses import SipResponse
from edge.policy.views import NewConnection, Registering, Upgrading, User
from edge.sip.branch import Branch
from edge.sip.message import Message
from edge.sip.registrar import Plan
from edge.sip.transaction import ClientTransaction
from edge.websocket import Refusal as HttpRefusal
from edge.websocket import UpgradeRequest

if TYPE_CHECKING:
    from edge.policy.runner import Decided, PolicyRunner

Allowed = Callable[[bool], None]


class LaterHooks:
    """The `async` side of a runner."""

    def __init__(self, runner: PolicyRunner) -> None:
        self._runner = runner
        self._core = runner.core
        self._relay = runner.relay
        self._tools = runner.tools
        self._start = runner.receiver.start

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

        if not self._start(connection, lambda: policy.sip_request(request), done):
            raise RemoteError(503, "policy_queue")
        waiting.add(message.key)
        return True

    def response(self, client: ClientTransaction, message: Message, now: float) -> bool:
        """Let a response wait; where there is no room for that it goes on."""
        response = SipResponse(self._tools, client, message)
        policy = self._runner.policy

        def done(error: BaseException | None) -> None:
            if error is not None:
                self._runner.fail("sip_response", error)
            if not response.dropped:
                client.receive_response(message, self._core.clock())

        return not self._start(client.connection, lambda: policy.sip_response(response), done)

    def branch(self, branch: Branch, request: bytes, connection: Connection) -> bytes | None:
        """Let a branch wait before it leaves; what comes from whoever sent its request waits behind it."""
        view = self._runner.view_branch(branch, request, connection)
        policy = self._runner.policy

        def done(error: BaseException | None) -> None:
            if error is not None:
                self._runner.fail("before_forward", error)
            chosen = b"" if error is not None or view.refused else view.message.encode() if view.changed else request
            branch.decide(chosen, connection, self._core.clock())

        if not self._start(branch.context.source, lambda: policy.before_forward(view), done):
            return b""
        branch.set_aside()
        return None

    def registration(self, connection: Connection, plan: Plan, decided: Callable[[RemoteError | None], None]) -> bool:
        """Let bindings wait before they are stored."""
        view = Registering(self._tools, connection, plan)
        policy = self._runner.policy

        def done(error: BaseException | None) -> None:
            if error is not None:
                self._runner.fail("registration", error)
                decided(RemoteError(500, "policy_error"))
            else:
                decided(RemoteError(view.code, "policy", view.reason) if view.code else None)

        return self._start(connection, lambda: policy.registration(view), done)

    def user(self, connection: Connection, name: bytes, decided: Allowed) -> bool:
        """Let a request of somebody known wait."""
        return self._know(User(self._tools, connection, "sip", decode(name)), decided)

    def _know(self, user: User, decided: Allowed) -> bool:
        policy = self._runner.policy

        def done(error: BaseException | None) -> None:
            if error is not None:
                self._runner.fail("user_known", error)
            decided(error is None and not user.code)

        return self._start(user.connection, lambda: policy.user_known(user), done)

    # -- connections

    def accept(self, connection: Connection) -> bool:
        """Let a connection in, and read nothing of it yet."""
        view = NewConnection(self._tools, connection)
        policy = self._runner.policy

        def done(error: BaseException | None) -> None:
            if error is not None:
                self._runner.fail("connection_accepted", error)
            if (error is not None or view.refused) and not connection.closed:
                connection.table.refuse(connection.source, "policy")
                connection.fail("policy")

        return self._start(connection, lambda: policy.connection_accepted(view), done)

    def upgrade(self, connection: Connection, request: UpgradeRequest, decided: Decided) -> None:
        """Let a handshake wait."""
        view = Upgrading(self._tools, connection, request)
        policy = self._runner.policy

        def done(error: BaseException | None) -> None:
            if error is not None:
                self._runner.fail("websocket_upgrade", error)
                view.code = 500
            decided(HttpRefusal(view.code, view.headers) if view.code else None)

        if not self._start(connection, lambda: policy.websocket_upgrade(view), done):
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

        if self._start(handler.connection, lambda: policy.msrp_frame(view), done):
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
