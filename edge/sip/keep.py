"""The `keep` parameter of Via: a client asks whether to send keep-alives, and how often (RFC 6223 §4), sans-IO.

    request    Via: … ;keep        never changed on its way
    answer     Via: … ;keep=120    to REGISTER, and to what opens a dialog we stay in; the value is that of Flow-Timer

A value that somebody further on wrote into the Via of our client is taken off: it is ours to say.
"""

from __future__ import annotations

from contextlib import suppress

from edge.errors import RemoteError
from edge.sip import headers as h
from edge.sip.grammar import split_list, split_outside, unfold
from edge.sip.message import Message


def promise(message: Message, seconds: int) -> None:
    """Write the value into the top Via of a request that we answer ourselves, to be copied into the answer."""
    index = message.first[h.VIA]
    message.lines[index] = _rewrite(message.lines[index], 0, b"keep=%d" % seconds)


def settle(message: Message, seconds: int) -> None:
    """Write the value into the Via below ours of a response on its way back, or take one off where `seconds` is 0."""
    index, position = message.first[h.VIA], 1
    if b"," not in message.lines[index]:
        rows = message.indexes(h.VIA)
        if len(rows) < 2:
            return
        index, position = rows[1], 0
    with suppress(RemoteError):  # a Via somebody broke on the way goes back as it is
        message.lines[index] = _rewrite(message.lines[index], position, b"keep=%d" % seconds if seconds else b"keep")


def _rewrite(line: bytes, position: int, parameter: bytes) -> bytes:
    """Replace `keep`, with or without a value, in one value of a Via row."""
    name, colon, text = line.partition(b":")
    values = split_list(unfold(text))
    if position >= len(values):
        return line
    pieces = split_outside(values[position], b";")
    kept = [parameter if piece.partition(b"=")[0].strip(b" \t").lower() == b"keep" else piece for piece in pieces]
    if kept == pieces:
        return line
    values[position] = b";".join(kept)
    return name + colon + b" " + b", ".join(values)
