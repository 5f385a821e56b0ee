"""What an idle flow costs over TCP, TLS, WS or WSS: memory for each registered connection, CPU for each keep-alive.

    PORT=15060 bench/start &            in one terminal, or with `&`
    python bench/idle_flows.py wss --port 15060 --pid $! --flows 10000

Opens the flows one after the other, registers one user over each, waits a moment, then keeps `--window` pings (CRLF
CRLF) outstanding for `--seconds`. Prints one line of JSON: KiB of the server (PSS) for each flow, its CPU microseconds
for each ping. The server must not ask for passwords (`AUTH=0`). Standard library only; nothing of `edge` is imported.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import resource
import select
import socket
import ssl
import time
from pathlib import Path

PING, PONG = b"\r\n\r\n", b"\r\n"
_TICKS = os.sysconf("SC_CLK_TCK")
_CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_CONTEXT.check_hostname, _CONTEXT.verify_mode = False, ssl.CERT_NONE


class Flow:
    """One connection; `send` and `receive` take whole SIP messages or pings, in frames where it is a WebSocket."""

    def __init__(self, transport: str, port: int) -> None:
        self.socket: socket.socket = socket.create_connection(("127.0.0.1", port), 10)
        self.framed = transport in ("ws", "wss")
        if transport in ("tls", "wss"):
            self.socket = _CONTEXT.wrap_socket(self.socket)
        if self.framed:
            self._upgrade()

    def _upgrade(self) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        lines = ["GET / HTTP/1.1", "Host: example.com", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Protocol: sip", "", ""]
        self.socket.sendall("\r\n".join(lines).encode())
        answer = self._read_until(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 101 "):
            raise SystemExit(f"no WebSocket: {answer[:80]!r}")

    def _read_until(self, end: bytes) -> bytes:
        data = b""
        while end not in data:
            piece = self.socket.recv(65536)
            if not piece:
                raise SystemExit(f"the server closed the connection after {data[:80]!r}")
            data += piece
        return data

    def send(self, data: bytes) -> None:
        """Send one message; a frame is masked with zeros (RFC 6455 §5.3: any key will do)."""
        if self.framed:
            size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
            data = b"\x81" + size + bytes(4) + data
        self.socket.sendall(data)

    def register(self, number: int) -> None:
        """Register one contact, with instance and reg-id (RFC 5626 §4.2), and wait for the 200."""
        user, instance = f"sip:u{number}@example.com", f"<urn:uuid:00000000-0000-4000-8000-{number:012}>"
        lines = ["REGISTER sip:example.com SIP/2.0", f"Via: SIP/2.0/TCP 127.0.0.1:9;branch=z9hG4bK{number}"]
        lines += ["Max-Forwards: 70", f"From: <{user}>;tag={number}", f"To: <{user}>", f"Call-ID: {number}"]
        lines += ["CSeq: 1 REGISTER", "Supported: outbound, path", "Expires: 3600"]
        lines += [
            f'Contact: <sip:u{number}@127.0.0.1:9>;reg-id=1;+sip.instance="{instance}"',
            "Content-Length: 0",
            "",
            "",
        ]
        self.send("\r\n".join(lines).encode())
        answer = self._read_until(b"\r\n\r\n")
        if b"SIP/2.0 200 " not in answer[:16]:
            raise SystemExit(f"not registered: {answer[:80]!r}")

    def receive_pong(self) -> None:
        """Take what came: one pong."""
        data = self.socket.recv(64)
        if not data.endswith(PONG) or len(data) > 4:
            raise SystemExit(f"no pong: {data!r}")


def pss_kib(pid: int) -> int:
    """Memory of a process: its own and its share of what is shared."""
    found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def ping(flows: list[Flow], window: int, seconds: float) -> int:
    """Keep `window` pings outstanding, over all flows in turn; returns how many were answered."""
    poll = select.epoll()
    by_number = {flow.socket.fileno(): flow for flow in flows}
    for number in by_number:
        poll.register(number, select.EPOLLIN)
    turn, answered, end = 0, 0, time.monotonic() + seconds
    for flow in flows[:window]:
        flow.send(PING)
        turn += 1
    while time.monotonic() < end:
        for number, _ in poll.poll(1):
            by_number[number].receive_pong()
            answered += 1
            flows[turn % len(flows)].send(PING)
            turn += 1
    return answered


def main() -> None:
    """Read the arguments, open, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("transport", choices=["tcp", "tls", "ws", "wss"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pid", type=int, required=True, help="of the server")
    parser.add_argument("--flows", type=int, default=10_000)
    parser.add_argument("--window", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    memory, flows = pss_kib(options.pid), []
    for number in range(options.flows):
        flows.append(Flow(options.transport, options.port))
        flows[-1].register(number)
    time.sleep(1)
    taken, before = pss_kib(options.pid) - memory, cpu_seconds(options.pid)
    count = ping(flows, options.window, options.seconds)
    cpu = cpu_seconds(options.pid) - before
    kib, each = round(taken / options.flows, 2), round(cpu / count * 1e6, 1)
    result = {"transport": options.transport, "flows": options.flows, "kib_per_flow": kib, "pings": count}
    print(json.dumps({**result, "cpu_us_per_ping": each}))  # noqa: T201


if __name__ == "__main__":
    main()
