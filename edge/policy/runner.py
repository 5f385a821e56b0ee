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
from typing import Any

from edge.connections import Connection, ConnectionTable, Transport
from edge.errors import RemoteError
from edge.events import EventBus
from edge.msrp.framing import Frame
from edge.msrp.handler import MsrpHandler
from edge.msrp.relay import Relay
from edge.policy.base import Policy
from edge.policy.endings import Endings
from edge.policy.frames import MsrpFrame
from edge.policy.loading import HOOKS, is_overridden
from edge.policy.messages import decode
from edge.policy.order import OrderedReceiver
from edge.policy.requests import SipRequest
from edge.policy.responses import SipBranch, SipResponse
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
_LOG_EVERY_S = 1.0  # for each hook


class PolicyRunner:
    """The policy of one server; `install` changes it, None takes it away."""

    def __init__(self, stack: SipStack, relay: Relay, table: ConnectionTable, bus: EventBus) -> None:
        self._core = stack.core
        self._framing = stack.framing
        self._registration = stack.registration
        self._relay = relay
        self._table = table
        self.tools = Tools(stack.core, relay, bus, stack.next_hop)
        self.errors = self.tools.errors
        self.counts = self.tools.counts
        self._policy = Policy()
        self._authorize: Callable[[Connection, UpgradeRequest, Decided], None] | None = None
        self._logged: dict[str, float] = {}
        self._receiver = OrderedReceiver(stack.core, self._refuse_late)
        self._endings = Endings(stack, self.tools, bus, self._tell_ended)

    def install(self, policy: Policy | None) -> None:
        """Use this policy from now on; what a hook has begun goes on as it was decided."""
        self._policy = policy = Policy() if policy is None else policy

        def has(name: str) -> bool:
            return is_overridden(policy, name)

        def waits(name: str) -> bool:
            return inspect.iscoroutinefunction(getattr(policy, name))

        for name in filter(has, HOOKS):
            self.errors.setdefault(name, 0)  # a counter that begins with its first error shows no increase
        core, access = self._core, self._core.access
        core.request_hook = (
            (self._request_later if waits("sip_request") else self._request) if has("sip_request") else None
        )
        core.response_hook = (
            (self._response_later if waits("sip_response") else self._response) if has("sip_response") else None
        )
        core.branch_hook = self._branch if has("before_forward") else None
        access.user_hook = self._user if has("user_known") else None
        self._registration.hook = self._register if has("registration") else None
        self._table.accept_hook = self._accept if has("connection_accepted") else None
        self._relay.frame_hook = self._frame if has("msrp_frame") else None
        self._relay.user_hook = self._permit if has("user_known") else None
        self._authorize = self._upgrade if has("websocket_upgrade") else None
        self._endings.watch(has("ended"))
        self._receiver.limit = policy.async_queue
        self._receiver.timeout_s = policy.async_timeout
        seen = any(map(has, ("sip_request", "registration", "user_known", "sip_response")))
        if seen or self._receiver.busy:
            self._framing.receiver = self._receiver  # so that refreshes are read, and messages wait their turn
        else:
            self._framing.receiver = core

    def authorize(self, connection: Connection, request: UpgradeRequest, decided: Decided) -> None:
        """Ask the policy about a WebSocket handshake; `decided` gets the refusal, None to let it in."""
        if self._authorize is None:
            decided(None)
        else:
            self._authorize(connection, request, decided)

    async def close(self) -> None:
        """End what is still waiting."""
        await self._receiver.close()

    def fail(self, hook: str, error: BaseException) -> None:
        """Count an error of a hook, and log it, at most once a second for each hook."""
        self.errors[hook] = self.errors.get(hook, 0) + 1
        now = time.monotonic()
        if now >= self._logged.get(hook, 0.0):
            self._logged[hook] = now + _LOG_EVERY_S
            log.error("policy hook failed hook=%s error=%s: %s", hook, type(error).__name__, error, exc_info=error)

    # -- SIP

    def _request(self, connection: Connection, message: Message, now: float) -> bool:
        request = SipRequest(self.tools, connection, message)
        try:
            self._policy.sip_request(request)
        except RemoteError:
            raise
        except Exception as error:  # noqa: BLE001 - the operator's code may raise anything
            self.fail("sip_request", error)
            raise RemoteError(500, "policy_error") from None
        return self._settle(request, now) if request.code else False

    def _settle(self, request: SipRequest, now: float) -> bool:
        """Answer what was rejected; True when there is nothing left to do."""
        if request.code > 0:
            core = self._core
            core.stats.reject("policy")
            connection = request.connection
            core.answer(connection, request.message, request.code, request.extra, now, request.reason)
            if request.close_after and connection.transport is not Transport.UDP:
                connection.close("policy")
        elif request.code < 0:
            self._core.stats.reject("policy_dropped")
        return request.code != 0

    def _request_later(self, connection: Connection, message: Message, now: float) -> bool:
        request = SipRequest(self.tools, connection, message)

        def done(error: BaseException | None) -> None:
            now = self._core.clock()
            self._core.access.waiting.discard(message.key)
            if error is not None and not isinstance(error, RemoteError):
                self.fail("sip_request", error)
                self._refuse_late(connection, message, 500)
            elif error is not None:
                self._core.answer(connection, message, error.status or 500, (), now)
            elif not self._settle(request, now):
                self._core.proceed(connection, message, now)

        if not self._receiver.start(connection, lambda: self._policy.sip_request(request), done):
            raise RemoteError(503, "policy_queue")
        self._core.access.waiting.add(message.key)
        return True

    def _refuse_late(self, connection: Connection, message: Message, status: int) -> None:
        self._core.stats.reject("policy_error" if status == 500 else "policy_queue")
        if not message.status and message.method != b"ACK":
            self._core.answer(connection, message, status, (), self._core.clock())

    def _response(self, client: ClientTransaction, message: Message, now: float) -> bool:
        response = SipResponse(self.tools, client, message)
        try:
            self._policy.sip_response(response)
        except Exception as error:  # noqa: BLE001 - the operator's code may raise anything
            self.fail("sip_response", error)
        return not response.dropped

    def _response_later(self, client: ClientTransaction, message: Message, now: float) -> bool:
        response = SipResponse(self.tools, client, message)

        def done(error: BaseException | None) -> None:
            if error is not None:
                self.fail("sip_response", error)
            if not response.dropped:
                client.receive_response(message, self._core.clock())

        return not self._receiver.start(client.connection, lambda: self._policy.sip_response(response), done)

    def _branch(self, branch: Branch, request: bytes, connection: Connection) -> bytes:
        head, _, body = request.partition(b"\r\n\r\n")
        message = split_head(head, self._core.limits)
        message.body = body
        view = SipBranch(self.tools, connection, message, branch)
        try:
            self._policy.before_forward(view)
        except Exception as error:  # noqa: BLE001 - the operator's code may raise anything
            self.fail("before_forward", error)
            return b""
        if view.refused:
            return b""
        return message.encode() if view.changed else request

    def _register(self, connection: Connection, message: Message, plan: Plan) -> None:
        view = Registering(self.tools, connection, plan)
        try:
            self._policy.registration(view)
        except Exception as error:  # noqa: BLE001 - the operator's code may raise anything
            self.fail("registration", error)
            raise RemoteError(500, "policy_error") from None
        if view.code:
            raise RemoteError(view.code, "policy", view.reason)

    def _user(self, connection: Connection, name: bytes) -> Refusal | None:
        return (403, ()) if self._refuses(User(self.tools, connection, "sip", decode(name))) else None

    def _permit(self, source: MsrpHandler, name: bytes) -> bool:
        return not self._refuses(User(self.tools, source.connection, "msrp", decode(name)))

    def _refuses(self, user: User) -> bool:
        try:
            self._policy.user_known(user)
        except Exception as error:  # noqa: BLE001 - the operator's code may raise anything
            self.fail("user_known", error)
            return True
        return user.code != 0

    # -- connections

    def _accept(self, connection: Connection) -> bool:
        view = NewConnection(self.tools, connection)
        try:
            self._policy.connection_accepted(view)
        except Exception as error:  # noqa: BLE001 - the operator's code may raise anything
            self.fail("connection_accepted", error)
            return False
        return not view.refused

    def _upgrade(self, connection: Connection, request: UpgradeRequest, decided: Decided) -> None:
        view = Upgrading(self.tools, connection, request)
        try:
            self._policy.websocket_upgrade(view)
        except Exception as error:  # noqa: BLE001 - the operator's code may raise anything
            self.fail("websocket_upgrade", error)
            view.code = 500
        decided(HttpRefusal(view.code, view.headers) if view.code else None)

    # -- MSRP

    def _frame(
        self, handler: MsrpHandler, frame: Frame | None, data: bytes, at: int, body_at: int, stop: int, now: float
    ) -> bool:
        view = MsrpFrame(self.tools, handler, frame, data, at, body_at, stop, now)
        try:
            self._policy.msrp_frame(view)
        except RemoteError as error:
            self._relay.forwarder.refuse(handler, view.frame.head, error, now)
            return True
        except Exception as error:  # noqa: BLE001 - the operator's code may raise anything
            self.fail("msrp_frame", error)
            self._relay.forwarder.refuse(handler, view.frame.head, RemoteError(500, "policy_error"), now)
            return True
        if view.taken or not view.changed or frame is not None:
            return view.taken
        self._relay.forwarder.handle_frame(handler, view.frame, now)  # what was changed is not in the octets
        return True

    def _tell_ended(self, what: Ended) -> None:
        def call() -> Any:
            return self._policy.ended(what)

        def done(error: BaseException | None) -> None:
            if error is not None:
                self.fail("ended", error)

        if inspect.iscoroutinefunction(self._policy.ended):
            self._receiver.start(None, call, done)
            return
        try:
            call()
        except Exception as error:  # noqa: BLE001 - the operator's code may raise anything
            done(error)
