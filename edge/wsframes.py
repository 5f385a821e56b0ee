"""WebSocket frames of a client, read while they come (RFC 6455 §5).

    ┌─ FIN, RSV, opcode ─┬─ MASK, 7 bits ─┬─ 16 or 64 bits ─┬─ masking key ─┬─ payload
    │        1           │       1        │     0, 2, 8     │       4       │

A frame of data is never collected: each read gives what of it has come, so that a frame may be of any size. Control
frames are short and given whole; they may stand between the fragments of a message.
"""

from __future__ import annotations

try:
    from websockets.speedups import apply_mask
except ImportError:  # a platform without the compiled part of the library
    from websockets.utils import apply_mask

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
PROTOCOL_ERROR, INVALID_DATA, TOO_BIG = 1002, 1007, 1009  # RFC 6455 §7.4.1

# Octets of a message (opcode TEXT or BINARY, also for continuations) or a control frame, and whether they are its last.
Part = tuple[int, bytes, bool]

_CONTROL = 8  # opcodes from here on
_CONTROL_LIMIT = 125
_NOT_SENT = frozenset((1004, 1005, 1006, 1015))  # codes that stand in no frame (RFC 6455 §7.4.1)


class _Broken(Exception):  # noqa: N818
    """The stream cannot be read on; `code` is that of the Close frame to send."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class FrameDecoder:
    """Read the frames of one client.

    `error` is 0 until the stream breaks a rule, then the code to close with; nothing is read after it, nor after a
    Close. `max_message` bounds the octets of a message, 0 does not.
    """

    __slots__ = ("_fin", "_left", "_mask", "_opcode", "_rest", "_size", "_stopped", "error", "max_message")

    def __init__(self, max_message: int) -> None:
        self.max_message = max_message
        self.error = 0
        self._rest = b""  # of a frame's head, or of a control frame
        self._left = 0  # octets of the data frame's payload that are still to come
        self._mask = b""  # its key, turned to the next of them
        self._fin = False
        self._opcode = 0  # of the message that is being read; 0 between messages
        self._size = 0  # its octets, as the heads of its frames say
        self._stopped = False

    def receive_data(self, data: bytes) -> list[Part]:
        """Take the next octets; returns what they hold, in order. Look at `error` when that is done."""
        parts: list[Part] = []
        if self._rest:
            data, self._rest = self._rest + data, b""
        position = 0
        try:
            while position < len(data) and not self._stopped:
                if self._left:
                    position = self._read_payload(data, position, parts)
                else:
                    position = self._read_frame(data, position, parts)
        except _Broken as error:
            self.error, self._stopped = error.code, True
        return parts

    def _read_frame(self, data: bytes, position: int, parts: list[Part]) -> int:
        """Read a head, and the payload that is there; returns where to go on."""
        if len(data) - position < 2:
            return self._wait(data, position)
        first, second = data[position], data[position + 1]
        self._check_head(first, second)
        length, mask_at = second & 0x7F, position + 2
        if length > _CONTROL_LIMIT:
            mask_at += 2 if length == 126 else 8
            length = int.from_bytes(data[position + 2 : mask_at])
        body_at = mask_at + 4
        if len(data) < body_at:
            return self._wait(data, position)
        mask = data[mask_at:body_at]
        if first & 0x0F >= _CONTROL:
            return self._read_control(first & 0x0F, data, position, body_at, length=length, mask=mask, parts=parts)
        self._begin_frame(first, length)
        self._left, self._mask = length, mask
        return self._read_payload(data, body_at, parts) if length else self._end_frame(body_at, b"", parts)

    def _check_head(self, first: int, second: int) -> None:
        """Apply the rules that the first two octets show (RFC 6455 §5.1, §5.2, §5.4, §5.5)."""
        opcode = first & 0x0F
        if first & 0x70 or not second & 0x80:  # an extension nobody agreed to, or unmasked
            raise _Broken(PROTOCOL_ERROR)
        if opcode in (CLOSE, PING, PONG):
            if not first & 0x80 or second & 0x7F > _CONTROL_LIMIT:
                raise _Broken(PROTOCOL_ERROR)
        elif opcode > BINARY or (opcode == CONTINUATION) != (self._opcode != 0):
            raise _Broken(PROTOCOL_ERROR)

    def _begin_frame(self, first: int, length: int) -> None:
        if length >> 63:
            raise _Broken(PROTOCOL_ERROR)
        self._fin = bool(first & 0x80)
        if first & 0x0F:
            self._opcode, self._size = first & 0x0F, 0
        self._size += length
        if 0 < self.max_message < self._size:
            raise _Broken(TOO_BIG)

    def _read_payload(self, data: bytes, position: int, parts: list[Part]) -> int:
        """Give what is there of a data frame's payload."""
        stop = min(position + self._left, len(data))
        count = stop - position
        part = apply_mask(data[position:stop], self._mask)
        self._left -= count
        if self._left:
            turn = count % 4
            self._mask = self._mask[turn:] + self._mask[:turn]
            parts.append((self._opcode, part, False))
            return stop
        return self._end_frame(stop, part, parts)

    def _end_frame(self, stop: int, part: bytes, parts: list[Part]) -> int:
        parts.append((self._opcode, part, self._fin))
        if self._fin:
            self._opcode = 0
        return stop

    def _read_control(
        self, opcode: int, data: bytes, position: int, body_at: int, *, length: int, mask: bytes, parts: list[Part]
    ) -> int:
        if len(data) < body_at + length:
            return self._wait(data, position)
        payload = apply_mask(data[body_at : body_at + length], mask)
        if opcode == CLOSE:
            _check_close(payload)
            self._stopped = True
        parts.append((opcode, payload, True))
        return body_at + length

    def _wait(self, data: bytes, position: int) -> int:
        self._rest = data[position:]
        return len(data)


def _check_close(payload: bytes) -> None:
    """Check the code and the reason of a Close frame (RFC 6455 §5.5.1, §7.4)."""
    if not payload:
        return
    code = int.from_bytes(payload[:2])
    known = 1000 <= code <= 1014 and code not in _NOT_SENT
    if len(payload) == 1 or not (known or 3000 <= code <= 4999):
        raise _Broken(PROTOCOL_ERROR)
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        raise _Broken(INVALID_DATA) from None
