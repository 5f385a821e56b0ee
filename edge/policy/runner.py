"""Puts a policy into its places, and keeps the server safe from it.

install ─► each overridden hook, wrapped ─► core, table, relay, access, registration; None where there is none
a wrapper ─► what the hook is given ─► the hook ─► what it decided
                                        └─ raises: 500 for that message, counted, logged with the hook's name
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from edge.connections import Connection, ConnectionTable, Transport
from edge.errors import RemoteError
from edge.events import EventBus
from edge.msrp.framing import Frame
from edge.msrp.handler import MsrpHandler
from edge.msrp.relay import Relay
from edge.policy.base import Policy
from edge.policy.endings import Endings
from edge.policy.frames import MsrpFrame
from edge.policy.later import LaterHooks
from edge.policy.loading import HOOKS, is_overridden
from edge.policy.order import OrderedReceiver
from edge.policy.requests import SipRequest
from edge.policy.responses import SipBranch, SipResponse
from edge.policy.text import decode
from edge.policy.tools import Tools
from edge.policy.views import Ended, NewConnection, Registering, Upgrading, User
from edge.sip.access import Refusal
from edge.sip.branch import Branch
from edge.sip.message import Message, split_head
from edge.sip.registrar import Plan
from edge.sip.transaction import ClientTransaction
from edge.sipstack import SipStack
from edge.websocket import Refusal as HttpRefusal
from edge.websocket import UpgradeRequest

log = logging.getLogger("edge.policy")

Decided = Callable[[HttpRefusal | None], None]
F = TypeVar("F")
V = TypeVar("V")
_SEEING_SIP = ("sip_request", "registration", "user_known", "sip_response")
_LOG_EVERY_S = 1.0  # for each hook


class PolicyRunner:
    """The policy of one server; `install` changes it, None takes it away."""

    def __init__(self, stack: SipStack, relay: Relay, table: ConnectionTable, bus: EventBus) -> None:
        self.core = stack.core
        self._framing = stack.framing
        self._registration = stack.registration
        self.relay = relay
        self._table = table
        self.tools = Tools(stack.core, relay, bus, stack.next_hop)
        self.errors = self.tools.errors
        self.counts = self.tools.counts
        self.policy = Policy()
        self._authorize: Callable[[Connection, UpgradeRequest, Decided], None] | None = None
        self._logged: dict[str, float] = {}
        self.receiver = OrderedReceiver(stack.core, self.refuse_late)
        self._later = LaterHooks(self)
        self._endings = Endings(stack, self.tools, bus, self._tell_ended)

    def install(self, policy: Policy | None) -> None:
        """Use this policy from now on; what a hook has begun goes on as it was decided."""
        self.policy = policy = Policy() if policy is None else policy

        for name in HOOKS:
            if is_overridden(policy, name):
                self.errors.setdefault(name, 0)  # a counter that begins with its first error shows no increase
        core, relay, later = self.core, self.relay, self._later
        core.request_hook = self._choose("sip_request", self._request, later.request)
        core.response_hook = self._choose("sip_response", self._response, later.response)
        core.branch_hook = self._choose("before_forward", self._branch, later.branch)
        core.access.user_hook = self._choose("user_known", self._user, None)
        core.access.later = self._choose("user_known", None, later.user)
        self._registration.hook = self._choose("registration", self._register, None)
        self._registration.later = self._choose("registration", None, later.registration)
        self._table.accept_hook = self._choose("connection_accepted", self._accept, later.accept)
        relay.frame_hook = self._choose("msrp_frame", self._frame, later.frame)
        relay.user_hook = self._choose("user_known", self._permit, None)
        relay.user_later = self._choose("user_known", None, later.permit)
        self._authorize = self._choose("websocket_upgrade", self._upgrade, later.upgrade)
        self._endings.watch(is_overridden(policy, "ended"))
        self.receiver.limit = policy.async_queue
        self.receiver.timeout_s = policy.async_timeout
        seen = any(is_overridden(policy, name) for name in _SEEING_SIP) or core.branch_hook == later.branch
        # the receiver sees to it that refreshes are read, and that messages wait their turn
        self._framing.receiver = self.receiver if seen or self.receiver.running else core

    def _choose(self, name: str, plain: F | None, later: F | None) -> F | None:
        """Return what stands for a hook: nothing where it is not overridden, or is not of that kind."""
        if not is_overridden(self.policy, name):
            return None
        return later if inspect.iscoroutinefunction(getattr(self.policy, name)) else plain

    def authorize(self, connection: Connection, request: UpgradeRequest, decided: Decided) -> None:
        """Ask the policy about a WebSocket handshake; `decided` gets the refusal, None to let it in."""
        if self._authorize is None:
            decided(None)
        else:
            self._authorize(connection, request, decided)

    async def close(self) -> None:
        """End what is still waiting."""
        await self.receiver.close()

    @property
    def running(self) -> int:
        """How many `async` hooks are under way."""
        return self.receiver.running

    def fail(self, hook: str, error: BaseException) -> None:
        """Count an error of a hook, and log it, at most once a second for each hook."""
        if self._count_error(hook):
            log.error("policy hook failed hook=%s error=%s: %s", hook, type(error).__name__, error, exc_info=error)

    def overrun(self, hook: str) -> None:
        """Count a hook that was not begun, for too many are under way, and log it as often."""
        if not self.receiver.closed and self._count_error(hook):
            log.error("policy hook not begun hook=%s running=%d", hook, self.running)

    def _count_error(self, hook: str) -> bool:
        """Return whether it is time for a line in the log."""
        self.errors[hook] = self.errors.get(hook, 0) + 1
        now = time.monotonic()
        due = now >= self._logged.get(hook, 0.0)
        if due:
            self._logged[hook] = now + _LOG_EVERY_S
        return due

    def _call(self, name: str, hook: Callable[[V], object], view: V) -> bool:
        """Call a plain hook; False when it raised, which is counted and logged."""
        try:
            hook(view)
        except Exception as error:  # noqa: BLE001 - the operator's code may raise anything
            self.fail(name, error)
            return False
        return True

    # -- SIP

    def _request(self, connection: Connection, message: Message, now: float) -> bool:
        request = SipRequest(self.tools, connection, message)
        try:
            self.policy.sip_request(request)
        except RemoteError:
            raise
        except Exception as error:  # noqa: BLE001 - the operator's code may raise anything
            self.fail("sip_request", error)
            raise RemoteError(500, "policy_error") from None
        return self.settle(request, now) if request.code else False

    def settle(self, request: SipRequest, now: float) -> bool:
        """Answer what was rejected; True when there is nothing left to do."""
        if request.code > 0:
            core = self.core
            core.stats.reject("policy")
            connection = request.connection
            core.answer(connection, request.message, request.code, request.extra, now, request.reason)
            if request.close_after and connection.transport is not Transport.UDP:
                connection.close("policy")
        elif request.code < 0:
            self.core.stats.reject("policy_dropped")
        return request.code != 0

    def refuse_late(self, connection: Connection, message: Message, status: int) -> None:
        """Answer a request that waited with an error of ours."""
        self.core.stats.reject("policy_error" if status == 500 else "policy_queue")
        if not message.status and message.method != b"ACK":
            self.core.answer(connection, message, status, (), self.core.clock())

    def _response(self, client: ClientTransaction, message: Message, now: float) -> bool:
        response = SipResponse(self.tools, client, message)
        self._call("sip_response", self.policy.sip_response, response)
        return not response.dropped

    def view_branch(self, branch: Branch, request: bytes, connection: Connection) -> SipBranch:
        """Read a request that was written for a branch."""
        head, _, body = request.partition(b"\r\n\r\n")
        message = split_head(head, self.core.limits)
        message.body = body
        return SipBranch(self.tools, connection, message, branch)

    def _branch(self, branch: Branch, request: bytes, connection: Connection) -> bytes:
        view = self.view_branch(branch, request, connection)
        return view.verdict(request) if self._call("before_forward", self.policy.before_forward, view) else b""

    def _register(self, connection: Connection, message: Message, plan: Plan) -> None:
        view = Registering(self.tools, connection, plan)
        if not self._call("registration", self.policy.registration, view):
            raise RemoteError(500, "policy_error")
        if (refusal := view.verdict()) is not None:
            raise refusal

    def _user(self, connection: Connection, name: bytes) -> Refusal | None:
        return (403, ()) if self._refuses(User(self.tools, connection, "sip", decode(name))) else None

    def _permit(self, source: MsrpHandler, name: bytes) -> bool:
        return not self._refuses(User(self.tools, source.connection, "msrp", decode(name)))

    def _refuses(self, user: User) -> bool:
        return not self._call("user_known", self.policy.user_known, user) or user.code != 0

    # -- connections

    def _accept(self, connection: Connection) -> bool:
        view = NewConnection(self.tools, connection)
        return self._call("connection_accepted", self.policy.connection_accepted, view) and not view.refused

    def _upgrade(self, connection: Connection, request: UpgradeRequest, decided: Decided) -> None:
        view = Upgrading(self.tools, connection, request)
        if not self._call("websocket_upgrade", self.policy.websocket_upgrade, view):
            view.code = 500
        decided(view.verdict())

    # -- MSRP

    def _frame(
        self, handler: MsrpHandler, frame: Frame | None, data: bytes, at: int, body_at: int, stop: int, now: float
    ) -> bool:
        view = MsrpFrame(self.tools, handler, frame, data, at, body_at, stop)
        try:
            self.policy.msrp_frame(view)
        except Exception as error:  # noqa: BLE001 - the operator's code may raise anything
            self.refuse_frame(view, error, now)
            return True
        if view.taken or not view.changed or frame is not None:
            return view.taken
        self.relay.forwarder.handle_frame(handler, view.frame, now)  # what was changed is not in the octets
        return True

    def refuse_frame(self, view: MsrpFrame, error: BaseException, now: float) -> None:
        """Answer a frame whose hook raised: what an operation of its own said, else 500."""
        if not isinstance(error, RemoteError):
            self.fail("msrp_frame", error)
            error = RemoteError(500, "policy_error")
        self.relay.forwarder.refuse(view.handler, view.frame.head, error, now)

    def _tell_ended(self, what: Ended) -> None:
        if inspect.iscoroutinefunction(self.policy.ended):
            self._later.ended(what)
        else:
            self._call("ended", self.policy.ended, what)
