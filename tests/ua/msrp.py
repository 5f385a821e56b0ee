"""Simulated MSRP endpoints (RFC 4975, 4976 §5, 7977), written from the RFCs.

    async with MsrpEndpoint("alice", "wonderland", relay=("127.0.0.1", 2855), transport="tls") as alice:
        await alice.auth()
        sent = await alice.send(alice.use_path + bob.path, b"hello")

`MsrpEndpoint` is a client of a relay, `MsrpListener` a peer that listens on a port of its own. Both answer
SENDs, put messages together by Message-ID and Byte-Range, and keep every frame in `frames`.
"""

import asyncio
import secrets
import ssl
from collections import defaultdict
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from tests.ua import digest
from tests.ua.link import SECURE, WEBSOCKETS, Address, Link, LinkServer, listen, open_link
from tests.ua.msrp_frame import Frame, FrameError, FrameReader, Headers, build, end_line
from tests.ua.msrp_message import HashSink, Received
from tests.ua.wait import deadline

__all__ = ["Abort", "AuthFailed", "HashSink", "MsrpEndpoint", "MsrpListener", "Received", "Sent"]

COMMENTS = {
    200: "OK", 400: "Bad Request", 403: "Forbidden", 408: "Timeout", 413: "Stop", 415: "Unsupported Media Type",
    423: "Interval Out-of-Bounds", 481: "Session does not exist", 501: "Not implemented", 506: "Session in use",
}  # fmt: skip

WRITE_SIZE = 65536

Answer = int | tuple[int, str] | None
Body = bytes | Iterable[bytes] | AsyncIterable[bytes] | None


class AuthFailed(Exception):  # noqa: N818
    """AUTH got a final response other than 200, which is `frame`."""

    def __init__(self, frame: Frame) -> None:
        super().__init__(f"{frame.status} {frame.comment}")
        self.frame = frame
        self.status = frame.status


class Abort(Exception):  # noqa: N818
    """Raised by a body iterator to give up in the middle: the chunk ends with `#`."""


@dataclass(slots=True)
class Sent:
    """One message sent: its chunks and their responses, in order. `responses` stays empty if none were awaited."""

    message_id: str
    chunks: list[Frame] = field(default_factory=list)
    responses: list[Frame] = field(default_factory=list)

    @property
    def statuses(self) -> list[int]:
        return [frame.status for frame in self.responses]

    @property
    def ok(self) -> bool:
        """Whether every chunk got its 200."""
        return self.statuses == [200] * len(self.chunks)


class OutgoingChunk:
    """A SEND being written. On WebSocket it leaves as one message at its end, on a stream as it is written."""

    def __init__(self, peer: "MsrpPeer", frame: Frame, link: Link) -> None:
        self.frame = frame
        self.response = peer.expect(frame)
        self._peer, self._link = peer, link
        self._whole = bytearray(frame.head) if link.transport in WEBSOCKETS else None
        peer.open_chunks[link] = self
        if self._whole is None:
            link.send(frame.head)

    async def write(self, data: bytes) -> None:
        """Add body octets and wait until the transport has room for more."""
        self.frame.add(data)
        if self._whole is not None:
            self._whole += data
            return
        for start in range(0, len(data), WRITE_SIZE):
            self._link.send(data[start : start + WRITE_SIZE])
            await self._link.drain()

    async def end(self, flag: str = "$") -> None:
        """Write the end-line, then what was held back while the chunk was open."""
        self.frame.flag = flag
        closing = end_line(self.frame)
        self._link.send(closing if self._whole is None else bytes(self._whole) + closing)
        self._peer.frames.append(("sent", self.frame))
        self._peer.end_chunk(self._link)
        await self._link.drain()


