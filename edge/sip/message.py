"""SIP messages on bytes (RFC 3261 §7): found once, kept as lines, forwarded as they came.

    lines[0]  start line            first[kind]    index of the first line of that kind, 0 = absent
    lines[1…] header lines, folds   repeats        further lines: (kind, index), in order
              glued to their line   body           octets behind the empty line

Forwarding copies `lines`, replaces the few it touches and joins; everything else keeps its spelling, spacing, case and
order. An insertion is glued to the line it goes before, so that indexes stay true.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from edge.errors import RemoteError
from edge.sip import headers as h
from edge.sip.grammar import TOKEN_CHARS, is_digits, is_token, split_list, syntax_error, unfold

_COLON: Final = 58
ViaReader = Callable[[bytes], h.Via]
_NO_REPEATS: Final[list[tuple[int, int]]] = []


@dataclass(frozen=True, slots=True)
class MessageLimits:
    """Bounds on one message, in octets or counts (requirements: SIP-MSG-35 to 37)."""

    start_line: int = 4096
    request_uri: int = 2048
    header_line: int = 8192
    header_lines: int = 256
    vias: int = 128
    header_block: int = 32768
    body: int = 65536


class Message:
    """One SIP request (`status` 0) or response (`method` from CSeq, `uri` empty; `status` -1 where it has none)."""

    __slots__ = ("body", "cseq", "error", "first", "lines", "method", "repeats", "status", "to_tag", "uri", "via")

    lines: list[bytes]
    first: list[int]
    repeats: list[tuple[int, int]]
    body: bytes
    method: bytes
    uri: bytes
    status: int
    cseq: int
    to_tag: bytes | None  # only after `check_request`
    via: h.Via  # the topmost; only after `check_request` or `check_response`
    error: RemoteError | None  # what is wrong with it, found while splitting

    def note(self, error: RemoteError) -> None:
        """Keep the first thing that is wrong with this message."""
        if self.error is None:
            self.error = error

    def value(self, kind: int) -> bytes | None:
        """Return the value of the first line of `kind`, trimmed, None when absent."""
        index = self.first[kind]
        if not index:
            return None
        line = self.lines[index]
        return line[line.index(_COLON) + 1 :].strip(b" \t")

    def indexes(self, kind: int) -> list[int]:
        """Return the indexes of every line of `kind`, top first."""
        index = self.first[kind]
        if not index:
            return []
        return [index, *(i for k, i in self.repeats if k == kind)] if self.repeats else [index]

    def values(self, kind: int) -> list[bytes]:
        """Return the values of every line of `kind`, top first, comma lists not split."""
        return [self.value_at(index) for index in self.indexes(kind)]

    def value_at(self, index: int) -> bytes:
        """Return the value on line `index`, trimmed."""
        line = self.lines[index]
        return line[line.index(_COLON) + 1 :].strip(b" \t")

    def named(self, name: bytes) -> list[bytes]:
        """Return the values of every line called `name` (any case); for headers without a kind."""
        wanted = name.lower()
        rows = (line.partition(b":") for line in self.lines[1:])
        return [content.strip(b" \t") for key, _, content in rows if key.strip().lower() == wanted]

    def address(self, kind: int) -> h.NameAddr:
        """Read From or To; 400 when it is malformed."""
        value = self.value(kind)
        if value is None:
            raise h.remote_error_of(kind)
        return h.parse_name_addr(value)

    def encode(self) -> bytes:
        """Return the message as wire bytes."""
        return b"\r\n".join((*self.lines, b"", self.body))


def split_head(head: bytes, limits: MessageLimits) -> Message:
    """Split the octets before the empty line into lines and index them.

    `head` has no trailing CRLF. What is wrong with a header is kept in `error`, so that the message can still be answered.

    Raises:
        RemoteError: the first line is neither a request nor a status line (status 0: nothing can be answered).
    """
    message = Message()
    message.error = None
    message.to_tag = None
    message.body = b""
    message.repeats = _NO_REPEATS
    lines = message.lines = head.split(b"\r\n")
    _index(message)
    _read_start_line(message, limits)
    if head.count(b"\n") >= len(lines) or head.count(b"\r") >= len(lines) or b"\0" in head:
        _check_control(message, head)
    if len(lines) > limits.header_lines:
        message.note(RemoteError(513, "header_lines", "too many header lines"))
    if len(head) > limits.header_line and max(map(len, lines[1:]), default=0) > limits.header_line:
        message.error = RemoteError(513, "header_line", "a header line is too long")
    return message


def _index(message: Message) -> None:
    first = message.first = [0] * h.KINDS
    by_name = h.BY_NAME.get
    index = 0
    for line in message.lines:
        kind = by_name(line.partition(b":")[0])
        if kind:
            if not first[kind]:
                first[kind] = index
            else:
                _note_repeat(message, kind, index)
        elif kind is None and index:
            kind = _classify(message, line)
            if kind < 0:
                _join_folds(message)
                return
            if kind:
                if not first[kind]:
                    first[kind] = index
                else:
                    _note_repeat(message, kind, index)
        index += 1


def _note_repeat(message: Message, kind: int, index: int) -> None:
    if message.repeats is _NO_REPEATS:
        message.repeats = []
    message.repeats.append((kind, index))
    if 1 < kind <= h.LAST_SINGLE:
        message.note(h.remote_error_of(kind))


def _classify(message: Message, line: bytes) -> int:
    """Return the kind of an unusually spelled line, -1 for a folded one."""
    if line[:1] in (b" ", b"\t"):
        return -1
    name, colon, _ = line.partition(b":")
    name = name.rstrip(b" \t")
    if not colon or not is_token(name):
        message.note(syntax_error("header_name", "a line is no header"))
        return h.OTHER
    return h.BY_LOWER_NAME.get(name.lower(), h.OTHER)


def _join_folds(message: Message) -> None:
    """Glue continuation lines to the header above and index again (RFC 3261 §7.3.1)."""
    joined: list[bytes] = message.lines[:1]
    for line in message.lines[1:]:
        if line[:1] not in (b" ", b"\t"):
            joined.append(line)
        elif len(joined) > 1:
            joined[-1] += b"\r\n" + line
        else:
            message.error = syntax_error("fold", "a fold directly behind the start line")
    message.lines = joined
    message.repeats = _NO_REPEATS
    _index(message)


def _check_control(message: Message, head: bytes) -> None:
    """Refuse bare CR, bare LF, and NUL outside a quoted pair (SIP-MSG-22)."""
    pairs = head.count(b"\r\n")
    if head.count(b"\n") > pairs or head.count(b"\r") > pairs or head.count(b"\0") > head.count(b"\\\0"):
        message.error = syntax_error("control", "a bare CR, LF or NUL")


def _read_start_line(message: Message, limits: MessageLimits) -> None:
    line = message.lines[0]
    message.status = 0
    message.method = message.uri = b""
    message.cseq = 0
    parts = line.split(b" ")
    if len(parts) == 3 and parts[2] == b"SIP/2.0" and parts[0].isalpha() and parts[1]:
        message.method, message.uri = parts[0], parts[1]
        if len(message.uri) > limits.request_uri:
            message.error = RemoteError(414, "request_uri", "the Request-URI is too long")
    elif line[:4].upper() == b"SIP/":
        _read_status_line(message, line)
    else:
        _read_odd_request_line(message, parts, limits)


def _read_status_line(message: Message, line: bytes) -> None:
    message.status = -1
    code = line[8:11]
    if line[:8].upper() != b"SIP/2.0 ":
        message.note(RemoteError(0, "version", "another SIP version"))
    elif not is_digits(code) or len(code) != 3 or not 100 <= int(code) < 700 or line[11:12] not in (b"", b" "):
        message.note(RemoteError(0, "status_code", "not a status code"))
    else:
        message.status = int(code)


def _read_odd_request_line(message: Message, parts: list[bytes], limits: MessageLimits) -> None:
    version = parts[-1] if parts[-1] else next((part for part in reversed(parts) if part), b"")
    if len(parts) < 3 or version[:4].upper() != b"SIP/":
        raise RemoteError(0, "start_line", "neither a request nor a status line")
    message.method = parts[0]
    message.uri = parts[1]
    if version.upper() != b"SIP/2.0":
        message.error = RemoteError(505, "version", "SIP version not supported")
    elif len(parts) != 3 or not parts[1] or not is_token(parts[0]):
        message.error = syntax_error("request_line", "a request line has two single blanks")
    elif len(message.uri) > limits.request_uri:
        message.error = RemoteError(414, "request_uri", "the Request-URI is too long")


def read_content_length(message: Message) -> int | None:
    """Return Content-Length, None when absent.

    Raises:
        RemoteError: 400, also for a second Content-Length: the end of the message is not known.
    """
    if not message.first[h.CONTENT_LENGTH]:
        return None
    if message.repeats and any(kind == h.CONTENT_LENGTH for kind, _ in message.repeats):
        raise h.remote_error_of(h.CONTENT_LENGTH)
    value = message.value(h.CONTENT_LENGTH)
    assert value is not None
    return h.parse_content_length(value)


def top_via_text(message: Message) -> bytes | None:
    """Return the topmost Via value as it stands, None when there is no Via line."""
    value = message.value(h.VIA)
    if value is None:
        return None
    return split_list(value)[0] if b"," in value else value


def read_top_via(message: Message, via_reader: ViaReader = h.parse_via) -> None:
    """Read the topmost Via into `message.via`; 400 when it is missing or malformed."""
    text = top_via_text(message)
    if text is None:
        raise syntax_error("via", "no Via")
    message.via = via_reader(text)


def check_request(message: Message, limits: MessageLimits, via_reader: ViaReader = h.parse_via) -> None:
    """Check what every request needs: `error`, Via, From, To, Call-ID, CSeq (RFC 3261 §8.1.1, §16.3 step 1).

    Fills `via` first, so that whatever is raised afterwards can be answered. `via_reader` may be a `ViaCache.parse`.
    """
    read_top_via(message, via_reader)
    if message.error is not None:
        raise message.error
    if message.via.version != b"2.0":
        raise RemoteError(505, "version", "SIP version not supported")
    first = message.first
    if not (first[h.FROM] and first[h.TO] and first[h.CALL_ID] and first[h.CSEQ]):
        raise syntax_error("missing_header", "From, To, Call-ID or CSeq is missing")
    message.cseq, method = h.parse_cseq(message.value_at(first[h.CSEQ]))
    if method != message.method:
        raise RemoteError(501 if message.method not in KNOWN_METHODS else 400, "cseq_method", "CSeq has another method")
    h.check_name_addr(message.lines[first[h.FROM]])
    message.to_tag = h.read_tag(message.lines[first[h.TO]])
    if not message.value_at(first[h.CALL_ID]):
        raise syntax_error("call_id", "an empty Call-ID")
    if message.repeats:
        _check_repeats(message, limits)


def _check_repeats(message: Message, limits: MessageLimits) -> None:
    if sum(kind == h.VIA for kind, _ in message.repeats) >= limits.vias:
        raise RemoteError(513, "vias", "too many Via values")


def check_response(message: Message, via_reader: ViaReader = h.parse_via) -> None:
    """Check what a response needs to be matched: `error`, Via, CSeq, Call-ID; fills `via`, `cseq`, `method`."""
    if message.error is not None:
        raise message.error
    read_top_via(message, via_reader)
    first = message.first
    if not (first[h.CSEQ] and first[h.CALL_ID] and first[h.FROM] and first[h.TO]):
        raise syntax_error("missing_header", "From, To, Call-ID or CSeq is missing")
    message.cseq, message.method = h.parse_cseq(message.value_at(first[h.CSEQ]))


KNOWN_METHODS: Final = frozenset(
    b"INVITE ACK CANCEL BYE REGISTER OPTIONS MESSAGE SUBSCRIBE NOTIFY REFER INFO UPDATE PRACK PUBLISH".split()
)


def frame_datagram(data: bytes, limits: MessageLimits) -> Message:
    """Read one datagram as one message (RFC 3261 §18.3): cut at Content-Length, or run to the end without one."""
    head, empty, body = data.lstrip(b"\r\n").partition(b"\r\n\r\n")
    message = split_head(head if empty else head.removesuffix(b"\r\n"), limits)
    if not empty:
        message.note(syntax_error("no_empty_line", "no empty line behind the headers"))
    if len(head) > limits.header_block:
        message.error = RemoteError(513, "header_block", "the headers are too long")
    try:
        length = read_content_length(message)
    except RemoteError as error:
        message.note(error)
        return message
    if length is None:
        length = len(body)
    if length > limits.body:
        message.note(RemoteError(413, "body", "the body is too long"))
    elif length > len(body):
        message.note(syntax_error("short_body", "fewer octets than Content-Length says"))
    message.body = body[:length]
    return message


def without_first_value(message: Message, kind: int) -> list[bytes]:
    """Return the lines without the topmost value of a list header (Via, Route)."""
    index = message.first[kind]
    lines = message.lines.copy()
    line = lines[index]
    if b"," not in line:
        del lines[index]
        return lines
    items = split_list(unfold(line[line.index(_COLON) + 1 :]))
    if len(items) == 1:
        del lines[index]
    else:
        lines[index] = line[: line.index(_COLON)] + b": " + b", ".join(items[1:])
    return lines


__all__ = [
    "KNOWN_METHODS", "TOKEN_CHARS", "Message", "MessageLimits", "check_request", "check_response", "frame_datagram",
    "read_content_length", "read_top_via", "split_head", "top_via_text", "without_first_value",
]  # fmt: skip
