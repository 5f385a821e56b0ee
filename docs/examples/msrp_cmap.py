"""Kamailio's documented routing of MSRP with msrp_cmap_save() and msrp_cmap_lookup(), as a policy.

Challenge, credentials, Use-Path and the table of sessions are the server's own: AUTH goes its usual way, and so does
every frame that is not decided on here.
"""

from edge.policy import MsrpFrame, Policy


class Cmap(Policy):
    """Relay between sessions that were handed out here, and refuse what is not known."""

    def msrp_frame(self, frame: MsrpFrame) -> None:
        if frame.method in ("SEND", "REPORT"):
            if frame.look_up(frame.current_hop) is None:
                frame.reject(481, "Session-does-not-exist")
        elif frame.method not in ("", "AUTH"):  # responses have no method
            frame.reject(501, "Request-method-not-understood")
