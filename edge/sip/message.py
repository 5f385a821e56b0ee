"""SIP messages on bytes (RFC 3261 §7): found once, kept as lines, forwarded as they came.

    lines[0]  start line            first[kind]    index of the first line of that kind, 0 = absent
    lines[1…] header lines, folds   texts[kind]    what stands behind its colon
              glued to their line   repeats        further lines: (kind, index), in order
                                    body           octets behind the empty line

Forwarding copies `lines`, replaces the few it touches and joins; everything else keeps its spelling, spacing, case and
order. An insertion is glued to the line it goes before, so that indexes stay true.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from edge.errors import RemoteError
from edge.sip import headers as h
from edge.sip.grammar import BLANKS, TOKEN_CHARS, end_of_quoted, is_digits, is_token, split_list, syntax_error

_COLON: Final = 58
ViaReader = Callable[[bytes], h.Via]
_QUOTED_PAIR: Final = re.compile(rb"\\.", re.DOTALL)
_NO_REPEATS: Final[list[tuple[int, int]]] = []
_NO_TEXTS: Final = [b""] * h.KINDS


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
    checked_lines: int = field(init=False)  # with so many header lines their counts are looked at

    def __post_init__(self) -> None:
        object.__setattr__(self, "checked_lines", min(self.header_lines, self.vias))


class Aim:
    """Where a policy wants a request to go: a URI, or with `keys` an AOR and those of its bindings (`Binding.key`).

    They are flows of one device, to be tried in this order.
    """

    __slots__ = ("keys", "uri")

    def __init__(self, uri: bytes, keys: list[bytes]) -> None:
        self.uri = uri
        self.keys = keys


class Directions:
    """What an operator's policy said about a request, in place of what the rules would say.

    `authorised`: True asks for no credentials, False always does. Those of one of the `steps` are rung
    together, the next step follows when all have refused; with `failover` it follows only where one could not be
    reached or answered 503. `next_hop` is the URI to send it to as it is. `existing_only` opens no connection for it,
    `close_after` ends the one it left on once it was answered. `token` puts a flow token in Record-Route and Path, or
    never does, `record` wants a Record-Route whatever the method. `path` is the token for a Path value, b"" for none,
    `ob` whether that is a client's flow.
    """

    __slots__ = (
        "authorised", "close_after", "existing_only", "failover", "next_hop", "ob", "path", "record", "steps", "token",
    )  # fmt: skip

    def __init__(self) -> None:
        self.authorised: bool | None = None
        self.token: bool | None = None
        self.steps: list[list[Aim]] | None = None
        self.failover = False
        self.next_hop = b""
        self.existing_only = False
        self.close_after = False
        self.record = False
        self.path: bytes | None = None
        self.ob = False

    @property
    def leads(self) -> bool:
        """Whether it says where the request goes."""
        return self.steps is not None or len(self.next_hop) > 0


class Message:
    """One SIP request (`status` 0) or response (`method` from CSeq, `uri` empty; `status` -1 where it has none)."""

    __slots__ = (
        "body",
        "cseq",
        "directions",
        "error",
        "first",
        "key",
        "lines",
        "method",
        "repeats",
        "status",
        "texts",
        "to_tag",
        "uri",
        "via",
    )

    lines: list[bytes]
    first: list[int]
    texts: list[bytes]
    repeats: list[tuple[int, int]]
    body: bytes
    method: bytes
    uri: bytes
    status: int
    cseq: int
    to_tag: bytes | None  # only after `check_request`
    key: bytes  # of its server transaction; the core's
    via: h.Via  # the topmost; only after `check_request` or `check_response`
    directions: Directions | None  # of a policy
    error: RemoteError | None  # what is wrong with it, found while splitting

    def note(self, error: RemoteError) -> None:
        """Keep the first thing that is wrong with this message."""
        if self.error is None:
            self.error = error

    def value(self, kind: int) -> bytes | None:
        """Return the value of the first line of `kind`, trimmed, None when absent."""
        return self.texts[kind].strip(BLANKS) if self.first[kind] else None

    def indexes(self, kind: int) -> list[int]:
        """Return the indexes of every line of `kind`, top first."""
        index = self.first[kind]
        if not index:
            return []
        found = [index]
        for other, at in self.repeats:
            if other == kind:
                found.append(at)  # twice as fast as a comprehension for the few there are
        return found

    def values(self, kind: int) -> list[bytes]:
        """Return the values of every line of `kind`, top first, comma lists not split."""
        if not self.repeats:
            return [self.texts[kind].strip(BLANKS)] if self.first[kind] else []
        return [self.value_at(index) for index in self.indexes(kind)]

    def value_at(self, index: int) -> bytes:
        """Return the value on line `index`, trimmed."""
        line = self.lines[index]
        return line[line.index(_COLON) + 1 :].strip(BLANKS)

    def named(self, name: bytes) -> list[bytes]:
        """Return the values of every line called `name` (any case); for headers without a kind."""
        wanted = name.lower()
        rows = (line.partition(b":") for line in self.lines[1:])
        return [content.strip(BLANKS) for key, _, content in rows if key.strip().lower() == wanted]

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

    `head` has no trailing CRLF. What is wrong with a header is kept in `error`, so that the message can still be
    answered.

    Raises:
        RemoteError: the first line is neither a request nor a status line (status 0: nothing can be answered).
    """
    message = Message()
    lines = message.lines = head.split(b"\r\n")
    message.error = message.to_tag = message.directions = None
    message.body = message.uri = b""
    message.status = 0
    message.repeats = _NO_REPEATS
    _index(message)
    start = lines[0]
    method, _, rest = start.partition(b" ")
    uri, _, version = rest.partition(b" ")
    if version == b"SIP/2.0" and method.isalpha() and uri and len(uri) <= limits.request_uri:
        message.method, message.uri = method, uri
    else:
        _read_start_line(message, start, limits)
    ends = len(lines) - 1
    if len(head) > limits.header_line or ends > limits.checked_lines:
        _check_size(message, limits)
    if b"\0" in head or head.count(b"\n") != ends or head.count(b"\r") != ends:
        _check_control(message, head)
    return message


