"""What the server does without a policy, written as one: the place to begin with a policy of your own.

    [policy]
    module = "edge.policy.default:DefaultPolicy"

answers every message as the server does with no policy at all: its lists of whom to refuse are empty. Derive from it,
fill a list or override a step, or copy it.
Everything here comes from `edge.policy`; there is no other door.
"""

from __future__ import annotations

from typing import ClassVar

from edge.policy.base import Policy
from edge.policy.checks import AddressList, MethodRates, ScannerList
from edge.policy.frames import MsrpFrame
from edge.policy.requests import SipRequest
from edge.policy.views import NewConnection


class DefaultPolicy(Policy):
    """Users of our domains prove who they are; they reach each other and others, and others reach them."""

    blocked: ClassVar = AddressList()  # AddressList("/etc/edge/blocked.txt")
    scanners: ClassVar = ScannerList(())  # ScannerList() knows the usual ones
    rates: ClassVar = MethodRates({})  # MethodRates({"REGISTER": (5, 20), "INVITE": (5, 20), "SEND": (50, 200)})

    def connection_accepted(self, connection: NewConnection) -> None:
        """Whose address is blocked does not come in; UDP has no connections, so requests are looked at as well."""
        if self.blocked.lists(connection):
            connection.reject()

    def sip_request(self, request: SipRequest) -> None:
        """Decide in this order: whom nobody answers, for this server itself, who may, where to."""
        if self.blocked.lists(request) or self.scanners.names(request.header("User-Agent")):
            request.drop()
        elif self.rates.by_source(request):
            request.reject(503, headers=[("Retry-After", "30")])
        else:
            self.decide(request)

    def decide(self, request: SipRequest) -> None:
        """What is for this server itself needs no password; all else is somebody's."""
        if request.to_server and request.method != "REGISTER":
            return  # OPTIONS is answered 200, anything else 404
        self.authenticate(request)
        if request.method == "REGISTER" and request.to_us:
            self.register(request)
        else:
            self.route(request)

    def authenticate(self, request: SipRequest) -> None:
        """Ask who claims to be ours for a password; not in a dialog, which only its two sides know."""
        if request.needs_credentials:
            request.challenge()
        else:
            request.accept()

    def register(self, request: SipRequest) -> None:
        """An edge passes REGISTER on to its registrar, with a Path where the client keeps its flow; others are one."""
        if request.next_hop and not request.has_route:
            request.relay(request.next_hop)
        else:
            request.register()

    def route(self, request: SipRequest) -> None:
        """Follow the Route, a token in it to its flow; else to our users' devices, or out for our users alone."""
        if request.has_route:
            request.relay()  # a dead flow is answered 430, a forged token 403: `route_by_token` tells before
        elif request.next_hop:
            request.relay(request.next_hop)
        elif request.to_us:
            request.set_targets(request.uri)  # all devices, each by its best flow, then the next one
        elif request.from_us:
            request.relay()
        else:
            request.reject(403, "Not relaying")

    def msrp_frame(self, frame: MsrpFrame) -> None:
        """AUTH needs a password (RFC 4976 §5.1); whose URIs are not ours, or not alive, is refused on the way."""
        if self.rates.by_source(frame):
            frame.reject(403, "Too many")
        elif frame.method == "AUTH":
            frame.challenge()
        elif frame.method:
            frame.relay()
