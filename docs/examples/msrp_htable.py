"""Kamailio's documented routing of MSRP with a table of its own, as a policy: each step is written out.

Which session belongs to whom the server knows by itself; the table holds what else is to be known of a session.
"""

from edge.policy import Ended, MsrpFrame, Policy


class Htable(Policy):
    """Sessions within bounds, where each was spoken to from last, and no way for what is not known."""

    min_expires, max_expires = 1800, 3600

    def __init__(self) -> None:
        self.last_source: dict[str, str] = {}  # session → address

    def msrp_frame(self, frame: MsrpFrame) -> None:
        """Decide about each frame; responses, which have no method, go their usual way."""
        if frame.method == "AUTH" and frame.hops_left == 1:
            self.enrol(frame)
        elif frame.method in ("SEND", "REPORT"):
            self.relay(frame)
        elif frame.method not in ("", "AUTH"):
            frame.reject(501, "Request-method-not-understood")

    def enrol(self, frame: MsrpFrame) -> None:
        """Bound the lifetime, for those who show credentials; everybody else is asked for them first."""
        asked = frame.header("Expires") or ""
        expires = int(asked) if asked.isdigit() else self.max_expires
        if frame.header("Authorization") is None or self.min_expires <= expires <= self.max_expires:
            frame.challenge()
        elif expires < self.min_expires:
            frame.reject(423, "Interval Out-of-Bounds", [("Min-Expires", str(self.min_expires))])
        else:
            frame.reject(423, "Interval Out-of-Bounds", [("Max-Expires", str(self.max_expires))])

    def relay(self, frame: MsrpFrame) -> None:
        """Pass on what belongs to a session, and note where it came from."""
        session = frame.look_up(frame.current_hop)
        if session is None:
            frame.reject(481, "Session-does-not-exist")
        else:
            self.last_source[session.name] = frame.source
            frame.relay()

    def ended(self, what: Ended) -> None:
        """Forget the session."""
        self.last_source.pop(what.session, None)
