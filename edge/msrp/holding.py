"""Reading no further while somebody takes their time to decide about a frame (a policy's `async` hook).

    hold ─► what comes stays in the reader, of a WebSocket part by part ─► go_on ─► read as if it came now

Whoever holds a connection also pauses its reading, so that what comes is what one read brought.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.msrp.frame import Head
    from edge.msrp.handler import MsrpHandler


def hold(handler: MsrpHandler) -> None:
    """Read no further than the frame that the handler was just told of, before `go_on`."""
    handler.reader.hold()
    if handler.outbox.websocket:
        handler.held = []


def admit(handler: MsrpHandler, head: Head, now: float) -> None:
    """Pass on a SEND whose body is still coming, now that it may."""
    handler.incoming = handler.relay.forwarder.begin_send(handler, head, now)


def keep(handler: MsrpHandler, data: bytes, last: bool) -> None:
    """Keep a part of a WebSocket message for later."""
    if handler.held is not None:
        handler.held.append((bytes(data), last))
    handler.relay.flush()


def go_on(handler: MsrpHandler, now: float) -> None:
    """Read what came meanwhile, up to a frame that is held again."""
    parts = handler.held
    handler.held = None
    handler.reader.release()
    if parts is None:
        rest, handler.reader.rest = handler.reader.rest, b""
        if rest:
            handler.receive_data(handler.connection, rest, now)
        return
    for position, (data, last) in enumerate(parts):
        again = _held_by(handler)
        if again is not None:
            again += parts[position:]
            return
        handler.receive_part(handler.connection, data, last, now)


def _held_by(handler: MsrpHandler) -> list[tuple[bytes, bool]] | None:
    return handler.held
