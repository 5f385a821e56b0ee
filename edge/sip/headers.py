"""Header names and the values a proxy and registrar read (RFC 3261 §20): Via, name-addr, CSeq, lists.

Every header name we act on has a small integer, its kind; all others are `OTHER` and pass as bytes.
"""

from __future__ import annotations

import re
from typing import Final

from edge.errors import RemoteError
from edge.sip.grammar import (
    TOKEN_CHARS,
    end_of_quoted,
    find_parameter,
    is_digits,
    is_token,
    normalize_host,
    parse_parameters,
    parse_port,
    split_host_port,
    split_list,
    syntax_error,
    unfold,
)

OTHER: Final = 0
VIA: Final = 1
# kinds 2 to 8 may occur once only (RFC 3261 §7.3.1)
FROM: Final = 2
TO: Final = 3
CALL_ID: Final = 4
CSEQ: Final = 5
MAX_FORWARDS: Final = 6
CONTENT_LENGTH: Final = 7
CONTENT_TYPE: Final = 8
LAST_SINGLE: Final = 8
CONTACT: Final = 9
ROUTE: Final = 10
RECORD_ROUTE: Final = 11
REQUIRE: Final = 12
PROXY_REQUIRE: Final = 13
SUPPORTED: Final = 14
AUTHORIZATION: Final = 15
PROXY_AUTHORIZATION: Final = 16
EXPIRES: Final = 17
PATH: Final = 18
WWW_AUTHENTICATE: Final = 19
PROXY_AUTHENTICATE: Final = 20
TIMESTAMP: Final = 21
MAX_BREADTH: Final = 22
REASON: Final = 23
FLOW_TIMER: Final = 24
RETRY_AFTER: Final = 25
USER_AGENT: Final = 26
SESSION_EXPIRES: Final = 27
KINDS: Final = 28

_LONG: Final = {
    b"Via": VIA, b"From": FROM, b"To": TO, b"Call-ID": CALL_ID, b"CSeq": CSEQ, b"Max-Forwards": MAX_FORWARDS,
    b"Content-Length": CONTENT_LENGTH, b"Content-Type": CONTENT_TYPE, b"Contact": CONTACT, b"Route": ROUTE,
    b"Record-Route": RECORD_ROUTE, b"Require": REQUIRE, b"Proxy-Require": PROXY_REQUIRE, b"Supported": SUPPORTED,
    b"Authorization": AUTHORIZATION, b"Proxy-Authorization": PROXY_AUTHORIZATION, b"Expires": EXPIRES, b"Path": PATH,
    b"WWW-Authenticate": WWW_AUTHENTICATE, b"Proxy-Authenticate": PROXY_AUTHENTICATE, b"Timestamp": TIMESTAMP,
    b"Max-Breadth": MAX_BREADTH, b"Reason": REASON, b"Flow-Timer": FLOW_TIMER, b"Retry-After": RETRY_AFTER,
    b"User-Agent": USER_AGENT, b"Session-Expires": SESSION_EXPIRES,
}  # fmt: skip
_COMPACT: Final = {
    b"v": VIA, b"f": FROM, b"t": TO, b"i": CALL_ID, b"l": CONTENT_LENGTH, b"c": CONTENT_TYPE, b"m": CONTACT,
    b"k": SUPPORTED, b"x": SESSION_EXPIRES,
}  # fmt: skip
_PASSED: Final = (
    b"Allow", b"Accept", b"Subject", b"Server", b"Date", b"Event", b"Content-Disposition", b"Allow-Events", b"Min-SE",
    b"Content-Encoding", b"Accept-Encoding", b"Accept-Language", b"P-Asserted-Identity", b"P-Preferred-Identity",
    b"Privacy", b"RAck", b"RSeq", b"Refer-To", b"Referred-By", b"Replaces", b"Session-ID", b"Organization", b"Warning",
)  # fmt: skip

BY_LOWER_NAME: Final[dict[bytes, int]] = {
    **{name.lower(): kind for name, kind in _LONG.items()},
    **_COMPACT,
}
# The spellings seen in practice, looked up without changing case first.
BY_NAME: Final[dict[bytes, int]] = {
    **dict.fromkeys(_PASSED, OTHER),
    **BY_LOWER_NAME,
    **_LONG,
    **{name.upper(): kind for name, kind in _COMPACT.items()},
    b"Call-Id": CALL_ID,
    b"CSEQ": CSEQ,
}

