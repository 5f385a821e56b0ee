"""Where 3xx answers lead, and what of them nobody has tried in the end (RFC 3261 §16.7 step 4), sans-IO.

3xx ─► its Contacts ─┬─ not for us to follow ───────────────────────┐
                     └─ groups ─┬─ one was begun: the Contact goes  │
                                └─ no branch was left for any ──────┴─► the 3xx goes up with these, if it is the best
"""

from __future__ import annotations

from edge.errors import RemoteError
from edge.sip import headers as h
from edge.sip.branch import Group
from edge.sip.grammar import split_list, unfold
from edge.sip.message import Message
from edge.sip.uri import SipUri, uri_equal


class Lead:
    """Where a Contact of a 3xx leads: a URI, and its groups, none where it is not tried."""

    __slots__ = ("_size", "groups", "uri")

    def __init__(self, uri: SipUri, groups: list[Group]) -> None:
        self.uri = uri
        self.groups = groups
        self._size = _count(groups)

    @property
    def untried(self) -> bool:
        """Whether nothing was begun of it: whoever begins with a group takes targets out."""
        return _count(self.groups) == self._size


class Redirections:
    """Those of one request. `leads` has every URI once, the Request-URI first."""

    __slots__ = ("_answers", "leads")

    def __init__(self, asked: SipUri) -> None:
        self.leads = [Lead(asked, [])]
        self._answers: list[tuple[Message, list[bytes], list[Lead | None]]] = []

    def find(self, uri: SipUri) -> Lead | None:
        """Return what is known of a URI."""
        for lead in self.leads:
            if uri_equal(uri, lead.uri):
                return lead
        return None

    def add(self, message: Message, values: list[bytes], leads: list[Lead | None]) -> None:
        """Remember a 3xx, and for each of its Contact values the lead, None for those nobody may follow."""
        self._answers.append((message, values, leads))

    def settle(self) -> list[Message]:
        """Take the Contacts that were tried out of every 3xx; returns, in the order they came, those with any left."""
        settled: list[Message] = []
        for message, values, leads in self._answers:
            left = [value for value, lead in zip(values, leads, strict=True) if lead is None or lead.untried]
            if len(left) < len(values):
                _replace_contacts(message, left)
            if left:
                settled.append(message)
        return settled


def read_contacts(message: Message) -> list[bytes]:
    """Return the Contact values of a response, none where they cannot be told apart."""
    try:
        return [item for row in message.values(h.CONTACT) for item in split_list(unfold(row))]
    except RemoteError:
        return []


def _count(groups: list[Group]) -> int:
    return sum(map(len, groups))


def _replace_contacts(message: Message, values: list[bytes]) -> None:
    rows = message.indexes(h.CONTACT)
    line = b"Contact: " + b", ".join(values)
    message.lines = [
        line if index == rows[0] else row
        for index, row in enumerate(message.lines)
        if index not in rows or (index == rows[0] and values)
    ]
