"""What we write into messages to find them again: Via, branch, Record-Route (RFC 3261 §16.6, RFC 5393), sans-IO.

branch   z9hG4bK <stem of this process> . <counter, hex> . <loop mark>
"""

from __future__ import annotations

from typing import Protocol

from edge.connections import Connection, Transport
from edge.errors import RemoteError
from edge.sip import headers as h
from edge.sip.addresses import Addresses
from edge.sip.message import Message

# transport=tls was deprecated by RFC 3261 §26.2.2; with transport=tcp a phone leaves its TLS connection for plain TCP
# (baresip 1.0.0), with sips it would have to change its Contact, so TLS is named as everybody names it.
ROUTE_TRANSPORT = {
    Transport.UDP: b"",
    Transport.TCP: b";transport=tcp",
    Transport.TLS: b";transport=tls",
    Transport.WS: b";transport=ws",
    Transport.WSS: b";transport=ws",
}
_MASK = (1 << 64) - 1
_DIALOG_FORMING = frozenset((b"INVITE", b"SUBSCRIBE", b"REFER", b"NOTIFY"))
_REFRESHING = frozenset((b"INVITE", b"UPDATE", b"SUBSCRIBE", b"NOTIFY", b"REFER"))
_NOT_RECORDED = frozenset(
    (b"MESSAGE", b"OPTIONS", b"PUBLISH", b"INFO", b"BYE", b"ACK", b"CANCEL", b"PRACK", b"REGISTER", b"UPDATE")
)


class Tokens(Protocol):
    """Names flows (`edge.outbound.flows.FlowTable`)."""

    def token_of(self, connection: Connection) -> bytes: ...


class Stamper:
    """Writes our marks and recognises them. `stem` is unique to this process, as hex."""

    __slots__ = ("_addresses", "_count", "_heads", "_stem", "_tokens")

    def __init__(self, addresses: Addresses, tokens: Tokens, stem: bytes) -> None:
        self._addresses = addresses
        self._tokens = tokens
        self._stem = b"z9hG4bK" + stem
        self._count = 0
        self._heads: dict[tuple[object, ...], bytes] = {}

    def new_branch(self, mark: bytes) -> bytes:
        """Return a branch that was never used before; `mark` is the loop mark, b"" for none."""
        self._count += 1
        return b"%b.%x.%b" % (self._stem, self._count, mark or b"0")

    def stateless_branch(self, message: Message) -> bytes:
        """Return a branch that only depends on the request, for what is sent without a transaction (§16.11)."""
        mark = hash((self._stem, message.via.text, message.uri, message.texts[h.CALL_ID])) & _MASK
        return b"%b.s%016x.0" % (self._stem, mark)

    def via_line(self, connection: Connection, branch: bytes) -> bytes:
        """Write our Via for a request that leaves by `connection` (RFC 3261 §18.1.1)."""
        key = (connection.listener, connection.transport, connection.local)
        head = self._heads.get(key)
        if head is None:
            host = self._addresses.facing(connection)
            head = b"Via: SIP/2.0/%b %b;branch=" % (connection.transport.name.encode("ascii"), host)
            if len(self._heads) >= 4096:
                self._heads.clear()
            self._heads[key] = head
        return head + branch

    def check_loop(self, message: Message, mark: bytes) -> None:
        """Refuse a request that was here before in the same shape: a Via of ours carries its loop mark (RFC 5393 §4.2).

        Raises:
            RemoteError: 482.
        """
        if any(branch.rpartition(b".")[2] == mark for branch in self._own_branches(message)):
            raise RemoteError(482, "loop")

    def _own_branches(self, message: Message) -> list[bytes]:
        found = []
        for value in message.values(h.VIA):
            at = value.find(self._stem)
            while at >= 0:
                end = at
                while end < len(value) and value[end : end + 1] not in (b";", b",", b" "):
                    end += 1
                found.append(value[at:end])
                at = value.find(self._stem, end)
        return found

    @staticmethod
    def records(message: Message) -> bool:
        """Whether a request gets our Record-Route: what forms a dialog, or refreshes its target (§16.6 step 4)."""
        method = message.method
        if message.to_tag is None:
            return method in _DIALOG_FORMING or method not in _NOT_RECORDED
        return method in _REFRESHING

    def record_routes(
        self,
        source: Connection,
        source_token: bytes | None,
        onward: Connection,
        onward_token: bytes | None,
        secure: bool,
    ) -> list[bytes]:
        """Return the Record-Route values for a branch, top first (RFC 3261 §16.6 step 4, RFC 5626 §5.3).

        One for each side that is a flow; both where the sides differ in transport or listener.
        """
        differs = _differ(source, onward)
        values: list[bytes] = []
        if onward_token is not None or differs:
            values.append(self.route_value(onward, onward_token, secure))
        if source_token is not None or differs or not values:
            values.append(self.route_value(source, source_token, secure))
        return values

    def path_value(self, onward: Connection, token: bytes, ob: bool, source: Connection | None = None) -> bytes:
        """Write our Path for a REGISTER that leaves by `onward`, `;ob` for a client's flow (RFC 5626 §5.1).

        With `source`, where it differs from `onward`, two values: the side of the registrar, and that of the client
        with the token below (RFC 3608 §6.2).
        """
        mark = b";ob>" if ob else b">"
        if source is None or not _differ(source, onward):
            return self.route_value(onward, token, False)[:-1] + mark
        below = self.route_value(source, token, False)[:-1] + mark
        return self.route_value(onward, None, False) + b", " + below

    def route_value(self, connection: Connection, token: bytes | None, secure: bool) -> bytes:
        """Write one Route value that leads back to us, and on to a flow with a token."""
        user = token + b"@" if token else b""
        if secure:
            return b"<sips:%b%b;lr>" % (user, self._addresses.facing(connection))
        transport = ROUTE_TRANSPORT[connection.transport]
        return b"<sip:%b%b%b;lr>" % (user, self._addresses.facing(connection), transport)


def _differ(one: Connection, other: Connection) -> bool:
    """Whether two sides of us are reached in different ways."""
    return one.transport is not other.transport or one.listener is not other.listener
