"""A peer that is gone without a word: behind a network that drops every packet (RFC 5626 §4.4, OB-KA-15)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.conftest import EdgeServer, EdgeServerFactory
from tests.server.agents import USERS, counted, open_config, sip_ua
from tests.ua.wait import eventually

OURS, THEIRS = "198.18.77.1", "198.18.77.2"
HOOKS = ("input", "output")
PHONE = """
import socket, sys
host, port, own = sys.argv[1], int(sys.argv[2]), sys.argv[3]
phone = socket.create_connection((host, port), 10)
lines = ["REGISTER sip:example.com SIP/2.0", f"Via: SIP/2.0/TCP {own}:5060;branch=z9hG4bKunplugged"]
lines += ["Max-Forwards: 70", "From: <sip:bob@example.com>;tag=1", "To: <sip:bob@example.com>", "Call-ID: unplugged"]
lines += ["CSeq: 1 REGISTER", f"Contact: <sip:bob@{own}:5060;transport=tcp>", "Content-Length: 0", "", ""]
phone.sendall("\\r\\n".join(lines).encode())
print(phone.recv(65536).decode().partition("\\r\\n")[0], flush=True)
sys.stdin.read()
"""


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout


@dataclass
class Cable:
    """A namespace at the other end of a cable; `cut` has it neither hear nor say anything more."""

    namespace: str

    def cut(self) -> None:
        chains = [f"add chain inet cut {hook} {{ type filter hook {hook} priority 0; policy drop; }}" for hook in HOOKS]
        rules = "\n".join(["add table inet cut", *chains])
        command = ["ip", "netns", "exec", self.namespace, "nft", "-f", "-"]
        subprocess.run(command, input=rules, text=True, check=True, timeout=20)


@pytest.fixture
def cable() -> Iterator[Cable]:
    if not all(map(shutil.which, ("nft", "ip", "ss"))) or os.geteuid() != 0:
        pytest.skip("needs nft, ip, ss and root")
    name, near, far = f"edge-far-{os.getpid()}", f"en{os.getpid()}", f"ef{os.getpid()}"
    run("ip", "netns", "add", name)
    try:
        run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        run("ip", "address", "add", f"{OURS}/30", "dev", near)
        run("ip", "link", "set", near, "up")
        run("ip", "-n", name, "address", "add", f"{THEIRS}/30", "dev", far)
        run("ip", "-n", name, "link", "set", far, "up")
        yield Cable(name)
    finally:  # the namespace lives on as long as a socket in it waits for its last acknowledgement
        subprocess.run(["ip", "link", "del", near], check=False, timeout=20)
        run("ip", "netns", "del", name)


@pytest.fixture
def phone(cable: Cable, server: EdgeServer) -> Iterator[None]:
    """bob, registered over TCP from the other end of the cable."""
    command = ["ip", "netns", "exec", cable.namespace, sys.executable, "-c", PHONE, OURS, str(server.port), THEIRS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "SIP/2.0 200 OK\n"
        yield
        process.kill()


@pytest.fixture
def server(edge_server: EdgeServerFactory) -> EdgeServer:
    """A server that waits two seconds for an acknowledgement."""
    server = edge_server(open_config(auth={"required": False}), started=False)
    listen = [{"bind": f"0.0.0.0:{server.port}", "advertise": f"{OURS}:{server.port}"}]
    server.write_config({**open_config(auth={"required": False}, limits={"stall_timeout": 2}), "listen": listen})
    server.import_users(USERS)
    server.start()
    return server


@pytest.mark.interop
@pytest.mark.requirement("OB-KA-15")
@pytest.mark.usefixtures("phone")
async def test_an_unplugged_peer_fails_soon_after_the_next_send_and_is_looked_for_before(
    server: EdgeServer, cable: Cable
) -> None:
    """Twice: the system asks for a silent one (keep-alive); one that was sent something has the time of the setting."""
    sockets = run("ss", "-tnoH", "state", "established", "dst", THEIRS, "sport", "=", f":{server.port}")
    assert "timer:(keepalive," in sockets
    async with sip_ua(server, "alice", "tcp") as alice:
        assert (await alice.register()).status == 200
        cable.cut()
        answer = await alice.message("sip:bob@example.com", b"anybody?")
        assert answer.status in (430, 480)
        assert await counted(server, "edge_connections_failed_total", reason="timed_out") == 1
        await eventually(lambda: "bob@" not in server.admin_get("/api/registrations"))
