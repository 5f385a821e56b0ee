"""aiosip 0.2.0 as a phone behind a proxy: an independent SIP encoder for interoperability tests.

The library was written for Python 3.5 and talks to one peer directly. What stands between it and a proxy today
is worked around here, and nothing else, so that its own encoder and parser do the talking:

- import: `asyncio.coroutine` and `collections.MutableMapping` are gone from Python; they exist only meanwhile;
- parameters without a value (`;ob`, `;lr`) break its parser;
- several Via lines arrive as a list, which its sender cannot format; CRLF keep-alives are parsed as messages;
- an incoming request makes it bind a socket on the To host's port instead of answering on the one it came in on;
- its digest knows no qop, one challenge only, and the wrong user for 407; a retry repeats the branch;
- its ACK leaves INVITE in CSeq and goes neither to the remote target nor along a route set.

UDP only. Importing this module raises ModuleNotFoundError where aiosip is not installed; a test module says
`adapter = pytest.importorskip("tests.ua.aiosip_adapter", exc_type=ModuleNotFoundError)`.
"""

import asyncio
import collections
import collections.abc
import socket
import types
import warnings
from typing import Any, Self

from tests.ua import digest
from tests.ua.sip_message import address_uri, split_commas
from tests.ua.wait import deadline


def _import_aiosip() -> types.ModuleType:
    """Import the library with the two names it misses, which are taken away again."""
    missing = [(asyncio, "coroutine", types.coroutine), (collections, "MutableMapping", collections.abc.MutableMapping)]
    added = [(module, name) for module, name, value in missing if not hasattr(module, name)]
    for module, name, value in missing:
        if (module, name) in added:
            setattr(module, name, value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import aiosip

            return aiosip
    finally:
        for module, name in added:
            delattr(module, name)


aiosip = _import_aiosip()
CIMultiDict = aiosip.dialog.CIMultiDict
Contact = aiosip.contact.Contact

Address = tuple[str, int]


class _Parameters(dict):
    """Parameters of which some have no value."""

    def __init__(self, text: str = "") -> None:
        pairs = (item.partition("=") for item in text.split(";") if item.strip()) if text else ()
        super().__init__((name.strip(), value if equals else None) for name, equals, value in pairs)

    def __str__(self) -> str:
        return ";".join(name if value is None else f"{name}={value}" for name, value in self.items())


aiosip.contact.Param = aiosip.uri.Param = _Parameters


class _WholeUri(aiosip.uri.Uri):
    """A remote target that keeps its parameters in the Request-URI."""

    def short_uri(self) -> str:
        return super().short_uri() + self.optional_params()

    def __str__(self) -> str:
        return self.short_uri()


class _Udp(aiosip.protocol.UDP):
    """The library's socket, fit for several Via lines and keep-alives."""

    def __init__(self, app: "_Application", loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(app, loop)
        self.phone = app.phone

    def send_message(self, msg: Any) -> None:
        via = msg.headers["Via"]
        if isinstance(via, str) and "%(protocol)s" in via:
            msg.headers["Via"] = via % {"protocol": "UDP"}
        raw = str(msg).encode()
        self.phone.trace.append(("sent", raw))
        self.transport.sendto(raw)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        if not data.strip(b"\r\n"):
            return
        self.phone.trace.append(("received", data))
        message = aiosip.message.Message.from_raw_message(data.decode())
        self.app.dispatch(self, message, addr)


class _Dialog(aiosip.dialog.Dialog):
    """The library's dialog with digest as RFC 7616 has it and without final provisional responses."""

    def receive_message(self, msg: Any) -> None:
        if not isinstance(msg, aiosip.message.Response):
            super().receive_message(msg)
        elif (
            msg.status_code < 200
            or msg.cseq not in self._msgs[msg.method]
            or (msg.status_code in (401, 407) and self._retry(msg))
        ):
            return
        else:
            if msg.method == "INVITE" and msg.status_code >= 300:
                self._acknowledge_failure(msg)
            self._msgs[msg.method].pop(msg.cseq).future.set_result(msg)

    def _retry(self, msg: Any) -> bool:
        """Send the request again with credentials, unless it had some."""
        asked, given = (
            ("WWW-Authenticate", "Authorization")
            if msg.status_code == 401
            else ("Proxy-Authenticate", "Proxy-Authorization")
        )
        offers = msg.headers[asked]
        challenge = digest.choose(offers if isinstance(offers, list) else [offers])
        original = self._msgs[msg.method][msg.cseq]
        if challenge is None or given in original.headers:
            return False
        if msg.method == "INVITE":
            self._acknowledge_failure(msg)
        del self._msgs[msg.method][msg.cseq]
        uri = str(original.to_details["uri"].short_uri())
        user = self.from_details["uri"]["user"]
        original.headers[given] = digest.answer(challenge, user, self.password, msg.method, uri).header
        for name in ("CSeq", "Via"):
            del original.headers[name]
        self.send_message(
            msg.method,
            to_details=original.to_details,
            headers=original.headers,
            payload=original.payload,
            future=original.future,
        )
        return True

    def _acknowledge_failure(self, msg: Any) -> None:
        headers = CIMultiDict((name, msg.headers[name]) for name in ("Via", "From", "To", "Call-ID"))
        headers["CSeq"] = f"{msg.cseq} ACK"
        original = self._msgs["INVITE"][msg.cseq]
        self.send_message("ACK", to_details=original.to_details, headers=headers)


class _Application(aiosip.application.Application):
    """The library's application on one socket."""

    def __init__(self, phone: "AiosipPhone") -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self.phone = phone

    async def handle_incoming(self, protocol: _Udp, msg: Any, addr: Address, route: Any) -> None:
        dialog = _Dialog(
            app=self,
            from_uri=msg.headers["From"],
            to_uri=msg.headers["To"],
            contact_uri=self.phone.contact,
            call_id=msg.headers["Call-ID"],
            protocol=protocol,
            local_addr=self.phone.local,
            remote_addr=self.phone.proxy,
            loop=self.loop,
        )
        self.phone.dialogs.append(dialog)
        self._dialogs[msg.headers["Call-ID"]] = dialog
        await route(dialog, msg)

    def close(self) -> None:
        """Close the socket."""
        for transport in self._transports.values():
            transport.close()


class AiosipCall:
    """An answered call, caller's side. `answer` is the 200 (aiosip Response)."""

    def __init__(self, dialog: _Dialog, answer: Any) -> None:
        self.dialog = dialog
        self.answer = answer
        self._target = Contact(
            {"name": "", "uri": _WholeUri(address_uri(_first(answer.headers["Contact"]))), "params": ""}
        )
        record = answer.headers.get("Record-Route", [])
        routes = record if isinstance(record, list) else [record]
        self._routes = [value for line in routes for value in split_commas(line)][::-1]

    def ack(self) -> None:
        """Send the ACK of the 200 to the remote target, along the route set."""
        self._send("ACK", self.answer.cseq)

    async def bye(self) -> Any:
        """Send BYE and return the response."""
        async with deadline():
            return await self._send("BYE", self.answer.cseq + 1)

    def _send(self, method: str, cseq: int) -> Any:
        headers = CIMultiDict(
            {"From": self.answer.headers["From"], "To": self.answer.headers["To"], "CSeq": f"{cseq} {method}"}
        )
        if self._routes:
            headers["Route"] = self._routes
        self.dialog.cseqs[method] = cseq - 1
        return self.dialog.send_message(method, to_details=self._target, headers=headers)


class AiosipPhone:
    """A phone on aiosip, registered through a proxy over UDP.

    Attributes:
        requests: MESSAGE, INVITE, OPTIONS … received (aiosip Request), already answered with `answers`.
        ended: Call-IDs of calls the far side ended. trace: ("sent" | "received", bytes).
        answers: method -> (status, reason, body) given to requests outside dialogs; inside, aiosip says 200.
    """

    def __init__(
        self,
        user: str,
        password: str = "",
        domain: str = "example.com",
        *,
        proxy: Address,
        local_host: str = "127.0.0.1",
    ) -> None:
        self.user, self.password, self.domain = user, password, domain
        self.proxy = proxy
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((local_host, 0))
            self.local: Address = probe.getsockname()
        self.trace: list[tuple[str, bytes]] = []
        self.requests: asyncio.Queue[Any] = asyncio.Queue()
        self.ended: asyncio.Queue[str] = asyncio.Queue()
        self.answers: dict[str, tuple[int, str, str | None]] = {
            "MESSAGE": (200, "OK", None),
            "OPTIONS": (200, "OK", None),
            "INVITE": (200, "OK", "v=0\r\n"),
        }
        self.dialogs: list[_Dialog] = []

    async def __aenter__(self) -> Self:
        self._app = _Application(self)
        for method in self.answers:
            self._app.router.add_route(method, self._answer)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._app.close()
        await asyncio.sleep(0)

    @property
    def uri(self) -> str:
        """The address of record."""
        return f"sip:{self.user}@{self.domain}"

    @property
    def contact(self) -> str:
        """The Contact URI."""
        return f"sip:{self.user}@{self.local[0]}:{self.local[1]}"

    async def register(self, expires: int = 360) -> Any:
        """Send REGISTER, answer the challenge, return the final response (`status_code`, `headers`)."""
        dialog = await self._dialog(self.uri)
        async with deadline(10):
            return await dialog.register(expires=expires)

    async def message(self, to_uri: str, text: str) -> Any:
        """Send MESSAGE and return the final response."""
        dialog = await self._dialog(to_uri)
        async with deadline(10):
            return await dialog.send_message("MESSAGE", content_type="text/plain", payload=text)

    async def invite(self, to_uri: str, sdp: str = "v=0\r\n") -> AiosipCall:
        """Send INVITE and wait for the 200; the ACK is yours. Raises RuntimeError for another final response."""
        dialog = await self._dialog(to_uri)
        async with deadline(10):
            answer = await dialog.send_message("INVITE", content_type="application/sdp", payload=sdp)
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code} {answer.status_message}")
        return AiosipCall(dialog, answer)

    async def next_request(self) -> Any:
        """Wait for the next request outside a dialog."""
        async with deadline():
            return await self.requests.get()

    async def next_end(self) -> str:
        """Wait until the far side ends a call, and return its Call-ID."""
        async with deadline():
            return await self.ended.get()

    async def _dialog(self, to_uri: str) -> _Dialog:
        dialog = await self._app.start_dialog(
            f"<{self.uri}>",
            f"<{to_uri}>",
            contact_uri=f"<{self.contact}>",
            protocol=_Udp,
            local_addr=self.local,
            remote_addr=self.proxy,
            password=self.password,
            dialog=_Dialog,
        )
        self.dialogs.append(dialog)
        return dialog

    async def _answer(self, dialog: _Dialog, request: Any) -> None:
        status, reason, body = self.answers[request.method]
        names = ("Via", "CSeq", "Call-ID", "Record-Route")
        headers = CIMultiDict((name, request.headers[name]) for name in names if name in request.headers)
        dialog.register_callback("BYE", lambda _, bye: self.ended.put_nowait(bye.headers["Call-ID"]))
        dialog.send_reply(
            status,
            reason,
            to_details=request.to_details,
            from_details=request.from_details,
            headers=headers,
            content_type="application/sdp" if body else None,
            payload=body,
        )
        self.requests.put_nowait(request)


def _first(value: Any) -> str:
    return value[0] if isinstance(value, list) else value
