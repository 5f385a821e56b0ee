"""What went over the wire, by dumpcap, and what tshark's dissectors make of it.

tshark puts SIP over TCP together by itself. For MSRP, which it does not, streams are put together here and written to a
second file packet by packet: `tests.interop.msrp_wire`.
"""

from __future__ import annotations

import re
import signal
import socket
import struct
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.interop.programs import Program, find_program
from tests.ua.wait import scaled

LARGEST_SEGMENT = 65000  # what fits into one IPv4 packet behind its headers

Stream = tuple[int, int]  # source port, destination port

_COMPLAINT = "_ws.malformed || _ws.unreassembled || _ws.expert.severity >= 6291456"  # warnings and errors


def can_capture() -> bool:
    """Whether dumpcap is there and may listen on the loopback interface."""
    path = find_program("dumpcap")
    if path is None or find_program("tshark") is None:
        return False
    return subprocess.run([path, "-i", "lo", "-L"], capture_output=True, check=False).returncode == 0


class Capture:
    """A dumpcap that has begun; `stop` ends it when everything that was sent until then has been written.

    Both are known by a datagram of our own: the kernel hands packets over in order, and dumpcap writes them late.
    """

    def __init__(self, program: Program, path: Path, mark_port: int) -> None:
        self.program = program
        self.path = path
        self._mark_port = mark_port
        self._mark(b"the capture begins")

    def stop(self) -> Path:
        """End the capture and return the file; a packet that was lost fails the test."""
        self._mark(b"the capture ends")
        self.program.stop(signal.SIGINT)
        lost = re.search(r"received/dropped on interface .*: \d+/(\d+)", self.program.log_text())
        if lost is None or int(lost[1]):
            pytest.fail(f"the capture is not complete\n{self.program.report()}")
        return self.path

    def _mark(self, mark: bytes) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:

            def written() -> bool:
                sender.sendto(mark, ("127.0.0.1", self._mark_port))
                return self.path.exists() and mark in self.path.read_bytes()[-100_000:]

            self.program.wait_for(written, 20, what=mark.decode())


def tshark(path: Path, *arguments: str) -> list[list[str]]:
    """Run tshark over a file and return its lines, cut at tabs."""
    done = subprocess.run(
        [find_program("tshark") or "tshark", "-n", "-r", str(path), *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=scaled(90),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


def decode_as(protocol: str, *ports: int, transports: tuple[str, ...] = ("tcp",)) -> list[str]:
    """Options that make tshark use one dissector on these ports."""
    return [part for port in ports for kind in transports for part in ("-d", f"{kind}.port=={port},{protocol}")]


def complaints(path: Path, protocol: str, options: list[str]) -> list[list[str]]:
    """What tshark finds wrong with messages of a protocol: frame number, expert messages, info."""
    fields = ["-T", "fields", "-e", "frame.number", "-e", "_ws.expert.message", "-e", "_ws.col.Info"]
    return tshark(path, *options, "-Y", f"{protocol} && ({_COMPLAINT})", *fields)


def check_sip(capture: Capture, ports: list[int], expected: dict[str, int]) -> None:
    """Fail the test if tshark complains of a SIP message on these ports, or counts other numbers of requests.

    `expected` is counted on both legs: a request that passed the server is two.
    """
    path = capture.stop()
    options = decode_as("sip", *ports, transports=("udp", "tcp"))
    assert complaints(path, "sip", options) == []
    # One packet may hold several messages, and responses have no method.
    methods = [
        name
        for row in tshark(path, *options, "-Y", "sip", "-T", "fields", "-e", "sip.Method")
        for name in row[0].split(",")
    ]
    assert {name: methods.count(name) for name in expected} == expected


# ------------------------------------------------------------------------------------------ TCP streams


def read_streams(path: Path) -> dict[Stream, bytes]:
    """Put the TCP streams of a capture file (pcap, Ethernet, IPv4) together, one for each direction of a connection."""
    pieces: defaultdict[Stream, dict[int, bytes]] = defaultdict(dict)
    first: dict[Stream, int] = {}
    for packet in _packets(path.read_bytes()):
        if packet[12:14] != b"\x08\x00" or packet[23] != 6:
            continue
        ip = 14 + (packet[14] & 15) * 4
        end = 14 + int.from_bytes(packet[16:18], "big")
        source, destination, sequence = struct.unpack_from("!HHI", packet, ip)
        data = packet[ip + (packet[ip + 12] >> 4) * 4 : end]
        stream = (source, destination)
        if packet[ip + 13] & 2:  # SYN
            first[stream] = sequence + 1
        if data:
            offset = (sequence - first[stream]) % 2**32
            if len(data) > len(pieces[stream].get(offset, b"")):
                pieces[stream][offset] = data
    return {stream: _join(parts) for stream, parts in pieces.items()}


def _packets(data: bytes) -> Iterator[bytes]:
    """The packets of a pcap file as dumpcap -P writes it on this machine."""
    magic, link = struct.unpack_from("<I16xI", data)
    assert (magic, link) == (0xA1B2C3D4, 1), "not a pcap file of Ethernet packets"
    position = 24
    while position < len(data):
        kept, length = struct.unpack_from("<8xII", data, position)
        assert kept == length, "a packet was cut short"
        yield data[position + 16 : position + 16 + kept]
        position += 16 + kept


def _join(parts: dict[int, bytes]) -> bytes:
    joined = bytearray()
    for offset in sorted(parts):
        assert offset <= len(joined), f"octets {len(joined)} to {offset} of a stream were not captured"
        joined += parts[offset][len(joined) - offset :]
    return bytes(joined)


def write_segments(path: Path, segments: Iterable[tuple[Stream, bytes]]) -> None:
    """Write a capture file with these octets, each in one TCP segment between loopback addresses."""
    out = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 2**18, 1)]
    sent: defaultdict[Stream, int] = defaultdict(int)
    for number, (stream, data) in enumerate(segments):
        assert len(data) <= LARGEST_SEGMENT
        back = sent[stream[1], stream[0]]
        tcp = struct.pack("!HHIIBBHHH", *stream, 1 + sent[stream], 1 + back, 5 << 4, 0x18, 65535, 0, 0)
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40 + len(data), 0, 0, 64, 6, 0, b"\x7f\0\0\1", b"\x7f\0\0\1")
        packet = bytes(12) + b"\x08\x00" + ip + tcp + data
        out += [struct.pack("<IIII", number // 1000, number % 1000, len(packet), len(packet)), packet]
        sent[stream] += len(data)
    path.write_bytes(b"".join(out))
