"""A simulated SIP user agent (RFC 3261, 3581, 5626, 7118), written from the RFCs.

    async with SipUA("bob", "zanzibar", server=("127.0.0.1", 5060), transport="tcp", reg_id=1) as bob:
        response = await bob.register()
        request = await bob.next_request("MESSAGE")
        bob.respond(request, 200)

With `server=None` it listens instead, and plays the peer beyond the edge: an upstream proxy, a registrar, the
far user agent. `trace` holds every SIP message sent and received as it was on the wire.
"""

import secrets
from typing import Any

from tests.ua.link import Link
from tests.ua.sip_auth import SipCredentials
from tests.ua.sip_dialog import Call, CallFailed, CSeqCounter, Dialog
from tests.ua.sip_message import HeaderArgument, HeaderList, Request, Response, encode
from tests.ua.sip_peer import SipPeer
from tests.ua.sip_transaction import WITH_CONTACT
from tests.ua.stun import stun_binding

__all__ = ["Call", "CallFailed", "Dialog", "Request", "Response", "SipUA", "stun_binding"]


class SipUA(SipPeer):
    """A user agent, or with `server=None` a listening peer.

    The keyword arguments are those of `SipPeer`: server, transport, local_host, local_port, instance, reg_id,
    ssl_context, server_hostname, path, http_headers, subprotocols, retransmit, timeout.

    Attributes:
        credentials: user name, password, algorithms; the last answer to a challenge.
        reuse_nonce: answer in advance with a known nonce, nc rising.
        registration: the last 200 to REGISTER.
    """

    def __init__(
        self,
        user: str,
        password: str | None = None,
        domain: str = "example.com",
        *,
        algorithms: tuple[str, ...] = ("SHA-256", "MD5"),
        auth_user: str | None = None,
        **connection: Any,
    ) -> None:
        super().__init__(user, domain, **connection)
        self.credentials = SipCredentials(auth_user or user, password, algorithms)
        self.reuse_nonce = False
        self.registration: Response | None = None
        self.register_call_id = f"{secrets.token_hex(8)}@{user}.ua"
        self.register_cseq = CSeqCounter()

    @property
    def challenges(self) -> int:
        """How many 401 and 407 were answered so far."""
        return self.credentials.challenges

    def contact(self, parameters: dict[str, Any] | None = None) -> str:
        """Return the Contact value for REGISTER, with reg-id and +sip.instance where set."""
        value = f"<{self.contact_uri()}>"
        if self.reg_id is not None:
            value += f";reg-id={self.reg_id}"
        if self.instance is not None:
            value += f';+sip.instance="<{self.instance}>"'
        return value + "".join(f";{name}" + ("" if v is None else f"={v}") for name, v in (parameters or {}).items())

    # -- requests -----------------------------------------------------------------------------------------

    async def register(
        self,
        expires: int | None = 3600,
        contact_params: dict[str, Any] | None = None,
        *,
        headers: HeaderArgument = None,
        contact: str | None = None,
        auth: bool = True,
    ) -> Response:
        """Send REGISTER for our own contact (or the Contact value given, `*` too) and return the final response.

        Call-ID stays, CSeq rises over the life of this object (RFC 3261 §10.2.4). With a reg-id the request
        says `Supported: path, outbound`.
        """
        lines = self.request_lines(
            "REGISTER",
            self._pick_link(f"sip:{self.domain}"),
            call_id=self.register_call_id,
            cseq=self.register_cseq.next(),
            sender=f"<{self.uri}>;tag={secrets.token_hex(6)}",
            recipient=f"<{self.uri}>",
        )
        lines.lines.append(("Contact", contact or self.contact(contact_params)))
        if self.reg_id is not None:
            lines.lines.append(("Supported", "path, outbound"))
        if expires is not None:
            lines.lines.append(("Expires", str(expires)))
        response = await self.transact(
            "REGISTER", f"sip:{self.domain}", lines.override(headers), auth=auth, cseq=self.register_cseq
        )
        if response.status == 200:
            self.registration = response
        return response

    async def unregister(self, **options: Any) -> Response:
        """Send REGISTER with Expires 0 for our own contact, over the same flow (RFC 5626 §4.2.2)."""
        return await self.register(0, **options)

    @property
    def outbound_active(self) -> bool:
        """Whether the registrar took the binding as an outbound one: `Require: outbound` (RFC 5626 §4.2.1)."""
        return self.registration is not None and "outbound" in self.registration.values("Require")

    @property
    def flow_timer(self) -> int | None:
        """The Flow-Timer of the registration in seconds, None if the server gave none."""
        value = self.registration.get("Flow-Timer") if self.registration else None
        return int(value) if value else None

    def bindings(self) -> list[str]:
        """Return the Contact values of the last 200 to REGISTER."""
        return self.registration.values("Contact") if self.registration else []

    async def message(
        self,
        to_uri: str,
        body: bytes | str,
        *,
        content_type: str = "text/plain",
        headers: HeaderArgument = None,
        **options: Any,
    ) -> Response:
        """Send MESSAGE (RFC 3428)."""
        data = body.encode() if isinstance(body, str) else body
        return await self.request("MESSAGE", to_uri, headers=headers, body=data, content_type=content_type, **options)

    async def options(self, uri: str, *, headers: HeaderArgument = None, **options: Any) -> Response:
        """Send OPTIONS."""
        return await self.request("OPTIONS", uri, headers=headers, **options)

    async def request(
        self,
        method: str,
        uri: str,
        *,
        headers: HeaderArgument = None,
        body: bytes = b"",
        content_type: str | None = None,
        auth: bool = True,
        to: str | None = None,
        link: Link | None = None,
        timeout: float | None = None,
    ) -> Response:
        """Send any request outside a dialog and return the final response.

        Headers given replace the generated ones of that name; None removes them (`HeaderList.override`).

        Raises:
            TimeoutError: no final response in time.
            ConnectionError: the connection ended first.
        """
        cseq, chosen = CSeqCounter(), link or self._pick_link(uri)
        lines = self._out_of_dialog_lines(method, uri, to, chosen, cseq).override(headers)
        return await self.transact(
            method, uri, lines, body, content_type=content_type, auth=auth, link=chosen, cseq=cseq, timeout=timeout
        )

    def start_invite(
        self,
        to_uri: str,
        sdp: bytes = b"",
        *,
        headers: HeaderArgument = None,
        auth: bool = True,
        link: Link | None = None,
        timeout: float | None = None,
    ) -> Call:
        """Send INVITE and return at once; for ringing, CANCEL and failure answers."""
        cseq, chosen = CSeqCounter(), link or self._pick_link(to_uri)
        lines = self._out_of_dialog_lines("INVITE", to_uri, None, chosen, cseq).override(headers)
        call = Call(self, cseq)
        call.task = self._spawn(
            self.transact(
                "INVITE",
                to_uri,
                lines,
                sdp,
                content_type="application/sdp" if sdp else None,
                auth=auth,
                link=chosen,
                cseq=cseq,
                timeout=timeout or 60.0,
                call=call,
            )
        )
        return call

    async def invite(self, to_uri: str, sdp: bytes = b"", **options: Any) -> Dialog:
        """Send INVITE and wait for the 2xx; raises CallFailed. The ACK is yours: `await dialog.ack()`."""
        return await self.start_invite(to_uri, sdp, **options).dialog()

    async def transact(
        self,
        method: str,
        uri: str,
        headers: HeaderList,
        body: bytes = b"",
        *,
        content_type: str | None = None,
        auth: bool = True,
        link: Link | None = None,
        cseq: CSeqCounter | None = None,
        timeout: float | None = None,
        call: Call | None = None,
    ) -> Response:
        """Send a request given as its header lines, answer challenges, return the final response."""
        chosen = link or self._pick_link(uri)
        if content_type is not None and "Content-Type" not in headers:
            headers = HeaderList([*headers, ("Content-Type", content_type)])
        if auth and self.reuse_nonce:
            headers = self.credentials.in_advance(method, uri, headers)
        answered = 0
        while True:
            raw = encode(f"{method} {uri} SIP/2.0", headers, body)
            transaction = self.start_transaction(raw, chosen, call.note_provisional if call else None)
            if call is not None:
                call.note_transaction(transaction)
            response = await transaction.result(timeout or self.timeout)
            response.challenges = answered
            self.credentials.learn(response)
            retry = self.credentials.retry(response, headers, answered) if auth else None
            if retry is None:
                return response
            answered += 1
            headers = self._renew(retry, method, cseq)

    def request_lines(
        self, method: str, link: Link, *, call_id: str, cseq: int, sender: str, recipient: str
    ) -> HeaderList:
        """Return the header lines every request starts with; Contact where the method wants one."""
        lines = [("Via", self.via())]
        lines += [("Route", value) for value in self.route]
        lines += [
            ("Max-Forwards", "70"),
            ("From", sender),
            ("To", recipient),
            ("Call-ID", call_id),
            ("CSeq", f"{cseq} {method}"),
        ]
        if method in WITH_CONTACT:
            lines.append(("Contact", f"<{self.contact_uri(ob=self.reg_id is not None)}>"))
        return HeaderList(lines)

    def _out_of_dialog_lines(self, method: str, uri: str, to: str | None, link: Link, cseq: CSeqCounter) -> HeaderList:
        return self.request_lines(
            method,
            link,
            call_id=f"{secrets.token_hex(10)}@{self.user}.ua",
            cseq=cseq.next(),
            sender=f"<{self.uri}>;tag={secrets.token_hex(6)}",
            recipient=to or f"<{uri}>",
        )

    def _renew(self, headers: HeaderList, method: str, cseq: CSeqCounter | None) -> HeaderList:
        """Give the request a new branch and the next CSeq (RFC 3261 §22.2: it is a new request)."""
        number = int(headers["CSeq"].split()[0]) + 1
        if cseq is not None:
            cseq.value = max(cseq.value, number)
        _, *others = headers.all("Via")
        return headers.override([("Via", self.via()), *(("Via", v) for v in others), ("CSeq", f"{number} {method}")])

    def accept(self, request: Request, sdp: bytes = b"", *, code: int = 200, headers: HeaderArgument = None) -> Dialog:
        """Answer an INVITE with a 2xx and return our side of the dialog; the ACK comes to `incoming`."""
        response = self.respond(request, code, headers=headers, body=sdp)
        return Dialog.from_request(self, request, response["To"])
