"""SIP and MSRP over WebSocket (RFC 6455, 7118, 7977): glue around the sans-IO server of `websockets`.

    GET ... HTTP/1.1 ──► WebSocketUpgrade ──┬─► 101 ──► WebSocketStream ──► SIP or MSRP, as the subprotocol says
                                            └─► 4xx, close

`WebSocketUpgrade` reads one HTTP request and decides. `WebSocketStream` is then the handler of the connection: it
answers pings and closes, and hands messages to the handler inside: those of SIP whole, those of MSRP, which may be of
any size, while they come. It is the connection's codec as well: what the protocols send leaves as one message each.
Compression is never negotiated.
"""

from __future__ import annotations

import logging
import re
import struct
from codecs import utf_8_decode
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from websockets.datastructures import Headers, MultipleValuesError
from websockets.exceptions import InvalidHeader
from websockets.headers import parse_connection, parse_subprotocol, parse_upgrade
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from edge import wsframes
from edge.errors import RemoteError
from edge.wsframes import FrameDecoder

if TYPE_CHECKING:
    from edge.connections import Connection, Handler
    from edge.stream import StreamConnection

PING_S = 30.0  # an idle client is pinged this often (RFC 7977 §6)

_log = logging.getLogger("edge.conn.websocket")
_log.setLevel(logging.ERROR)  # opening and closing is told by the connection itself, once

_REQUEST_LIMIT = 8192
_UNANSWERED_PINGS = 2
_BARE_LF = re.compile(rb"(?<!\r)\n")
_EXTRA_HEADERS = {
    HTTPStatus.METHOD_NOT_ALLOWED: "Allow: GET\r\n",
    HTTPStatus.UPGRADE_REQUIRED: "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
}

_CRLF = b"\r\n"
_PING = b"\r\n\r\n"  # RFC 5626 §4.4.1, as a whole message
_PING_FRAME = b"\x89\x00"
_FIN = 0x80
_SHORT, _MEDIUM, _LONG = struct.Struct("!BB"), struct.Struct("!BBH"), struct.Struct("!BBQ")


@dataclass(frozen=True, slots=True)
class UpgradeRequest:
    """What a client asked for, as hooks see it. `subprotocol` is the one it is going to get."""

    path: str
    query: str
    origin: str
    subprotocol: str
    secure: bool
    headers: Headers


