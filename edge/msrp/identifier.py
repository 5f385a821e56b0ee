"""Transaction ids and session ids from a random source (RFC 4975 §7.1, §14.1)."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from binascii import hexlify
from collections.abc import Callable, Container

RandomSource = Callable[[int], bytes]

_BATCH = 256
_ID_OCTETS = 8  # 64 bits
ID_LENGTH = 2 * _ID_OCTETS  # they are written in hexadecimal digits
_SESSION_LENGTH = 22  # characters of 6 bits: 132 bits; RFC 4976 §6.3 asks for 80


class Identifiers:
    """Draw ids; the random source is asked for many transaction ids at once."""

    __slots__ = ("_random", "spare")

    def __init__(self, random: RandomSource) -> None:
        self._random = random
        self.spare: list[bytes] = []

    def refill(self) -> list[bytes]:
        """Make ids; they are taken from the end of `spare`."""
        digits = hexlify(self._random(_BATCH * _ID_OCTETS))
        self.spare.extend(digits[at : at + ID_LENGTH] for at in range(len(digits) - ID_LENGTH, -1, -ID_LENGTH))
        return self.spare

    def draw(self, taken: Container[bytes]) -> bytes:
        """Return an id that is not in `taken`."""
        while True:
            identifier = (self.spare or self.refill()).pop()
            if identifier not in taken:
                return identifier

    def draw_session_id(self) -> bytes:
        """Return a session-id of 22 letters, digits, "-" and "+"."""
        # "_" is unreserved and thus allowed, but some parsers of session-ids do not know it.
        octets = self._random((_SESSION_LENGTH * 6 + 7) // 8)
        return urlsafe_b64encode(octets)[:_SESSION_LENGTH].replace(b"_", b"+")
