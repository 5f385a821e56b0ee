"""Tells somebody when flows fail above a rate: a Python function for `[[hooks]]`.

    [[hooks]]
    name = "flow-alert"
    events = ["flow.failed"]
    call = "flow_alert:told"

Copy it beside the configuration file. A client that leaves in order (`eof`) is not counted. The environment of the
server says how much is too much and who is told:

    EDGE_ALERT_FLOWS   that many failures                             default 50
    EDGE_ALERT_WINDOW  within so many seconds                         default 60
    EDGE_ALERT_PAUSE   seconds without another alert behind one       default 600
    EDGE_ALERT_URL     gets {"text": "..."} by POST; without it the alert is a line of the log
"""

import json
import logging
import os
import time
import urllib.request
from collections import Counter, deque
from typing import Any

log = logging.getLogger("edge.alert")


class Rate:
    """Counts what happened within the last `window_s` seconds; `clock` is monotonic."""

    def __init__(self, limit: int, window_s: float, pause_s: float) -> None:
        self._limit = limit
        self._window_s = window_s
        self._pause_s = pause_s
        self._recent: deque[tuple[float, str]] = deque(maxlen=limit)
        self._quiet_until = float("-inf")

    def count(self, reason: str, now: float) -> str:
        """Count one; return what to say when that is one too many, else nothing."""
        self._recent.append((now, reason))
        while self._recent[0][0] <= now - self._window_s:
            self._recent.popleft()
        if len(self._recent) < self._limit or now < self._quiet_until:
            return ""
        self._quiet_until = now + self._pause_s
        reasons = Counter(reason for _, reason in self._recent).most_common()
        listed = ", ".join(f"{reason} {count}" for reason, count in reasons)
        return f"{len(self._recent)} flows failed within {self._window_s:g} s: {listed}"


rate = Rate(
    int(os.environ.get("EDGE_ALERT_FLOWS", "50")),
    float(os.environ.get("EDGE_ALERT_WINDOW", "60")),
    float(os.environ.get("EDGE_ALERT_PAUSE", "600")),
)


def told(event: dict[str, Any]) -> None:
    """Take one `flow.failed`. It runs in a thread of its own and may take its time."""
    text = rate.count(event["reason"], time.monotonic()) if event["reason"] != "eof" else ""
    if not text:
        return
    log.warning("%s", text)
    if url := os.environ.get("EDGE_ALERT_URL"):
        body = json.dumps({"text": f"edge: {text}"}).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=5):  # noqa: S310 - the operator's own URL
            pass
