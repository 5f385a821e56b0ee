"""The class an operator derives from. A hook that is not overridden costs nothing."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from edge.policy.frames import MsrpFrame
    from edge.policy.requests import SipRequest
    from edge.policy.responses import SipBranch, SipResponse
    from edge.policy.views import Ended, NewConnection, Registering, Upgrading, User


class Policy:
    """What an operator decides. Every hook returns nothing; it calls what its argument offers, or lets things go on.

    Each may be `async`: what came behind on the same connection waits, at most `async_queue` messages of a UDP flow,
    and one that takes longer than `async_timeout` seconds has failed. What a hook is given is good until it returns.
    """

    async_timeout: ClassVar[float] = 5.0
    async_queue: ClassVar[int] = 64

    def connection_accepted(self, connection: NewConnection) -> Awaitable[None] | None:
        """A TCP or TLS connection came in, its client's certificate has been checked; UDP has no connections."""

    def websocket_upgrade(self, upgrade: Upgrading) -> Awaitable[None] | None:
        """A client asks for a WebSocket (RFC 6455 §4.2)."""

    def sip_request(self, request: SipRequest) -> Awaitable[None] | None:
        """A new SIP request, checked but not yet authenticated; repeats, ACK and CANCEL follow theirs unasked."""

    def sip_response(self, response: SipResponse) -> Awaitable[None] | None:
        """A response to a request that was forwarded from here."""

    def before_forward(self, branch: SipBranch) -> Awaitable[None] | None:
        """A request is about to leave, once for each branch."""

    def registration(self, registration: Registering) -> Awaitable[None] | None:
        """Bindings of somebody who may register are about to be stored."""

    def user_known(self, user: User) -> Awaitable[None] | None:
        """Somebody proved who they are, in SIP or in MSRP's AUTH."""

    def msrp_frame(self, frame: MsrpFrame) -> Awaitable[None] | None:
        """An MSRP frame came: AUTH, SEND, REPORT, a response, or what nobody knows."""

    def ended(self, what: Ended) -> Awaitable[None] | None:
        """A call, or an MSRP session, is over."""
