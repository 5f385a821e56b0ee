"""TLS between servers and to clients: versions, certificates, names, and connections used both ways (RFC 5922, 5923)."""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.conftest import EdgeServer, EdgeServerFactory, free_port
from tests.server.agents import USERS, answering, counted, exchange_messages, open_config, sip_ua
from tests.ua.certs import Authority
from tests.ua.dns import DnsServer
from tests.ua.sip import SipUA
from tests.ua.wait import eventually, within


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Whom everybody here trusts."""
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with DnsServer() as server:
        yield server


@pytest.fixture
def server(edge_server: EdgeServerFactory, dns: DnsServer, authority: Authority) -> EdgeServer:
    """A server that asks clients for certificates and our name server for names."""
    own = authority.issue("edge", dns=["example.com"])
    tls = {"certificate": own.certificate, "private_key": own.private_key}
    tls |= {"client_ca": authority.path, "trust": authority.path}
    return edge_server(open_config(tls=tls, sip={"nameservers": [dns.address], "dns_timeout": 3}), USERS)


def records(host: str, port: int, target: str = "") -> list[str]:
    target = target or host
    return [f"_sips._tcp.{host}. 60 IN SRV 1 0 {port} {target}.", f"{target}. 60 IN A 127.0.0.1"]


def listening(authority: Authority, *names: str, port: int = 0) -> SipUA:
    """A SIP server over TLS with a certificate for `names`, which answers 200."""
    context = authority.server_context(authority.issue("-".join(names), dns=list(names)))
    peer = SipUA("far", domain=names[0], transport="tls", local_port=port, ssl_context=context)
    peer.on_request = answering()
    return peer


# ------------------------------------------------------------------------------------------ TLS-01


@pytest.mark.requirement("SIP-TLS-01")
async def test_rfc8996_old_versions_end_in_an_alert_and_a_client_needs_no_certificate(
    server: EdgeServer, authority: Authority, tmp_path: Path
) -> None:
    def shake(version: ssl.TLSVersion, certificate: tuple[Path, Path] | None = None) -> str | None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = version
        if certificate is not None:
            context.load_cert_chain(*certificate)
        with socket.create_connection(("127.0.0.1", server.port), 10) as raw, context.wrap_socket(raw) as wrapped:
            wrapped.sendall(b"\r\n\r\n")
            assert wrapped.recv(2) == b"\r\n"
            return wrapped.version()

    with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
        shake(ssl.TLSVersion.TLSv1_1)
    assert shake(ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    assert shake(ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    known = authority.issue("client", dns=["client.example"])
    assert shake(ssl.TLSVersion.TLSv1_2, (known.certificate, known.private_key)) == "TLSv1.2"
    foreign = Authority(tmp_path / "stranger").issue("client", dns=["client.example"])
    with pytest.raises((ssl.SSLError, ConnectionError)):
        shake(ssl.TLSVersion.TLSv1_2, (foreign.certificate, foreign.private_key))
    async with sip_ua(server, "alice", "tls") as alice, sip_ua(server, "bob", "tls") as bob:
        assert (await alice.register()).status == 200  # without a certificate: known by digest
        assert alice.challenges == 1
        await bob.register()
        assert (await exchange_messages(alice, bob)).status == 200


# ------------------------------------------------------------------------------------------ TLS-03


@pytest.mark.requirement("SIP-TLS-03")
async def test_rfc5922_7_3_the_certificate_must_name_the_domain_we_started_from(
    server: EdgeServer, dns: DnsServer, authority: Authority
) -> None:
    """The name the SRV record led to proves nothing: whoever forges DNS has a certificate for that."""
    async with AsyncExitStack() as stack:
        wrong = await stack.enter_async_context(listening(authority, "sip1.provider.example"))
        right = await stack.enter_async_context(listening(authority, "provider.example"))
        alice = await stack.enter_async_context(sip_ua(server, "alice"))
        dns.set(*records("provider.example", wrong.address[1], "sip1.provider.example"))
        assert (await alice.message("sips:x@provider.example", b"secret")).status in (500, 503)
        assert wrong.received() == []
        await counted(server, "edge_connections_failed_total", reason="tls")
        routed = {"Route": "<sips:provider.example;lr>"}
        assert (await alice.message("sips:x@elsewhere.example", b"secret", headers=routed)).status in (500, 503)
        assert wrong.received() == []
        dns.set(*records("provider.example", right.address[1], "sip1.provider.example"))  # TTL of the old ones: 60 s
        assert (await alice.message("sips:x@provider.example", b"secret")).status in (500, 503)
        dns.set(*records("fresh.example", right.address[1], "sip1.provider.example"))
        assert (await alice.message("sips:x@fresh.example", b"secret")).status in (500, 503)
        assert right.received() == []  # it is provider.example, and not what was asked for


@pytest.mark.requirement("SIP-TLS-03")
async def test_rfc5922_7_3_a_connection_is_used_for_the_name_it_was_checked_against_alone(
    server: EdgeServer, dns: DnsServer, authority: Authority
) -> None:
    async with listening(authority, "provider.example") as peer, sip_ua(server, "alice") as alice:
        zone = records("provider.example", peer.address[1]) + records("victim.example", peer.address[1])
        dns.set(*zone)
        assert (await alice.message("sips:x@provider.example", b"one")).status == 200
        assert (await alice.message("sips:x@victim.example", b"for another")).status in (500, 503)
        assert (await alice.message("sips:x@provider.example", b"two")).status == 200
        assert [message.rpartition(b"\r\n")[2] for message in peer.received("MESSAGE")] == [b"one", b"two"]
        assert peer.listener is not None
        assert sum(not link.closed for link in peer.listener.links) == 1


# ------------------------------------------------------------------------------------------ alias


class Peer:
    """A peer: a connection of its own to the server, and an address it advertises and listens on."""

    def __init__(self, server: EdgeServer, authority: Authority, *names: str, transport: str = "tls") -> None:
        self.port = free_port()
        self.listener = listening(authority, *names, port=self.port)
        self.transport = transport
        context = None
        if transport == "tls":
            context = authority.client_context(authority.issue("c-" + names[0], dns=[names[0]]), check_hostname=False)
        self.context = context
        self.server = server

    async def connect(self, stack: AsyncExitStack, *, certificate: bool = True) -> SipUA:
        options = {"ssl_context": self.context} if certificate and self.context else {}
        caller = SipUA(
            "px", domain="px.brisk.example", server=("127.0.0.1", self.server.port), transport=self.transport, **options
        )
        caller.on_request = answering()
        return await stack.enter_async_context(caller)

    async def advertise(self, caller: SipUA, parameter: str = ";alias") -> None:
        """Let the server see a request whose Via names our listening port."""
        via = f"SIP/2.0/{self.transport.upper()} 127.0.0.1:{self.port};branch=z9hG4bK{secrets.token_hex(8)};rport{parameter}"
        assert (await caller.options("sip:example.com", headers={"Via": via}, auth=False)).status == 200


@pytest.mark.requirement("OB-CR-01", "SIP-TLS-04")
async def test_rfc5923_8_2_requests_to_a_peer_go_back_over_the_connection_it_opened(
    server: EdgeServer, dns: DnsServer, authority: Authority
) -> None:
    peer = Peer(server, authority, "px.brisk.example", "other.example")
    async with AsyncExitStack() as stack:
        listener = await stack.enter_async_context(peer.listener)
        alice = await stack.enter_async_context(sip_ua(server, "alice"))
        dns.set(*records("px.brisk.example", peer.port), *records("other.example", peer.port))
        caller = await peer.connect(stack)
        await peer.advertise(caller)
        assert (await alice.message("sips:x@px.brisk.example", b"back")).status == 200
        assert len(caller.received("MESSAGE")) == 1
        assert listener.received("MESSAGE") == []
        # Its certificate names nothing else, so another domain at that address gets a connection of its own.
        assert (await alice.message("sips:x@other.example", b"there")).status == 200
        assert len(caller.received("MESSAGE")) == 1
        assert len(listener.received("MESSAGE")) == 1


@pytest.mark.requirement("OB-CR-02")
async def test_rfc5923_8_3_when_the_connection_is_gone_another_is_opened(
    server: EdgeServer, dns: DnsServer, authority: Authority
) -> None:
    peer = Peer(server, authority, "px.brisk.example")
    async with AsyncExitStack() as stack:
        listener = await stack.enter_async_context(peer.listener)
        alice = await stack.enter_async_context(sip_ua(server, "alice"))
        dns.set(*records("px.brisk.example", peer.port))
        caller = await peer.connect(stack)
        await peer.advertise(caller)
        assert (await alice.message("sips:x@px.brisk.example", b"one")).status == 200
        before = server.metrics().value("edge_connections", transport="tls")
        assert caller.link is not None
        caller.link.reset()
        while server.metrics().value("edge_connections", transport="tls") == before:
            await asyncio.sleep(0.01)
        assert (await alice.message("sips:x@px.brisk.example", b"two")).status == 200
        assert len(caller.received("MESSAGE")) == 1
        assert len(listener.received("MESSAGE")) == 1


@pytest.mark.requirement("OB-CR-02", "SIP-TLS-04")
@pytest.mark.parametrize("how", ["no certificate", "tcp", "not asked", "with a value", "a client"])
async def test_rfc5923_9_2_alias_is_ignored_from_one_who_did_not_prove_its_name_or_did_not_ask(
    server: EdgeServer, dns: DnsServer, authority: Authority, how: str
) -> None:
    peer = Peer(server, authority, "px.brisk.example", transport="tcp" if how == "tcp" else "tls")
    async with AsyncExitStack() as stack:
        if how == "tcp":
            peer.listener = SipUA("far", domain="px.brisk.example", transport="tcp", local_port=peer.port)
            peer.listener.on_request = answering()
        listener = await stack.enter_async_context(peer.listener)
        alice = await stack.enter_async_context(sip_ua(server, "alice"))
        dns.set(*records("px.brisk.example", peer.port))
        if how == "a client":  # it registered over this connection: a flow, which serves its bindings and nothing else
            caller = await stack.enter_async_context(sip_ua(server, "bob", "tls", ssl_context=peer.context))
            caller.on_request = answering()
            await caller.register()
        else:
            caller = await peer.connect(stack, certificate=how != "no certificate")
        await peer.advertise(caller, {"not asked": "", "with a value": ";alias=yes"}.get(how, ";alias"))
        uri = f"sip:x@127.0.0.1:{peer.port};transport=tcp" if how == "tcp" else "sips:x@px.brisk.example"
        assert (await within(alice.message(uri, b"hello"), 10)).status == 200
        assert caller.received("MESSAGE") == []
        assert len(listener.received("MESSAGE")) == 1


# ------------------------------------------------------------------------------------------ names asked for (SNI)


def shown(port: int, authority: Authority, name: str | None) -> set[str]:
    """Return the DNS names of the certificate a client is shown that asks for `name`."""
    context = authority.client_context(check_hostname=False)
    with (
        socket.create_connection(("127.0.0.1", port), 10) as raw,
        context.wrap_socket(raw, server_hostname=name) as tls,
    ):
        tls.sendall(b"\r\n\r\n")
        assert tls.recv(2) == b"\r\n"
        certificate = tls.getpeercert()
    assert certificate is not None
    return {str(entry[1]) for entry in certificate["subjectAltName"]}


@pytest.mark.requirement("SIP-TLS-01")
async def test_rfc6066_3_the_certificate_shown_has_the_name_that_was_asked_for(
    edge_server: EdgeServerFactory, authority: Authority
) -> None:
    own, other, wide = (
        authority.issue(name, dns=names)
        for name, names in (
            ("own", ["example.com"]),
            ("other", ["example.org", "Sip.Example.net"]),
            ("w", ["*.a.test"]),
        )
    )
    more = [{"certificate": pair.certificate, "private_key": pair.private_key} for pair in (other, wide)]
    tls = {"certificate": own.certificate, "private_key": own.private_key, "certificates": more}
    server = edge_server(open_config(tls=tls), USERS)
    wanted: list[tuple[str | None, set[str]]] = [
        (None, {"example.com"}),
        ("example.com", {"example.com"}),
        ("example.org", {"example.org", "Sip.Example.net"}),
        ("SIP.example.NET", {"example.org", "Sip.Example.net"}),
        ("b.a.test", {"*.a.test"}),
        ("c.b.a.test", {"example.com"}),
        ("a.test", {"example.com"}),
    ]
    for name, names in wanted:
        assert shown(server.port, authority, name) == names, name
    assert all(
        str(pair.certificate) in server.run("check", "--config", str(server.config_path)).stdout
        for pair in (own, other, wide)
    )
    authority.issue("other", dns=["example.org"])  # a new one in the same files
    server.signal(signal.SIGHUP)
    await eventually(lambda: shown(server.port, authority, "example.org") == {"example.org"}, 10)
