"""Client side of HTTP Digest (RFC 7616, RFC 8760) as SIP (RFC 3261 §22) and MSRP (RFC 4976 §9.1) use it.

Knows no message format: challenge values go in, Authorization values come out. The server's proof of
knowing the password (`rspauth`, RFC 7616 §3.5) can be checked with `Answer.expected_rspauth`.
"""

import hashlib
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

_HASHES: Mapping[str, Callable[[bytes], "hashlib._Hash"]] = {
    "MD5": hashlib.md5,
    "SHA-256": hashlib.sha256,
    "SHA-512-256": lambda data: hashlib.new("sha512_256", data),
}
_PARAMETER = re.compile(r'\s*([^\s=,"]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^\s,"]*)\s*(?:,|$)')


def parse_parameters(value: str) -> dict[str, str]:
    """Read `name=value, name="value"` lists; names in lower case, quotes and escapes taken off.

    Raises:
        ValueError: not such a list, or a name occurs twice.
    """
    found: dict[str, str] = {}
    position = 0
    while position < len(value):
        match = _PARAMETER.match(value, position)
        if match is None:
            raise ValueError(f"not a parameter list at {value[position:]!r}")
        name, text = match[1].lower(), match[2]
        if name in found:
            raise ValueError(f"parameter {name} occurs twice")
        found[name] = re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith('"') else text
        position = match.end()
    return found


@dataclass(frozen=True, slots=True)
class Challenge:
    """One WWW-Authenticate or Proxy-Authenticate value (RFC 7616 §3.3)."""

    realm: str
    nonce: str
    algorithm: str = "MD5"
    opaque: str | None = None
    qop: tuple[str, ...] = ()
    stale: bool = False

    @classmethod
    def parse(cls, value: str) -> "Challenge":
        """Read a header value. Raises ValueError for another scheme than Digest or a missing realm or nonce."""
        scheme, _, rest = value.strip().partition(" ")
        if scheme.lower() != "digest":
            raise ValueError(f"not a Digest challenge: {value!r}")
        found = parse_parameters(rest)
        if "realm" not in found or "nonce" not in found:
            raise ValueError("challenge without realm or nonce")
        return cls(
            realm=found["realm"],
            nonce=found["nonce"],
            algorithm=found.get("algorithm", "MD5"),
            opaque=found.get("opaque"),
            qop=tuple(token.strip() for token in found.get("qop", "").split(",") if token.strip()),
            stale=found.get("stale", "false").lower() == "true",
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What `answer` computed: the header value and what is needed to check the server's `rspauth`."""

    header: str
    ha1: str
    challenge: Challenge
    cnonce: str
    nc: str
    uri: str

    def expected_rspauth(self) -> str:
        """Return the response-digest the server must send back: A2 is `:` and the URI (RFC 7616 §3.5)."""
        return _response(self.challenge, self.ha1, "", self.uri, self.nc, self.cnonce)


def choose(values: Iterable[str], algorithms: Iterable[str] = ("SHA-256", "MD5")) -> Challenge | None:
    """Return the topmost Digest challenge whose algorithm we know (RFC 8760 §2.4), or None."""
    known = {name.upper() for name in algorithms}
    for value in values:
        if not value.strip().lower().startswith("digest "):
            continue
        challenge = Challenge.parse(value)
        if challenge.algorithm.upper() in known and (not challenge.qop or "auth" in challenge.qop):
            return challenge
    return None


def digest(algorithm: str, *parts: str) -> str:
    """Return the lower-case hex digest of the parts joined by colons, in UTF-8."""
    return _HASHES[algorithm.upper()](":".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def response(challenge: Challenge, username: str, password: str, method: str, uri: str, *, nc: str, cnonce: str) -> str:
    """Return the response-digest (RFC 7616 §3.4.1); the form of RFC 2617 §3.2.2.1 where no qop was offered."""
    ha1 = digest(challenge.algorithm, username, challenge.realm, password)
    return _response(challenge, ha1, method, uri, nc, cnonce)


def answer(
    challenge: Challenge,
    username: str,
    password: str,
    method: str,
    uri: str,
    *,
    count: int = 1,
    cnonce: str | None = None,
    with_uri: bool = True,
) -> Answer:
    """Build an Authorization value for `challenge`.

    Args:
        count: nonce count, 1 for the first use of the nonce.
        with_uri: False leaves the `uri` parameter out, as the grammar of RFC 4976 §7 does.
    """
    cnonce = secrets.token_hex(8) if cnonce is None else cnonce
    nc = f"{count:08x}"
    ha1 = digest(challenge.algorithm, username, challenge.realm, password)
    fields = [f"username={_quote(username)}", f"realm={_quote(challenge.realm)}", f"nonce={_quote(challenge.nonce)}"]
    if with_uri:
        fields.append(f"uri={_quote(uri)}")
    fields.append(f'response="{_response(challenge, ha1, method, uri, nc, cnonce)}"')
    fields.append(f"algorithm={challenge.algorithm}")
    if challenge.opaque is not None:
        fields.append(f"opaque={_quote(challenge.opaque)}")
    if challenge.qop:
        fields += ["qop=auth", f"cnonce={_quote(cnonce)}", f"nc={nc}"]
    return Answer("Digest " + ", ".join(fields), ha1, challenge, cnonce, nc, uri)


def _response(challenge: Challenge, ha1: str, method: str, uri: str, nc: str, cnonce: str) -> str:
    ha2 = digest(challenge.algorithm, method, uri)
    if not challenge.qop:
        return digest(challenge.algorithm, ha1, challenge.nonce, ha2)
    return digest(challenge.algorithm, ha1, challenge.nonce, nc, cnonce, "auth", ha2)


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