@dataclass(frozen=True, slots=True)
class Refusal:
    """A hook's answer instead of the upgrade: an HTTP status and header lines such as WWW-Authenticate."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class UpgradeRules:
    """What a listener lets in.

    Attributes:
        subprotocols: those it serves, "sip" and "msrp".
        tls_only: those of them that are refused without TLS (RFC 7977 §5.1).
        paths: which subprotocols a path serves; other paths serve all.
        origins: allowed values of Origin when a client sends one; empty allows any.
        max_message: octets of an incoming message.
        closed: whether clients are turned away with 403 whatever they ask for.
    """

    subprotocols: Collection[str] = ("sip", "msrp")
    tls_only: Collection[str] = ()
    paths: Mapping[str, Collection[str]] = field(default_factory=lambda: {"/sip": ("sip",), "/msrp": ("msrp",)})
    origins: Collection[str] = ()
    max_message: int = 1 << 20
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Upgrade:
    """The end of a handshake: send `response`; then go on with `open_stream`, or close if `accepted` is None.

    `rest` are octets that came behind the request: feed them to the stream.
    """

    status: int
    response: bytes
    accepted: UpgradeRequest | None
    rest: bytes
    max_message: int

    def refused(self, refusal: Refusal) -> Upgrade:
        """Return the end of the same handshake with a refusal."""
        return Upgrade(refusal.status, _refuse(refusal.status, refusal.headers), None, b"", 0)

    def open_stream(self, inner: Handler) -> WebSocketStream:
        """Return the handler and codec of the connection; `inner` gets one call for each message."""
        return WebSocketStream(inner, self.max_message)


class WebSocketUpgrade:
    """Read the request of an opening handshake and answer it (RFC 6455 §4.2). Keeps at most 8 KiB."""

    __slots__ = ("_buffer", "_rules", "_secure")

    def __init__(self, rules: UpgradeRules, *, secure: bool) -> None:
        self._rules = rules
        self._secure = secure
        self._buffer = b""

    def receive_data(self, data: bytes) -> Upgrade | None:
        """Take the next octets; returns the decision once the request is whole, broken or too long."""
        searched = max(len(self._buffer) - 3, 0)
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n", searched, _REQUEST_LIMIT) + 4
        if end < 4:
            if len(self._buffer) < _REQUEST_LIMIT and not _BARE_LF.search(self._buffer, searched):
                return None
            end = len(self._buffer)
        rules, rest = self._rules, self._buffer[end:]
        protocol = ServerProtocol(logger=_log)
        try:
            request = _read_request(protocol, self._buffer[:end])
            wanted = _check_request(request, rules, self._secure)
            if rules.closed:
                raise RemoteError(403, "http_closed")
            return Upgrade(101, _accept(protocol, request, wanted, rules), wanted, rest, rules.max_message)
        except RemoteError as error:
            return Upgrade(error.status, _refuse(error.status), None, rest, 0)


def _read_request(protocol: ServerProtocol, head: bytes) -> Request:
    if not head.startswith(b"GET "):
        raise RemoteError(405, "http_method")
    protocol.receive_data(head)
    for event in protocol.events_received():
        if isinstance(event, Request):
            return event
    raise RemoteError(400, "http_request")


def _check_request(request: Request, rules: UpgradeRules, secure: bool) -> UpgradeRequest:
    """Apply the rules of RFC 6455 §4.2.1 and ours, all but the key. Raises RemoteError with an HTTP status."""
    headers = request.headers
    path, _, query = request.path.partition("?")
    try:
        upgrade = _list(parse_upgrade, headers.get_all("Upgrade"))
        if "websocket" not in upgrade and "Sec-WebSocket-Key" not in headers:
            raise RemoteError(426 if path == "/" else 404, "http_plain")
        connection = _list(parse_connection, headers.get_all("Connection"))
        offered = [name for value in headers.get_all("Sec-WebSocket-Protocol") for name in parse_subprotocol(value)]
        version, host, origin = (headers.get(name, "") for name in ("Sec-WebSocket-Version", "Host", "Origin"))
    except (InvalidHeader, MultipleValuesError):
        raise RemoteError(400, "websocket_handshake") from None
    if version not in ("", "13"):
        raise RemoteError(426, "websocket_version")
    whole = version and host and "websocket" in upgrade and "upgrade" in connection and path.startswith("/")
    if not whole or request.protocol != "HTTP/1.1":
        raise RemoteError(400, "websocket_handshake")
    if origin and rules.origins and origin not in rules.origins:
        raise RemoteError(403, "websocket_origin")
    return UpgradeRequest(path, query, origin, _choose(offered, path, rules, secure), secure, headers)


def _list(parse: Callable[[str], Sequence[str]], values: Iterable[str]) -> list[str]:
    return [item.lower() for value in values for item in parse(value)]


def _choose(offered: Sequence[str], path: str, rules: UpgradeRules, secure: bool) -> str:
    """Take the first subprotocol of the client's list that is served here (RFC 7118 §4.1, RFC 7977 §4.1)."""
    here = rules.paths.get(path, rules.subprotocols)
    served = [name for name in offered if name in rules.subprotocols and name in here]
    for name in served:
        if secure or name not in rules.tls_only:
            return name
    raise RemoteError(403 if served else 400, "websocket_subprotocol")