_VIA_FAST = re.compile(
    rb"SIP/2\.0/(UDP|TCP|TLS|WS|WSS) ([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?"
    rb"((?:;[A-Za-z0-9.!%*_+`'~-]+(?:=[A-Za-z0-9.!%*_+`'~:\[\]-]+)?)*)"
)
_VIA_SLOW = re.compile(rb"[ \t]*([A-Za-z]+)[ \t]*/[ \t]*([0-9.]+)[ \t]*/[ \t]*([^ \t/;,]+)[ \t]+([^;]+)")
_NAME_ADDR = (
    rb"(?:\"[^\"\\\0]*\"[ \t]*|[A-Za-z0-9.!%*_+`'~ \t-]*)<([^<>\" \t\r\n]+)>"
    rb"((?:;[A-Za-z0-9.!%*_+`'~-]+(?:=[A-Za-z0-9.!%*_+`'~:\[\]-]+)?)*)"
)
_NAME_ADDR_FAST = re.compile(_NAME_ADDR)
_NAME_ADDR_TEXT = re.compile(rb" ?" + _NAME_ADDR)
_WITH_TAG = re.compile(
    rb" ?(?:\"[^\"\\\0]*\"[ \t]*|[A-Za-z0-9.!%*_+`'~ \t-]*)<[^<>\" \t\r\n]+>(?:;tag=[A-Za-z0-9.!%*_+`'~-]+)?"
)
_DEFAULT_PORTS: Final = {b"TLS": 5061, b"WS": 80, b"WSS": 443}  # RFC 3261 §19.1.2, RFC 7118 §5.5
_PLAIN_PARAMETERS = TOKEN_CHARS + b":[];="


class Via:
    """One Via value (RFC 3261 §20.42).

    `host` is canonical, `port` None where absent, `parameters` raw from the first semicolon on. `branch` is b"" when
    absent; `rport` None when absent, b"" for the bare flag. `text` is the value as it stood, trimmed. `key` is the
    sent-by as part of a transaction's key.
    """

    __slots__ = ("branch", "host", "key", "parameters", "port", "received", "rport", "text", "transport", "version")

    text: bytes
    version: bytes
    transport: bytes
    host: bytes
    port: int | None
    key: bytes
    parameters: bytes
    branch: bytes
    rport: bytes | None
    received: bytes | None

    def set_key(self) -> Via:
        """Fill `key` from `sent_by`; returns the Via."""
        self.key = b"|%b:%d|" % self.sent_by
        return self

    @property
    def sent_by(self) -> tuple[bytes, int]:
        """(host, port), the port filled with the transport's default (RFC 3261 §18.2.2)."""
        if self.port is not None:
            return self.host, self.port
        return self.host, _DEFAULT_PORTS.get(self.transport, 5060)


def parse_via(text: bytes) -> Via:
    """Read one Via value, already cut out of its header and trimmed."""
    match = _VIA_FAST.fullmatch(text)
    if match is None:
        return _parse_odd_via(text)
    via = Via()
    via.text = text
    via.version = b"2.0"
    transport, host, port, parameters = match.groups()
    via.transport = transport
    via.host = normalize_host(host)
    via.port = parse_port(port) if port else None
    via.parameters = parameters
    if not _read_common_parameters(via, parameters):
        _read_parameters(via)
    return via.set_key()


def _read_common_parameters(via: Via, parameters: bytes) -> bool:
    """Read branch, rport, received when they are spelled the usual way; False asks for the full reader."""
    if b";;" in parameters or parameters[-1:] == b";":
        return False
    branch, rport, received = b"", None, None
    seen = 0
    for piece in parameters.split(b";"):
        name, _, content = piece.partition(b"=")
        if name == b"branch":
            branch, seen = content, seen + 1
        elif name == b"rport":
            rport, seen = content, seen + 16
        elif name == b"received":
            received, seen = content, seen + 256
        elif name.lower() in (b"branch", b"rport", b"received"):
            return False
    if seen & ~0x111:
        return False
    via.branch, via.rport, via.received = branch, rport, received
    return True


