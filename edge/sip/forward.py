"""Turning a received message into the one that leaves (RFC 3261 §16.4, §16.6, §16.7), sans-IO.

Only what is named there is touched: Request-URI, Via, Max-Forwards, Max-Breadth, Record-Route, Path, Route,
Content-Length. Our Via stands right behind the start line.
New lines are glued to the line they go before, so that line indexes stay true until the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from zlib import crc32

from edge.connections import Address
from edge.sip import headers as h
from edge.sip.grammar import split_list, split_outside, unfold
from edge.sip.message import Message
from edge.sip.uri import SipUri, UriCache

CRLF = b"\r\n"
DEFAULT_MAX_FORWARDS = 70
MAX_BREADTH = 60
_BREADTHS = [b"\r\nMax-Breadth: %d" % number for number in range(MAX_BREADTH + 1)]


@dataclass(slots=True)
class Routes:
    """The Route set of a request after our own values were taken off its top.

    `popped`: how many values were ours. `tokens`: their user parts, top first (b"" for none). `ob`: whether one of them
    had `;ob`. `next`: the topmost value left, read, or None. `values`: all values left, raw.
    """

    popped: int = 0
    tokens: list[bytes] = field(default_factory=list)
    ob: bool = False
    next: SipUri | None = None
    values: list[bytes] = field(default_factory=list)


NO_ROUTES = Routes()


def read_routes(message: Message, own: frozenset[tuple[bytes, int]], uris: UriCache) -> Routes:
    """Take our own values off the top of the Route set (RFC 3261 §16.4); the message is not changed.

    Raises:
        RemoteError: 400 for a malformed value that is needed.
    """
    if not message.first[h.ROUTE]:
        return NO_ROUTES
    routes = Routes()
    values = message.values(h.ROUTE)
    if any(b"," in value or b"\r" in value for value in values):
        values = [item for value in values for item in split_list(unfold(value))]
    for position, value in enumerate(values):
        uri = uris.parse_bracketed(value)
        if not is_own(uri, own):
            routes.next = uri
            routes.values = values[position:]
            break
        routes.popped += 1
        routes.tokens.append(uri.user or b"")
        routes.ob = routes.ob or b"ob" in uri.parameters
    return routes


def is_own(uri: SipUri, own: frozenset[tuple[bytes, int]]) -> bool:
    """Whether host and port of `uri` are ours (§16.4); an absent port is the default of its transport."""
    if uri.port is not None:
        return (uri.host, uri.port) in own
    return (uri.host, default_port(uri)) in own or (uri.host, 0) in own


def default_port(uri: SipUri) -> int:
    """Return the port a URI without one means (RFC 3261 §19.1.2, RFC 7118 §5.5)."""
    transport = uri.transport
    if transport in (b"ws", b"wss"):
        return 443 if uri.secure or transport == b"wss" else 80
    return 5061 if uri.secure or transport == b"tls" else 5060


class Draft:
    """A request being prepared for one or more branches: the lines common to all of them."""

    __slots__ = ("_message", "_route_lines", "_rows", "_top")

    def __init__(self, message: Message, routes: Routes) -> None:
        self._message = message
        rows = self._rows = message.lines.copy()
        first = message.first
        index = first[h.MAX_FORWARDS]
        self._top = b""
        if index:
            rows[index] = b"Max-Forwards: %d" % (h.parse_max_forwards(message.value_at(index)) - 1)
        else:
            self._top = b"\r\nMax-Forwards: %d" % DEFAULT_MAX_FORWARDS
        self._route_lines: list[bytes] = []
        if first[h.ROUTE]:
            self._cut_routes(routes)
        if not first[h.CONTENT_LENGTH]:
            rows.append(b"Content-Length: %d" % len(message.body))

    def _cut_routes(self, routes: Routes) -> None:
        """Take all Route rows out; those still needed are written in the place of the first."""
        indexes = self._message.indexes(h.ROUTE)
        kept: list[bytes] = []
        drop = routes.popped
        for index in indexes:
            line = self._rows[index]
            count = len(split_list(unfold(line[line.index(b":") + 1 :]))) if b"," in line else 1
            if drop >= count:
                drop -= count
            elif drop == 0:
                kept.append(line)
            else:
                items = split_list(unfold(line[line.index(b":") + 1 :]))
                kept.append(b"Route: " + b", ".join(items[drop:]))
                drop = 0
            self._rows[index] = b""
        self._route_lines = kept

    def build(
        self,
        uri: bytes,
        via: bytes,
        *,
        record_routes: list[bytes],
        path: bytes = b"",
        routes: tuple[bytes, ...] = (),
        strict: bytes = b"",
        breadth: int = 0,
    ) -> bytes:
        """Write the request for one branch.

        `via` is the whole Via line. `record_routes` and `routes` are values, top first, that go before those there are;
        `path` likewise. `strict` is a value to append as the last Route (next hop without `lr`); the top Route is then
        `uri` already and left out. `breadth` is the Max-Breadth to write, at most `MAX_BREADTH`; 0 to leave it alone.
        """
        message, rows = self._message, self._rows.copy()
        first = message.first
        last_via = first[h.VIA] if not message.repeats else message.indexes(h.VIA)[-1]
        if record_routes or path or routes:
            self._insert(rows, last_via, record_routes, path, routes)
        elif self._route_lines and not strict:
            rows[first[h.ROUTE]] = CRLF.join(self._route_lines)
        if strict:
            rows[first[h.ROUTE]] = CRLF.join([*_without_first(self._route_lines), b"Route: " + strict])
        added = self._top
        if breadth and first[h.MAX_BREADTH]:
            rows[first[h.MAX_BREADTH]] = _BREADTHS[breadth][2:]
        elif breadth:
            added += _BREADTHS[breadth]
        rows[0] = b"%b %b SIP/2.0\r\n%b%b" % (message.method, uri, via, added)
        if first[h.ROUTE]:
            rows = [row.removesuffix(CRLF) for row in rows if row]
        return CRLF.join((*rows, b"", message.body))

    def _insert(
        self, rows: list[bytes], last_via: int, record_routes: list[bytes], path: bytes, routes: tuple[bytes, ...]
    ) -> None:
        """Glue the new lines behind the last Via, or before an earlier line of the same kind."""
        first = self._message.first
        if record_routes:
            lines = b"".join(b"Record-Route: " + value + CRLF for value in record_routes)
            _glue(rows, _place(first[h.RECORD_ROUTE], last_via), lines)
        if path:
            _glue(rows, _place(first[h.PATH], last_via), b"Path: " + path + CRLF)
        kept = self._route_lines
        new = [b"Route: " + value for value in routes] + kept
        if not new:
            return
        if first[h.ROUTE]:
            rows[first[h.ROUTE]] = rows[first[h.ROUTE]] + CRLF.join(new)
        else:
            _glue(rows, last_via + 1, CRLF.join(new) + CRLF)


def _without_first(lines: list[bytes]) -> list[bytes]:
    """Leave the first value of Route lines out, which may share its line with others."""
    first = lines[0]
    others = split_list(unfold(first[first.index(b":") + 1 :]))[1:] if b"," in first else []
    return [b"Route: " + b", ".join(others), *lines[1:]] if others else lines[1:]


def _place(existing: int, last_via: int) -> int:
    return min(existing, last_via + 1) if existing else last_via + 1


def _glue(rows: list[bytes], index: int, lines: bytes) -> None:
    if index < len(rows):
        rows[index] = lines + rows[index]
    else:
        rows.append(lines.removesuffix(CRLF))


def strip_top_via(message: Message) -> bytes | None:
    """Write a response without its topmost Via (§16.7 step 3); None when no other is left: it was for us."""
    index = message.first[h.VIA]
    rows = message.lines.copy()
    line = rows[index]
    if b"," in line:
        items = split_list(unfold(line[line.index(b":") + 1 :]))
        if len(items) > 1:
            rows[index] = b"Via: " + b", ".join(items[1:])
            return CRLF.join((*rows, b"", message.body))
    del rows[index]
    if h.VIA not in [kind for kind, _ in message.repeats]:
        return None
    if not message.first[h.CONTENT_LENGTH]:
        rows.append(b"Content-Length: %d" % len(message.body))
    return CRLF.join((*rows, b"", message.body))


def loop_mark(uri: bytes, routes: Routes) -> bytes:
    """Return the second part of a branch (RFC 5393 §4.2.1): what the location step looked at, and not the method."""
    mark = crc32(uri)
    for value in (*routes.tokens, b"", *routes.values) if routes is not NO_ROUTES else ():
        mark = crc32(value + b"\0", mark)
    return b"%08x" % mark


def fix_top_via(message: Message, remote: Address) -> None:
    """Add `received` and fill `rport` from what the socket saw, over what was there (RFC 3261 §18.2.1, RFC 3581 §4)."""
    via = message.via
    parameters = via.parameters
    if via.rport == b"" and via.received is None and parameters.endswith(b";rport"):
        _replace_top_via(message, b"%b=%d;received=%b" % (via.text, remote[1], remote[0].encode("ascii")))
        return
    text = via.text if b"\r" not in via.text else unfold(via.text)
    address = remote[0].encode("ascii")
    bare = via.host[1:-1] if via.host[:1] == b"[" else via.host
    if via.rport is None and via.received is None and bare == address:
        return
    head = text[: len(text) - len(parameters)]
    if via.rport == b"" and via.received is None and b";rport;" in parameters:
        mark = b";rport=%d;received=%b;" % (remote[1], address)
        _replace_top_via(message, head + parameters.replace(b";rport;", mark, 1))
        return
    mark = b"" if via.rport is None else b";rport=%d" % remote[1]
    if mark or bare != address:
        mark += b";received=" + address
    _replace_top_via(message, head + _other_parameters(parameters) + mark)


def _other_parameters(parameters: bytes) -> bytes:
    kept = [
        piece
        for piece in _pieces(parameters)
        if piece.partition(b"=")[0].strip().lower() not in (b"received", b"rport")
    ]
    return b"".join(b";" + piece for piece in kept)


def _pieces(parameters: bytes) -> list[bytes]:
    return [piece for piece in split_outside(parameters, b";") if piece]


def _replace_top_via(message: Message, text: bytes) -> None:
    index = message.first[h.VIA]
    line, old = message.lines[index], message.via.text
    if line.endswith(old):
        message.lines[index] = line[: len(line) - len(old)] + text
    else:
        message.lines[index] = line.replace(old, text, 1)
    message.texts[h.VIA] = message.lines[index].partition(b":")[2]


def derive_request(
    request: bytes, method: bytes, to_line: bytes | None = None, extra: list[bytes] | None = None
) -> bytes:
    """Write the ACK for a refusal, or the CANCEL, of an INVITE as it was sent (RFC 3261 §17.1.1.3, §9.1).

    Copies Request-URI, the one top Via, Route rows, From, Call-ID and the CSeq number; To too unless `to_line` is
    given.
    """
    lines = _split_lines(request.partition(b"\r\n\r\n")[0])
    out = [b"%b %b SIP/2.0" % (method, lines[0].split(b" ")[1]), lines[1], b"Max-Forwards: 70"]
    for line in lines[2:]:
        kind = h.BY_NAME.get(line.partition(b":")[0])
        if kind is None:
            kind = h.BY_LOWER_NAME.get(line.partition(b":")[0].strip().lower(), h.OTHER)
        if kind in (h.FROM, h.CALL_ID, h.ROUTE) or (kind == h.TO and to_line is None):
            out.append(line)
        elif kind == h.TO and to_line is not None:
            out.append(to_line)
        elif kind == h.CSEQ:
            out.append(b"CSeq: %d %b" % (h.parse_cseq(line.partition(b":")[2].strip())[0], method))
    out += extra or ()
    out += (b"Content-Length: 0", b"", b"")
    return CRLF.join(out)


def _split_lines(head: bytes) -> list[bytes]:
    """Split into lines, folds kept with theirs."""
    lines: list[bytes] = []
    for line in head.split(CRLF):
        if line[:1] in (b" ", b"\t"):
            lines[-1] += CRLF + line
        else:
            lines.append(line)
    return lines
