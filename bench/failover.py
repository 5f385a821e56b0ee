"""How long a call takes to the second flow of a device whose first is dead: `python bench/failover.py`.

A server of its own (`role = "single"`; with `--installed` the one that is installed), a device with two flows over TCP,
the first of them the better one. Measured is the time from the caller's write to the arrival of the INVITE at the
device, with everything on one machine:

    alive    at the first flow, which is there: what the way itself costs
    reset    at the second: the first was reset an instant before the call, and the server may not even know yet
    silent   at the second: the first is open and has missed its keep-alives, so nothing is sent there
"""

from __future__ import annotations

import itertools
import os
import re
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROUNDS = 200
FLOW_TIMER_S = 1
GRACE_S = 10
_serials = itertools.count(1)


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server() -> Iterator[tuple[int, int]]:
    """Run a server; gives its port and that of its admin listener."""
    port, admin = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        lines = ['domains = ["example.com"]', "[[listen]]", f'bind = "127.0.0.1:{port}"', "[auth]", "required = false"]
        lines += ["[storage]", 'url = "memory:"', "[outbound]", f"flow_timer = {FLOW_TIMER_S}"]
        lines += ["[limits]", 'trusted = ["127.0.0.0/8"]', "[admin]", f'bind = "127.0.0.1:{admin}"']
        Path(folder, "edge.toml").write_text("\n".join(lines))
        command = [sys.executable, "-m", "edge.cli", "serve", "--config", "edge.toml"]
        environment = dict(os.environ, PYTHONPATH=str(Path(__file__).resolve().parents[1]))
        if "--installed" in sys.argv:
            environment.pop("PYTHONPATH")
        process = subprocess.Popen(  # noqa: S603
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_until_ready(admin)
            yield port, admin
        finally:
            process.terminate()
            process.wait(20)


def wait_until_ready(admin: int) -> None:
    """Return when the server takes connections; TimeoutError after half a minute."""
    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{admin}/readyz", timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
        else:
            return
    raise TimeoutError


class Peer:
    """One connection of a phone or a caller; messages that arrive are (time, octets)."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def send(self, text: str) -> float:
        """Write a message; returns when."""
        began = time.perf_counter()
        self.socket.sendall(text.replace("\n", "\r\n").encode())
        return began

    def read(self) -> tuple[float, str]:
        """Return the next message without a body, and when it was there; pongs are passed over."""
        self.socket.settimeout(30)
        while True:
            self.buffer = self.buffer.lstrip(b"\r\n")
            head, end, rest = self.buffer.partition(b"\r\n\r\n")
            if end:
                self.buffer = rest
                return time.perf_counter(), head.decode()
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError("the server has closed the connection")
            self.buffer += data

    def reset(self) -> None:
        """End with a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def register(peer: Peer, reg_id: int) -> None:
    """Register the device over a flow."""
    number = next(_serials)
    peer.send(
        f"REGISTER sip:example.com SIP/2.0\nVia: SIP/2.0/TCP 192.0.2.1;branch=z9hG4bK{number}\nMax-Forwards: 70\n"
        f"From: <sip:bob@example.com>;tag=1\nTo: <sip:bob@example.com>\nCall-ID: flow-{number}\nCSeq: 1 REGISTER\n"
        f"Supported: path, outbound\nExpires: 600\nContact: <sip:bob@192.0.2.1;transport=tcp>;reg-id={reg_id}"
        f';+sip.instance="<urn:uuid:00000000-0000-1000-8000-000000000001>"\nContent-Length: 0\n\n'
    )
    _, answer = peer.read()
    assert answer.startswith("SIP/2.0 200 "), answer


def call(caller: Peer, at: Peer) -> float:
    """Call bob, who is to be reached `at` one of his flows and is busy; returns the milliseconds until he was."""
    number = next(_serials)
    head = f"Via: SIP/2.0/TCP 192.0.2.9;branch=z9hG4bK{number}\nFrom: <sip:eve@far.example>;tag=2\n"
    head += f"Call-ID: call-{number}\n"
    began = caller.send(
        f"INVITE sip:bob@example.com SIP/2.0\n{head}To: <sip:bob@example.com>\nMax-Forwards: 70\nCSeq: 1 INVITE\n"
        f"Contact: <sip:eve@192.0.2.9>\nContent-Length: 0\n\n"
    )
    arrived, invite = at.read()
    assert invite.startswith("INVITE "), invite
    kept = "\n".join(line for line in invite.split("\r\n") if re.match("Via|From|To|Call-ID|CSeq", line))
    at.send(f"SIP/2.0 486 Busy Here\n{kept};x=1\nContent-Length: 0\n\n".replace("INVITE;x=1", "INVITE"))
    _, ack = at.read()
    assert ack.startswith("ACK "), ack
    while not (answer := caller.read()[1]).startswith("SIP/2.0 486 "):
        assert answer.startswith("SIP/2.0 100 "), answer
    to = next(line for line in answer.split("\r\n") if line.startswith("To:"))
    caller.send(f"ACK sip:bob@example.com SIP/2.0\n{head}{to}\nMax-Forwards: 70\nCSeq: 1 ACK\nContent-Length: 0\n\n")
    return (arrived - began) * 1000


def show(name: str, times: list[float]) -> None:
    """Print one row."""
    ordered = sorted(times)
    figures = [
        ("median", statistics.median(times)),
        ("99 %", ordered[int(len(ordered) * 0.99)]),
        ("worst", ordered[-1]),
    ]
    print(f"{name:8} {len(times):4} calls", *(f"  {what} {took:6.2f} ms" for what, took in figures))  # noqa: T201


def main() -> None:
    """Measure and print."""
    with server() as (port, admin):
        caller, second = Peer(port), Peer(port)
        register(second, 2)
        alive, gone = [], []
        for _ in range(ROUNDS):
            first = Peer(port)
            register(first, 1)
            alive.append(call(caller, first))
            first.reset()
            gone.append(call(caller, second))
            second.send("\n\n")
        first = Peer(port)
        register(first, 1)
        end = time.monotonic() + 2 * FLOW_TIMER_S + GRACE_S + 3
        while time.monotonic() < end:
            second.send("\n\n")
            time.sleep(0.5)
        silent = []
        for _ in range(ROUNDS):
            second.send("\n\n")
            silent.append(call(caller, second))
        with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=5) as page:
            open_now = re.search(r'edge_connections{transport="tcp"} (\S+)', page.read().decode())
    show("alive", alive)
    show("reset", gone)
    show("silent", silent)
    count = "?" if open_now is None else open_now[1]
    print(f"connections of the server: {count} (the caller's and the device's two, and none to itself)")  # noqa: T201


if __name__ == "__main__":
    main()
