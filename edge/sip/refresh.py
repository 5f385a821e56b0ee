"""Registrations that come again unchanged (RFC 3261 §10.2.4), sans-IO.

A phone refreshes its binding with the very request it sent before: another branch, a higher CSeq, perhaps other
credentials. Phones behind a NAT do so every minute, so such a request is recognised octet by octet and answered without
being taken apart once more. Whatever differs anywhere else goes the ordinary way.

    REGISTER … Via: SIP/2.0/TCP host;branch= | branch | ;rport … CSeq: | number | REGISTER … | Authorization: … | rest
    ──────────────── start ─────────────────            ─── middle ───           ── after ──                      end
"""

from __future__ import annotations

from collections.abc import Sequence

from edge.connections import Connection
from edge.outbound.flows import FlowState, Registration
from edge.sip import headers as h
from edge.sip.answers import NO_CONTENT
from edge.sip.grammar import TOKEN_CHARS
from edge.sip.location import Binding
from edge.sip.message import Message

_REMEMBERED = 2048
_CRLF = b"\r\n"
_LONGEST_BRANCH = 128
_AUTHORIZATION = b"Authorization: "
_COOKIE = b"z9hG4bK"


class Repeat:
    """What differs in a request that was recognised: `authorization` is None where it has none."""

    __slots__ = ("authorization", "branch", "cseq", "number")

    def __init__(self, branch: bytes, number: bytes, authorization: bytes | None) -> None:
        self.branch = branch
        self.number = number
        self.cseq = int(number)
        self.authorization = authorization


class Refresh:
    """One registration as it was granted last: the request cut where it varies, and the parts of its answer."""

    __slots__ = (
        "_after", "_end", "_granted", "_identity", "_lines", "_middle", "_registration", "_start", "_via",
        "_with_credentials", "binding", "call_id", "key", "uri",
    )  # fmt: skip

    def __init__(self, binding: Binding, registration: Registration, message: Message, granted: int) -> None:
        self.binding = binding
        self.uri = message.uri
        self.call_id = message.texts[h.CALL_ID]
        self.key = message.via.key + message.method  # what follows the branch in the transaction's key
        self._registration = registration
        self._granted = granted

    def take_apart(self, message: Message, tag: bytes, lines: Sequence[bytes]) -> bool:
        """Cut request and answer where they vary; False where the request is not in the usual order.

        A quoted string in the Via might hold what looks like the branch.
        """
        first, rows, via = message.first, message.lines.copy(), message.via
        if b'"' in via.text:
            return False
        top, cseq, credentials = first[h.VIA], first[h.CSEQ], first[h.AUTHORIZATION]
        head, separator, rest = via.text.partition(b";branch=" + via.branch)
        if not separator or not top < cseq or (credentials and credentials < cseq) or not via.branch:
            return False
        fixed = rows[top]
        if not fixed.startswith(b"Via: %b;branch=" % head) or fixed[-1:] in b" \t":
            return False  # the answer is written as the request was: `v:`, without the blank or with more
        rows[top] = b"Via: " + via.text
        stops = [*rows[:top], b"Via: " + head + b";branch="]
        self._start = _CRLF.join(stops)
        self._middle = _CRLF.join([rest, *rows[top + 1 : cseq], b"CSeq: "])
        until = credentials or len(rows)
        self._with_credentials = credentials > 0
        self._after = _CRLF.join([b" REGISTER", *rows[cseq + 1 : until], b""])
        self._end = _CRLF.join([*rows[until + 1 :], b"", b""]) if credentials else _CRLF
        self._cut_answer(message, fixed, tag, lines)
        return _CRLF.join([*rows, b"", b""]) == self._join(message)

    def _cut_answer(self, message: Message, via_line: bytes, tag: bytes, lines: Sequence[bytes]) -> None:
        first, rows = message.first, message.lines
        before, _, after = via_line.partition(b";branch=" + message.via.branch)
        self._via = before + b";branch="
        to = rows[first[h.TO]] if message.to_tag else rows[first[h.TO]] + b";tag=" + tag
        self._identity = _CRLF.join((after, rows[first[h.FROM]], to, rows[first[h.CALL_ID]], b"CSeq: "))
        self._lines = _CRLF.join(lines)

    def _join(self, message: Message) -> bytes:
        """Put the request together from the pieces, to see that nothing was lost."""
        number = message.texts[h.CSEQ].split()[0]
        credentials = message.first[h.AUTHORIZATION]
        line = message.lines[credentials] + _CRLF if credentials else b""
        return b"".join((self._start, message.via.branch, self._middle, number, self._after, line, self._end))

    def recognise(self, connection: Connection, data: bytes) -> Repeat | None:
        """Tell whether `data` is this request once more, later and over the same flow, whose token is the same."""
        binding = self.binding
        if binding.connection is not connection or not data.startswith(self._start):
            return None
        if binding.flow != connection.token or self._registration.flow.state is not FlowState.UP:
            return None
        start = len(self._start)
        stop = data.find(self._middle, start, start + _LONGEST_BRANCH + len(self._middle))
        if stop < 0:
            return None
        branch, number_at = data[start:stop], stop + len(self._middle)
        number, blank, _ = data[number_at : number_at + 11].partition(b" ")
        after = number_at + len(number)
        if not number.isdigit() or len(number) > 9 or not blank or not data.startswith(self._after, after):
            return None
        if branch[:7] != _COOKIE or len(branch) == 7 or branch.translate(None, TOKEN_CHARS):
            return None
        credentials = data[after + len(self._after) :]
        if credentials == self._end:
            repeat = Repeat(branch, number, None)
        elif not self._with_credentials:  # a line more than was counted and measured
            return None
        else:
            value = self._read_credentials(credentials)
            if value is None:
                return None
            repeat = Repeat(branch, number, value)
        return repeat if repeat.cseq > binding.cseq else None

    def _read_credentials(self, rest: bytes) -> bytes | None:
        line = rest.removesuffix(self._end)
        if len(line) == len(rest) or line[:15] != _AUTHORIZATION or line[-2:] != _CRLF or line.count(b"\n") != 1:
            return None
        return None if b"\r" in line[:-2] or b"\0" in line else line[15:-2].strip(b" \t")

    def renew(self, cseq: int, now: float) -> None:
        """Renew the binding; its timers find out by themselves."""
        binding = self.binding
        binding.cseq = cseq
        binding.refreshed_at = now
        binding.expires_at = self._registration.expires_at = now + self._granted

    def write_ok(self, repeat: Repeat, date: bytes) -> bytes:
        """Write the 200."""
        return self.write(b"SIP/2.0 200 OK", repeat, (self._lines, date))

    def write(self, start_line: bytes, repeat: Repeat, extra: Sequence[bytes]) -> bytes:
        """Write an answer with the header lines `extra`."""
        return b"%b\r\n%b%b%b%b REGISTER\r\n%b\r\n\r\n" % (
            start_line, self._via, repeat.branch, self._identity, repeat.number, _CRLF.join((*extra, NO_CONTENT)),
        )  # fmt: skip


class Refreshes:
    """What is remembered of registrations, by connection; bounded, emptied when full."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[int, Refresh] = {}

    def find(self, connection: Connection) -> Refresh | None:
        """Return the registration that was made last over a connection, if it is remembered."""
        return self._known.get(connection.id)

    def remember(self, connection: Connection, refresh: Refresh) -> None:
        """Remember a registration."""
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[connection.id] = refresh

    def forget(self, connection: Connection) -> None:
        """Forget what was remembered of a connection."""
        self._known.pop(connection.id, None)