def _accept(protocol: ServerProtocol, request: Request, wanted: UpgradeRequest, rules: UpgradeRules) -> bytes:
    protocol.available_subprotocols = [Subprotocol(wanted.subprotocol)]
    response = protocol.accept(request)
    if response.status_code != 101:
        raise RemoteError(400, "websocket_key")
    del response.headers["Date"]
    if rules.origins and wanted.origin:
        response.headers["Access-Control-Allow-Origin"] = wanted.origin
    protocol.send_response(response)
    return b"".join(protocol.data_to_send())


def _refuse(status: int, headers: Iterable[tuple[str, str]] = ()) -> bytes:
    reason = HTTPStatus(status)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers) + _EXTRA_HEADERS.get(reason, "")
    options = "close, Upgrade" if status == HTTPStatus.UPGRADE_REQUIRED else "close"
    body = f"{reason.phrase}\n"
    return (
        f"HTTP/1.1 {status} {reason.phrase}\r\n{lines}Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
        f"Connection: {options}\r\n\r\n{body}"
    ).encode("latin-1")


@runtime_checkable
class PartHandler(Protocol):
    """A handler that reads messages while they come: `receive_data` gets those that are there whole."""

    def receive_part(self, connection: Connection, data: bytes, last: bool, now: float) -> None:
        """Take the next octets of a message; `last` says that it ends with them."""
        ...