class MsrpPeer:
    """What both kinds of endpoint share: any number of connections, one session URI.

    Attributes:
        messages: `Received` objects, complete or aborted. bodiless: SENDs without a body.
        reports, responses, requests: frames received (requests: everything but SEND and REPORT).
        frames: ("sent" | "received", Frame) in order.
        answer: status for received SENDs, (status, comment), None for silence, or a callable from the frame to one
            of these. Failure-Report is obeyed whatever it says (RFC 4975 §7.2).
        report_success: send the REPORT that Success-Report asks for.
        sink: makes the place where a message's octets go instead of memory; `HashSink` for huge ones.
        errors: what could not be read; leaving the `async with` block raises if there is any.
        misrouted: SENDs whose To-Path is not exactly our URI (answered 481).
    """

    def __init__(self, name: str, transport: str, scheme: str | None) -> None:
        self.name = name
        self.transport = transport
        self.scheme = scheme or ("msrps" if transport in SECURE else "msrp")
        self.session_id = secrets.token_urlsafe(16).replace("_", "x").replace("-", "y")
        self.messages: asyncio.Queue[Received] = asyncio.Queue()
        self.bodiless: asyncio.Queue[Frame] = asyncio.Queue()
        self.reports: asyncio.Queue[Frame] = asyncio.Queue()
        self.responses: asyncio.Queue[Frame] = asyncio.Queue()
        self.requests: asyncio.Queue[Frame] = asyncio.Queue()
        self.frames: list[tuple[str, Frame]] = []
        self.errors: list[Exception] = []
        self.misrouted: list[Frame] = []
        self.answer: Answer | Callable[[Frame], Answer] = 200
        self.report_success = True
        self.sink: Callable[[], HashSink] | None = None
        self.on_body: Callable[[Frame, bytes], None] | None = None
        self.partial: dict[str, Received] = {}
        self.open_chunks: dict[Link, OutgoingChunk] = {}
        self._held: defaultdict[Link, list[Frame]] = defaultdict(list)
        self._readers: dict[Link, FrameReader] = {}
        self._expected: dict[str, asyncio.Future[Frame]] = {}
        self._sending = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()
        if kind is None and self.errors:
            raise AssertionError(f"{self.name} received what it could not read: {self.errors}")

    async def start(self) -> None:
        """Connect, or listen."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Close every connection."""
        raise NotImplementedError

    @property
    def uri(self) -> str:
        """Our own session URI."""
        raise NotImplementedError

    @property
    def path(self) -> list[str]:
        """The URIs for `a=path` in SDP, outermost first."""
        return [self.uri]

    @property
    def active_link(self) -> Link:
        """The connection requests leave on by default."""
        raise NotImplementedError

    # -- sending ------------------------------------------------------------------------------------------

    async def send(
        self,
        to_path: list[str],
        body: Body,
        content_type: str = "text/plain",
        *,
        chunk_size: int | None = None,
        message_id: str | None = None,
        success_report: str | None = None,
        failure_report: str | None = None,
        byte_range: str | None = None,
        total: int | None = None,
        headers: Headers = (),
        wait: bool = True,
        seconds: float = 30.0,
        link: Link | None = None,
    ) -> Sent:
        """Send a message and wait for the response to each chunk.

        Args:
            body: bytes; an iterable or async iterable of bytes, streamed; None for a bodiless SEND.
            chunk_size: cut after that many octets; default: bytes in one chunk with a numeric range end, an iterable
                in one open chunk (`start-*`), which is interrupted when a response or REPORT must go out.
            byte_range: the header as it is to stand in the only chunk, instead of the true one.
            total: octets of the whole message for iterables, if known.
            wait: False returns without responses. With Failure-Report no or partial none is awaited either.

        Raises:
            TimeoutError: a response is missing. ConnectionError: the connection ended first.
        """
        common = [("Message-ID", message_id or secrets.token_hex(8))]
        common += [(name, value) for name, value in _report_headers(success_report, failure_report) if value]
        common += headers
        sent, chosen = Sent(common[0][1]), link or self.active_link
        pending: list[asyncio.Future[Frame]] = []
        writer = _MessageWriter(self, to_path, common, content_type, chosen, sent, pending)
        async with self._sending:
            if body is None:
                await writer.bodiless()
            elif isinstance(body, bytes):
                await writer.whole(body, chunk_size, byte_range)
            elif chunk_size is None:
                await writer.stream(_pieces(body), total, byte_range)
            else:
                await writer.cut(_regroup(_pieces(body), chunk_size), total)
        if not wait or (failure_report or "yes").lower() in ("no", "partial"):
            return sent
        async with deadline(seconds):
            sent.responses = list(await asyncio.gather(*pending))
        return sent

    def start_chunk(
        self,
        to_path: list[str],
        headers: Headers,
        content_type: str = "text/plain",
        *,
        link: Link | None = None,
        transaction_id: str | None = None,
    ) -> OutgoingChunk:
        """Open a SEND to be written by hand; `headers` are all but the paths and Content-Type."""
        frame = build("SEND", to_path, [self.uri], headers, content_type=content_type, transaction_id=transaction_id)
        return OutgoingChunk(self, frame, link or self.active_link)

    async def request(
        self,
        method: str,
        to_path: list[str],
        headers: Headers = (),
        body: bytes | None = None,
        content_type: str = "text/plain",
        *,
        seconds: float = 30.0,
        link: Link | None = None,
    ) -> Frame:
        """Send any whole request and wait for its response."""
        frame = build(
            method, to_path, [self.uri], headers, content_type=None if body is None else content_type, flag="$"
        )
        if body:
            frame.add(body)
        response = self.expect(frame)
        self.send_frame(frame, link or self.active_link)
        async with deadline(seconds):
            return await response

    def respond(self, frame: Frame, status: int, comment: str | None = None, headers: Headers = ()) -> None:
        """Answer a request on the connection it came on; AUTH and others get the whole From-Path, SEND only its head."""
        assert frame.link is not None
        phrase = COMMENTS.get(status, "") if comment is None else comment
        to_path = frame.from_path[:1] if frame.method == "SEND" else frame.from_path
        answer = build(
            f"{status} {phrase}".strip(),
            to_path,
            frame.to_path[:1],
            headers,
            transaction_id=frame.transaction_id,
            flag="$",
        )
        if not frame.link.closed:
            self.send_frame(answer, frame.link)

    def report(self, received: Received, status: int = 200, comment: str | None = None) -> None:
        """Send a REPORT on a message received (RFC 4975 §7.1.2), over the connection it came on."""
        phrase = COMMENTS.get(status, "") if comment is None else comment
        headers = [
            ("Message-ID", received.message_id),
            ("Byte-Range", f"1-{received.octets}/{'*' if received.total is None else received.total}"),
            ("Status", f"000 {status:03} {phrase}".strip()),
        ]
        frame = build("REPORT", received.from_path, [self.uri], headers, flag="$")
        assert received.link is not None
        if not received.link.closed:
            self.send_frame(frame, received.link)

    def send_frame(self, frame: Frame, link: Link) -> None:
        """Send a whole frame; while a chunk is open on that connection it waits for the chunk's end."""
        if link in self.open_chunks:
            self._held[link].append(frame)
            return
        self.frames.append(("sent", frame))
        link.send(frame.raw)

    def send_raw(self, data: bytes, link: Link | None = None) -> None:
        """Send bytes as they are."""
        (link or self.active_link).send(data)

    def expect(self, frame: Frame) -> asyncio.Future[Frame]:
        """Return a future for the response to a request about to be sent."""
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._expected[frame.transaction_id] = future
        return future

    def is_held(self, link: Link) -> bool:
        """Whether frames wait for the open chunk of that connection to end."""
        return bool(self._held[link])

    def end_chunk(self, link: Link) -> None:
        """Note that the open chunk has ended, and send what waited."""
        del self.open_chunks[link]
        for frame in self._held.pop(link, []):
            self.send_frame(frame, link)

    # -- receiving ----------------------------------------------------------------------------------------

    async def next_message(self, seconds: float = 10.0) -> Received:
        """Wait for the next complete or aborted message."""
        async with deadline(seconds):
            return await self.messages.get()

    async def next_report(self, seconds: float = 10.0) -> Frame:
        """Wait for the next REPORT."""
        async with deadline(seconds):
            return await self.reports.get()

    async def next_request(self, seconds: float = 10.0) -> Frame:
        """Wait for the next request that is neither SEND nor REPORT; it is yours to answer with `respond`."""
        async with deadline(seconds):
            return await self.requests.get()

    async def next_bodiless(self, seconds: float = 10.0) -> Frame:
        """Wait for the next SEND without a body."""
        async with deadline(seconds):
            return await self.bodiless.get()

    def received(self, method: str | None = None) -> list[Frame]:
        """Return frames received, of that method if given ("" for responses)."""
        return [frame for way, frame in self.frames if way == "received" and method in (None, frame.method)]

    def sent(self, method: str | None = None) -> list[Frame]:
        """Return frames sent, of that method if given ("" for responses)."""
        return [frame for way, frame in self.frames if way == "sent" and method in (None, frame.method)]

    def pause_reading(self) -> None:
        """Become a receiver that takes nothing more."""
        for link in self._open_links():
            link.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        for link in self._open_links():
            link.resume_reading()

    def _open_links(self) -> list[Link]:
        raise NotImplementedError

    def _on_data(self, link: Link, data: bytes) -> None:
        if link not in self._readers:
            self._readers[link] = FrameReader(
                lambda frame: self._receive_head(frame, link), self._receive_body, self._receive_end
            )
        try:
            self._readers[link].feed(data)
            if link.transport in WEBSOCKETS and not self._readers[link].idle:
                raise FrameError(f"a WebSocket message that is not exactly one frame: {data[:200]!r}")
        except ValueError as error:
            self.errors.append(error)

    def _on_closed(self, link: Link) -> None:
        reader = self._readers.pop(link, None)
        if reader is not None and not reader.idle:
            self.frames.append(("cut off", Frame(b"", "")))
        for future in self._expected.values():
            if not future.done():
                future.set_exception(ConnectionError(f"connection ended before the response: {link.reason}"))
                future.exception()
        self.open_chunks.pop(link, None)

    def _receive_head(self, frame: Frame, link: Link) -> None:
        frame.link = link
        if frame.method == "SEND" and frame.to_path != [self.uri]:
            self.misrouted.append(frame)
        elif frame.method == "SEND" and frame.has_body:
            identifier = frame["Message-ID"]
            if identifier not in self.partial:
                self.partial[identifier] = Received(frame, self.sink() if self.sink else None)
            self.partial[identifier].begin_chunk(frame)

    def _receive_body(self, frame: Frame, data: bytes) -> None:
        if self.on_body is not None:
            self.on_body(frame, data)
        message = self.partial.get(frame.get("Message-ID") or "")
        if frame.method == "SEND" and message is not None:
            message.write(data, frame)

    def _receive_end(self, frame: Frame) -> None:
        self.frames.append(("received", frame))
        if frame.status:
            self._receive_response(frame)
        elif frame.method == "REPORT":
            self.reports.put_nowait(frame)
        elif frame.method == "SEND":
            self._receive_send(frame)
        else:
            self.requests.put_nowait(frame)

    def _receive_response(self, frame: Frame) -> None:
        self.responses.put_nowait(frame)
        future = self._expected.pop(frame.transaction_id, None)
        if future is not None and not future.done():
            future.set_result(frame)

    def _receive_send(self, frame: Frame) -> None:
        if any(frame is other for other in self.misrouted):
            self._answer_send(frame, 481)
            return
        self._answer_send(frame, self.answer(frame) if callable(self.answer) else self.answer)
        if not frame.has_body:
            self.bodiless.put_nowait(frame)
            return
        message = self.partial[frame["Message-ID"]]
        message.end_chunk(frame)
        if message.complete or message.aborted:
            del self.partial[message.message_id]
            if message.complete and self.report_success and message.wants_success_report:
                self.report(message)
            self.messages.put_nowait(message)

    def _answer_send(self, frame: Frame, answer: Answer) -> None:
        """Answer a SEND as Failure-Report allows: `no` nothing, `partial` only errors (RFC 4975 §7.2)."""
        if answer is None:
            return
        status, comment = answer if isinstance(answer, tuple) else (answer, None)
        wanted = (frame.get("Failure-Report") or "yes").lower()
        if wanted == "yes" or (wanted == "partial" and status != 200):
            self.respond(frame, status, comment)