def _parse_odd_via(text: bytes) -> Via:
    value = unfold(text)
    match = _VIA_SLOW.match(value)
    if match is None or match.group(1).upper() != b"SIP":
        raise syntax_error("via", "not a Via value")
    via = Via()
    via.text = text
    via.version = match.group(2)
    via.transport = match.group(3).upper()
    if not is_token(via.transport):
        raise syntax_error("via", "the transport is not a token")
    via.host, via.port = split_host_port(match.group(4).strip(b" \t"))
    via.parameters = value[match.end() :]
    _read_parameters(via)
    return via.set_key()


def _read_parameters(via: Via) -> None:
    parameters = parse_parameters(via.parameters)
    _, branch = find_parameter(parameters, b"branch")
    has_rport, rport = find_parameter(parameters, b"rport")
    _, via.received = find_parameter(parameters, b"received")
    via.branch = branch or b""
    via.rport = (rport or b"") if has_rport else None


class ViaCache:
    """Read Via values whose protocol and sent-by were seen before without checking those again. Bounded."""

    __slots__ = ("_known", "_limit")

    def __init__(self, limit: int = 1024) -> None:
        self._known: dict[bytes, tuple[bytes, bytes, int | None, bytes]] = {}
        self._limit = limit

    def parse(self, text: bytes) -> Via:
        """Like `parse_via`."""
        head, _, parameters = text.partition(b";")
        known = self._known.get(head)
        if known is None or parameters[:7] != b"branch=" or parameters.translate(None, _PLAIN_PARAMETERS):
            return self._learn(head, parse_via(text))
        branch, semicolon, rest = parameters[7:].partition(b";")
        if rest != b"rport" and (semicolon or not branch):
            return parse_via(text)
        via = Via()
        via.transport, via.host, via.port, via.key = known
        via.text = text
        via.version = b"2.0"
        via.parameters = text[len(head) :]
        via.branch = branch
        via.received = None
        via.rport = b"" if rest else None
        return via

    def _learn(self, head: bytes, via: Via) -> Via:
        if len(head) <= 128 and via.version == b"2.0":
            if len(self._known) >= self._limit:
                self._known.clear()
            self._known[head] = (via.transport, via.host, via.port, via.key)
        return via


class NameAddr:
    """A name-addr or addr-spec with header parameters (RFC 3261 §20.10): From, To, Contact, Route.

    `uri` is raw, without brackets. `parameters` is raw from the first semicolon on. `bracketed` tells which form it
    was.
    """

    __slots__ = ("bracketed", "parameters", "uri")

    uri: bytes
    parameters: bytes
    bracketed: bool

    def parameter(self, name: bytes) -> bytes | None:
        """Return a header parameter's raw value, b"" for a flag, None when absent; 400 when it occurs twice."""
        present, content = find_parameter(parse_parameters(self.parameters), name)
        return (content or b"") if present else None

    def tag(self) -> bytes | None:
        """Return the tag, None when absent."""
        parameters = self.parameters
        if parameters[:5] == b";tag=" and b";" not in parameters[5:]:
            return parameters[5:]
        return self.parameter(b"tag") if parameters else None


def check_name_addr(text: bytes) -> None:
    """Check that what stands behind a colon is one well-formed address with one tag at most; see `parse_name_addr`."""
    if _WITH_TAG.fullmatch(text) is None:
        parse_name_addr(text.strip(b" \t")).tag()


def read_tag(text: bytes) -> bytes | None:
    """Return the tag of a From or To value, None when there is none; checks it like `check_name_addr`."""
    match = _NAME_ADDR_TEXT.fullmatch(text)
    if match is None:
        return parse_name_addr(text.strip(b" \t")).tag()
    parameters: bytes = match.group(2)
    if not parameters:
        return None
    if parameters[:5] == b";tag=" and b";" not in parameters[5:]:
        return parameters[5:]
    present, content = find_parameter(parse_parameters(parameters), b"tag")
    return content if present else None


def parse_name_addr(value: bytes) -> NameAddr:
    """Read one value of From, To, Contact, Route and their like.

    Raises:
        RemoteError: 400 for an open quote, a missing bracket, a bare display name that is no token, or a URI that
            needs brackets (RFC 3261 §20.10, RFC 8217 §3).
    """
    match = _NAME_ADDR_FAST.fullmatch(value)
    address = NameAddr()
    if match is not None:
        address.uri, address.parameters = match.groups()
        address.bracketed = True
        return address
    return _parse_odd_name_addr(address, unfold(value))


