"""Answers to requests for which no transaction is open (RFC 3261 §8.2.6, §18.2.2): refusals, the registrar's, ours.

What is answered here is sent once; on UDP the octets are kept for timer J, so that a repeat draws the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from edge.connections import Connection, Transport
from edge.errors import RemoteError
from edge.rates import SourceRate
from edge.sip import headers as h
from edge.sip.answers import ToTags, build_answer
from edge.sip.forward import fix_top_via
from edge.sip.message import Message
from edge.sip.stats import SipStats
from edge.sip.transaction import Transactions


class ReplyFlows(Protocol):
    """Finds the UDP flow for an answer."""

    def reply_flow(self, connection: Connection, host: str, port: int) -> Connection: ...


class Explained(RemoteError):  # noqa: N818 - a refusal, and what the other side needs to do better
    """A refusal whose answer carries one header line more."""

    def __init__(self, status: int, label: str, line: bytes) -> None:
        super().__init__(status, label)
        self.line = line


class Unsupported(Explained):
    """420 with the option tags we do not know."""

    def __init__(self, tags: list[bytes]) -> None:
        super().__init__(420, "extension", b"Unsupported: " + b", ".join(tags))


def check_proxy_require(message: Message) -> None:
    """We know no extension that a proxy could be required to have (RFC 3261 §16.3 step 5).

    Raises:
        Unsupported: for any tag.
    """
    tags = h.parse_tokens(message.values(h.PROXY_REQUIRE))
    if tags:
        raise Unsupported(tags)


class IntervalTooSmall(Explained):
    """422 with the shortest session interval we accept (RFC 4028 §6)."""

    def __init__(self, line: bytes) -> None:
        super().__init__(422, "session_interval", line)


class Answerer:
    """Answers statelessly and counts it. `courtesies` bounds the refusals of bad tokens for each source.

    Without `websocket_received` the Via of a WebSocket client stays as it came (RFC 7118 §5.3).
    """

    __slots__ = ("_courtesies", "_reach", "_tags", "_transactions", "_websocket_received", "stats")

    def __init__(
        self,
        transactions: Transactions,
        reach: ReplyFlows,
        tags: ToTags,
        courtesies: SourceRate | None = None,
        websocket_received: bool = True,
    ) -> None:
        self.stats = SipStats()
        self._transactions = transactions
        self._reach = reach
        self._tags = tags
        self._courtesies = courtesies
        self._websocket_received = websocket_received

    def count(self, status: int) -> None:
        """Count an answer that goes out."""
        self.stats.answers[status // 100] += 1

    def tag_for(self, message: Message) -> bytes:
        """Return the To tag for our own answer."""
        return self._tags(message)

    def note_source(self, connection: Connection, message: Message) -> None:
        """Write into the top Via where the request came from, over what its sender claims (RFC 3261 §18.2.1)."""
        if not self._websocket_received and connection.transport.websocket:
            via = message.via
            if via.received is None and not via.rport:  # nothing is claimed
                return
        fix_top_via(message, connection.remote)

    def refuse_unchecked(self, connection: Connection, message: Message, error: RemoteError) -> None:
        """Answer a message that failed the first checks, where its Via could be read and it is no ACK."""
        self.stats.reject(error.label)
        if not error.status or message.method == b"ACK" or not hasattr(message, "via"):
            return
        self.note_source(connection, message)
        try:
            message.to_tag = h.read_tag(message.texts[h.TO]) if message.first[h.TO] else None
        except RemoteError:
            message.to_tag = b""
        self.count(error.status)
        answer = build_answer(message, error.status, self._tags(message), reason=error.detail)
        self.reply_connection(connection, message).send(answer)

    def refuse(self, connection: Connection, message: Message, error: RemoteError, now: float) -> None:
        """Answer a refusal statelessly."""
        self.stats.reject(error.label)
        if message.method == b"ACK" or not error.status:
            return
        courtesies = self._courtesies
        if courtesies is not None and error.label == "forged_token" and not courtesies.admits(connection.source):
            return
        extra = (error.line,) if isinstance(error, Explained) else ()
        self.answer(connection, message, error.status, extra, now, error.detail)

    def answer(
        self,
        connection: Connection,
        message: Message,
        status: int,
        extra: Sequence[bytes],
        now: float,
        reason: str = "",
    ) -> None:
        """Answer a request for which no transaction was opened. INVITE refusals are sent once; the ACK is dropped."""
        data = build_answer(message, status, self._tags(message), extra, reason)
        self.stats.answers[status // 100] += 1
        if connection.transport is Transport.UDP:
            if message.method != b"INVITE" and status not in (401, 407):
                self._transactions.remember_final(message.key, data, now)
            connection = self.reply_connection(connection, message)
        connection.send(data)

    def reply_connection(self, connection: Connection, message: Message) -> Connection:
        """Return where answers go (RFC 3261 §18.2.2, RFC 3581 §4); a maddr, which may name strangers, is ignored."""
        via = message.via
        if connection.transport is not Transport.UDP:
            return connection
        if b"maddr" in via.parameters:
            self.stats.reject("via_maddr")
        if via.rport is not None:
            return connection
        port = via.port or 5060
        if port == connection.remote[1]:
            return connection
        return self._reach.reply_flow(connection, connection.remote[0], port)