class MsrpEndpoint(MsrpPeer):
    """A client that reaches its relay over one connection.

    Args:
        relay: where to connect. relay_uri: the URI AUTH is addressed to; default made from `relay`.
        scheme: of our own and the relay's URI; default msrps on TLS and WSS.
        host: local address to connect from.
        with_uri: whether Authorization carries the `uri` parameter.
    """

    def __init__(
        self,
        name: str,
        password: str = "",
        *,
        relay: Address,
        transport: str = "tcp",
        scheme: str | None = None,
        host: str = "127.0.0.1",
        relay_uri: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        path: str = "/",
        http_headers: dict[str, str] | None = None,
        subprotocols: tuple[str, ...] = ("msrp",),
        algorithms: tuple[str, ...] = ("SHA-256", "MD5"),
        with_uri: bool = True,
    ) -> None:
        super().__init__(name, transport, scheme)
        self.password = password
        self.relay, self.host = relay, host
        kind = "ws" if transport in WEBSOCKETS else "tcp"
        self.relay_uri = relay_uri or f"{self.scheme}://{_bracket(relay[0])}:{relay[1]};{kind}"
        self.ssl_context, self.server_hostname = ssl_context, server_hostname
        self.http_path, self.http_headers, self.subprotocols = path, http_headers, subprotocols
        self.algorithms, self.with_uri = algorithms, with_uri
        self.link: Link | None = None
        self.use_path: list[str] = []
        self.expires: int | None = None
        self.challenges = 0
        self.reuse_nonce = False
        self.last_answer: digest.Answer | None = None
        self._challenge: digest.Challenge | None = None
        self._nonce_uses: defaultdict[str, int] = defaultdict(int)
        self._invalid_host = f"{secrets.token_hex(5)}.invalid"

    async def connect(self) -> Self:
        """Open the connection to the relay."""
        self.link = await open_link(
            self.transport,
            self.relay,
            self._on_data,
            self._on_closed,
            subprotocols=self.subprotocols,
            path=self.http_path,
            local=(self.host, 0),
            ssl_context=self.ssl_context,
            server_hostname=self.server_hostname,
            http_headers=self.http_headers,
        )
        return self

    async def start(self) -> None:
        await self.connect()

    async def stop(self) -> None:
        if self.link is not None and not self.link.closed:
            await self.link.close()

    async def wait_closed(self, seconds: float = 10.0) -> str:
        """Wait until the relay has closed the connection, and return how."""
        return await self.active_link.wait_closed(seconds)

    @property
    def uri(self) -> str:
        if self.transport in WEBSOCKETS:
            return f"{self.scheme}://{self._invalid_host}:2855/{self.session_id};ws"
        host, port = self.active_link.local
        return f"{self.scheme}://{_bracket(host)}:{port}/{self.session_id};tcp"

    @property
    def path(self) -> list[str]:
        """For SDP: Use-Path in reverse order, then our own URI (RFC 4976 §4.2)."""
        return [*self.use_path[::-1], self.uri]

    @property
    def active_link(self) -> Link:
        assert self.link is not None, "not connected"
        return self.link

    async def auth(
        self,
        expires: int | None = None,
        *,
        to_path: list[str] | None = None,
        headers: Headers = (),
        credentials: bool = True,
    ) -> list[str]:
        """Enrol with the relay, or with one behind it (`to_path`), and return the URIs of Use-Path.

        A 401 is answered once, and again while it says stale=true. The server's `rspauth` is checked if present.

        Raises:
            AuthFailed: any final response but 200.
        """
        target = to_path or [self.relay_uri]
        asked = [("Expires", str(expires))] if expires is not None else []
        known = self._challenge if self.reuse_nonce and credentials else None
        response = await self._auth_once(target, [*asked, *headers], known)
        for _ in range(3):
            challenge = digest.choose(response.all("WWW-Authenticate"), self.algorithms)
            first = known is None
            if response.status != 401 or challenge is None or not credentials or not (first or challenge.stale):
                break
            self.challenges += 1
            known = self._challenge = challenge
            response = await self._auth_once(target, [*asked, *headers], challenge)
        if response.status != 200:
            raise AuthFailed(response)
        self._check_proof(response)
        self.use_path = response["Use-Path"].split()
        self.expires = int(response["Expires"]) if response.get("Expires") else None
        return self.use_path

    async def _auth_once(self, to_path: list[str], headers: Headers, challenge: digest.Challenge | None) -> Frame:
        lines = list(headers)
        if challenge is not None:
            self._nonce_uses[challenge.nonce] += 1
            self.last_answer = digest.answer(
                challenge,
                self.name,
                self.password,
                "AUTH",
                to_path[-1],
                count=self._nonce_uses[challenge.nonce],
                with_uri=self.with_uri,
            )
            lines.append(("Authorization", self.last_answer.header))
        return await self.request("AUTH", to_path, lines)

    def _check_proof(self, response: Frame) -> None:
        """Check rspauth (RFC 7616 §3.5) and take over nextnonce. Raises AssertionError if the server lied."""
        value = response.get("Authentication-Info")
        if value is None or self.last_answer is None:
            return
        found = digest.parse_parameters(value)
        if found.get("rspauth") not in (None, self.last_answer.expected_rspauth()):
            raise AssertionError(f"wrong rspauth in {value}")
        old = self.last_answer.challenge
        if "nextnonce" in found:
            self._challenge = digest.Challenge(old.realm, found["nextnonce"], old.algorithm, old.opaque, old.qop)

    def _open_links(self) -> list[Link]:
        return [self.link] if self.link is not None and not self.link.closed else []