def _index(message: Message) -> None:
    """Find out what each line is; the first of a kind is kept apart, for it is nearly always the only one."""
    first = message.first = [0] * h.KINDS
    texts = message.texts = _NO_TEXTS.copy()
    by_name = h.BY_NAME.get
    index = -1
    for line in message.lines:
        index += 1
        name, colon, text = line.partition(b":")
        kind = by_name(name)
        if not kind or not colon:
            if not index or (colon and kind is not None):
                continue
            kind = _classify(message, line)
            if kind < 0:
                _join_folds(message)
                return
            if not kind:
                continue
        if first[kind]:
            _note_repeat(message, kind, index)
        else:
            first[kind] = index
            texts[kind] = text


def _check_size(message: Message, limits: MessageLimits) -> None:
    lines = message.lines
    if len(lines) - 1 > limits.header_lines:
        message.error = RemoteError(513, "header_lines", "too many header lines")
    elif sum(kind == h.VIA for kind, _ in message.repeats) >= limits.vias:
        message.error = RemoteError(513, "vias", "too many Via values")
    elif max(map(len, lines[1:]), default=0) > limits.header_line:
        message.error = RemoteError(513, "header_line", "a header line is too long")
    elif len(lines[0]) > limits.start_line:
        message.note(RemoteError(414, "start_line", "the start line is too long"))


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
    rows: list[list[bytes]] = [message.lines[:1]]
    for line in message.lines[1:]:
        if line[:1] not in (b" ", b"\t"):
            rows.append([line])
        elif len(rows) > 1:
            rows[-1].append(line)
        else:
            message.error = syntax_error("fold", "a fold directly behind the start line")
    message.lines = [b"\r\n".join(row) for row in rows]
    message.repeats = _NO_REPEATS
    _index(message)


def _check_control(message: Message, head: bytes) -> None:
    """Refuse bare CR, bare LF, and NUL outside a quoted pair (RFC 3261 §7, §25.1)."""
    pairs = head.count(b"\r\n")
    stray = head.count(b"\n") > pairs or head.count(b"\r") > pairs
    if stray or (b"\0" in head and any(b"\0" in _without_quoted_pairs(line) for line in message.lines)):
        message.error = syntax_error("control", "a bare CR, LF or NUL")


def _without_quoted_pairs(line: bytes) -> bytes:
    """Return a line without what a backslash protects inside quotes; a quote that does not close protects nothing."""
    kept = []
    position = 0
    try:
        while (quote := line.find(b'"', position)) >= 0:
            end = end_of_quoted(line, quote)
            kept += [line[position:quote], _QUOTED_PAIR.sub(b"", line[quote:end])]
            position = end
    except RemoteError:
        pass
    return b"".join((*kept, line[position:]))


def _read_start_line(message: Message, line: bytes, limits: MessageLimits) -> None:
    """Read a status line, or a request line that is not of every day."""
    message.method = b""
    if line[:4].upper() == b"SIP/":
        _read_status_line(message, line)
    else:
        _read_odd_request_line(message, line, limits)


def _read_status_line(message: Message, line: bytes) -> None:
    code = line[8:11]
    if line[:8] == b"SIP/2.0 " and line[11:12] == b" " and code.isdigit() and b"100" <= code < b"700":
        message.status = int(code)
        return
    message.status = -1
    if line[:8].upper() != b"SIP/2.0 ":
        message.note(RemoteError(0, "version", "another SIP version"))
    elif not is_digits(code) or len(code) != 3 or not 100 <= int(code) < 700 or line[11:12] not in (b"", b" "):
        message.note(RemoteError(0, "status_code", "not a status code"))
    else:
        message.status = int(code)
        message.lines[0] = b"SIP/2.0 " + line[8:]


