"""Digest access authentication as bytes: credentials in, challenges and Authentication-Info out (RFC 7616, RFC 8760).

The same digest serves SIP (RFC 3261 §22) and MSRP AUTH (RFC 4976 §9.1); what differs is the method, the URI and some
leniency, all of which the caller passes. Whether a nonce is ours is for `edge.auth.nonce`, who may enter for
`edge.auth.authenticator`.

    H(A1)    = H(username ":" realm ":" password)          kept by the user store, never the password
    H(A2)    = H(method ":" uri), for rspauth H(":" uri)
    response = H(H(A1) ":" nonce ":" nc ":" cnonce ":" qop ":" H(A2))
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edge.auth.parameters import read_known, read_parameters, split_scheme
from edge.errors import LocalError, RemoteError


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A hash of the IANA digest registry (RFC 7616 §6.1, RFC 8760 §2.2): its wire token and the digits of its result.

    `hash_hex` takes octets and gives lower-case hexadecimal digits. `rank` orders challenges, strongest first.
    """

    token: bytes
    hex_length: int
    rank: int
    hash_hex: Callable[[bytes], bytes]


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).hexdigest().encode()


def _sha_256(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def _sha_512_256(data: bytes) -> bytes:
    return hashlib.new("sha512_256", data).hexdigest().encode()


MD5 = Algorithm(b"MD5", 32, 2, _md5)
SHA_256 = Algorithm(b"SHA-256", 64, 0, _sha_256)
SHA_512_256 = Algorithm(b"SHA-512-256", 64, 1, _sha_512_256)

ALGORITHMS = {algorithm.token: algorithm for algorithm in (SHA_256, SHA_512_256, MD5)}
"""Every algorithm by its token in upper case, strongest first."""


def select_algorithms(names: Iterable[str]) -> tuple[Algorithm, ...]:
    """Return the named algorithms strongest first, MD5 last: the order challenges must have (RFC 8760 §2.3).

    Raises:
        LocalError: an unknown name, or none at all.
    """
    wanted = {name.upper().encode() for name in names}
    if not wanted or not wanted <= ALGORITHMS.keys():
        raise LocalError(f"digest algorithms must be some of {', '.join(token.decode() for token in ALGORITHMS)}")
    return tuple(sorted((ALGORITHMS[token] for token in wanted), key=lambda algorithm: algorithm.rank))


class Credentials:
    """Digest credentials as they came (RFC 7616 §3.4): unescaped octets, None where a parameter is absent.

    `username` holds the decoded `username*` where that was sent instead. `uri_quoted`: whether `uri` stood in quotes.
    """

    __slots__ = (
        "algorithm", "cnonce", "nc", "nonce", "opaque", "qop", "realm", "response", "uri", "uri_quoted", "username",
    )  # fmt: skip

    def __init__(self, found: dict[bytes, bytes], *, uri_quoted: bool) -> None:
        get = found.get
        self.username = get(b"username")
        self.realm = get(b"realm")
        self.nonce = get(b"nonce")
        self.uri = get(b"uri")
        self.response = get(b"response")
        self.algorithm = get(b"algorithm")
        self.opaque = get(b"opaque")
        self.qop = get(b"qop")
        self.cnonce = get(b"cnonce")
        self.nc = get(b"nc")
        self.uri_quoted = uri_quoted


_FIELDS = frozenset(
    b"username username* realm nonce uri response algorithm opaque qop cnonce nc userhash".split()  # RFC 7616 §3.4
)


_PLAIN_FIELDS = _FIELDS - {b"username*"}


def parse_credentials(value: bytes) -> Credentials | None:
    """Read an Authorization or Proxy-Authorization value (RFC 7616 §3.4); None when its scheme is not Digest.

    Parameters may come in any order, quoted or bare; unknown ones are skipped. Which of them must be there depends on
    the protocol, so an absent one is None here. Takes time in proportion to the size, which is limited.

    Raises:
        RemoteError: not scheme and parameters, a digest parameter twice, `username` beside `username*`, or over the
            limits of `edge.auth.parameters` (status 400, label "credentials"; `detail` is one word for logs).
    """
    known = read_known(value)
    if known is not None and _PLAIN_FIELDS.issuperset(known):
        return Credentials(known, uri_quoted=b'uri="' in value or b"uri" not in known)
    scheme, start = split_scheme(value)
    if scheme != b"digest":
        return None
    parameters = read_parameters(value, start)
    found: dict[bytes, bytes] = {}
    uri_quoted = True
    for name, quoted, bare, _ in parameters:
        name = name.lower()
        if name in _FIELDS:
            if name in found:
                raise RemoteError(400, "credentials", "duplicate")
            found[name] = quoted or bare
            if bare and name == b"uri":
                uri_quoted = False
    if b"username*" in found:
        _settle_username(found)
    return Credentials(found, uri_quoted=uri_quoted)


_percent = re.compile(rb"%([0-9A-Fa-f]{2})|[^%]")


def _settle_username(found: dict[bytes, bytes]) -> None:
    """Decode `username*` (RFC 7616 §3.4, RFC 5987 §3.2) into `username`, which must not stand beside it."""
    if b"username" in found:
        raise RemoteError(400, "credentials", "username")
    charset, _, rest = found[b"username*"].partition(b"'")
    _, mark, text = rest.partition(b"'")
    if charset.lower() != b"utf-8" or not mark:
        raise RemoteError(400, "credentials", "username")
    name = _percent.sub(lambda octet: bytes([int(octet[1], 16)]) if octet[1] else octet[0], text)
    if b"%" in _percent.sub(b"", text) or any(octet < 0x20 or octet == 0x7F for octet in name):
        raise RemoteError(400, "credentials", "username")
    found[b"username"] = name


def ha1(username: bytes, realm: bytes, password: bytes, algorithm: Algorithm) -> bytes:
    """Hash H(A1) (RFC 7616 §3.4.2), in lower-case hexadecimal digits: what a user store keeps instead of a password."""
    return algorithm.hash_hex(b"%b:%b:%b" % (username, realm, password))


def compute_response(
    algorithm: Algorithm,
    ha1: bytes,
    method: bytes,
    uri: bytes,
    nonce: bytes,
    *,
    nc: bytes | None = None,
    cnonce: bytes | None = None,
    qop: bytes | None = None,
) -> bytes:
    """Compute the response a client must send (RFC 7616 §3.4.1), in lower-case hexadecimal digits.

    Every argument is hashed as it was received, unescaped. Without `qop` the form of RFC 2069 is computed, which
    RFC 3261 §22.4 item 8 still asks servers to know.
    """
    ha2 = algorithm.hash_hex(b"%b:%b" % (method, uri))
    if qop is None:
        return algorithm.hash_hex(b"%b:%b:%b" % (ha1, nonce, ha2))
    return algorithm.hash_hex(b"%b:%b:%b:%b:%b:%b" % (ha1, nonce, nc or b"", cnonce or b"", qop, ha2))


def compute_rspauth(
    algorithm: Algorithm, ha1: bytes, uri: bytes, nonce: bytes, *, nc: bytes, cnonce: bytes, qop: bytes
) -> bytes:
    """Compute the proof that the server knows H(A1) too (RFC 7616 §3.5): the response with an empty method."""
    return compute_response(algorithm, ha1, b"", uri, nonce, nc=nc, cnonce=cnonce, qop=qop)


_unsafe = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


def _quote(text: bytes) -> bytes:
    if _unsafe.search(text):
        raise LocalError("control character in a quoted digest value")
    return b'"%b"' % text.replace(b"\\", b"\\\\").replace(b'"', b'\\"')


def build_challenge(
    realm: bytes,
    nonce: bytes,
    opaque: bytes,
    algorithm: Algorithm,
    stale: bool = False,
    *,
    qop_first: bool = False,
) -> bytes:
    """Build the value of a WWW-Authenticate or Proxy-Authenticate header (RFC 7616 §3.3).

    Comma and one blank between parameters, `stale` and `algorithm` bare, the others quoted: deployed clients split
    exactly so, and fail without opaque. MSRP has qop at the end, SIP in front of the algorithm (`qop_first`).

    Raises:
        LocalError: a control character in the realm.
    """
    parts = [b"Digest realm=" + _quote(realm), b"nonce=" + _quote(nonce), b"opaque=" + _quote(opaque)]
    if stale:
        parts.append(b"stale=true")
    tail = [b"algorithm=" + algorithm.token, b'qop="auth"']
    if qop_first:
        tail.reverse()
    return b", ".join(parts + tail)


def build_authentication_info(rspauth: bytes, cnonce: bytes, nc: bytes, nextnonce: bytes | None = None) -> bytes:
    """Build the value of an Authentication-Info header (RFC 7616 §3.5, RFC 4976 §9.1); qop is always auth.

    There is no scheme in front; nextnonce, rspauth and cnonce are quoted, nc and qop are not.
    """
    parts = [b"rspauth=" + _quote(rspauth), b"cnonce=" + _quote(cnonce), b"nc=" + nc, b"qop=auth"]
    if nextnonce is not None:
        parts.insert(0, b"nextnonce=" + _quote(nextnonce))
    return b", ".join(parts)
