"""SIP messages on their way through as hooks see them: a response that came back, a request that is about to leave."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.connections import Connection
from edge.policy.messages import SipMessage
from edge.policy.text import decode
from edge.sip.branch import Branch
from edge.sip.message import Message

if TYPE_CHECKING:
    from edge.policy.tools import Tools
    from edge.sip.transaction import ClientTransaction


class SipResponse(SipMessage):
    """A response from further on."""

    __slots__ = ("client", "dropped")

    def __init__(self, tools: Tools, client: ClientTransaction, message: Message) -> None:
        super().__init__(tools, client.connection, message)
        self.client = client
        self.dropped = False

    @property
    def code(self) -> int:
        """The status."""
        return self.message.status

    @property
    def request_uri(self) -> str:
        """The Request-URI of the request as it was sent there."""
        return decode(self.client.request.split(b" ", 2)[1])

    def drop(self) -> None:
        """Behave as if it had not come; its request then runs out of time."""
        self.dropped = True

    def next_flow(self) -> bool:
        """Try the next flow of the same device, or what follows in `dispatch`, in place of this final answer.

        Returns False, and changes nothing, where none is left or the answer is no refusal (RFC 5626 §7).
        """
        branch = self.client.user
        if self.code < 300 or not isinstance(branch, Branch) or not branch.group or branch.context.closed:
            return False
        branch.passed_over = True
        return True


class SipBranch(SipMessage):
    """A request as it is about to leave, on its way to one target by `connection`."""

    __slots__ = ("branch", "refused")

    def __init__(self, tools: Tools, connection: Connection, message: Message, branch: Branch) -> None:
        super().__init__(tools, connection, message)
        self.branch = branch
        self.refused = False

    @property
    def uri(self) -> str:
        """The Request-URI it leaves with."""
        return decode(self.message.uri)

    @property
    def came_from(self) -> str:
        """The IP address the request came from."""
        return self.branch.context.source.remote[0]

    def refuse(self) -> None:
        """Do not send this branch; the next one takes its place."""
        self.refused = True

    def verdict(self, written: bytes) -> bytes:
        """Return what leaves in place of what was `written`, b"" for nothing."""
        if self.refused:
            return b""
        return self.message.encode() if self.changed else written
