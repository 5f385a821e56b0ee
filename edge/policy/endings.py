"""Tells a policy of calls and sessions that are over.

Calls come from the table that accounting reads too (`edge.sip.calls`); where there is no accounting, it is there for as
long as the policy has `ended`.
"""

from __future__ import annotations

from collections.abc import Callable

from edge.events import EventBus, SessionClosed
from edge.policy.text import decode
from edge.policy.tools import Tools
from edge.policy.views import Ended
from edge.sip.calls import Values
from edge.sipstack import SipStack

_NO_ANSWER = 408


class Endings:
    """Watches calls and sessions while `watch(True)`; `told` gets each that is over."""

    def __init__(self, stack: SipStack, tools: Tools, bus: EventBus, told: Callable[[Ended], None]) -> None:
        self._stack = stack
        self._tools = tools
        self._told = told
        self._watching = False
        calls = stack.core.calls
        self._account = None if calls is None else calls.write
        bus.subscribe(SessionClosed, self._session_closed)

    def watch(self, on: bool) -> None:
        """Begin or end to watch; calls that go on without anybody to watch them are not reported later."""
        if on is self._watching:
            return
        self._watching = on
        calls = self._stack.core.calls
        if self._account is not None and calls is not None:
            calls.write = self._call_written if on else self._account
        else:
            self._stack.core.calls = self._stack.watch_calls(self._call_written) if on else None

    def _call_written(self, kind: str, values: Values) -> None:
        if self._account is not None:
            self._account(kind, values)
        if kind == "call" and self._watching:
            self._told(self._describe(values))

    def _describe(self, values: Values) -> Ended:
        """Read what `edge.sip.calls.Call.describe` wrote."""
        call_id, _, _, caller, callee, source, _, flow, _, _, answered, ended, code, reason = values
        assert isinstance(code, int)
        late = code == _NO_ANSWER and reason == "refused"
        what = Ended(self._tools, "sip", _text(call_id), _text(caller), "timeout" if late else str(reason))
        what.peer, what.source, what.connection, what.code = _text(callee), str(source), str(flow), code
        if isinstance(answered, float) and isinstance(ended, float):
            what.duration = max(0.0, ended - answered)
        return what

    def _session_closed(self, event: SessionClosed) -> None:
        if self._watching:
            what = Ended(self._tools, "msrp", event.session, event.user, event.reason)
            what.connection, what.duration = event.connection, event.age_s
            self._told(what)


def _text(value: object) -> str:
    assert isinstance(value, bytes)
    return decode(value)
