"""A REGISTER that is the one before once more, octet by octet: answered without being read like others (sans-IO)."""

from __future__ import annotations

from edge.connections import Connection, Transport
from edge.sip.access import THIRD_PARTY, Access, Grant, Pending, Refusal
from edge.sip.answers import start_line
from edge.sip.location import Binding, Location
from edge.sip.refresh import Refresh, Repeat
from edge.sip.registration import Registration
from edge.sip.stats import SipStats
from edge.sip.transaction import Transactions


class Again:
    """Answers refreshes. `longest` is the most octets one may have."""

    __slots__ = ("_access", "_location", "_longest", "_registration", "_stats", "_transactions")

    def __init__(
        self,
        registration: Registration,
        access: Access,
        location: Location,
        transactions: Transactions,
        stats: SipStats,
        longest: int,
    ) -> None:
        self._registration = registration
        self._access = access
        self._location = location
        self._transactions = transactions
        self._stats = stats
        self._longest = longest

    def receive(self, connection: Connection, data: bytes, now: float) -> bool:
        """Answer a refresh; False when it has to be read like any other REGISTER."""
        refresh = self._registration.refreshes.find(connection)
        repeat = refresh.recognise(connection, data) if refresh is not None else None
        if refresh is None or repeat is None or not self._is_alone(refresh.binding):
            return False
        transactions = self._transactions
        key = repeat.branch + refresh.key
        if key in transactions.finals or key in transactions.servers or len(data) > self._longest:
            return False
        refusal = self._check(connection, refresh, repeat, now) if self._access.enabled else None
        if refusal is None:
            refresh.renew(repeat.cseq, now)
            status, answer = 200, refresh.write_ok(repeat, self._registration.date_line())
        elif isinstance(refusal, tuple):
            status, answer = refusal[0], refresh.write(start_line(refusal[0]), repeat, refusal[1])
        else:
            return False
        self._stats.count_request(b"REGISTER")
        self._stats.answers[status // 100] += 1
        if connection.transport is Transport.UDP and status != 401:
            transactions.remember_final(key, answer, now)
        connection.send(answer)
        return True

    def _check(
        self, connection: Connection, refresh: Refresh, repeat: Repeat, now: float
    ) -> Refusal | Pending | Grant | None:
        """Judge its credentials; nothing is used up where somebody else may be registering."""
        row, aor = repeat.authorization, refresh.binding.aor
        if row is not None and self._access.may_be_third_party(row):
            return THIRD_PARTY
        rows = () if row is None else (row,)
        dialogue = refresh.call_id, repeat.cseq
        return self._access.check(connection, rows, b"REGISTER", refresh.uri, aor, False, now, dialogue)

    def _is_alone(self, binding: Binding) -> bool:
        bindings = self._location.bindings(binding.aor)
        return len(bindings) == 1 and bindings[0] is binding
