"""Which clients get the weakest challenge alone, because they give up when they see any other (sans-IO).

RFC 8760 §2.4 has a client ignore the algorithms it does not know. Deployed ones do not: libre, which is in baresip
1.0.0, fails at the first challenge that is not MD5. Such a client comes again later as if it had never been asked, and
is known by that:

    challenged ──► answers                       forgotten
        │
        └────────► comes again, still without credentials ──► only MD5 from now on, also for its refreshes

RFC 8760 leaves to the server what it offers. Nobody is let in with less than `auth.algorithms` allows.
"""

from __future__ import annotations

_ALWAYS = float("inf")


class Fallback:
    """Remembers dialogues (source address and Call-ID) that were challenged and have not answered yet.

    They are forgotten after `lifetime_s`, and all of them at `entries`: a client that is asked too much only tries once
    more. A repeat of the same CSeq is no new try, so a lost answer on UDP weakens nothing.
    """

    __slots__ = ("_asked", "_entries", "_lifetime_s")

    def __init__(self, lifetime_s: float, entries: int = 10_000) -> None:
        self._lifetime_s = lifetime_s
        self._entries = entries
        self._asked: dict[int, tuple[int, float]] = {}  # hash of the dialogue: CSeq, until when a next try counts

    def __len__(self) -> int:
        return len(self._asked)

    def challenge(self, source: str, call_id: bytes, cseq: int, now: float) -> bool:
        """Note a challenge; True when it is to offer the weakest algorithm alone."""
        key = hash((source, call_id))
        known = self._asked.get(key)
        if known is None:
            if len(self._asked) >= self._entries:
                self._asked.clear()
        elif known[1] == _ALWAYS:
            return True
        elif now < known[1] and cseq != known[0]:
            self._asked[key] = cseq, _ALWAYS
            return True
        self._asked[key] = cseq, now + self._lifetime_s
        return False

    def answered(self, source: str, call_id: bytes) -> None:
        """A client gave good credentials: forget it, unless it needed the weakest challenge and will need it again."""
        key = hash((source, call_id))
        known = self._asked.get(key)
        if known is not None and known[1] != _ALWAYS:
            del self._asked[key]
