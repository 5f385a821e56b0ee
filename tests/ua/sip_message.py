"""SIP messages as the simulated user agents see them: the exact bytes beside the parsed headers.

The reader is written from RFC 3261 §7 and §18.3 on bytes. It is strict where a test must notice (a missing
Content-Length on a stream raises) and keeps what it read untouched, so that tests compare octets.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Optional

import sipmessage

if TYPE_CHECKING:
    from tests.ua.link import Link

COMPACT = {
    "a": "accept-contact", "b": "referred-by", "c": "content-type", "d": "request-disposition",
    "e": "content-encoding", "f": "from", "i": "call-id", "j": "reject-contact", "k": "supported",
    "l": "content-length", "m": "contact", "o": "event", "r": "refer-to", "s": "subject", "t": "to",
    "u": "allow-events", "v": "via", "x": "session-expires", "y": "identity",
}  # fmt: skip

HeaderArgument = dict[str, str | None] | Iterable[tuple[str, str | None]] | None


def canonical(name: str) -> str:
    """Return the name headers compare by: long form, lower case (RFC 3261 §7.3.1, §7.3.3)."""
    lowered = name.strip().lower()
    return COMPACT.get(lowered, lowered)


class HeaderList:
    """Header lines in their order. Names compare without case and in either form; a header may repeat."""

    def __init__(self, lines: Iterable[tuple[str, str]] = ()) -> None:
        self.lines = list(lines)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.lines)

    def __len__(self) -> int:
        return len(self.lines)

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the first value, or `default`."""
        return next(iter(self.all(name)), default)

    def all(self, name: str) -> list[str]:
        """Return the values of all lines of that name, as they stood."""
        wanted = canonical(name)
        return [value for key, value in self.lines if canonical(key) == wanted]

    def values(self, name: str) -> list[str]:
        """Return the comma-separated values of all lines of that name, one by one."""
        return [part for line in self.all(name) for part in split_commas(line)]

    def names(self) -> list[str]:
        """Return the names as written, in order."""
        return [name for name, _ in self.lines]

    def override(self, changes: HeaderArgument) -> "HeaderList":
        """Return a copy in which every name given replaces all lines of that name; None removes them.

        A replaced header keeps the place of its first line, a new one goes to the end; a name given twice
        makes two lines.
        """
        pairs = list(changes.items() if isinstance(changes, dict) else changes or ())
        lines: list[tuple[str, str]] = []
        placed: set[str] = set()
        for key, value in self.lines:
            name = canonical(key)
            replacements = [(n, v) for n, v in pairs if canonical(n) == name]
            if not replacements:
                lines.append((key, value))
            elif name not in placed:
                placed.add(name)
                lines += [(n, v) for n, v in replacements if v is not None]
        lines += [(n, v) for n, v in pairs if canonical(n) not in placed and v is not None]
        return HeaderList(lines)


