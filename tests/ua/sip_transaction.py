"""Client transactions of the simulated SIP UA (RFC 3261 §17.1), with or without retransmission."""

import asyncio
from collections.abc import Callable

from tests.ua.link import Link
from tests.ua.sip_message import HeaderList, Request, Response, encode, header_parameter, parse
from tests.ua.wait import deadline

T1_S = 0.5
T2_S = 4.0

REASONS = {
    100: "Trying", 180: "Ringing", 183: "Session Progress", 200: "OK", 202: "Accepted", 302: "Moved Temporarily",
    400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    407: "Proxy Authentication Required", 408: "Request Timeout", 420: "Bad Extension", 423: "Interval Too Brief",
    430: "Flow Failed", 439: "First Hop Lacks Outbound Support", 480: "Temporarily Unavailable",
    481: "Call/Transaction Does Not Exist", 486: "Busy Here", 487: "Request Terminated", 488: "Not Acceptable Here",
    500: "Server Internal Error", 503: "Service Unavailable", 600: "Busy Everywhere", 603: "Decline",
}  # fmt: skip

WITH_CONTACT = {"INVITE", "UPDATE", "SUBSCRIBE", "NOTIFY", "REFER", "OPTIONS"}
DIALOG_FORMING = {"INVITE", "SUBSCRIBE", "NOTIFY", "REFER"}


class ClientTransaction:
    """One request on its way, and what came back for it.

    `final` is the first final response; later ones (2xx of other forks, retransmissions) go to `late`. A
    non-2xx final response to INVITE is acknowledged here, each time it arrives (§17.1.1.3).
    """

    def __init__(
        self,
        request: Request,
        link: Link,
        send: Callable[[bytes, Link], None],
        *,
        retransmit: bool = False,
        on_provisional: Callable[[Response], None] | None = None,
    ) -> None:
        self.request = request
        self.link = link
        self.provisionals: list[Response] = []
        self.late: list[Response] = []
        self.final: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self.sent_times = 0
        self._send = send
        self._on_provisional = on_provisional
        self._proceeding = asyncio.Event()
        self._transmit()
        self._timer: asyncio.Task[None] | None = None
        if retransmit and link.transport == "udp":
            self._timer = asyncio.create_task(self._retransmit())

    @property
    def key(self) -> tuple[str, str]:
        """What responses are matched by: branch and CSeq method (§17.1.3)."""
        return self.request.branch, self.request.method

    def receive(self, response: Response) -> None:
        """Take a response that carries our key."""
        response.request = self.request
        if response.status < 200:
            self.provisionals.append(response)
            self._proceeding.set()
            if self._on_provisional is not None:
                self._on_provisional(response)
            return
        if self.request.method == "INVITE" and response.status >= 300:
            self._send(build_failure_ack(self.request, response), self.link)
        if self.final.done():
            self.late.append(response)
            return
        response.provisionals = self.provisionals
        self.final.set_result(response)

    async def result(self, seconds: float) -> Response:
        """Wait for the final response; raises TimeoutError, or ConnectionError if the link ended first."""
        async with deadline(seconds):
            try:
                return await asyncio.shield(self.final)
            finally:
                self.stop()

    def link_lost(self, reason: str) -> None:
        """Fail the transaction: its responses can only come over the link that is gone."""
        if not self.final.done():
            self.final.set_exception(ConnectionError(f"connection ended before the response: {reason}"))
            self.final.exception()  # whoever waits sees it; nobody waiting is fine

    def stop(self) -> None:
        """Send no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _transmit(self) -> None:
        self.sent_times += 1
        self._send(self.request.raw, self.link)

    async def _retransmit(self) -> None:
        """Timers A and B for INVITE, E and F for others (§17.1.1.2, §17.1.2.2)."""
        interval, spent = T1_S, 0.0
        invite = self.request.method == "INVITE"
        while spent < 64 * T1_S and not self.final.done():
            await asyncio.sleep(interval)
            spent += interval
            if self.final.done() or (invite and self._proceeding.is_set()):
                return
            self._transmit()
            if invite:
                interval *= 2
            else:
                interval = T2_S if self._proceeding.is_set() else min(2 * interval, T2_S)


def build_failure_ack(request: Request, response: Response) -> bytes:
    """Build the ACK of a non-2xx response (§17.1.1.3): top Via and Routes of the INVITE, To of the response."""
    lines = [("Via", request.values("Via")[0])]
    lines += [("Route", value) for value in request.all("Route")]
    lines += [
        ("Max-Forwards", "70"),
        ("From", request["From"]),
        ("To", response["To"]),
        ("Call-ID", request.call_id),
        ("CSeq", f"{request.cseq.sequence} ACK"),
    ]
    return encode(f"ACK {request.uri} SIP/2.0", HeaderList(lines))


def build_cancel(request: Request) -> Request:
    """Build the CANCEL of an INVITE (§9.1): same Request-URI, top Via, Route, From, To, Call-ID and CSeq number."""
    lines = [("Via", request.values("Via")[0])]
    lines += [("Route", value) for value in request.all("Route")]
    lines += [
        ("Max-Forwards", "70"),
        ("From", request["From"]),
        ("To", request["To"]),
        ("Call-ID", request.call_id),
        ("CSeq", f"{request.cseq.sequence} CANCEL"),
    ]
    cancel = parse(encode(f"CANCEL {request.uri} SIP/2.0", HeaderList(lines)))
    assert isinstance(cancel, Request)
    return cancel


def response_destination(request: Request) -> tuple[str, int]:
    """Return where a UDP response goes (RFC 3261 §18.2.2, RFC 3581 §4), from source and top Via."""
    assert request.link is not None
    via = request.values("Via")[0]
    source = request.link.remote
    if ";rport" in via.lower().replace(" ", ""):
        return source
    host_port = via.split(None, 1)[1].split(";")[0].strip()
    _, _, port = host_port.rpartition("]")[2].partition(":")
    return source[0], int(port) if port else 5060


def complete_via(request: Request) -> list[str]:
    """Return the Via lines for the response: received and rport filled into the top one (RFC 3581 §4)."""
    assert request.link is not None
    source = request.link.remote
    lines = request.all("Via")
    top, *others = request.headers.values("Via")[: _values_in(lines[0])]
    names = [part.strip().lower() for part in top.split(";")]
    if "rport" in names:
        position = names.index("rport")
        parts = top.split(";")
        parts[position] = f"rport={source[1]}"
        top = ";".join(parts)
    host = top.split(None, 1)[1].split(";")[0].strip().rpartition(":")[0] or top.split(None, 1)[1].split(";")[0]
    if header_parameter(top, "received") is None and ("rport" in names or host.strip("[] ") != source[0]):
        top += f";received={source[0]}"
    return [", ".join([top, *others]), *lines[1:]]


def response_lines(request: Request, code: int, to: str, contact: str) -> HeaderList:
    """Return the header lines of a response: what it copies from the request (§8.2.6.2, §12.1.1), and Contact."""
    lines = [("Via", value) for value in complete_via(request)]
    if 100 < code < 300 and request.method in DIALOG_FORMING:
        lines += [("Record-Route", value) for value in request.all("Record-Route")]
    lines += [("From", request["From"]), ("To", to), ("Call-ID", request.call_id), ("CSeq", request["CSeq"])]
    if 100 < code < 300 and request.method in WITH_CONTACT:
        lines.append(("Contact", contact))
    return HeaderList(lines)


def _values_in(line: str) -> int:
    return len(HeaderList([("Via", line)]).values("Via"))
