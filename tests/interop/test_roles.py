"""Edges and registrars of different makes behind each other, and clients nobody here wrote over our edges (RFC 5626)."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.conftest import EdgeServer, free_port
from tests.interop.baresip import Baresip, installed, write_configuration
from tests.interop.conftest import LOOPBACK, StartProgram
from tests.interop.javascript import registered_clients, require_packages
from tests.interop.programs import needs
from tests.interop.test_baresip import rows
from tests.interop.test_javascript import write
from tests.server.agents import ringing_and_taken
from tests.ua.certs import Authority
from tests.ua.sip import SipUA
from tests.ua.wait import eventually

pytestmark = [pytest.mark.interop]

StartEdge = Callable[..., EdgeServer]
Kamailio = Callable[..., int]


@pytest.fixture
def kamailio(start: StartProgram, tmp_path: Path) -> Kamailio:
    """Start Kamailio with a configuration of this folder; marks in it are replaced. Returns its port."""

    def make(name: str, **marks: int) -> int:
        port = free_port()
        text = (Path(__file__).parent / name).read_text()
        for mark, value in {"PORT": port, **marks}.items():
            text = text.replace(f"@{mark}@", str(value))
        config = tmp_path / name
        config.write_text(text)
        arguments = ["kamailio", "-DD", "-E", "-f", config, "-P", tmp_path / "k.pid", "-Y", tmp_path, "-m", "64"]
        start("kamailio", arguments).wait_ready(port)
        return port

    return make


def our_registrar(edge: StartEdge) -> EdgeServer:
    """Only MD5: baresip 1.0 gives up at a challenge with SHA-256."""
    return edge(role="registrar", sip={"trusted_edges": LOOPBACK}, auth={"algorithms": ["MD5"]})


def our_edge(edge: StartEdge, next_hop: int, authority: Authority | None = None) -> EdgeServer:
    tls = {}
    if authority is not None:
        certificate = authority.issue("edge", dns=["example.com"], ips=["127.0.0.1"])
        tls = {"certificate": str(certificate.certificate), "private_key": str(certificate.private_key)}
    return edge(role="edge", sip={"next_hop": f"sip:127.0.0.1:{next_hop};transport=tcp"}, tls=tls)


def agent(name: str, port: int, transport: str = "tcp") -> SipUA:
    return SipUA(name, f"{name}-secret", server=("127.0.0.1", port), transport=transport, reg_id=1, timeout=20)


async def registers_as_a_flow(ua: SipUA) -> None:
    response = await ua.register()
    assert response.status == 200
    assert response.values("Require") == ["outbound"]
    assert "ob" in response["Path"]


async def talk(caller: SipUA, callee: SipUA) -> None:
    """A call with a BYE from the called side, and one from the calling side."""
    for by_caller in (True, False):
        call = caller.start_invite(callee.uri, b"v=0\r\n")
        invite = await callee.next_request("INVITE", 20)
        dialog, answered = await ringing_and_taken(call, callee, invite)
        side, other = (dialog, callee) if by_caller else (answered, caller)
        other.on_request = lambda ua, request: 200
        before = len(other.received("BYE"))
        assert (await side.bye()).status == 200
        other.on_request = None
        assert len(other.received("BYE")) == before + 1


@needs("kamailio")
async def test_our_edge_in_front_of_kamailio_as_registrar(edge: StartEdge, kamailio: Kamailio) -> None:
    server = our_edge(edge, kamailio("kamailio_registrar.cfg"))
    async with agent("alice", server.port) as alice, agent("bob", server.port, "ws") as bob:
        await registers_as_a_flow(alice)
        await registers_as_a_flow(bob)
        assert alice.flow_timer == bob.flow_timer == 120  # the edge's own, for it watches the flow
        assert len(rows(server, "flows")) == 2
        await talk(alice, bob)
        await talk(bob, alice)
        # One who is gone is not dialled: Kamailio hears 430 from the edge, and who asked hears 480 of it.
        assert bob.link is not None
        await bob.link.close()
        await eventually(lambda: len(rows(server, "flows")) == 1, what="the end of Bob's flow")
        opened = server.metrics().value("edge_connections_opened_total")
        assert (await alice.message(bob.uri, "gone")).status == 480
        assert server.metrics().value("edge_connections_opened_total") == opened
    await eventually(lambda: rows(server, "flows") == [], what="the end of both flows")


@needs("kamailio")
async def test_kamailio_as_edge_in_front_of_our_registrar(edge: StartEdge, kamailio: Kamailio) -> None:
    registrar = our_registrar(edge)
    port = kamailio("kamailio_edge.cfg", REGISTRAR=registrar.port)
    async with agent("alice", port) as alice, agent("bob", port) as bob:
        await registers_as_a_flow(alice)
        await registers_as_a_flow(bob)
        for row in rows(registrar, "registrations"):
            assert row["reg_id"] == 1
            assert len(row["path"]) == 1
            assert f"@127.0.0.1:{port}" in row["path"][0]
        await talk(alice, bob)
        await talk(bob, alice)


@pytest.fixture
def two_edges(edge: StartEdge, tmp_path: Path) -> tuple[EdgeServer, list[EdgeServer], Authority]:
    authority = Authority(tmp_path / "ca")
    registrar = our_registrar(edge)
    return registrar, [our_edge(edge, registrar.port, authority) for _ in range(2)], authority


@pytest.mark.skipif(not installed(), reason="not installed: baresip")
@pytest.mark.parametrize("killed", [0, 1])
async def test_baresip_with_two_outbound_proxies_is_reached_when_one_edge_was_killed(
    two_edges: tuple[EdgeServer, list[EdgeServer], Authority], start: StartProgram, tmp_path: Path, killed: int
) -> None:
    registrar, edges, authority = two_edges
    account = (
        "<sip:bob@example.com>;auth_user=bob;auth_pass=bob-secret;regint=600;answermode=manual;sipnat=outbound;"
        f'outbound1="sip:127.0.0.1:{edges[0].port};transport=tcp";'
        f'outbound2="sip:127.0.0.1:{edges[1].port};transport=tls";audio_codecs=pcmu'
    )
    directory = tmp_path / "baresip-bob"
    control = write_configuration(directory, account, authority.path)
    program = start("baresip-bob", ["baresip", "-f", directory, "-s", "-v", "-t", "120"], directory)
    async with Baresip(program, control) as bob, agent("alice", edges[1 - killed].port) as alice:
        await eventually(lambda: len(rows(registrar, "registrations")) == 2, 30, what="both flows of Bob")
        found = rows(registrar, "registrations")
        assert sorted(row["reg_id"] for row in found) == [1, 2]
        assert len({row["instance"] for row in found}) == 1
        await registers_as_a_flow(alice)
        edges[killed].signal(signal.SIGKILL)
        assert edges[killed].process is not None
        edges[killed].process.wait()
        bob.events.clear()
        call = alice.start_invite("sip:bob@example.com", SDP)
        await bob.event("CALL_INCOMING")
        await bob.command("accept")
        dialog = await call.dialog()
        await dialog.ack()
        await bob.event("CALL_ESTABLISHED")
        assert (await dialog.bye()).status == 200
        await bob.event("CALL_CLOSED")


SDP = (
    b"v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    b"m=audio 40000 RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n"
)


async def test_jssip_and_sipjs_register_flows_through_an_edge_and_write_to_each_other(
    two_edges: tuple[EdgeServer, list[EdgeServer], Authority], start: StartProgram
) -> None:
    require_packages()
    registrar, edges, authority = two_edges
    async with AsyncExitStack() as stack:
        members = ("alice", "jssip.mjs", edges[0]), ("bob", "sipjs.mjs", edges[1])
        alice, bob = await registered_clients(stack, start, authority.path, *members)
        for row in rows(registrar, "registrations"):
            assert (row["reg_id"], len(row["path"])) == (1, 1)
        assert [len(rows(server, "flows")) for server in edges] == [1, 1]
        await write(alice, bob, "from one edge to the other")
        await write(bob, alice, "and back")
        # JsSIP comes back by itself over a new connection, and is found there.
        alice.events.clear()
        edges[0].run("disconnect", rows(edges[0], "flows")[0]["id"], "--config", str(edges[0].config_path))
        await alice.event("disconnected")
        assert (await alice.event("registered", 20))["status"] == 200
        await write(bob, alice, "after a loss")
