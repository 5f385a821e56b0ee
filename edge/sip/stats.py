"""Counters of the SIP element: plain integers, read when somebody scrapes."""

from __future__ import annotations

_METHODS = (
    b"INVITE", b"ACK", b"CANCEL", b"BYE", b"REGISTER", b"OPTIONS", b"MESSAGE", b"SUBSCRIBE", b"NOTIFY", b"REFER",
    b"INFO", b"UPDATE", b"PRACK", b"PUBLISH",
)  # fmt: skip


class SipStats:
    """What was received, answered and refused. Label values come from fixed sets, never from a peer."""

    __slots__ = ("_methods", "answers", "loops", "rejected", "stray_responses")

    def __init__(self) -> None:
        self._methods = dict.fromkeys((*_METHODS, b"other"), 0)
        self.answers = [0] * 7  # by the first digit of the status
        self.rejected: dict[str, int] = {}
        self.stray_responses = 0
        self.loops = 0

    @property
    def requests(self) -> dict[str, int]:
        """Well-formed requests received, by method; those not in RFCs of ours fold into "other"."""
        return {method.decode("ascii"): count for method, count in self._methods.items() if count}

    def count_request(self, method: bytes) -> None:
        """Count a request."""
        methods = self._methods
        if method in methods:
            methods[method] += 1
        else:
            methods[b"other"] += 1

    def reject(self, label: str) -> None:
        """Count a message that was refused or dropped."""
        self.rejected[label] = self.rejected.get(label, 0) + 1
