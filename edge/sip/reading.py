"""What the element reads in a request besides its parts: its transaction's key, flags of a Via, `;ob` (sans-IO)."""

from __future__ import annotations

from edge.sip import headers as h
from edge.sip.forward import Routes
from edge.sip.grammar import split_outside
from edge.sip.message import Message
from edge.sip.uri import SipUri


def server_key(message: Message, method: bytes) -> bytes:
    """Return the key of a server transaction (RFC 3261 §17.2.3): branch, sent-by, method; else as RFC 2543 did."""
    via = message.via
    branch = via.branch
    if branch[:7] == b"z9hG4bK" and len(branch) > 7:
        return branch + via.key + method
    from_tag = h.read_tag(message.texts[h.FROM]) or b""
    return b"|".join((message.uri, from_tag, message.texts[h.CALL_ID], b"%d" % message.cseq, via.text, method))


def has_flag(parameters: bytes, name: bytes) -> bool:
    """Whether a parameter of a Via is there without a value; `name` in lower case."""
    return any(piece.lower() == name for piece in split_outside(parameters, b";"))


class Journey:
    """What is known of a new request when its targets are looked for."""

    __slots__ = ("key", "routes", "uri")

    def __init__(self, uri: SipUri, routes: Routes, key: bytes) -> None:
        self.uri = uri
        self.routes = routes
        self.key = key
