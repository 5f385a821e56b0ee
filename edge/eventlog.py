"""Events as log lines: one line each, text before `src=` fixed, values quoted (see `edge.log`)."""

import logging
from collections.abc import Callable

from edge.events import (
    AuthenticationFailed,
    AuthenticationFlood,
    ConnectionClosed,
    ConnectionFailed,
    ConnectionOpened,
    ConnectionRefused,
    Event,
    EventBus,
    FlowFailed,
    FlowRecovered,
    FlowReplaced,
    FlowSuspect,
    FlowUp,
    RegistrationChanged,
    SessionClosed,
    SessionOpened,
    StorageChanged,
    UserLocked,
)
from edge.log import RateLimited, format_fields

_REFUSALS_A_SECOND = 5


class EventLog:
    """Writes events to the log. `clock` is for limiting lines that a stranger could multiply."""

    def __init__(self, bus: EventBus, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._refusals = RateLimited(1.0, _REFUSALS_A_SECOND)
        self._failures = RateLimited(1.0, 50)
        self._conn = logging.getLogger("edge.conn")
        self._sip = logging.getLogger("edge.sip")
        self._msrp = logging.getLogger("edge.msrp")
        self._security = logging.getLogger("edge.security")
        bus.subscribe(Event, self.write)

    def write(self, event: Event) -> None:
        """Write one event; those without a line of their own are left to the hooks."""
        match event:
            case ConnectionOpened():
                self._line(self._conn, "opened", src=event.remote, conn=event.connection, transport=event.transport)
            case ConnectionClosed() | ConnectionFailed():
                word = "failed" if isinstance(event, ConnectionFailed) else "closed"
                self._line(
                    self._conn, word, src=event.remote, conn=event.connection, transport=event.transport,
                    reason=event.reason, age_s=round(event.age_s, 1),
                )  # fmt: skip
            case ConnectionRefused():
                if self._refusals.allow(event.reason, self._clock()) is not None:
                    self._line(self._conn, "refused", src=event.remote, reason=event.reason)
            case AuthenticationFailed():
                if self._failures.allow(event.source, self._clock()) is not None:
                    self._line(
                        self._security, "auth failed", src=event.source, user=event.user, protocol=event.protocol,
                        reason=event.reason, level=logging.WARNING,
                    )  # fmt: skip
            case AuthenticationFlood() | UserLocked():
                self._line(
                    self._security, "auth flood" if isinstance(event, AuthenticationFlood) else "user locked",
                    src=event.source, user=event.user, protocol=event.protocol, reason=event.reason,
                    seconds=event.blocked_s, level=logging.WARNING,
                )  # fmt: skip
            case RegistrationChanged():
                self._line(
                    self._sip, "registration", aor=event.aor, contact=event.contact, change=event.change,
                    expires=event.expires_s,
                )  # fmt: skip
            case FlowUp() | FlowSuspect() | FlowRecovered() | FlowReplaced() | FlowFailed():
                self._write_flow(event)
            case SessionOpened():
                self._line(self._msrp, "session opened", session=event.session, user=event.user, conn=event.connection)
            case SessionClosed():
                self._line(
                    self._msrp, "session closed", session=event.session, user=event.user, conn=event.connection,
                    reason=event.reason,
                )  # fmt: skip
            case StorageChanged():
                level = logging.INFO if event.healthy else logging.ERROR
                self._line(
                    logging.getLogger("edge.storage"),
                    "storage",
                    healthy=event.healthy,
                    detail=event.detail,
                    level=level,
                )

    def _write_flow(self, event: FlowUp | FlowSuspect | FlowRecovered | FlowReplaced | FlowFailed) -> None:
        """Write how a flow fares; that it is up is said in detail only, for its registration has a line."""
        src, flow = event.remote, event.flow
        match event:
            case FlowUp():
                self._line(self._sip, "flow up", level=logging.DEBUG, src=src, flow=flow, transport=event.transport)
            case FlowSuspect():
                self._line(self._sip, "flow suspect", src=src, flow=flow, silent_s=round(event.silent_s))
            case FlowRecovered():
                self._line(self._sip, "flow recovered", src=src, flow=flow, after=event.after)
            case FlowReplaced():
                self._line(self._sip, "flow replaced", src=src, flow=flow, heir=event.heir)
            case FlowFailed():
                self._line(
                    self._sip, "flow failed", src=src, flow=flow, transport=event.transport, reason=event.reason,
                    age_s=round(event.age_s, 1), registrations=len(event.registrations), pending=event.pending,
                )  # fmt: skip

    @staticmethod
    def _line(logger: logging.Logger, text: str, *, level: int = logging.INFO, **fields: object) -> None:
        if logger.isEnabledFor(level):
            logger.log(level, "%s %s", text, format_fields(fields))
