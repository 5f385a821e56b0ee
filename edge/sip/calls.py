"""Calls as accounting sees them: from INVITE to a refusal or a BYE (RFC 3261 §12, §15), sans-IO.

    INVITE ─► Call ─┬─ 2xx ─► Dialog, by Call-ID and both tags ─┬─ BYE of either side ─► written
                    │                                           └─ its limit, no room, the end of the server ─► written
                    └─ refused, cancelled ─► written

A call that forks into several dialogs is written once for each. A refusal with 401 or 407 is half a handshake, no call.
"""

from __future__ import annotations

from collections.abc import Callable

from edge.connections import Connection, format_address
from edge.sip import headers as h
from edge.sip.message import Message

Values = tuple[object, ...]
Write = Callable[[str, Values], None]
_Key = tuple[bytes, bytes, bytes]


class Call:
    """An INVITE on its way: who calls whom, from where, since when."""

    __slots__ = (
        "_established",
        "_table",
        "call_id",
        "callee",
        "caller",
        "flow",
        "from_tag",
        "source",
        "started",
        "transport",
    )

    def __init__(self, table: CallTable, connection: Connection, message: Message, now: float) -> None:
        self._table = table
        self._established = False
        self.call_id = message.texts[h.CALL_ID].strip()
        self.from_tag = h.read_tag(message.texts[h.FROM]) or b""
        self.caller = _read_uri(message.texts[h.FROM])
        self.callee = message.uri
        self.source = format_address(connection.remote)
        self.transport = connection.transport.name.lower()
        self.flow = connection.name
        self.started = now

    def establish(self, connection: Connection, message: Message, now: float) -> None:
        """A 2xx came from this connection; one that was repeated is known already."""
        self._established = True
        self._table.open(Dialog(self, h.read_tag(message.texts[h.TO]) or b"", connection.name, message.status, now))

    def settle(self, status: int, cancelled: bool, now: float) -> None:
        """Nothing more will come of it; `status` went up to the caller."""
        if not self._established and status not in (401, 407):
            reason = "cancelled" if cancelled else "refused"
            self._table.write("call", self.describe(b"", "", None, now, status, reason))

    def describe(
        self, to_tag: bytes, peer_flow: str, answered: float | None, ended: float | None, code: int, reason: str
    ) -> Values:
        """Return what is written, in the order of `edge.accounting.records`."""
        return (
            self.call_id, self.from_tag, to_tag, self.caller, self.callee, self.source, self.transport, self.flow,
            peer_flow, self.started, answered, ended, code, reason,
        )  # fmt: skip


class Dialog:
    """A call that was answered."""

    __slots__ = ("answered", "call", "code", "peer_flow", "to_tag")

    def __init__(self, call: Call, to_tag: bytes, peer_flow: str, code: int, now: float) -> None:
        self.call = call
        self.to_tag = to_tag
        self.peer_flow = peer_flow
        self.code = code
        self.answered = now

    @property
    def key(self) -> _Key:
        """What names it, whoever speaks."""
        return _key(self.call.call_id, self.call.from_tag, self.to_tag)

    def describe(self, ended: float | None, reason: str) -> Values:
        """Return what is written; see `Call.describe`."""
        return self.call.describe(self.to_tag, self.peer_flow, self.answered, ended, self.code, reason)


class CallTable:
    """The calls that are going on, at most `size`; none goes on longer than `limit_s`."""

    __slots__ = ("_dialogs", "_limit_s", "_size", "write")

    def __init__(self, write: Write, size: int, limit_s: float) -> None:
        self.write = write
        self._size = size
        self._limit_s = limit_s
        self._dialogs: dict[_Key, Dialog] = {}

    def __len__(self) -> int:
        return len(self._dialogs)

    def see_request(self, connection: Connection, message: Message, now: float) -> Call | None:
        """Look at a request that is passed on: an INVITE begins a call, a BYE ends one."""
        if message.method == b"INVITE" and message.to_tag is None:
            return Call(self, connection, message, now)
        if message.method == b"BYE":
            self._end(message, now)
        return None

    def refuse(self, connection: Connection, message: Message, status: int, now: float) -> None:
        """An INVITE was answered without being passed on."""
        if message.method == b"INVITE" and message.to_tag is None:
            Call(self, connection, message, now).settle(status, False, now)

    def open(self, dialog: Dialog) -> None:
        """Enter a call that was answered, in place of the oldest one where there is no room."""
        key = dialog.key
        if key in self._dialogs:
            return
        if len(self._dialogs) >= self._size:
            oldest = self._dialogs.pop(next(iter(self._dialogs)))
            self.write("call", oldest.describe(dialog.answered, "table_full"))
        self._dialogs[key] = dialog
        self.write("answer", dialog.describe(None, "answered"))

    def _end(self, message: Message, now: float) -> None:
        sender = h.read_tag(message.texts[h.FROM]) or b""
        dialog = self._dialogs.pop(_key(message.texts[h.CALL_ID].strip(), sender, message.to_tag or b""), None)
        if dialog is not None:
            reason = "bye_caller" if sender == dialog.call.from_tag else "bye_callee"
            self.write("call", dialog.describe(now, reason))

    def expire(self, now: float) -> None:
        """End what goes on for too long; call it every few seconds."""
        while self._dialogs:
            key, oldest = next(iter(self._dialogs.items()))
            if now - oldest.answered < self._limit_s:
                break
            del self._dialogs[key]
            self.write("call", oldest.describe(now, "limit"))

    def close(self, now: float) -> None:
        """Write every call that goes on: nobody will see its end."""
        for dialog in self._dialogs.values():
            self.write("call", dialog.describe(now, "shutdown"))
        self._dialogs.clear()


def _key(call_id: bytes, one: bytes, other: bytes) -> _Key:
    return (call_id, one, other) if one < other else (call_id, other, one)


def _read_uri(value: bytes) -> bytes:
    """Cut the URI out of a From value, without a judgement on it."""
    before, bracket, after = value.partition(b"<")
    return after.partition(b">")[0] if bracket else before.partition(b";")[0].strip()
