"""The port: accept, PROXY header, TLS, then hand bytes to the demultiplexer.

accept ─► limits ─► [PROXY header] ─► peek at the first octet ─┬─ 0x16 ─► TLS ─┐
                                                               └───────────────┴─► Sniffer ─┬─► SIP
The octet is only peeked at (MSG_PEEK): the TLS layer must find                             ├─► MSRP
the ClientHello in the socket. Nothing here blocks, and every                               └─► GET ─► WebSocket
stage has a deadline.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from edge.connections import Address, Connection, ConnectionTable, Handler, Transport
from edge.demux import Decision, Protocol, StreamSniffer, is_tls
from edge.errors import RemoteError
from edge.proxyprotocol import ProxyReader
from edge.sockets import tune_stream
from edge.stream import LINGER_S, StreamConnection
from edge.timers import Timed
from edge.websocket import Refusal, Upgrade, UpgradeRequest, UpgradeRules, WebSocketUpgrade

log = logging.getLogger("edge.conn")

_PEEK = 11  # as far as the version in a ClientHello
_BACKLOG = 4096
_ACCEPTS_IN_A_ROW = 128
_ACCEPT_PAUSE_S = 0.5
_TLS_REFUSAL = b"\x15\x03\x01\x00\x02\x02\x28"  # fatal alert, handshake_failure
_TLS_TOO_OLD = b"\x15\x03\x01\x00\x02\x02\x46"  # protocol_version, which asyncio would keep to itself
_TLS_1_2 = b"\x03\x03"  # what 1.3 says there too
_DISCARD = 65536

HandlerFactory = Callable[[Connection], Handler]
Authorize = Callable[[Connection, UpgradeRequest, Callable[[Refusal | None], None]], None]


@dataclass(slots=True)
class ListenerRules:
    """What one listener lets in, and how long it waits. Times in seconds.

    `handlers` serve a protocol, `refusals` answer it on a connection whose transport is not among `transports`.
    `authorize` is asked last about a WebSocket, before the 101 (RFC 7118 §7); it calls back at once or later.
    """

    transports: frozenset[Transport]
    handlers: Mapping[Protocol, HandlerFactory]
    upgrades: UpgradeRules
    websocket: Callable[[str, Connection], Handler]
    tls: Callable[[], ssl.SSLContext]
    is_proxy: Callable[[str], bool]
    handshake_timeout: float = 10.0
    first_message_timeout: float = 20.0
    proxy_header_timeout: float = 5.0
    start_line: int = 4096
    start_line_timeout: float = 10.0
    handshakes: int = 1000
    refusals: Mapping[Protocol, HandlerFactory] = field(default_factory=dict)
    authorize: Authorize | None = None


class TcpListener:
    """One listening TCP socket. `address` and `advertised` are (host, port)."""

    def __init__(
        self, table: ConnectionTable, index: int, sock: socket.socket, advertised: Address, rules: ListenerRules
    ) -> None:
        self.table = table
        self.index = index
        self.rules = rules
        self.advertised = advertised
        name = sock.getsockname()
        self.address: Address = (name[0], name[1])
        self._socket = sock
        self._tasks: set[asyncio.Task[None]] = set()
        self._arrivals: set[Arrival] = set()
        sock.setblocking(False)
        sock.listen(_BACKLOG)
        table.loop.add_reader(sock.fileno(), self._acceptable)

    def close(self) -> None:
        """Stop accepting; connections stay."""
        if self._socket.fileno() < 0:
            return
        self.table.loop.remove_reader(self._socket.fileno())
        self._socket.close()
        for arrival in list(self._arrivals):
            arrival.drop("shutdown")

    def _acceptable(self) -> None:
        for _ in range(_ACCEPTS_IN_A_ROW):
            try:
                sock, address = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._pause(error)
                    return
                continue
            self._receive(sock, (address[0], address[1]))

    def _pause(self, error: OSError) -> None:
        """Out of descriptors or memory: leave the backlog alone for a moment instead of spinning."""
        log.warning("accepting paused reason=%s", errno.errorcode.get(error.errno or 0, "unknown"))
        loop = self.table.loop
        loop.remove_reader(self._socket.fileno())

        def resume() -> None:
            if self._socket.fileno() >= 0:
                loop.add_reader(self._socket.fileno(), self._acceptable)

        loop.call_later(_ACCEPT_PAUSE_S, resume)

    def _receive(self, sock: socket.socket, remote: Address) -> None:
        refusal = self.table.admit(remote[0], limited=not self.rules.is_proxy(remote[0]))
        if refusal:
            self.table.refuse(remote[0], refusal)
            _reset(sock)
            return
        sock.setblocking(False)
        tune_stream(sock, self.table.stall_timeout)
        self._arrivals.add(Arrival(self, sock, remote))

    def forget(self, arrival: Arrival) -> None:
        """An arrival became a connection, or nothing."""
        self._arrivals.discard(arrival)

    def open(self, sock: socket.socket, remote: Address, source: str, secure: bool) -> None:
        """Make a connection of an accepted socket; TLS first where `secure`."""
        if secure and self.table.handshakes >= self.rules.handshakes:
            self.table.dismiss(source)
            self.table.refuse(source, "handshake_limit")
            _reset(sock)
            return
        name = sock.getsockname()
        local = (name[0], name[1])
        connection = StreamConnection(
            self.table,
            Transport.TLS if secure else Transport.TCP,
            remote,
            self.address if local == self.address else local,  # shared: there may be ten thousands
            self,
            Sniffer(self),
        )
        connection.source = source
        task = self.table.loop.create_task(self._attach(connection, sock, secure))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _attach(self, connection: StreamConnection, sock: socket.socket, secure: bool) -> None:
        loop = self.table.loop
        self.table.pending += 1
        self.table.handshakes += secure
        try:
            if secure:
                await loop.connect_accepted_socket(
                    connection.as_protocol,
                    sock,
                    ssl=self.rules.tls(),
                    ssl_handshake_timeout=self.rules.handshake_timeout,
                    ssl_shutdown_timeout=LINGER_S,
                )
            else:
                await loop.connect_accepted_socket(connection.as_protocol, sock)
        except (OSError, ssl.SSLError, ConnectionError) as error:
            if connection.id not in self.table.connections and not connection.closed:
                self.table.dismiss(connection.source)
                self.table.refuse(connection.source, "tls_timeout" if _is_timeout(error) else "tls_handshake")
            sock.close()
        finally:
            self.table.pending -= 1
            self.table.handshakes -= secure


def _is_timeout(error: BaseException) -> bool:
    return isinstance(error, TimeoutError) or "longer than" in str(error)


class Arrival(Timed):
    """An accepted socket of which no octet has been given to a protocol yet."""

    __slots__ = ("_listener", "_proxy", "_remote", "_socket", "_source")

    def __init__(self, listener: TcpListener, sock: socket.socket, remote: Address) -> None:
        self._slot = None
        self._listener = listener
        self._socket = sock
        self._remote = remote
        self._source = remote[0]
        rules = listener.rules
        self._proxy = ProxyReader() if rules.is_proxy(remote[0]) else None
        table = listener.table
        table.pending += 1
        wait = rules.first_message_timeout if self._proxy is None else rules.proxy_header_timeout
        table.wheel.start(self, table.now() + wait)
        table.loop.add_reader(sock.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            if self._proxy is not None and not self._read_proxy_header():
                return
            data = self._socket.recv(_PEEK, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except RemoteError:
            self.drop("proxy_header")
            return
        except OSError:
            self.drop("reset")
            return
        if data:
            self._decide(data)
        else:
            self.drop("")

    def _read_proxy_header(self) -> bool:
        """Read the header and not one octet more; True once it is whole."""
        proxy = self._proxy
        assert proxy is not None
        while proxy.result is None:
            if proxy.is_v1:
                data = self._socket.recv(128, socket.MSG_PEEK)
                if data:
                    self._socket.recv(proxy.consume_v1(data))
            else:
                data = self._socket.recv(proxy.needed())
                if data:
                    proxy.receive_data(data)
            if not data:
                self.drop("")
                return False
        self._proxy = None
        table = self._listener.table
        if proxy.result.source is not None:
            self._remote = proxy.result.source
            refusal = table.move(self._source, self._remote[0])
            if refusal:
                self.drop(refusal)
                return False
            self._source = self._remote[0]
        table.wheel.start(self, table.now() + self._listener.rules.first_message_timeout)
        return True

    def _decide(self, first: bytes) -> None:
        listener = self._listener
        secure = is_tls(first)
        allowed = listener.rules.transports
        if secure and not allowed & {Transport.TLS, Transport.WSS}:
            self._refuse_tls(_TLS_REFUSAL, "transport")
            return
        if secure and len(first) == _PEEK and first[9:] < _TLS_1_2:
            self._refuse_tls(_TLS_TOO_OLD, "tls_version")
            return
        self._finish()
        listener.open(self._socket, self._remote, self._source, secure)

    def _refuse_tls(self, alert: bytes, reason: str) -> None:
        try:
            self._socket.recv(_DISCARD)  # so that the alert is not lost in a reset
            self._socket.send(alert)
        except OSError:
            pass
        self.drop(reason)

    def _finish(self) -> None:
        listener = self._listener
        listener.table.loop.remove_reader(self._socket.fileno())
        listener.table.wheel.stop(self)
        listener.table.pending -= 1
        listener.forget(self)

    def drop(self, reason: str) -> None:
        """Close without a word; an empty reason (a health check that only connects) is not counted."""
        self._finish()
        table = self._listener.table
        table.dismiss(self._source)
        if reason:
            table.refuse(self._remote[0], reason)
        self._socket.close()

    def handle_timer(self, now: float) -> None:
        """Nothing came, or not enough."""
        self.drop("proxy_timeout" if self._proxy is not None else "silent")


class Sniffer(Timed):
    """The first handler of a stream: finds its protocol, then makes room for that. Half a first line waits not long."""

    __slots__ = ("_connection", "_listener", "_sniffer")

    def __init__(self, listener: TcpListener) -> None:
        self._listener = listener
        self._slot = None
        self._sniffer = StreamSniffer(listener.rules.start_line)
        self._connection: Connection | None = None  # while half a first line is there

    def receive_data(self, connection: Connection, data: bytes, now: float) -> None:
        """Feed the demultiplexer; once it knows, hand over what has come so far."""
        decision = self._sniffer.receive_data(data, now)
        for _ in range(self._sniffer.pongs):
            connection.send(b"\r\n")
        wheel = self._listener.table.wheel
        if decision is not None:
            wheel.stop(self)
            self._handle(connection, decision, now)
        elif not self._sniffer.waiting:
            self._connection = None
            wheel.stop(self)
        elif self._connection is None:
            self._connection = connection
            wheel.start(self, now + self._listener.rules.start_line_timeout)

    def handle_timer(self, now: float) -> None:
        """A first line took too long to arrive."""
        if self._connection is not None:
            self._connection.close("message_timeout")

    def _handle(self, connection: Connection, decision: Decision, now: float) -> None:
        rules = self._listener.rules
        if decision.protocol is None:
            self._listener.table.refuse(connection.source, decision.reason)
            connection.close(decision.reason)
            return
        handler: Handler
        if decision.protocol is Protocol.HTTP:
            handler = Upgrader(self._listener, connection.transport.secure)
        elif connection.transport in rules.transports:
            handler = rules.handlers[decision.protocol](connection)
        else:
            handler = rules.refusals[decision.protocol](connection)
        connection.handler = handler
        handler.receive_data(connection, decision.data, now)

    def receive_eof(self, connection: Connection, now: float) -> bool:
        """Nobody is owed an answer yet."""
        return False

    def handle_writable(self, connection: Connection, now: float) -> None:
        """Nothing waits here."""

    def handle_lost(self, connection: Connection, reason: str, now: float) -> None:
        """Nothing was begun."""
        self._listener.table.wheel.stop(self)


class Upgrader(Timed):
    """The handler of a connection that started with HTTP: a WebSocket handshake, in time, or a short refusal."""

    __slots__ = ("_connection", "_late", "_listener", "_upgrade", "_waits")

    def __init__(self, listener: TcpListener, secure: bool) -> None:
        self._slot = None
        self._connection: Connection | None = None
        self._listener = listener
        self._waits = False  # for somebody to decide
        self._late = b""  # what came meanwhile
        upgrades = listener.rules.upgrades
        if (Transport.WSS if secure else Transport.WS) not in listener.rules.transports:
            upgrades = replace(upgrades, closed=True)
        self._upgrade = WebSocketUpgrade(upgrades, secure=secure)

    def receive_data(self, connection: Connection, data: bytes, now: float) -> None:
        """Collect the request; answer it."""
        assert isinstance(connection, StreamConnection)
        if self._waits:
            self._late += data
            return
        upgrade = self._upgrade.receive_data(data)
        wheel = self._listener.table.wheel
        if upgrade is None:
            if self._connection is None:
                self._connection = connection
                wheel.start(self, now + self._listener.rules.handshake_timeout)
            return
        wheel.stop(self)
        authorize = self._listener.rules.authorize
        if upgrade.accepted is None or authorize is None:
            self._end(connection, upgrade, now)
        else:
            self._ask(connection, upgrade, upgrade.accepted, authorize)

    def _ask(
        self, connection: StreamConnection, upgrade: Upgrade, accepted: UpgradeRequest, authorize: Authorize
    ) -> None:
        """Let somebody else decide; nothing is read meanwhile."""
        self._waits = True
        connection.pause_reading()

        def decided(refusal: Refusal | None) -> None:
            self._waits = False
            connection.resume_reading()
            if not connection.closed:
                chosen = upgrade if refusal is None else upgrade.refused(refusal)
                self._end(connection, chosen, self._listener.table.now())

        authorize(connection, accepted, decided)

    def _end(self, connection: StreamConnection, upgrade: Upgrade, now: float) -> None:
        secure = connection.transport.secure
        wanted = Transport.WSS if secure else Transport.WS
        connection.write(upgrade.response)
        if upgrade.accepted is None:
            self._listener.table.refuse(connection.source, f"http_{upgrade.status}")
            connection.close("http_refused")
            return
        self._listener.table.change_transport(connection, wanted)
        inner = self._listener.rules.websocket(upgrade.accepted.subprotocol, connection)
        stream = upgrade.open_stream(inner)
        connection.handler = stream
        connection.codec = stream
        pings = WebSocketPings(connection, stream.handle_ping_timer)
        pings.start(now)
        stream.on_lost = pings.stop
        if upgrade.rest or self._late:
            stream.receive_data(connection, upgrade.rest + self._late, now)

    def receive_eof(self, connection: Connection, now: float) -> bool:
        """A half-sent request is dropped."""
        return False

    def handle_timer(self, now: float) -> None:
        """The request took too long to arrive."""
        if self._connection is not None:
            self._connection.close("upgrade_timeout")

    def handle_writable(self, connection: Connection, now: float) -> None:
        """Nothing waits here."""

    def handle_lost(self, connection: Connection, reason: str, now: float) -> None:
        """Nothing was begun."""
        self._listener.table.wheel.stop(self)


class WebSocketPings(Timed):
    """The ping clock of one WebSocket; ends with its connection."""

    __slots__ = ("_connection", "_ping")

    def __init__(self, connection: StreamConnection, ping: Callable[[Connection, float], float]) -> None:
        self._slot = None
        self._connection = connection
        self._ping = ping

    def start(self, now: float) -> None:
        """Ping if that is due, and look again when the next one is."""
        due = self._ping(self._connection, now)
        if not self._connection.closed:
            self._connection.table.wheel.start(self, due)

    def stop(self) -> None:
        """The connection has ended: nothing of it is kept until the next ping."""
        self._connection.table.wheel.stop(self)

    def handle_timer(self, now: float) -> None:
        """The time for a look has come."""
        self.start(now)


def _reset(sock: socket.socket) -> None:
    """Close at once with a reset: nothing is kept for somebody who was not let in."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    finally:
        sock.close()
