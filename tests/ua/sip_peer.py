"""The half of the simulated SIP UA that is the same for every role: sockets, reading, answering, keep-alives."""

import asyncio
import inspect
import re
import secrets
import ssl
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from tests.ua import stun
from tests.ua.link import WEBSOCKETS, Address, Link, LinkServer, UdpEndpoint, listen, open_link, open_udp
from tests.ua.peer import Peer
from tests.ua.sip_keepalive import KeepAlive
from tests.ua.sip_message import (
    HeaderArgument,
    Request,
    Response,
    SipStreamReader,
    address_uri,
    encode,
    parse,
)
from tests.ua.sip_transaction import REASONS, ClientTransaction, response_destination, response_lines
from tests.ua.wait import deadline

RequestHandler = Callable[[Any, Request], Any]


class SipPeer(Peer):
    """Someone who speaks SIP over one transport: connected to `server`, or listening without one.

    Args:
        user, domain: of the address of record.
        local_host, local_port: where to bind; port 0 is any.
        instance: URN for +sip.instance; made up where a reg_id is given. reg_id: switches outbound on (RFC 5626).
        ssl_context, server_hostname: for TLS and WSS; a listener needs a server context.
        path, http_headers, subprotocols: of the WebSocket handshake.
        retransmit: whether requests on UDP are sent again (RFC 3261 §17.1).
        timeout: seconds a final response may take, before scaling.

    Attributes:
        incoming: requests nobody handled, with `on_request` unset.
        on_request: `callable(ua, request)`; gives None (stay silent), a status, a tuple or dict of `respond`
            arguments, or an awaitable of one of these.
        trace: ("sent" | "received", bytes) of every SIP message; `keepalives` the same for CRLF and STUN.
        errors: what could not be read; leaving the `async with` block raises if there is any.
        stray: responses that match no open transaction (other forks, retransmissions).
        route: Route values put into requests outside dialogs.
        retransmissions_absorbed: requests that came again on UDP and were answered from memory.
    """

    def __init__(
        self,
        user: str,
        domain: str,
        *,
        server: Address | None = None,
        transport: str = "udp",
        local_host: str = "127.0.0.1",
        local_port: int = 0,
        instance: str | None = None,
        reg_id: int | None = None,
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        path: str = "/",
        http_headers: dict[str, str] | None = None,
        subprotocols: tuple[str, ...] = ("sip",),
        retransmit: bool = False,
        timeout: float = 10.0,
    ) -> None:
        super().__init__(user)
        self.user, self.domain = user, domain
        self.server, self.transport = server, transport
        self.local_host, self.local_port = local_host, local_port
        self.reg_id = reg_id
        self.instance = instance or (f"urn:uuid:{uuid.uuid4()}" if reg_id is not None else None)
        self.ssl_context, self.server_hostname = ssl_context, server_hostname
        self.path, self.http_headers, self.subprotocols = path, http_headers, subprotocols
        self.retransmit, self.timeout = retransmit, timeout

        self.incoming: asyncio.Queue[Request] = asyncio.Queue()
        self.on_request: RequestHandler | None = None
        self.trace: list[tuple[str, bytes]] = []
        self.stray: list[Response] = []
        self.route: list[str] = []
        self.retransmissions_absorbed = 0

        self.link: Link | None = None
        self.endpoint: UdpEndpoint | None = None
        self.listener: LinkServer | None = None
        self._invalid_host = f"{secrets.token_hex(6)}.invalid"
        self._keepalive = KeepAlive()
        self._readers: dict[Link, SipStreamReader] = {}
        self._transactions: dict[tuple[str, str], ClientTransaction] = {}
        self._answered: dict[tuple[str, str, str], tuple[bytes, Link] | None] = {}
        self._tags: dict[tuple[str, str | None, int], str] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    # -- life ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the socket: connect to the server, or listen if there is none."""
        if self.transport == "udp":
            self.endpoint = await open_udp(self.local_host, self.local_port, self._on_data)
            self.link = self.endpoint.link(self.server) if self.server else None
        elif self.server is None:
            self.listener = await listen(
                self.transport,
                self.local_host,
                self.local_port,
                self._on_data,
                self._on_closed,
                subprotocol="sip",
                ssl_context=self.ssl_context,
            )
        else:
            self.link = await open_link(
                self.transport,
                self.server,
                self._on_data,
                self._on_closed,
                subprotocols=self.subprotocols,
                path=self.path,
                local=(self.local_host, self.local_port),
                ssl_context=self.ssl_context,
                server_hostname=self.server_hostname,
                http_headers=self.http_headers,
            )

    async def stop(self) -> None:
        """Close everything without a word to the server."""
        for transaction in self._transactions.values():
            transaction.stop()
            transaction.link_lost("the user agent stops")
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.endpoint is not None:
            await self.endpoint.close()
        elif self.link is not None and not self.link.closed:
            await self.link.close()
        if self.listener is not None:
            await self.listener.close()

    async def reconnect(self, *, reset: bool = False) -> None:
        """Come back on a new connection or UDP port without registering: what a rebooted NAT does to a UA."""
        if reset and self.link is not None and self.endpoint is None:
            self.link.reset()
            await self.link.wait_closed()
        await self.stop()
        await self.start()

    # -- names --------------------------------------------------------------------------------------------

    @property
    def uri(self) -> str:
        """The address of record."""
        return f"sip:{self.user}@{self.domain}"

    @property
    def address(self) -> Address:
        """Our own transport address: the listening one, or the local end of the connection."""
        if self.listener is not None:
            return self.listener.address
        if self.endpoint is not None:
            return self.endpoint.local
        assert self.link is not None, "not started"
        return self.link.local

    @property
    def sent_by(self) -> str:
        """Host and port for Via and Contact; a name under .invalid on WebSocket (RFC 7118 §5)."""
        if self.transport in WEBSOCKETS and self.listener is None:
            return self._invalid_host
        host, port = self.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def contact_uri(self, *, ob: bool = False) -> str:
        """Return the URI for Contact; `ob` asks for routing over this flow (RFC 5626 §4.3)."""
        parameter = {"udp": "", "tcp": ";transport=tcp", "tls": ";transport=tls"}.get(self.transport, ";transport=ws")
        return f"sip:{self.user}@{self.sent_by}{parameter}{';ob' if ob else ''}"

    def via(self) -> str:
        """Return a new Via value with a fresh branch."""
        return f"SIP/2.0/{self.transport.upper()} {self.sent_by};branch=z9hG4bK{secrets.token_hex(12)};rport"

    # -- sending requests --------------------------------------------------------------------------------

    def start_transaction(
        self, raw: bytes, link: Link, on_provisional: Callable[[Response], None] | None = None
    ) -> ClientTransaction:
        """Send a request given as bytes and watch for its responses."""
        request = parse(raw)
        assert isinstance(request, Request)
        transaction = ClientTransaction(
            request, link, self._send, retransmit=self.retransmit, on_provisional=on_provisional
        )
        self._transactions[transaction.key] = transaction
        return transaction

    def send_request(self, raw: bytes, link: Link | None = None) -> Request:
        """Send a request for which no response is awaited (ACK), and return it parsed."""
        request = parse(raw)
        assert isinstance(request, Request)
        self._send(raw, link or self._pick_link(request.uri))
        return request

    def send_raw(self, data: bytes, link: Link | None = None) -> None:
        """Send bytes as they are: duplicates, malformed messages, several messages at once."""
        self._send(data, link or self._pick_link(""))

    # -- responses ----------------------------------------------------------------------------------------

    def respond(
        self,
        request: Request,
        code: int,
        reason: str | None = None,
        headers: HeaderArgument = None,
        body: bytes = b"",
        to_tag: str | None = None,
        content_type: str | None = None,
    ) -> Response:
        """Send a response the way the request came (RFC 3261 §18.2.2, RFC 3581) and return it."""
        party = self.local_party(request, to_tag) if code > 100 else request["To"]
        contact = f"<{self.contact_uri(ob=self.reg_id is not None)}>"
        lines = response_lines(request, code, party, contact)
        if content_type or body:
            lines.lines.append(("Content-Type", content_type or "application/sdp"))
        phrase = REASONS.get(code, "Unspecified") if reason is None else reason
        raw = encode(f"SIP/2.0 {code} {phrase}", lines.override(headers), body)
        link = self._response_link(request)
        self._answered[self._server_key(request)] = (raw, link)
        self._send(raw, link)
        response = parse(raw)
        assert isinstance(response, Response)
        return response

    def local_party(self, request: Request, tag: str | None = None) -> str:
        """Return the To value of our responses: the same tag for every response to one request."""
        if request.to_tag is not None:
            return request["To"]
        key = (request.call_id, request.from_tag, request.cseq.sequence)
        self._tags[key] = tag or self._tags.get(key) or secrets.token_hex(6)
        return f"{request['To']};tag={self._tags[key]}"

    async def next_request(self, method: str | None = None, seconds: float = 5.0) -> Request:
        """Wait for the next request in `incoming`, of that method if given; others stay queued in order."""
        skipped: list[Request] = []
        try:
            async with deadline(seconds):
                while True:
                    request = await self.incoming.get()
                    if method in (None, request.method):
                        return request
                    skipped.append(request)
        finally:
            later = [*skipped, *(self.incoming.get_nowait() for _ in range(self.incoming.qsize()))]
            for request in later:
                self.incoming.put_nowait(request)

    # -- keep-alive ---------------------------------------------------------------------------------------

    async def ping(self, seconds: float = 10.0) -> Address | None:
        """Send a keep-alive and wait for its answer (RFC 5626 §3.5, §4.4).

        On streams and WebSocket CRLF CRLF is answered by CRLF. On UDP a STUN Binding goes to the server from our
        SIP socket, and the mapped address is returned. Raises TimeoutError; OB-UA-06 gives the server 10 s.
        """
        return await self._keepalive.ping(self._pick_link(""), seconds)

    @property
    def keepalives(self) -> list[tuple[str, bytes]]:
        """("sent" | "received", bytes) of every CRLF and STUN keep-alive."""
        return self._keepalive.log

    @property
    def answer_pings(self) -> bool:
        """Whether pings of the other side are answered; False swallows them."""
        return self._keepalive.answering

    @answer_pings.setter
    def answer_pings(self, value: bool) -> None:
        self._keepalive.answering = value

    # -- receiving ----------------------------------------------------------------------------------------

    def _on_data(self, link: Link, data: bytes) -> None:
        try:
            if link.transport == "udp" and stun.is_stun(data):
                self._keepalive.receive_stun(link, data)
            elif link.transport == "udp" and not data.strip(b"\r\n"):
                self._keepalive.log.append(("received", data))
            elif link.transport == "udp" or (link.transport in WEBSOCKETS and data.strip(b"\r\n")):
                self._receive(data, link)
            else:
                self._receive_stream(link, data)
        except ValueError as error:
            self.errors.append(error)

    def _receive_stream(self, link: Link, data: bytes) -> None:
        for piece in self._readers.setdefault(link, SipStreamReader()).feed(data):
            if piece == b"\r\n":
                self._keepalive.receive_line_end(link)
            else:
                self._keepalive.receive_message(link)
                self._receive(piece, link)

    def _receive(self, raw: bytes, link: Link) -> None:
        self.trace.append(("received", raw))
        message = parse(raw, link)
        if isinstance(message, Response):
            self._receive_response(message)
        elif not self._absorb(message):
            self._receive_request(message)

    def _receive_response(self, response: Response) -> None:
        method = response.cseq.method
        transaction = self._transactions.get((response.branch, method))
        if transaction is None or transaction.final.done():
            self.stray.append(response)
        if transaction is not None:
            transaction.receive(response)

    def _receive_request(self, request: Request) -> None:
        if self.on_request is None:
            self.incoming.put_nowait(request)
            return
        outcome = self.on_request(self, request)
        if inspect.isawaitable(outcome):
            self._spawn(self._respond_later(request, outcome))
        else:
            self._respond_with(request, outcome)

    async def _respond_later(self, request: Request, outcome: Awaitable[Any]) -> None:
        self._respond_with(request, await outcome)

    def _respond_with(self, request: Request, outcome: Any) -> None:
        if outcome is None or request.method == "ACK":
            return
        if isinstance(outcome, dict):
            self.respond(request, **outcome)
        elif isinstance(outcome, tuple):
            self.respond(request, *outcome)
        else:
            self.respond(request, outcome)

    def _absorb(self, request: Request) -> bool:
        """Answer a retransmission again from memory (RFC 3261 §17.2); True if it was one."""
        assert request.link is not None
        key = self._server_key(request)
        if request.method == "ACK" or request.link.transport != "udp" or not request.branch.startswith("z9hG4bK"):
            return False
        if key not in self._answered:
            self._answered[key] = None
            return False
        self.retransmissions_absorbed += 1
        last = self._answered[key]
        if last is not None:
            self._send(*last)
        return True

    @staticmethod
    def _server_key(request: Request) -> tuple[str, str, str]:
        sent_by = request.values("Via")[0].split(";")[0].split()[-1]
        return request.branch, sent_by, request.method

    def _on_closed(self, link: Link) -> None:
        self._readers.pop(link, None)
        for transaction in self._transactions.values():
            if transaction.link is link:
                transaction.link_lost(link.reason or "closed")
        self._keepalive.link_lost(link)

    # -- sending ------------------------------------------------------------------------------------------

    def _send(self, data: bytes, link: Link) -> None:
        self.trace.append(("sent", data))
        link.send(data)

    def sent(self, method: str | None = None) -> list[bytes]:
        """Return the messages sent, those starting with `method` if given."""
        return self._traced("sent", method)

    def received(self, method: str | None = None) -> list[bytes]:
        """Return the messages received, those starting with `method` if given (`SIP/2.0` for responses)."""
        return self._traced("received", method)

    def _traced(self, direction: str, start: str | None) -> list[bytes]:
        return [raw for way, raw in self.trace if way == direction and raw.startswith((start or "").encode())]

    def _pick_link(self, uri: str) -> Link:
        """Choose where a request leaves: the server's link, the URI's address (UDP), the newest accepted link."""
        if self.link is not None:
            return self.link
        if self.endpoint is not None:
            target = address_uri(self.route[0]) if self.route else uri
            match = re.search(r"^sips?:(?:[^@]*@)?(\[[0-9a-fA-F:]+\]|[^:;?]+)(?::([0-9]+))?", target)
            if match is None:
                raise ValueError(f"no address in {target!r} to send to, and no server was given")
            return self.endpoint.link((match[1].strip("[]"), int(match[2] or 5060)))
        assert self.listener is not None, "not started"
        return next(link for link in reversed(self.listener.links) if not link.closed)

    def _response_link(self, request: Request) -> Link:
        assert request.link is not None
        if request.link.transport != "udp":
            return request.link
        assert self.endpoint is not None
        return self.endpoint.link(response_destination(request))

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
