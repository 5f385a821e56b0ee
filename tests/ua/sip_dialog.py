"""Dialogs and outgoing calls of the simulated SIP UA (RFC 3261 §12, §13)."""

import asyncio
from typing import TYPE_CHECKING

from tests.ua.link import Link
from tests.ua.sip_message import (
    HeaderArgument,
    HeaderList,
    Request,
    Response,
    address_uri,
    encode,
    uri_parameters,
)
from tests.ua.sip_transaction import ClientTransaction, build_cancel
from tests.ua.wait import deadline

if TYPE_CHECKING:
    from tests.ua.sip import SipUA


class CallFailed(Exception):  # noqa: N818
    """The INVITE got a final response other than 2xx, which is `response`."""

    def __init__(self, response: Response) -> None:
        super().__init__(f"{response.status} {response.reason}")
        self.response = response


class CSeqCounter:
    """The CSeq numbers of one Call-ID."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def next(self) -> int:
        """Draw the next number."""
        self.value += 1
        return self.value


class Dialog:
    """One side of a dialog. Everything is public, so that a test can bend it (old Route, other link, wrong tag)."""

    def __init__(self, ua: "SipUA", link: Link, call_id: str, local: str, remote: str, cseq: CSeqCounter) -> None:
        self.ua = ua
        self.link = link
        self.call_id = call_id
        self.local = local  # From value of our requests, with tag
        self.remote = remote  # To value of our requests, with tag
        self.cseq = cseq
        self.route_set: list[str] = []
        self.remote_target = ""
        self.invite: Request | None = None  # the last INVITE sent or received
        self.response: Response | None = None  # the 2xx we received, as caller
        self.early: list[Response] = []

    @classmethod
    def from_response(cls, ua: "SipUA", response: Response, link: Link, cseq: CSeqCounter) -> "Dialog":
        """Build the caller's side (§12.1.2): route set is Record-Route in reverse order."""
        invite = response.request
        assert invite is not None
        dialog = cls(ua, link, response.call_id, invite["From"], response["To"], cseq)
        dialog.route_set = response.values("Record-Route")[::-1]
        dialog.remote_target = address_uri(response.values("Contact")[0])
        dialog.invite, dialog.response, dialog.early = invite, response, response.provisionals
        return dialog

    @classmethod
    def from_request(cls, ua: "SipUA", request: Request, local: str) -> "Dialog":
        """Build the callee's side (§12.1.1): route set is Record-Route in its order; `local` is our To with tag."""
        assert request.link is not None
        dialog = cls(ua, request.link, request.call_id, local, request["From"], CSeqCounter())
        dialog.route_set = request.values("Record-Route")
        dialog.remote_target = address_uri(request.values("Contact")[0])
        dialog.invite = request
        return dialog

    def target(self) -> tuple[str, list[str]]:
        """Return Request-URI and Route values (§12.2.1.1), for loose and strict first routes."""
        if not self.route_set or "lr" in uri_parameters(address_uri(self.route_set[0])):
            return self.remote_target, self.route_set
        return address_uri(self.route_set[0]), [*self.route_set[1:], f"<{self.remote_target}>"]

    async def request(
        self, method: str, *, headers: HeaderArgument = None, body: bytes = b"", content_type: str | None = None
    ) -> Response:
        """Send a request inside the dialog and return its final response."""
        uri, routes = self.target()
        lines = self.ua.request_lines(
            method, self.link, call_id=self.call_id, cseq=self.cseq.next(), sender=self.local, recipient=self.remote
        )
        merged = self._with_routes(lines, routes).override(headers)
        return await self.ua.transact(
            method, uri, merged, body, content_type=content_type, link=self.link, cseq=self.cseq
        )

    async def reinvite(self, sdp: bytes | None = None, *, headers: HeaderArgument = None) -> Response:
        """Send a re-INVITE; a 2xx refreshes the remote target (§12.2.1.2) and is yours to `ack`."""
        response = await self.request(
            "INVITE", headers=headers, body=sdp or b"", content_type="application/sdp" if sdp else None
        )
        if response.status < 300:
            self.invite = response.request
            self.remote_target = next(map(address_uri, response.values("Contact")), self.remote_target)
        return response

    async def ack(self, sdp: bytes = b"", *, headers: HeaderArgument = None) -> Request:
        """Send the ACK of a 2xx (§13.2.2.4): a new branch, the INVITE's CSeq number and its credentials."""
        assert self.invite is not None
        uri, routes = self.target()
        lines = self.ua.request_lines(
            "ACK",
            self.link,
            call_id=self.call_id,
            cseq=self.invite.cseq.sequence,
            sender=self.local,
            recipient=self.remote,
        )
        merged = self._with_routes(lines, routes)
        for name in ("Authorization", "Proxy-Authorization"):
            merged.lines += [(name, value) for value in self.invite.all(name)]
        if sdp:
            merged.lines.append(("Content-Type", "application/sdp"))
        raw = encode(f"ACK {uri} SIP/2.0", merged.override(headers), sdp)
        return self.ua.send_request(raw, self.link)

    async def bye(self, *, headers: HeaderArgument = None) -> Response:
        """Send BYE and return its final response."""
        return await self.request("BYE", headers=headers)

    @staticmethod
    def _with_routes(lines: HeaderList, routes: list[str]) -> HeaderList:
        via, *rest = [line for line in lines if line[0] != "Route"]
        return HeaderList([via, *(("Route", value) for value in routes), *rest])


class Call:
    """An outgoing INVITE whose answer is not there yet."""

    def __init__(self, ua: "SipUA", cseq: CSeqCounter) -> None:
        self.ua = ua
        self.cseq = cseq
        self.provisionals: list[Response] = []
        self.transaction: ClientTransaction | None = None  # the newest, after answering challenges
        self._news = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self.task: asyncio.Task[Response] | None = None

    def note_transaction(self, transaction: ClientTransaction) -> None:
        """Called with each INVITE sent for this call."""
        self.transaction = transaction

    def note_provisional(self, response: Response) -> None:
        """Called with each provisional response."""
        self.provisionals.append(response)
        task = asyncio.get_running_loop().create_task(self._wake())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def provisional(self, status: int | None = None, seconds: float = 5.0) -> Response:
        """Wait for a provisional response, any or one with that status."""

        def found() -> Response | None:
            return next((r for r in self.provisionals if status in (None, r.status)), None)

        async with deadline(seconds), self._news:
            await self._news.wait_for(lambda: found() is not None)
        response = found()
        assert response is not None
        return response

    async def result(self, seconds: float = 10.0) -> Response:
        """Wait for the final response, whatever it is."""
        assert self.task is not None
        async with deadline(seconds):
            return await asyncio.shield(self.task)

    async def dialog(self, seconds: float = 10.0) -> Dialog:
        """Wait for a 2xx and return the dialog; raises CallFailed. The ACK is the caller's to send."""
        response = await self.result(seconds)
        if response.status >= 300:
            raise CallFailed(response)
        assert self.transaction is not None
        return Dialog.from_response(self.ua, response, self.transaction.link, self.cseq)

    async def cancel(self) -> Response:
        """Send CANCEL after a provisional response came (§9.1) and return the response to the CANCEL itself."""
        await self.provisional()
        assert self.transaction is not None
        cancel = build_cancel(self.transaction.request)
        return await self.ua.start_transaction(cancel.raw, self.transaction.link).result(self.ua.timeout)

    async def _wake(self) -> None:
        async with self._news:
            self._news.notify_all()
