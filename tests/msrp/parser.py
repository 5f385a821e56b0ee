"""An MSRP parser for judging what the relay writes; written from RFC 4975 §9, it shares nothing with `edge.msrp`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Parsed:
    """One frame as it stood on the wire."""

    identifier: str
    method: str
    headers: list[tuple[str, str]]
    body: bytes | None
    flag: str

    def __getitem__(self, name: str) -> str:
        return next(value for known, value in self.headers if known == name)

    def get(self, name: str) -> str | None:
        return next((value for known, value in self.headers if known == name), None)

    @property
    def range(self) -> tuple[int, str, str]:
        first, _, total = self["Byte-Range"].partition("/")
        start, _, end = first.partition("-")
        return int(start), end, total


def parse_frames(data: bytes) -> list[Parsed]:
    """Cut a stream of whole frames; anything left over or malformed raises ValueError."""
    frames = []
    while data:
        frame, data = _parse_one(data)
        frames.append(frame)
    return frames


def parse_first(data: bytes) -> tuple[Parsed, bytes] | None:
    """Cut the first frame off, None while it is not whole; returns it and what follows."""
    try:
        return _parse_one(data)
    except ValueError:
        return None


def _parse_one(data: bytes) -> tuple[Parsed, bytes]:
    line, found, rest = data.partition(b"\r\n")
    words = line.decode().split(" ", 2)
    if not found or words[0] != "MSRP" or len(words) < 2:
        raise ValueError(f"no start line: {line[:80]!r}")
    identifier, method = words[1], " ".join(words[2:])
    end = f"-------{identifier}".encode()
    headers: list[tuple[str, str]] = []
    while True:
        line, found, rest = rest.partition(b"\r\n")
        if not found:
            raise ValueError("stream ends in the headers")
        if line.startswith(end) and line[len(end) :] in (b"$", b"+", b"#"):
            return Parsed(identifier, method, headers, None, chr(line[-1])), rest
        if not line:
            break
        name, colon, value = line.decode("utf-8", "surrogateescape").partition(":")
        if not colon:
            raise ValueError(f"no header: {line!r}")
        headers.append((name, value.strip()))
    at = -1
    while True:
        at = rest.find(b"\r\n" + end, at + 1)
        if at < 0:
            raise ValueError("stream ends in the body")
        after = at + 2 + len(end)
        if rest[after : after + 3] in (b"$\r\n", b"+\r\n", b"#\r\n"):
            return Parsed(identifier, method, headers, rest[:at], chr(rest[after])), rest[after + 3 :]
