"""Simulated MSRP endpoints (RFC 4975, 4976 §5, 7977), written from the RFCs.

    async with MsrpEndpoint("alice", "wonderland", relay=("127.0.0.1", 2855), transport="tls") as alice:
        await alice.auth()
        sent = await alice.send(alice.use_path + bob.path, b"hello")

`MsrpEndpoint` is a client of a relay, `MsrpListener` a peer that listens on a port of its own. Both answer
SENDs, put messages together by Message-ID and Byte-Range, and keep every frame in `frames`.
"""

import secrets
import ssl
from collections import defaultdict
from typing import Self

from tests.ua import digest
from tests.ua.link import WEBSOCKETS, Address, Link, LinkServer, listen, open_link
from tests.ua.msrp_frame import Frame, Headers
from tests.ua.msrp_message import HashSink, Received
from tests.ua.msrp_peer import MsrpPeer, bracket
from tests.ua.msrp_writer import Abort, Sent

__all__ = ["Abort", "AuthFailed", "HashSink", "MsrpEndpoint", "MsrpListener", "Received", "Sent"]


class AuthFailed(Exception):  # noqa: N818
    """AUTH got a final response other than 200, which is `frame`."""

    def __init__(self, frame: Frame) -> None:
        super().__init__(f"{frame.status} {frame.comment}")
        self.frame = frame
        self.status = frame.status


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
        self.relay_uri = relay_uri or f"{self.scheme}://{bracket(relay[0])}:{relay[1]};{kind}"
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
        return f"{self.scheme}://{bracket(host)}:{port}/{self.session_id};tcp"

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
        return f"{self.scheme}://{bracket(self.uri_host)}:{self.address[1]}/{self.session_id};{kind}"

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
