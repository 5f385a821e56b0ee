"""Nonces that need no table, and the memory of the counts used with them (RFC 7616 §3.3, §3.4, §5.4).

A nonce is 32 characters of the URL-safe base64 alphabet, so nothing in it is special to any client:

    0               8               16                              32
    ├───────────────┼───────────────┼───────────────────────────────┤
    │ issued, 48 bit│ random, 48 bit│ BLAKE2s over the first half,  │
    │ milliseconds  │               │ 96 bit, keyed                 │
    └───────────────┴───────────────┴───────────────────────────────┘

The key comes from a secret of this start, the realm and the algorithms offered, so a nonce of another realm, another
offer or another start is foreign. The seal covers the *characters*: no second spelling of a nonce is ours.

Only a nonce that was answered correctly is remembered, with its highest nc and which of the 31 before it were seen. The
memory is bounded. When it must forget an entry before its time, every nonce as old as that entry counts as expired from
then on: under overload clients are asked to try again, but nothing is ever accepted twice.
"""

import binascii
from collections import OrderedDict
from collections.abc import Callable, Sequence
from enum import Enum
from hashlib import blake2s
from hmac import compare_digest

from mypy_extensions import mypyc_attr

from edge.errors import LocalError

_LENGTH = 32
_HALF = 16
_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_", b"+/")

WINDOW = 32
"""How far behind the highest nc a late one may be: RFC 7616 leaves it open; UDP reorders by a handful."""

_WINDOW_MASK = (1 << WINDOW) - 1


POOL_OCTETS = 4096


class NonceState(Enum):
    """What `Nonces.check` found."""

    VALID = "valid"
    EXPIRED = "expired"
    FOREIGN = "foreign"


class RandomPool:
    """Hand out octets of a random source in small pieces: one call of the source serves hundreds of nonces."""

    __slots__ = ("_offset", "_pool", "_source")

    def __init__(self, source: Callable[[int], bytes]) -> None:
        self._source = source
        self._pool = b""
        self._offset = 0

    def __call__(self, count: int) -> bytes:
        """Return `count` octets never returned before, at most `POOL_OCTETS`."""
        end = self._offset + count
        if end > len(self._pool):
            self._pool = self._source(POOL_OCTETS)
            self._offset, end = 0, count
        piece = self._pool[self._offset : end]
        self._offset = end
        return piece


@mypyc_attr(allow_interpreted_subclasses=True)
class Nonces:
    """Issue nonces, recognise them, and refuse a count that was used before.

    The memory lives with the object. Give every new object a new secret (16 to 32 octets): nonces of the former one
    then count as foreign, and clients are told `stale=true`. `random` takes a number of octets and returns that many.
    """

    __slots__ = (
        "_counts",
        "_keyed",
        "_lifetime_ms",
        "_oldest_until_ms",
        "_random",
        "_remembered",
        "_watermark",
        "algorithms",
        "opaque",
        "realm",
    )

    def __init__(
        self,
        realm: bytes,
        algorithms: Sequence[str],
        secret: bytes,
        random: Callable[[int], bytes],
        *,
        lifetime_s: float = 300.0,
        remembered: int = 100_000,
    ) -> None:
        if not 16 <= len(secret) <= blake2s.MAX_KEY_SIZE:
            raise LocalError("a nonce secret has 16 to 32 octets")
        self.realm = realm
        self.algorithms = tuple(algorithms)
        bound = b"\0".join((realm, *sorted(name.upper().encode() for name in algorithms)))
        self._keyed = blake2s(key=blake2s(bound, key=secret, person=b"nonce").digest(), digest_size=12)
        self.opaque = blake2s(bound, key=secret, person=b"opaque", digest_size=8).hexdigest().encode()
        self._random = random
        self._lifetime_ms = int(lifetime_s * 1000)
        self._remembered = remembered
        self._counts: OrderedDict[bytes, int] = OrderedDict()
        self._watermark = -1
        self._oldest_until_ms = -1  # when the oldest entry expires

    def issue(self, now: float) -> bytes:
        """Return a fresh nonce."""
        text = _encode(int(now * 1000).to_bytes(6, "big") + self._random(6))
        return text + self._seal(text)

    def check(self, nonce: bytes, now: float) -> NonceState:
        """Tell whether a nonce is ours and still good; the seal is compared in constant time."""
        if len(nonce) != _LENGTH or not compare_digest(self._seal(nonce[:_HALF]), nonce[_HALF:]):
            return NonceState.FOREIGN
        issued = _issued_ms(nonce)
        if issued + self._lifetime_ms < int(now * 1000) or issued <= self._watermark:
            return NonceState.EXPIRED
        return NonceState.VALID

    def accept(self, nonce: bytes, count: int, now: float, *, rising: bool) -> bool:
        """Use up `count` (the nc) of a nonce that `check` just found valid; False when it was used before.

        With `rising` a count must exceed every earlier one (MSRP: one stream, no reordering). Otherwise it may be up to
        `WINDOW` - 1 behind the highest, once (SIP over UDP).
        """
        state = self._counts.get(nonce)
        if state is None:
            self._make_room(int(now * 1000))
            self._counts[nonce] = count << WINDOW | 1
            return True
        highest, seen = state >> WINDOW, state & _WINDOW_MASK
        if count > highest:
            ahead = count - highest
            seen = (seen << ahead) & _WINDOW_MASK if ahead < WINDOW else 0
            self._counts[nonce] = count << WINDOW | seen | 1
            return True
        behind = highest - count
        if rising or behind >= WINDOW or seen >> behind & 1:
            return False
        self._counts[nonce] = state | 1 << behind
        return True

    @property
    def in_memory(self) -> int:
        """How many nonces are remembered now, for metrics."""
        return len(self._counts)

    def _make_room(self, now_ms: int) -> None:
        """Forget up to two expired entries, so that they leave faster than new ones come; at the bound, the oldest."""
        if now_ms > self._oldest_until_ms:
            for _ in range(2):
                if not self._counts or _issued_ms(next(iter(self._counts))) + self._lifetime_ms >= now_ms:
                    break
                self._counts.popitem(last=False)
            oldest = next(iter(self._counts), None)
            self._oldest_until_ms = now_ms if oldest is None else _issued_ms(oldest) + self._lifetime_ms
        if len(self._counts) >= self._remembered:
            oldest, _ = self._counts.popitem(last=False)
            self._watermark = max(self._watermark, _issued_ms(oldest))
            self._oldest_until_ms = -1

    def _seal(self, text: bytes) -> bytes:
        keyed = self._keyed.copy()
        keyed.update(text)
        return _encode(keyed.digest())


def _encode(octets: bytes) -> bytes:
    return binascii.b2a_base64(octets, newline=False).translate(_TO_URL)


def _issued_ms(nonce: bytes) -> int:
    """Read the time of issue of a nonce whose seal is known to be good: eight characters are six octets."""
    return int.from_bytes(binascii.a2b_base64(nonce[:8].translate(_FROM_URL)), "big")