@dataclass(slots=True)
class SipMessage:
    """What requests and responses share. `raw` is exactly what was on the wire."""

    raw: bytes
    start_line: str
    headers: HeaderList
    body: bytes
    link: Optional["Link"] = field(default=None, repr=False, compare=False)

    def __getitem__(self, name: str) -> str:
        return self.headers[name]

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the first value of a header, or `default`."""
        return self.headers.get(name, default)

    def all(self, name: str) -> list[str]:
        """Return the values of all lines of that header."""
        return self.headers.all(name)

    def values(self, name: str) -> list[str]:
        """Return the comma-separated values of all lines of that header."""
        return self.headers.values(name)

    @property
    def call_id(self) -> str:
        return self["Call-ID"]

    @property
    def cseq(self) -> sipmessage.CSeq:
        return sipmessage.CSeq.parse(self["CSeq"])

    @property
    def branch(self) -> str:
        """The branch parameter of the top Via, empty if there is none."""
        return header_parameter(self.values("Via")[0], "branch") or ""

    @property
    def from_tag(self) -> str | None:
        return header_parameter(self["From"], "tag")

    @property
    def to_tag(self) -> str | None:
        return header_parameter(self["To"], "tag")

    def parsed(self) -> sipmessage.Request | sipmessage.Response:
        """Return what the sipmessage library reads; raises ValueError where it refuses."""
        return sipmessage.Message.parse(self.raw)


@dataclass(slots=True)
class Request(SipMessage):
    """A request."""

    method: str = ""
    uri: str = ""


@dataclass(slots=True)
class Response(SipMessage):
    """A response, with the story of its transaction where we are the client."""

    status: int = 0
    reason: str = ""
    request: Request | None = field(default=None, repr=False)
    provisionals: list["Response"] = field(default_factory=list, repr=False)
    challenges: int = 0  # 401 and 407 answered on the way to this response


def parse(raw: bytes, link: Optional["Link"] = None) -> Request | Response:
    """Read one whole message.

    Raises:
        ValueError: no empty line, a start line that is neither, a header line without colon.
    """
    head, separator, body = raw.partition(b"\r\n\r\n")
    if not separator:
        raise ValueError(f"no empty line after the headers: {raw[:200]!r}")
    text = re.sub(r"\r\n[ \t]+", " ", head.decode("utf-8", "surrogateescape"))  # folding, RFC 3261 §7.3.1
    start, *rest = text.split("\r\n")
    lines = []
    for line in rest:
        name, colon, value = line.partition(":")
        if not colon:
            raise ValueError(f"header line without colon: {line!r}")
        lines.append((name.rstrip(" \t"), value.strip(" \t")))
    headers = HeaderList(lines)
    if start.startswith("SIP/2.0 "):
        status, _, reason = start[8:].partition(" ")
        if not re.fullmatch(r"[1-6][0-9]{2}", status):
            raise ValueError(f"bad status line: {start!r}")
        return Response(raw, start, headers, body, link, int(status), reason)
    parts = start.split(" ")
    if len(parts) != 3 or parts[2] != "SIP/2.0":
        raise ValueError(f"neither request nor status line: {start!r}")
    return Request(raw, start, headers, body, link, parts[0], parts[1])


def encode(start_line: str, headers: HeaderList, body: bytes = b"") -> bytes:
    """Write a message; Content-Length is added unless `headers` has one, right or wrong."""
    lines = list(headers)
    if "Content-Length" not in headers:
        lines.append(("Content-Length", str(len(body))))
    text = start_line + "\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines) + "\r\n"
    return text.encode("utf-8", "surrogateescape") + body


class SipStreamReader:
    """Cuts a byte stream into messages and CRLF keep-alives (RFC 3261 §18.3, RFC 5626 §3.5.1)."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield each whole message, and `CRLF` for each line end between messages.

        Raises:
            ValueError: a message without a usable Content-Length.
        """
        self._buffer += data
        while self._buffer:
            if self._buffer.startswith(b"\r\n"):
                del self._buffer[:2]
                yield b"\r\n"
                continue
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            total = end + 4 + content_length(bytes(self._buffer[:end]))
            if len(self._buffer) < total:
                return
            message = bytes(self._buffer[:total])
            del self._buffer[:total]
            yield message

    @property
    def unfinished(self) -> bytes:
        """What came after the last whole message."""
        return bytes(self._buffer)


def content_length(head: bytes) -> int:
    """Return the Content-Length of a header block. Raises ValueError if it is missing or no number."""
    match = re.search(rb"(?im)^(?:content-length|l)[ \t]*:[ \t]*([0-9]+)[ \t]*\r?$", head)
    if match is None:
        raise ValueError(f"stream message without Content-Length: {head[:200]!r}")
    return int(match[1])


def split_commas(value: str) -> list[str]:
    """Split a header value at the commas outside quotes and angle brackets."""
    parts, start, quoted, angle, escaped = [], 0, False, False, False
    for position, char in enumerate(value):
        if escaped:
            escaped = False
        elif quoted:
            escaped, quoted = char == "\\", char != '"'
        elif char == '"':
            quoted = True
        elif char in "<>":
            angle = char == "<"
        elif char == "," and not angle:
            parts.append(value[start:position].strip())
            start = position + 1
    return [part for part in [*parts, value[start:].strip()] if part]


def address_uri(value: str) -> str:
    """Return the URI of a name-addr or addr-spec header value (From, Contact, Route …)."""
    match = re.search(r"<([^>]*)>", re.sub(r'"(?:[^"\\]|\\.)*"', "", value))
    return match[1] if match else value.split(";", maxsplit=1)[0].strip()


def header_parameters(value: str) -> dict[str, str | None]:
    """Return the parameters after a header value's address or first token; quotes taken off, names lower case."""
    rest = re.sub(r'^\s*(?:"(?:[^"\\]|\\.)*"\s*|[^<;"]*)<[^>]*>', "", value)
    if rest == value:
        rest = ";" + value.partition(";")[2]
    found: dict[str, str | None] = {}
    for name, text in re.findall(r';\s*([^\s;=]+)(?:\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*))?', rest):
        clean = text.strip()
        found[name.lower()] = clean[1:-1] if clean.startswith('"') else (clean or None)
    return found


def header_parameter(value: str, name: str) -> str | None:
    """Return one header parameter, None where it is absent (or has no value)."""
    return header_parameters(value).get(name)


def uri_parameters(uri: str) -> dict[str, str | None]:
    """Return the parameters of a SIP URI, names lower case."""
    after_host = uri.rpartition("@")[2].partition("?")[0]
    found: dict[str, str | None] = {}
    for part in after_host.split(";")[1:]:
        name, equals, value = part.partition("=")
        found[name.lower()] = value if equals else None
    return found
