"""Decide whether credentials let somebody in, for SIP (RFC 3261 §22) and MSRP AUTH (RFC 4976 §5.1, §9.1) alike.

    value ─► parse ─► ours? ──► complete? ──► user known? ──► response right? ──► nonce good? ──► nc unused? ──► GRANTED
               │        │           │             │                 │                 │              │
           MALFORMED  OTHER,    MALFORMED      PENDING           DENIED             STALE          STALE
                      DENIED

Unknown users go the way of wrong passwords: the same hashes over a stand-in H(A1), the same answer. A nonce we cannot
accept only counts as stale when the response over it was right, so `stale` tells a stranger nothing.

What status that becomes, and which requests are asked at all, is for the protocols.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from hmac import compare_digest

from edge.auth.credentials import MISSING, CredentialCache, Lookup
from edge.auth.digest import (
    MD5,
    Algorithm,
    Credentials,
    build_authentication_info,
    build_challenge,
    compute_response,
    compute_rspauth,
    parse_credentials,
    select_algorithms,
)
from edge.auth.nonce import Nonces, NonceState
from edge.errors import LocalError, RemoteError


class Outcome(Enum):
    """What came of some credentials.

    GRANTED: they are right. DENIED: challenge anew. STALE: right but for the nonce, challenge with `stale=true`.
    PENDING: ask the user store, then verify again. MALFORMED: answer 400. OTHER: not Digest, no row for our realm, or
    nothing answered yet; challenge, and count no failure.
    """

    GRANTED = "granted"
    DENIED = "denied"
    STALE = "stale"
    PENDING = "pending"
    MALFORMED = "malformed"
    OTHER = "other"


class Verdict:
    """The outcome for one row of credentials.

    `username` and `realm` are set as soon as they were read, and proven only when GRANTED. With PENDING, `username`
    and the authenticator's `domain` are the key to put into the cache, and `username` is UTF-8 of at most
    `MAX_USERNAME` octets. `reason` is one of a fixed set
    of words, for logs and metrics; it tells an unknown user from a wrong password and so never goes to the peer.
    `authentication_info` is a whole header value.
    """

    __slots__ = ("authentication_info", "credentials", "outcome", "realm", "reason", "username")

    def __init__(
        self,
        outcome: Outcome,
        reason: str,
        credentials: Credentials | None = None,
        authentication_info: bytes | None = None,
    ) -> None:
        self.outcome = outcome
        self.reason = reason
        self.credentials = credentials
        self.username = (credentials and credentials.username) or b""
        self.realm = (credentials and credentials.realm) or b""
        self.authentication_info = authentication_info

    @property
    def stale(self) -> bool:
        """Whether the next challenge says `stale=true`."""
        return self.outcome is Outcome.STALE


@dataclass(frozen=True, slots=True)
class Dialect:
    """Where SIP and MSRP want their digest different."""

    rising_count: bool
    """nc must rise; otherwise a late one is accepted once."""
    uri_required: bool
    """`uri` must be there, in quotes (RFC 8760 §2.6); otherwise the given URI is hashed where it is left out."""
    missing_qop: Outcome
    """What credentials without qop are."""
    qop_first: bool
    """In challenges, qop stands before the algorithm."""
    authentication_info: bool
    """Whether GRANTED comes with an Authentication-Info value."""
    next_nonce: bool = False
    """Whether that value holds a nextnonce."""
    stale_on_replay: bool = True
    """A used nc with a right response is STALE, else DENIED. Some phones repeat nc 1 and need the hint to go on."""
    legacy_no_qop: bool = False
    """Accept credentials without qop (RFC 3261 §22.4 item 8). They can be replayed while their nonce lives."""


SIP = Dialect(
    rising_count=False,
    uri_required=True,
    missing_qop=Outcome.DENIED,
    qop_first=True,
    authentication_info=False,
)
MSRP = Dialect(
    rising_count=True,
    uri_required=False,
    missing_qop=Outcome.MALFORMED,
    qop_first=False,
    authentication_info=True,
    next_nonce=True,
)

UriCheck = Callable[[bytes], bool]

MAX_USERNAME = 255
"""Octets of the longest name a user may have; the usual `subscriber` table holds 64 characters."""

_count = re.compile(rb"[0-9A-Fa-f]{8}")


class Authenticator:
    """Make challenges for one realm and judge the answers.

    `algorithms` are names as configured ("SHA-256", "MD5"); challenges come strongest first whatever their order.
    `nonces` must be made for the same realm and algorithms, and may be shared between dialects. `random` takes a number
    of octets and returns that many; it is used once, for the stand-in H(A1) of unknown users. `domain` is where users
    are looked up: several domains may share a realm, and a name may be somebody else's in each. Default: the realm.

    Raises:
        LocalError: an unknown algorithm, or nonces made for another realm or other algorithms.
    """

    __slots__ = (
        "_algorithms", "_cache", "_dialect", "_frames", "_nonces", "_offered", "_realm", "_stand_ins", "domain",
        "md5_last",
    )  # fmt: skip

    def __init__(
        self,
        realm: bytes,
        algorithms: Sequence[str],
        nonces: Nonces,
        cache: CredentialCache,
        random: Callable[[int], bytes],
        *,
        dialect: Dialect = SIP,
        domain: bytes | None = None,
    ) -> None:
        if nonces.realm != realm or select_algorithms(nonces.algorithms) != select_algorithms(algorithms):
            raise LocalError("nonces made for another realm or other algorithms")
        self.domain = realm if domain is None else domain
        self._realm = realm
        self._algorithms = select_algorithms(algorithms)
        self._offered = {algorithm.token: algorithm for algorithm in self._algorithms}
        self._nonces = nonces
        self._cache = cache
        self._dialect = dialect
        self.md5_last = len(self._algorithms) > 1 and self._algorithms[-1] is MD5
        self._stand_ins = {a.token: random(a.hex_length // 2).hex().encode() for a in self._algorithms}
        self._frames = {stale: [self._frame(a, stale) for a in self._algorithms] for stale in (False, True)}

    def challenges(self, now: float, stale: bool = False, *, last: bool = False) -> list[bytes]:
        """Return one header value for each algorithm, strongest first, MD5 last, all with the same fresh nonce.

        `last` asks for the last of them alone: for a client that gives up when it sees any other (`md5_last`).
        """
        nonce = self._nonces.issue(now)
        frames = self._frames[stale]
        return [before + nonce + after for before, after in (frames[-1:] if last else frames)]

    def verify(
        self, value: bytes, method: bytes, uri_ok: UriCheck | None, now: float, *, uri: bytes | None = None
    ) -> Verdict:
        """Judge one Authorization or Proxy-Authorization value.

        `uri_ok` is asked whether the `uri` of the credentials names what the request does; None asks nobody. `uri` is
        hashed where the credentials have none and the dialect lets them (MSRP: the rightmost To-Path URI as received).
        A count is used up only when the outcome is GRANTED.
        """
        try:
            credentials = parse_credentials(value)
        except RemoteError as error:
            return Verdict(Outcome.MALFORMED, error.detail)
        if credentials is None:
            return Verdict(Outcome.OTHER, "scheme")
        return self._judge(credentials, method, uri_ok, now, uri)

    def verify_rows(
        self, values: Iterable[bytes], method: bytes, uri_ok: UriCheck | None, now: float, *, uri: bytes | None = None
    ) -> Verdict:
        """Judge the rows of a request that passes several proxies: those for our realm count (RFC 3261 §22.3).

        A client may answer each challenge with a row of its own, so the first row of ours that is not DENIED decides,
        among as many as we offer algorithms. A row nobody can read counts only when no row is ours. OTHER: none is.
        """
        denied: list[Verdict] = []
        unread: Verdict | None = None
        for value in values:
            try:
                credentials = parse_credentials(value)
            except RemoteError as error:
                unread = unread or Verdict(Outcome.MALFORMED, error.detail)
                continue
            if credentials is None or credentials.realm != self._realm:
                continue
            verdict = self._judge(credentials, method, uri_ok, now, uri)
            if verdict.outcome is not Outcome.DENIED:
                return verdict
            denied.append(verdict)
            if len(denied) == len(self._algorithms):
                break
        return denied[0] if denied else unread or Verdict(Outcome.OTHER, "realm")

    def _judge(
        self, credentials: Credentials, method: bytes, uri_ok: UriCheck | None, now: float, uri: bytes | None
    ) -> Verdict:
        """Check what needs no secret; the rest is `_decide`."""
        realm, nc = credentials.realm, credentials.nc
        if realm is None or not credentials.username or credentials.nonce is None or credentials.response is None:
            return Verdict(Outcome.MALFORMED, "missing", credentials)
        if realm != self._realm:
            return Verdict(Outcome.DENIED, "realm", credentials)
        if not credentials.nonce or not credentials.response:
            # IMS phones introduce themselves so in their first REGISTER (3GPP TS 24.229 §5.1.1.2).
            return Verdict(Outcome.OTHER, "empty", credentials)
        if credentials.qop is None:
            if not self._dialect.legacy_no_qop:
                return Verdict(self._dialect.missing_qop, "qop", credentials)
        elif credentials.qop.lower() != b"auth":
            return Verdict(Outcome.MALFORMED, "qop", credentials)
        elif credentials.cnonce is None or nc is None or _count.fullmatch(nc) is None:
            return Verdict(Outcome.MALFORMED, "count", credentials)
        if credentials.uri is not None:
            if (self._dialect.uri_required and not credentials.uri_quoted) or (uri_ok and not uri_ok(credentials.uri)):
                return Verdict(Outcome.MALFORMED, "uri", credentials)
            uri = credentials.uri
        elif self._dialect.uri_required or uri is None:
            return Verdict(Outcome.MALFORMED, "uri", credentials)
        algorithm = self._offered.get((credentials.algorithm or MD5.token).upper())
        if algorithm is None:
            return Verdict(Outcome.DENIED, "algorithm", credentials)
        return self._decide(credentials, algorithm, method, uri, now)

    def _decide(self, credentials: Credentials, algorithm: Algorithm, method: bytes, uri: bytes, now: float) -> Verdict:
        """Compare the response, then look at nonce and count. `_judge` made sure that all of them are there."""
        username, nonce, response = credentials.username, credentials.nonce, credentials.response
        assert username is not None
        assert nonce is not None
        assert response is not None
        found = self._cache.get(username, self.domain, now)
        if found is MISSING and _can_be_asked(username):
            return Verdict(Outcome.PENDING, "user", credentials)
        known = None if isinstance(found, Lookup) else found.for_algorithm(algorithm)
        ha1 = known or self._stand_ins[algorithm.token]
        expected = compute_response(
            algorithm, ha1, method, uri, nonce, nc=credentials.nc, cnonce=credentials.cnonce, qop=credentials.qop
        )
        state = self._nonces.check(nonce, now)
        if not compare_digest(expected, response) or known is None:
            return Verdict(Outcome.DENIED, "response" if known else "user", credentials)
        if state is not NonceState.FOREIGN and credentials.opaque and credentials.opaque != self._nonces.opaque:
            return Verdict(Outcome.DENIED, "opaque", credentials)
        if state is not NonceState.VALID:
            return Verdict(Outcome.STALE, "nonce", credentials)
        if credentials.qop is None:
            return Verdict(Outcome.GRANTED, "", credentials)
        return self._count(credentials, algorithm, ha1, uri, now)

    def _count(self, credentials: Credentials, algorithm: Algorithm, ha1: bytes, uri: bytes, now: float) -> Verdict:
        """Use up the count of credentials that are right otherwise, and prove that we know the password too."""
        nonce, nc, cnonce, qop = credentials.nonce, credentials.nc, credentials.cnonce, credentials.qop
        assert nonce is not None
        assert nc is not None
        assert cnonce is not None
        assert qop is not None
        if not self._nonces.accept(nonce, int(nc, 16), now, rising=self._dialect.rising_count):
            replayed = Outcome.STALE if self._dialect.stale_on_replay else Outcome.DENIED
            return Verdict(replayed, "replay", credentials)
        if not self._dialect.authentication_info:
            return Verdict(Outcome.GRANTED, "", credentials)
        rspauth = compute_rspauth(algorithm, ha1, uri, nonce, nc=nc, cnonce=cnonce, qop=qop)
        nextnonce = self._nonces.issue(now) if self._dialect.next_nonce else None
        info = build_authentication_info(rspauth, cnonce, nc, nextnonce)
        return Verdict(Outcome.GRANTED, "", credentials, info)

    def _frame(self, algorithm: Algorithm, stale: bool) -> tuple[bytes, bytes]:
        """Split a challenge into what stands before and after its nonce."""
        mark = b"\xff"  # in no realm: those are UTF-8
        qop_first = self._dialect.qop_first
        challenge = build_challenge(self._realm, mark, self._nonces.opaque, algorithm, stale, qop_first=qop_first)
        before, _, after = challenge.partition(mark)
        return before, after


def _can_be_asked(username: bytes) -> bool:
    """Whether a user store, which speaks text, can have this name at all; such names also are what a cache holds."""
    if len(username) > MAX_USERNAME:
        return False
    try:
        username.decode()
    except UnicodeDecodeError:
        return False
    return True
