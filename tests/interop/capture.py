"""What went over the wire, by dumpcap, and what tshark's dissectors make of it.

tshark puts SIP over TCP together by itself. Its MSRP dissector takes every segment for a frame, so streams are put
together here, cut at the end-lines, and written to a second file with one whole frame in each packet. That file holds
the same octets; what is checked is the frames, not the way TCP cut them.
"""

from __future__ import annotations

import re
import signal
import socket
import struct
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop.programs import Program, find_program
from tests.ua.wait import scaled

LARGEST_FRAME = 65000  # what fits into one IPv4 packet behind its headers

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


# ------------------------------------------------------------------------------------------ MSRP


@dataclass(frozen=True, slots=True)
class WireFrame:
    """One MSRP frame as it was on the wire, and the direction it went."""

    stream: Stream
    raw: bytes

    @property
    def transaction(self) -> str:
        """The transaction identifier of the start line."""
        return self.raw.split(b" ", 2)[1].decode()

    @property
    def readable(self) -> bytes:
        """The frame with a body that is not text blanked."""
        head, blank, rest = self.raw.partition(b"\r\n\r\n")
        if b"\r\nContent-Type: application/octet-stream" not in head:
            return self.raw
        end = rest.rindex(b"\r\n-------")
        return head + blank + b"x" * end + rest[end:]

    @property
    def what(self) -> str:
        """The method, or the status code."""
        return self.raw.split(b"\r\n", 1)[0].split(b" ")[2].decode()


def cut_frames(stream: Stream, data: bytes) -> list[WireFrame]:
    """Cut a stream at the end-lines (RFC 4975 §7.1); fails the test where something else stands between two frames."""
    frames = []
    position = 0
    while position < len(data):
        start = re.compile(rb"MSRP ([A-Za-z0-9][A-Za-z0-9.\-+%=]{3,31}) ").match(data, position)
        assert start is not None, f"no start line at octet {position} of {stream}: {data[position : position + 80]!r}"
        end = re.compile(rb"\r\n-------" + re.escape(start[1]) + rb"[$#+]\r\n").search(data, start.end())
        assert end is not None, f"no end-line for {start[1]!r} of {stream}"
        frames.append(WireFrame(stream, data[position : end.end()]))
        position = end.end()
    return frames


def check_msrp(frames: list[WireFrame], path: Path) -> None:
    """Let tshark dissect each frame, and fail the test if it complains or sees something else than we do.

    `path` is the file written for it.
    """
    assert frames, "no MSRP was captured"
    path.write_bytes(_pcap(frames))
    options = decode_as("msrp", *{port for frame in frames for port in frame.stream})
    assert complaints(path, "msrp", options) == []
    names = ("transaction.id", "method", "status.code", "end.line", "to.path", "from.path")
    fields = [part for name in names for part in ("-e", f"msrp.{name}")]
    rows = tshark(path, *options, "-Y", "msrp", "-T", "fields", *fields)
    assert len(rows) == len(frames)
    for (transaction, method, status, end_line, to_path, from_path), frame in zip(rows, frames, strict=True):
        # It names the transaction where it found it: in the start line and in the end-line.
        assert transaction == f"{frame.transaction},{frame.transaction}", frame.readable[:400]
        assert method + status == frame.what
        assert re.fullmatch(f"-------{re.escape(frame.transaction)}[$#+]", end_line), end_line
        assert to_path.startswith("msrp://"), to_path
        assert from_path.startswith("msrp://"), from_path


def _pcap(frames: list[WireFrame]) -> bytes:
    """Write frames as a capture file, each in one TCP segment between loopback addresses."""
    out = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 2**18, 1)]
    sent: defaultdict[Stream, int] = defaultdict(int)
    for number, frame in enumerate(frames):
        stream, raw = frame.stream, frame.readable
        back = sent[stream[1], stream[0]]
        tcp = struct.pack("!HHIIBBHHH", *stream, 1 + sent[stream], 1 + back, 5 << 4, 0x18, 65535, 0, 0)
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40 + len(raw), 0, 0, 64, 6, 0, b"\x7f\0\0\1", b"\x7f\0\0\1")
        packet = bytes(12) + b"\x08\x00" + ip + tcp + raw
        out += [struct.pack("<IIII", number // 1000, number % 1000, len(packet), len(packet)), packet]
        sent[stream] += len(raw)
    return b"".join(out)
