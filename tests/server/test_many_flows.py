"""Ten thousand that come and go: nothing of them stays in any table (OB-FAIL-11)."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from tests.conftest import EdgeServer, EdgeServerFactory
from tests.server.agents import open_config
from tests.ua.wait import eventually, scaled

COUNT = 10_000
_ABORT = struct.pack("ii", 1, 0)


@pytest.fixture
def server(edge_server: EdgeServerFactory) -> EdgeServer:
    """One with whom registrations last for two seconds, and silent UDP flows for one."""
    sip = {"udp_flow_timeout": 1, "min_expires": 1, "max_expires": 2}
    return edge_server(open_config(sip=sip, auth={"required": False}, storage={"url": "memory:"}))


def register(number: int, transport: str, own: tuple[str, int]) -> bytes:
    host, port = own
    instance = f'+sip.instance="<urn:uuid:00000000-0000-1000-8000-{number:012}>"'
    lines = [
        "REGISTER sip:example.com SIP/2.0",
        f"Via: SIP/2.0/{transport.upper()} {host}:{port};branch=z9hG4bKmany{number};rport",
        "Max-Forwards: 70",
        f"From: <sip:user{number}@example.com>;tag=1",
        f"To: <sip:user{number}@example.com>",
        f"Call-ID: many-{number}",
        "CSeq: 1 REGISTER",
        "Supported: path, outbound",
        f"Contact: <sip:user{number}@{host}:{port};transport={transport}>;reg-id=1;{instance}",
        "Expires: 2",
        "Content-Length: 0",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def come_and_go(server: EdgeServer, transport: str) -> None:
    """One after the other, each from an address and port of its own: register, read the 200, and be gone."""
    for number in range(COUNT):
        with socket.socket(type=socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM) as phone:
            phone.settimeout(scaled(10))
            phone.bind((f"127.0.{1 + number // 250 % 250}.{1 + number % 250}", 0))
            phone.connect(("127.0.0.1", server.port))
            phone.sendall(register(number, transport, phone.getsockname()))
            assert phone.recv(4096).startswith(b"SIP/2.0 200 ")
            if transport == "tcp" and number % 2:
                phone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)


@pytest.mark.slow
@pytest.mark.requirement("OB-FAIL-11")
@pytest.mark.parametrize("transport", ["tcp", "udp"])
async def test_of_ten_thousand_flows_that_were_nothing_is_left(server: EdgeServer, transport: str) -> None:
    await asyncio.to_thread(come_and_go, server, transport)
    assert server.metrics().value("edge_connections_opened_total", transport=transport) == COUNT
    gauges = {"edge_connections": {"transport": transport}, "edge_sip_registrations": {}, "edge_sip_flows": {}}
    await eventually(
        lambda: all(server.metrics().value(name, **labels) == 0 for name, labels in gauges.items()),
        30,
        what="empty tables",
    )
    failed = [sample.value for sample in server.metrics().samples if sample.name == "edge_flow_failed_total"]
    assert sum(failed) == COUNT
