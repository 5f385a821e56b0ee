"""SIP and SIPS URIs (RFC 3261 §19.1): reading, comparing, and the key of an address of record.

A `SipUri` keeps the bytes it was read from; forwarding writes those, never a URI put together again.
"""

from __future__ import annotations

from typing import Final

from edge.errors import RemoteError
from edge.sip.grammar import is_token, split_host_port, syntax_error, unescape
from edge.sip.headers import parse_name_addr

_MUST_AGREE: Final = frozenset((b"user", b"ttl", b"method", b"maddr", b"transport"))
_USER_RESERVED: Final = b";?/:&=+$,@%"


class SipUri:
    """A parsed sip: or sips: URI.

    `user`, `password` are raw (escapes kept) or None; `host` is canonical; `port` is None where absent;
    `parameters` maps names, unescaped and in lower case, to raw values (b"" for a flag); `headers` is the raw text
    behind `?`.
    """

    __slots__ = ("headers", "host", "parameters", "password", "port", "raw", "secure", "user")

    raw: bytes
    secure: bool
    user: bytes | None
    password: bytes | None
    host: bytes
    port: int | None
    parameters: dict[bytes, bytes]
    headers: bytes

    @property
    def transport(self) -> bytes:
        """The transport parameter in lower case, b"" when absent."""
        return unescape(self.parameters.get(b"transport", b"")).lower()

    @property
    def loose(self) -> bool:
        """Whether `lr` is present in any spelling (RFC 3261 §19.1.1)."""
        return b"lr" in self.parameters

    def aor(self) -> bytes:
        """Return the address-of-record key (RFC 3261 §10.3 step 5): sip folded with sips, user unescaped."""
        user = unescape(self.user) if self.user is not None else b""
        return user + b"@" + self.host

    def target(self) -> bytes:
        """Return the bytes to use as a Request-URI: without headers and `method` (RFC 3261 §19.1.5)."""
        raw = self.raw
        if self.headers:
            raw = raw[: raw.index(b"?", raw.rfind(b"@") + 1)]
        if b"method" not in self.parameters:
            return raw
        scheme_host, *parameters = raw[raw.rfind(b"@") + 1 :].split(b";")
        kept = [piece for piece in parameters if unescape(piece.partition(b"=")[0]).lower() != b"method"]
        return raw[: raw.rfind(b"@") + 1] + b";".join([scheme_host, *kept])


def scheme_of(value: bytes) -> bytes:
    """Return the lower-case scheme of any URI, b"" when there is none."""
    scheme, colon, _ = value.partition(b":")
    return scheme.lower() if colon and is_token(scheme) else b""


def parse_uri(value: bytes) -> SipUri:
    """Read a sip: or sips: URI.

    Raises:
        RemoteError: 416 for another scheme, 400 for a URI that breaks the grammar.
    """
    scheme = scheme_of(value)
    if scheme not in (b"sip", b"sips"):
        raise RemoteError(416, "scheme", "URI scheme not served") if scheme else syntax_error("uri", "not a URI")
    if value.translate(None, b' \t\r\n<>"') != value:
        raise syntax_error("uri", "blanks, quotes or brackets in a URI")
    uri = SipUri()
    uri.raw = value
    uri.secure = scheme == b"sips"
    rest = value[len(scheme) + 1 :]
    userinfo, at, hostpart = rest.rpartition(b"@")
    question = hostpart.find(b"?")
    uri.headers = b"" if question < 0 else hostpart[question + 1 :]
    if question >= 0:
        hostpart = hostpart[:question]
        if not uri.headers:
            raise syntax_error("uri", "a question mark with no headers")
    hostport, *parameters = hostpart.split(b";")
    if b":::" in hostport:  # the grammar of RFC 3261 allowed three colons; they are never passed on (RFC 5118 §4.10)
        uri.raw = value.replace(b":::", b"::")
    uri.user, uri.password = _split_userinfo(userinfo) if at else (None, None)
    uri.host, uri.port = split_host_port(hostport)
    uri.parameters = _parse_uri_parameters(parameters)
    return uri


