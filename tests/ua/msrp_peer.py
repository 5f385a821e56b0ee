"""What simulated MSRP endpoints share: sending in chunks, answering, putting messages together (RFC 4975)."""

import asyncio
import secrets
from collections import defaultdict
from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any

from tests.ua.link import SECURE, WEBSOCKETS, Link
from tests.ua.msrp_frame import Frame, FrameError, FrameReader, Headers, build
from tests.ua.msrp_message import HashSink, Received
from tests.ua.msrp_writer import MessageWriter, OutgoingChunk, Sent, pieces, regroup
from tests.ua.peer import Peer
from tests.ua.wait import deadline

COMMENTS = {
    200: "OK", 400: "Bad Request", 403: "Forbidden", 408: "Timeout", 413: "Stop", 415: "Unsupported Media Type",
    423: "Interval Out-of-Bounds", 481: "Session does not exist", 501: "Not implemented", 506: "Session in use",
}  # fmt: skip

Answer = int | tuple[int, str] | None
Body = bytes | Iterable[bytes] | AsyncIterable[bytes] | None


class MsrpPeer(Peer):
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
        super().__init__(name)
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
        writer = MessageWriter(self, to_path, common, content_type, chosen, sent, pending)
        async with self._sending:
            if body is None:
                await writer.bodiless()
            elif isinstance(body, bytes):
                await writer.whole(body, chunk_size, byte_range)
            elif chunk_size is None:
                await writer.stream(pieces(body), total, byte_range)
            else:
                await writer.cut(regroup(pieces(body), chunk_size), total)
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


def _report_headers(success: str | None, failure: str | None) -> list[tuple[str, Any]]:
    return [("Success-Report", success), ("Failure-Report", failure)]


def bracket(host: str) -> str:
    """Return a host as it stands in a URI: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host