class WebSocketStream:
    """An open WebSocket: the handler and the codec of its connection.

    `max_message` bounds messages that are handed over whole; a `PartHandler` has no need of it.
    """

    __slots__ = ("_begun", "_closing", "_decoder", "_kept", "_parts", "_pings", "_pong", "_tail", "inner", "on_lost")

    def __init__(self, inner: Handler, max_message: int) -> None:
        self.inner = inner
        self.on_lost: Callable[[], None] | None = None  # whoever has a clock for it stops that
        self._parts = inner if isinstance(inner, PartHandler) else None
        self._decoder = FrameDecoder(0 if self._parts is not None else max_message)
        self._kept: bytearray | None = None  # of a message that is not handed over yet
        self._begun = False  # some of it was
        self._tail = b""  # of a text: the start of a character
        self._pong: bytes | None = None  # waits for the client to read
        self._closing = False  # a Close frame was sent
        self._pings = 0  # ours, not answered yet

    # -- Handler

    def receive_data(self, connection: Connection, data: bytes, now: float) -> None:
        """Hand on what messages `data` holds, and answer what is for the WebSocket itself."""
        decoder = self._decoder
        for opcode, part, last in decoder.receive_data(data):
            if connection.closed:
                return
            if opcode <= wsframes.BINARY:
                self._receive_part(connection, opcode, part, last, now)
            else:
                self._receive_control(cast("StreamConnection", connection), opcode, part)
        if decoder.error and not connection.closed:
            self._fail(connection, decoder.error)

    def receive_eof(self, connection: Connection, now: float) -> bool:
        """The peer went without a Close frame; a WebSocket is never half open."""
        self.inner.receive_eof(connection, now)
        return False

    def handle_writable(self, connection: Connection, now: float) -> None:
        """Send the pong that waited, and pass it on to the handler inside."""
        if self._pong is not None:
            payload, self._pong = self._pong, None
            self._write_frame(cast("StreamConnection", connection), wsframes.PONG, payload)
        self.inner.handle_writable(connection, now)

    def handle_lost(self, connection: Connection, reason: str, now: float) -> None:
        """Pass it on to the handler inside."""
        if self.on_lost is not None:
            self.on_lost()
            self.on_lost = None
        self.inner.handle_lost(connection, reason, now)

    # -- WireCodec

    def encode_message(self, data: bytes) -> bytes:
        """Frame one message: text if it is UTF-8, else binary (RFC 7118 §4.2, RFC 7977 §4.2)."""
        opcode = _FIN | (wsframes.TEXT if _is_utf8(data) else wsframes.BINARY)
        length = len(data)
        if length < 126:
            return _SHORT.pack(opcode, length) + data
        if length < 65536:
            return _MEDIUM.pack(opcode, 126, length) + data
        return _LONG.pack(opcode, 127, length) + data

    def encode_close(self, code: int) -> bytes:
        """Frame a Close; empty when one was sent already."""
        if self._closing:
            return b""
        self._closing = True
        return _MEDIUM.pack(_FIN | wsframes.CLOSE, 2, code)

    # -- time

    def handle_ping_timer(self, connection: Connection, now: float) -> float:
        """Ping a client that was silent for 30 seconds; returns when to be called next (seconds, as `now`).

        After two pings without any octet in return the connection fails with "ping_timeout".
        """
        heard = connection.last_received + PING_S
        if heard > now:
            self._pings = 0
            return heard
        if self._pings >= _UNANSWERED_PINGS:
            connection.fail("ping_timeout")
        else:
            self._pings += 1
            cast("StreamConnection", connection).write(_PING_FRAME)
        return now + PING_S

    # -- inside

    def _receive_part(self, connection: Connection, opcode: int, data: bytes, last: bool, now: float) -> None:
        """Take octets of a message: hand them on, or keep them until it is whole or no keep-alive any more."""
        if last and self._kept is None and not self._begun:
            if opcode == wsframes.TEXT and not _is_utf8(data):
                self._fail(connection, wsframes.INVALID_DATA)
            else:
                self._receive_message(connection, opcode, data, now)
        elif opcode == wsframes.TEXT and not self._is_text(data, last):
            self._fail(connection, wsframes.INVALID_DATA)
        elif self._parts is not None and self._begun:
            self._begun = not last
            self._parts.receive_part(connection, data, last, now)
        else:
            self._keep(connection, opcode, data, last, now)

    def _keep(self, connection: Connection, opcode: int, data: bytes, last: bool, now: float) -> None:
        kept = self._kept = bytearray() if self._kept is None else self._kept
        kept += data
        if last:
            self._kept = None
            self._receive_message(connection, opcode, bytes(kept), now)
        elif self._parts is not None and len(kept) > len(_PING):
            self._kept, self._begun = None, True
            self._parts.receive_part(connection, bytes(kept), False, now)

    def _receive_message(self, connection: Connection, opcode: int, data: bytes, now: float) -> None:
        if len(data) > len(_PING):
            self.inner.receive_data(connection, data, now)
        elif data == _PING:
            if connection.writable:  # who does not read has no use for a sign of life
                self._write_frame(cast("StreamConnection", connection), opcode, _CRLF)
        elif data not in (b"", _CRLF):
            self.inner.receive_data(connection, data, now)

    def _receive_control(self, connection: StreamConnection, opcode: int, payload: bytes) -> None:
        """Answer a ping and a Close (RFC 6455 §5.5); a client that does not read gets the last of its pongs only."""
        if opcode == wsframes.CLOSE:
            if not self._closing:
                self._closing = True
                self._write_frame(connection, wsframes.CLOSE, payload)
            connection.close("websocket_close")
        elif opcode == wsframes.PING:
            if connection.writable:
                self._write_frame(connection, wsframes.PONG, payload)
            else:
                self._pong = payload

    def _fail(self, connection: Connection, code: int) -> None:
        cast("StreamConnection", connection).write(self.encode_close(code))
        connection.close("websocket_too_big" if code == wsframes.TOO_BIG else "websocket_error")

    @staticmethod
    def _write_frame(connection: StreamConnection, opcode: int, payload: bytes) -> None:
        """Write a short frame past the codec."""
        connection.write(_SHORT.pack(_FIN | opcode, len(payload)) + payload)

    def _is_text(self, data: bytes, last: bool) -> bool:
        """Tell whether the message is UTF-8 so far; a character may be cut by the end of a part."""
        if not self._tail and data.isascii():
            return True
        data = self._tail + data
        try:
            used = utf_8_decode(data, "strict", last)[1]
        except UnicodeDecodeError:
            return False
        self._tail = data[used:]
        return True


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