def _parse_odd_name_addr(address: NameAddr, value: bytes) -> NameAddr:
    bracket = end_of_quoted(value, 0) if value[:1] == b'"' else 0
    start = value.find(b"<", bracket)
    if not bracket and (start < 0 or value.find(b'"', 0, start) >= 0):  # a quoted parameter may hold brackets
        return _parse_addr_spec(address, value)
    name = value[bracket:start].strip(b" \t")
    if start < 0 or (bracket and name):
        raise syntax_error("name_addr", "no address behind the display name")
    if not all(is_token(word) for word in name.split()):
        raise syntax_error("display_name", "a display name needs quotes")
    end = value.find(b">", start)
    if end < 0:
        raise syntax_error("angle_bracket", "an angle bracket is not closed")
    address.uri = value[start + 1 : end]
    address.parameters = value[end + 1 :].strip(b" \t")
    address.bracketed = True
    return _checked(address)


def _parse_addr_spec(address: NameAddr, value: bytes) -> NameAddr:
    uri, semicolon, parameters = value.partition(b";")
    address.uri = uri.strip(b" \t")
    address.parameters = semicolon + parameters
    address.bracketed = False
    if not address.uri or b"?" in address.uri or b"," in address.uri or b'"' in address.uri:
        raise syntax_error("addr_spec", "this URI needs angle brackets")
    return _checked(address)


def _checked(address: NameAddr) -> NameAddr:
    if not address.uri or address.uri.translate(None, b" \t\r\n<>") != address.uri:
        raise syntax_error("addr_spec", "blanks in a URI")
    parse_parameters(address.parameters)
    return address


def parse_name_addr_list(values: list[bytes]) -> list[NameAddr]:
    """Read every value of a header that may repeat and may be comma-joined (Contact, Route, Path …)."""
    return [parse_name_addr(item) for value in values for item in split_list(unfold(value))]


def parse_cseq(value: bytes) -> tuple[int, bytes]:
    """Read CSeq: (number 0 to 2^32-1, method)."""
    number, _, method = value.partition(b" ")
    if not is_digits(number) or len(number) > 32 or not is_token(method):
        number, method = _split_odd_cseq(value)
    sequence = int(number)
    if sequence > 0xFFFFFFFF:
        raise syntax_error("cseq", "the sequence number is too large")
    return sequence, method


def _split_odd_cseq(value: bytes) -> tuple[bytes, bytes]:
    parts = unfold(value).split()
    if len(parts) != 2 or not is_digits(parts[0]) or len(parts[0]) > 32 or not is_token(parts[1]):
        raise syntax_error("cseq", "not a number and a method")
    return parts[0], parts[1]


def parse_max_forwards(value: bytes) -> int:
    """Read Max-Forwards, 0 to 255 with leading zeros allowed; more counts as 255's default, 70 (RFC 4475 §3.1.2.4)."""
    value = unfold(value)
    if not value.isdigit() or len(value) > 10:
        raise syntax_error("max_forwards", "not a number")
    hops = int(value)
    return hops if hops <= 255 else 70


def parse_content_length(value: bytes) -> int:
    """Read Content-Length: ASCII digits only, at most ten of them (RFC 3261 §20.14)."""
    value = unfold(value)
    if not value.isdigit() or len(value) > 10:
        raise syntax_error("content_length", "not a length")
    return int(value)


def parse_delta(value: bytes, malformed: int) -> int:
    """Read delta-seconds; above 2^32-1 counts as that, anything else as `malformed` (RFC 3261 §10.2.1.1)."""
    value = unfold(value)
    if not is_digits(value):
        return malformed
    return min(int(value[:20]), 0xFFFFFFFF)


def parse_tokens(values: list[bytes]) -> list[bytes]:
    """Read option tags and the like: comma lists on any number of rows, order and case kept, blanks trimmed."""
    return [item.strip(b" \t") for value in values for item in unfold(value).split(b",") if item.strip(b" \t")]


def has_option(values: list[bytes], tag: bytes) -> bool:
    """Whether an option tag is listed, case folded."""
    return any(tag in value.lower() for value in values) and tag in [t.lower() for t in parse_tokens(values)]


def remote_error_of(kind: int) -> RemoteError:
    """The error for a header that must occur once and does not."""
    name = next(name for name, known in _LONG.items() if known == kind).decode()
    return syntax_error("duplicate_header", f"{name} occurs twice")