class MsrpListener(MsrpPeer):
    """A peer without relay: listens on a TCP, TLS, WS or WSS port with one session URI."""

    def __init__(
        self,
        name: str,
        *,
        transport: str = "tcp",
        scheme: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        uri_host: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(name, transport, scheme)
        self.host, self.port = host, port
        self.uri_host = uri_host or host
        self.ssl_context = ssl_context
        self.server: LinkServer | None = None

    async def start(self) -> None:
        self.server = await listen(
            self.transport,
            self.host,
            self.port,
            self._on_data,
            self._on_closed,
            subprotocol="msrp",
            ssl_context=self.ssl_context,
        )

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.close()

    @property
    def address(self) -> Address:
        """Where we listen."""
        assert self.server is not None, "not listening"
        return self.server.address

    @property
    def uri(self) -> str:
        kind = "ws" if self.transport in WEBSOCKETS else "tcp"
        return f"{self.scheme}://{_bracket(self.uri_host)}:{self.address[1]}/{self.session_id};{kind}"

    @property
    def links(self) -> list[Link]:
        """Every connection accepted so far, oldest first."""
        assert self.server is not None, "not listening"
        return self.server.links

    @property
    def active_link(self) -> Link:
        """The newest connection that is still open."""
        return self._open_links()[-1]

    def _open_links(self) -> list[Link]:
        return [link for link in self.links if not link.closed]


@dataclass(slots=True)
class _MessageWriter:
    """Writes one message as one or several chunks."""

    peer: MsrpPeer
    to_path: list[str]
    common: list[tuple[str, str]]
    content_type: str
    link: Link
    sent: Sent
    pending: list[asyncio.Future[Frame]]

    async def bodiless(self) -> None:
        frame = build("SEND", self.to_path, [self.peer.uri], self.common, flag="$")
        self.sent.chunks.append(frame)
        self.pending.append(self.peer.expect(frame))
        self.peer.send_frame(frame, self.link)
        await self.link.drain()

    async def whole(self, body: bytes, chunk_size: int | None, byte_range: str | None) -> None:
        size = chunk_size or max(len(body), 1)
        for start in range(0, max(len(body), 1), size):
            piece = body[start : start + size]
            true_range = f"{start + 1}-{start + len(piece)}/{len(body)}"
            chunk = self._open(byte_range or true_range)
            await chunk.write(piece)
            await chunk.end("$" if start + size >= len(body) else "+")

    async def cut(self, pieces: AsyncIterator[bytes], total: int | None) -> None:
        start, held = 1, None
        async for piece in pieces:
            if held is not None:
                start = await self._numbered(held, start, total, "+")
            held = piece
        await self._numbered(held or b"", start, total, "$")

    async def stream(self, pieces: AsyncIterator[bytes], total: int | None, byte_range: str | None) -> None:
        start, flag = 1, "$"
        chunk = self._open(byte_range or f"1-*/{_star(total)}")
        try:
            async for piece in pieces:
                if self.peer.is_held(self.link):
                    start += chunk.frame.body_octets
                    await chunk.end("+")
                    chunk = self._open(f"{start}-*/{_star(total)}")
                await chunk.write(piece)
        except Abort:
            flag = "#"
        await chunk.end(flag)

    async def _numbered(self, piece: bytes, start: int, total: int | None, flag: str) -> int:
        chunk = self._open(f"{start}-{start + len(piece) - 1}/{_star(total)}")
        await chunk.write(piece)
        await chunk.end(flag)
        return start + len(piece)

    def _open(self, byte_range: str) -> OutgoingChunk:
        headers = [*self.common, ("Byte-Range", byte_range)]
        chunk = self.peer.start_chunk(self.to_path, headers, self.content_type, link=self.link)
        self.sent.chunks.append(chunk.frame)
        self.pending.append(chunk.response)
        return chunk


def _report_headers(success: str | None, failure: str | None) -> list[tuple[str, Any]]:
    return [("Success-Report", success), ("Failure-Report", failure)]


async def _pieces(body: Iterable[bytes] | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(body, AsyncIterable):
        async for piece in body:
            yield piece
    else:
        for piece in body:
            yield piece


async def _regroup(pieces: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    """Give the same octets in pieces of `size`, the last one shorter."""
    buffer = bytearray()
    async for piece in pieces:
        buffer += piece
        while len(buffer) >= size:
            yield bytes(buffer[:size])
            del buffer[:size]
    if buffer:
        yield bytes(buffer)


def _star(total: int | None) -> str:
    return "*" if total is None else str(total)


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host
