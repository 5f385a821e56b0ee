"""HAProxy in front, telling the client's address with PROXY protocol version 2."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import EdgeServer, free_port
from tests.interop.conftest import StartProgram
from tests.interop.programs import needs
from tests.ua.certs import Authority
from tests.ua.sip import SipUA
from tests.ua.sip_message import header_parameter
from tests.ua.wait import eventually

pytestmark = [pytest.mark.interop, needs("haproxy")]

CLIENT = "127.0.0.77"  # HAProxy itself connects from 127.0.0.1

CONFIG = """\
global
    maxconn 100
    log stdout format raw local0
defaults
    mode tcp
    log global
    option tcplog
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen sip
    bind 127.0.0.1:{front}
    server edge 127.0.0.1:{back} send-proxy-v2
"""


def start_haproxy(start: StartProgram, directory: Path, server: EdgeServer) -> int:
    """Start HAProxy in front of the server and return its port."""
    front = free_port()
    config = directory / "haproxy.cfg"
    config.write_text(CONFIG.format(front=front, back=server.port))
    start("haproxy", ["haproxy", "-db", "-f", config]).wait_ready(front)
    return front


def remotes(server: EdgeServer) -> set[str]:
    """The addresses that connections came from, as the server sees it."""
    return {row["remote"] for row in json.loads(server.admin_get("/api/connections"))["items"]}


@pytest.mark.parametrize("transport", ["tcp", "tls"])
@pytest.mark.requirement("OB-PRX-06")
async def test_clients_behind_haproxy_register_and_call_and_are_seen_with_their_own_address(
    edge: Callable[..., EdgeServer], start: StartProgram, tmp_path: Path, transport: str
) -> None:
    port = free_port()
    authority = Authority(tmp_path / "ca")
    certificate = authority.issue("edge", ips=["127.0.0.1"])
    server = edge(
        port=port,
        listen=[{"bind": f"127.0.0.1:{port}", "proxy_protocol": ["127.0.0.1/32"]}],
        tls={"certificate": str(certificate.certificate), "private_key": str(certificate.private_key)},
        limits={"trusted": []},
    )
    front = start_haproxy(start, tmp_path, server)
    context = authority.client_context() if transport == "tls" else None
    options = {"server": ("127.0.0.1", front), "transport": transport, "local_host": CLIENT, "ssl_context": context}
    async with SipUA("alice", "alice-secret", **options) as alice, SipUA("bob", "bob-secret", **options) as bob:
        for phone in (alice, bob):
            registered = await phone.register()
            assert registered.status == 200
            via = registered.values("Via")[0]
            assert header_parameter(via, "received") == CLIENT
            assert header_parameter(via, "rport") == str(phone.address[1])
        expected = {f"{CLIENT}:{phone.address[1]}" for phone in (alice, bob)}
        await eventually(lambda: remotes(server) == expected, what="the two clients alone")
        bob.on_request = lambda ua, request: 200
        assert (await alice.message(bob.uri, "through the balancer")).status == 200
        bob.on_request = None
        call = alice.start_invite(bob.uri)
        answered = bob.accept(await bob.next_request("INVITE"))
        dialog = await call.dialog()
        await dialog.ack()
        await bob.next_request("ACK")
        alice.on_request = lambda ua, request: 200
        assert (await answered.bye()).status == 200
        assert f"src={CLIENT}:" in server.log_text()