def _read_odd_request_line(message: Message, line: bytes, limits: MessageLimits) -> None:
    parts = line.replace(b"\t", b" ").split(b" ")
    version = parts[-1] or next((part for part in reversed(parts) if part), b"")
    if len(parts) < 3 or version[:4].upper() != b"SIP/":
        raise RemoteError(0, "start_line", "neither a request nor a status line")
    message.method = parts[0]
    message.uri = parts[1]
    if version.upper() != b"SIP/2.0":
        message.error = RemoteError(505, "version", "SIP version not supported")
    elif len(parts) != 3 or not parts[1] or not is_token(parts[0]) or b"\t" in line:
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
    value = message.texts[h.CONTENT_LENGTH].strip(BLANKS)
    return int(value) if value.isdigit() and len(value) <= 10 else h.parse_content_length(value)


def read_top_via(message: Message, via_reader: ViaReader = h.parse_via) -> None:
    """Read the topmost Via into `message.via`; 400 when it is missing or malformed.

    `via_reader` may be a `ViaCache.parse`. `message.via` is also there after an error, where its sent-by is legible:
    enough to answer (RFC 4475 §3.1.2.1).
    """
    if not message.first[h.VIA]:
        raise syntax_error("via", "no Via")
    text = message.texts[h.VIA].strip(BLANKS)
    try:
        message.via = via_reader(split_list(text)[0] if b"," in text else text)
    except RemoteError as error:
        _read_sent_by(message, text)
        raise error from None


def _read_sent_by(message: Message, text: bytes) -> None:
    with suppress(RemoteError):
        message.via = h.parse_via(text.partition(b";")[0].partition(b",")[0].rstrip(BLANKS))


def check_request(message: Message, limits: MessageLimits, via_reader: ViaReader = h.parse_via) -> None:
    """Check what every request needs: `error`, Via, From, To, Call-ID, CSeq (RFC 3261 §8.1.1, §16.3 step 1).

    Fills `via` first, so that whatever is raised afterwards can be answered. `via_reader` may be a `ViaCache.parse`.
    """
    read_top_via(message, via_reader)
    if message.error is not None:
        raise message.error
    if message.via.version != b"2.0":
        raise RemoteError(505, "version", "SIP version not supported")
    first, texts = message.first, message.texts
    if not (first[h.FROM] and first[h.TO] and first[h.CALL_ID] and first[h.CSEQ]):
        raise syntax_error("missing_header", "From, To, Call-ID or CSeq is missing")
    number, _, method = texts[h.CSEQ].strip(BLANKS).partition(b" ")
    if method == message.method and number.isdigit() and len(number) < 10:
        message.cseq = int(number)
    else:
        _read_odd_cseq(message)
    h.check_name_addr(texts[h.FROM])
    message.to_tag = h.read_tag(texts[h.TO])
    if texts[h.CALL_ID].isspace() or not texts[h.CALL_ID]:
        raise syntax_error("call_id", "an empty Call-ID")
    if b"," in texts[h.VIA] or message.repeats:
        _check_vias(message, limits)


def _read_odd_cseq(message: Message) -> None:
    message.cseq, method = h.parse_cseq(message.texts[h.CSEQ].strip(BLANKS))
    if method != message.method:
        raise RemoteError(501 if message.method not in KNOWN_METHODS else 400, "cseq_method", "CSeq has another method")


def _check_vias(message: Message, limits: MessageLimits) -> None:
    """Bound the Via values where several stand on a line; lines were counted before."""
    values = message.values(h.VIA)
    if len(values) + sum(value.count(b",") for value in values) > limits.vias:
        raise RemoteError(513, "vias", "too many Via values")


def check_response(message: Message, via_reader: ViaReader = h.parse_via) -> None:
    """Check what a response needs to be matched: `error`, Via, CSeq, Call-ID; fills `via`, `cseq`, `method`."""
    if message.error is not None:
        raise message.error
    read_top_via(message, via_reader)
    first = message.first
    if not (first[h.CSEQ] and first[h.CALL_ID] and first[h.FROM] and first[h.TO]):
        raise syntax_error("missing_header", "From, To, Call-ID or CSeq is missing")
    number, _, method = message.texts[h.CSEQ].strip(BLANKS).partition(b" ")
    if not number.isdigit() or len(number) > 9 or not method.isalpha():
        message.cseq, method = h.parse_cseq(message.texts[h.CSEQ].strip(BLANKS))
    else:
        message.cseq = int(number)
    message.method = method


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


__all__ = [
    "KNOWN_METHODS", "TOKEN_CHARS", "Message", "MessageLimits", "check_request", "check_response", "frame_datagram",
    "read_content_length", "read_top_via", "split_head",
]  # fmt: skip