def _split_userinfo(userinfo: bytes) -> tuple[bytes, bytes | None]:
    user, colon, password = userinfo.partition(b":")
    if not user or b"@" in userinfo:
        raise syntax_error("uri", "empty user, or a second @")
    return user, password if colon else None


def _parse_uri_parameters(pieces: list[bytes]) -> dict[bytes, bytes]:
    parameters: dict[bytes, bytes] = {}
    for piece in pieces:
        name, _, content = piece.partition(b"=")
        name = unescape(name).lower()
        if not name:
            raise syntax_error("uri", "an empty URI parameter")
        if name in parameters and name in (b"transport", b"lr", b"maddr", b"user", b"ttl", b"method", b"ob"):
            raise syntax_error("duplicate_parameter", "a URI parameter occurs twice")
        parameters.setdefault(name, content)
    return parameters


def _canonical(value: bytes) -> bytes:
    """Decode escapes of characters that may stand bare; reserved ones stay escaped, hex digits upper case."""
    if b"%" not in value:
        return value
    out = bytearray()
    position = 0
    while position < len(value):
        piece = value[position : position + 3]
        if piece[:1] == b"%" and len(piece) == 3:
            decoded = unescape(piece)
            if decoded != piece:
                octet = decoded[0]
                keep = decoded in _USER_RESERVED or octet <= 0x20 or octet >= 0x7F
                out += piece.upper() if keep else decoded
                position += 3
                continue
        out.append(value[position])
        position += 1
    return bytes(out)


def uri_equal(left: SipUri, right: SipUri) -> bool:
    """Compare two URIs (RFC 3261 §19.1.4). Not transitive: never use it as the only key of a table."""
    if left.secure != right.secure or left.host != right.host or left.port != right.port:
        return False
    for one, two in ((left.user, right.user), (left.password, right.password)):
        if (one is None) != (two is None) or (
            one is not None and two is not None and _canonical(one) != _canonical(two)
        ):
            return False
    return _parameters_equal(left.parameters, right.parameters) and _headers_equal(left.headers, right.headers)


def _parameters_equal(left: dict[bytes, bytes], right: dict[bytes, bytes]) -> bool:
    for name in left.keys() | right.keys():
        if name in left and name in right:
            if _canonical(left[name]).lower() != _canonical(right[name]).lower():
                return False
        elif name in _MUST_AGREE:
            return False
    return True


def _headers_equal(left: bytes, right: bytes) -> bool:
    if left == right:
        return True
    return _header_set(left) == _header_set(right)


def _header_set(headers: bytes) -> list[tuple[bytes, bytes]]:
    pairs = [piece.partition(b"=") for piece in headers.split(b"&")]
    return sorted((_canonical(name).lower(), _canonical(content)) for name, _, content in pairs)


class UriCache:
    """Remember parsed URIs by their bytes; phones repeat the same few. Bounded: emptied when full."""

    __slots__ = ("_known", "_limit")

    def __init__(self, limit: int = 1024) -> None:
        self._known: dict[bytes, SipUri] = {}
        self._limit = limit

    def parse(self, value: bytes) -> SipUri:
        """Like `parse_uri`; the result is shared and must not be changed."""
        uri = self._known.get(value)
        if uri is None:
            uri = parse_uri(value)
            self._keep(value, uri)
        return uri

    def parse_bracketed(self, value: bytes) -> SipUri:
        """Read the URI of a Route or Contact value, remembered with its brackets; raises as `parse_name_addr` does."""
        uri = self._known.get(value)
        if uri is None:
            uri = parse_uri(parse_name_addr(value).uri)
            self._keep(value, uri)
        return uri

    def _keep(self, value: bytes, uri: SipUri) -> None:
        if len(value) <= 256:
            if len(self._known) >= self._limit:
                self._known.clear()
            self._known[value] = uri
