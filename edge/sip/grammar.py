"""The lexical rules SIP headers share (RFC 3261 §25.1, RFC 5954), on bytes and in linear time.

Scanners walk a value once and know quoted strings (a backslash protects the next octet) and angle brackets. Errors
are `RemoteError` with status 400 and a label for metrics.
"""

import re
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from edge.errors import RemoteError

TOKEN_CHARS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-.!%*_+`'~"
DIGITS = b"0123456789"

_SPECIAL = re.compile(rb'["<>,;\\]')
_LABEL = re.compile(rb"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?")
_NUMERIC = re.compile(rb"[0-9.]+")
_HEX = re.compile(rb"%[0-9A-Fa-f]{2}")
BLANKS = b" \t\r\n"  # around a value, whose first and last line may be folds alone


def syntax_error(label: str, detail: str = "") -> RemoteError:
    """The error for a message that breaks the grammar: 400."""
    return RemoteError(400, label, detail)


def is_token(value: bytes) -> bool:
    """Whether `value` is a token (RFC 3261 §25.1): at least one character, all from the token set."""
    return bool(value) and not value.translate(None, TOKEN_CHARS)


def is_digits(value: bytes) -> bool:
    """Whether `value` is one or more ASCII digits and nothing else."""
    return bool(value) and not value.translate(None, DIGITS)


def unfold(value: bytes) -> bytes:
    """Replace every line fold by one blank (RFC 3261 §7.3.1) and trim the ends.

    400 for a backslash before a fold: line ends cannot be escaped (§25.1).
    """
    if b"\r\n" in value:
        parts = value.split(b"\r\n")
        if any((len(part) - len(part.rstrip(b"\\"))) % 2 for part in parts[:-1]):
            raise syntax_error("quoted_string", "an escaped line end")
        value = b" ".join(part.strip(b" \t") for part in parts)
    return value.strip(b" \t")


def end_of_quoted(value: bytes, start: int) -> int:
    """Return the offset behind the quoted string that opens at `start`; 400 when it never closes."""
    position = start + 1
    close = value.find(b'"', position)
    while close >= 0:
        escape = value.find(b"\\", position, close)
        if escape < 0:
            return close + 1
        position = escape + 2
        if position > close:
            close = value.find(b'"', position)
    raise syntax_error("quoted_string", "a quote is not closed")


def split_outside(value: bytes, separator: bytes) -> list[bytes]:
    """Split at `separator` (one octet) outside of quotes and angle brackets; pieces are trimmed."""
    if b'"' not in value and b"<" not in value:
        return [piece.strip(BLANKS) for piece in value.split(separator)]
    pieces: list[bytes] = []
    start = position = 0
    depth = False
    while match := _SPECIAL.search(value, position):
        found = match.group()
        position = match.end()
        if found == b'"' and not depth:
            position = end_of_quoted(value, match.start())
        elif found == b"<":
            depth = True
        elif found == b">":
            depth = False
        elif found == separator and not depth:
            pieces.append(value[start : match.start()].strip(BLANKS))
            start = position
    if depth:
        raise syntax_error("angle_bracket", "an angle bracket is not closed")
    pieces.append(value[start:].strip(BLANKS))
    return pieces


def split_list(value: bytes) -> list[bytes]:
    """Split a comma-separated header value; an empty item is a 400 (RFC 4475 §3.1.2.1)."""
    items = split_outside(value, b",")
    if b"" in items:
        raise syntax_error("empty_item", "an empty list item")
    return items


def parse_parameters(value: bytes) -> list[tuple[bytes, bytes | None]]:
    """Read `;name=value;flag` into (lower-case name, value or None), quotes kept, order kept.

    One empty parameter is tolerated where RFC 5626 §3.2 itself prints one (`;reg-id=1; ;+sip.instance=…`) only when
    blanks stand in it; `;;` and a trailing `;` are 400.
    """
    if not value:
        return []
    if not value.startswith(b";"):
        raise syntax_error("parameters", "a parameter must start with a semicolon")
    parameters: list[tuple[bytes, bytes | None]] = []
    for piece in _raw_parameters(value):
        if piece.isspace():
            continue
        name, equals, content = piece.strip(BLANKS).partition(b"=")
        name = name.rstrip(BLANKS).lower()
        if not is_token(name):
            raise syntax_error("parameter_name", "a parameter name is not a token")
        parameters.append((name, content.lstrip(BLANKS) if equals else None))
    return parameters


def _raw_parameters(value: bytes) -> list[bytes]:
    if b'"' not in value:
        return value[1:].split(b";")
    pieces: list[bytes] = []
    start, position = 1, 1
    while position < len(value):
        octet = value[position]
        if octet == 0x22:
            position = end_of_quoted(value, position)
        elif octet == 0x3B:
            pieces.append(value[start:position])
            position += 1
            start = position
        else:
            position += 1
    pieces.append(value[start:])
    return pieces


def find_parameter(parameters: list[tuple[bytes, bytes | None]], name: bytes) -> tuple[bool, bytes | None]:
    """Look a parameter up: (present, value). A second occurrence is a 400 (RFC 3261 §7.3.1)."""
    found = [content for key, content in parameters if key == name]
    if len(found) > 1:
        raise syntax_error("duplicate_parameter", "a parameter occurs twice")
    return (True, found[0]) if found else (False, None)


def unquote(value: bytes) -> bytes:
    """Return the text of a quoted string; a value without quotes is returned as it is."""
    if len(value) < 2 or value[:1] != b'"':
        return value
    inner = value[1:-1]
    if b"\\" not in inner:
        return inner
    out = bytearray()
    position = 0
    while position < len(inner):
        if inner[position] == 0x5C and position + 1 < len(inner):
            position += 1
        out.append(inner[position])
        position += 1
    return bytes(out)


def quote(value: bytes) -> bytes:
    """Write `value` as a quoted string."""
    return b'"' + value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def unescape(value: bytes) -> bytes:
    """Decode `%HH` once (RFC 3261 §19.1.2); a percent sign that is no escape stays."""
    if b"%" not in value:
        return value
    return _HEX.sub(lambda match: bytes([int(match.group()[1:], 16)]), value)


@lru_cache(maxsize=4096)
def normalize_host(host: bytes) -> bytes:
    """Check a host and return its canonical form: names lower case, IPv6 in shortest text with brackets.

    RFC 3261 §25.1, RFC 5954 §4.1; the three-colon form of old grammars is read as two (RFC 5118 §4.10).
    """
    if host[:1] == b"[":
        return _normalize_ipv6(host)
    if not host or len(host) > 255:
        raise syntax_error("host", "no host, or one that is too long")
    if _NUMERIC.fullmatch(host) and host.count(b".") == 3:
        try:
            return str(IPv4Address(host.decode("ascii"))).encode("ascii")
        except AddressValueError:
            raise syntax_error("host", "not an IPv4 address") from None
    labels = host[:-1].split(b".") if host[-1:] == b"." else host.split(b".")
    if not all(_LABEL.fullmatch(label) for label in labels) or labels[-1][:1].isdigit():
        raise syntax_error("host", "not a host name")
    return host.lower()


def _normalize_ipv6(host: bytes) -> bytes:
    text = host[1:-1].replace(b":::", b"::")
    if host[-1:] != b"]" or b"%" in text:
        raise syntax_error("host", "not an IPv6 reference")
    try:
        return b"[" + IPv6Address(text.decode("ascii")).compressed.encode("ascii") + b"]"
    except (AddressValueError, UnicodeDecodeError):
        raise syntax_error("host", "not an IPv6 address") from None


def parse_port(text: bytes) -> int:
    """Read a port, 1 to 65535."""
    if not is_digits(text) or len(text) > 5 or not 0 < int(text) < 65536:
        raise syntax_error("port", "not a port number")
    return int(text)


def split_host_port(value: bytes) -> tuple[bytes, int | None]:
    """Split `host[:port]`, brackets understood, into (canonical host, port or None)."""
    if value[:1] == b"[":
        host, bracket, rest = value.partition(b"]")
        host += bracket
        if rest and rest[:1] != b":":
            raise syntax_error("host", "text behind an IPv6 reference")
        return normalize_host(host), parse_port(rest[1:]) if rest else None
    host, colon, port = value.partition(b":")
    return normalize_host(host.strip(BLANKS)), parse_port(port.strip(BLANKS)) if colon else None
