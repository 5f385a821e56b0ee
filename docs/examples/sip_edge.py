"""The usual work of a SIP edge as a policy: blocking, own domains, rewriting, two upstreams with failover, time of day.

Authentication needs no line here: whoever claims to be a user of a domain served here is asked for a password, by the
server itself. Change the values by deriving from the class, as the test does.
"""

import re
from datetime import datetime, time
from zoneinfo import ZoneInfo

from edge.policy import AddressList, FloodDetector, Policy, ScannerList, SipRequest

NUMBER = re.compile(r"sips?:(?:00|\+)([0-9]{6,15})@", re.IGNORECASE)


class SipEdge(Policy):
    """Users of our domains call each other and, through an upstream, every number; strangers reach our users only."""

    blocked_file = "/etc/edge/blocked.txt"
    upstreams = ("gw1.example.net", "gw2.example.net")
    day_desk, night_desk = "sip:support@example.com", "sip:voicemail@example.com"
    opens, closes, zone = time(9), time(17), ZoneInfo("Europe/Berlin")

    def __init__(self) -> None:
        self.blocked = AddressList(self.blocked_file)
        self.scanners = ScannerList()
        self.floods = FloodDetector(rate=20, burst=100)

    def sip_request(self, request: SipRequest) -> None:
        """Decide about each new request; what is not mentioned goes its usual way."""
        if self.blocked.lists(request) or self.scanners.names(request.header("User-Agent")):
            request.count("blocked")
            request.drop()
        elif self.floods.floods(request):
            request.reject(503, headers=[("Retry-After", "30")])
        elif not request.in_dialog:  # that has a route already
            self.route(request)

    def route(self, request: SipRequest) -> None:
        """Say where a request goes that begins something new."""
        number = NUMBER.match(request.uri)
        if not request.from_us and (number or not request.to_us):
            request.reject(403, "Not for strangers")
        elif number:
            request.set_uri(f"sip:+{number[1]}@example.com")
            request.dispatch(*(f"sip:+{number[1]}@{upstream}" for upstream in self.upstreams))
        elif request.uri == self.day_desk and not self.is_open(self.now()):
            request.set_uri(self.night_desk)

    def is_open(self, now: datetime) -> bool:
        """Monday to Friday, within the hours."""
        return now.weekday() < 5 and self.opens <= now.time() < self.closes

    def now(self) -> datetime:
        """The time on the wall of the desk."""
        return datetime.now(self.zone)
