"""A registrar behind two edges: phones that registered through them, and what it sends to each."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from edge.connections import Transport
from tests.sip.rig import Rig, Wire, answer, request
from tests.ua.sip_message import Request, Response

EDGES = {"e1": ("192.0.2.11", 5060), "e2": ("192.0.2.12", 5060)}
PHONE = "urn:uuid:6f1c2a58-93de-4b07-8f35-0c7be41a9d22"
OTHER = "urn:uuid:00000000-0000-1000-8000-0000000000b0"
_serials = itertools.count(1)


def path_of(edge: str, reg_id: int) -> str:
    """The Path value an edge writes: a token of its own making, which says nothing to us."""
    return f"<sip:f1.token{reg_id}@{edge}.example;transport=tcp;lr;ob>"


class Home:
    """The element in role registrar. `to` is the connection it dials to each edge, `of` the one each edge dialled."""

    def __init__(self, **options: Any) -> None:
        sip: Mapping[str, Any] = {"trusted_edges": ("192.0.2.0/24",), **options.pop("sip", {})}
        self.rig = Rig(role="registrar", sip=sip, **options)
        self.to = {name: self.rig.wire(remote=place) for name, place in EDGES.items()}
        self.of = {name: self.rig.wire(remote=(host, 30000)) for name, (host, _) in EDGES.items()}
        for name, wire in self.to.items():
            self.rig.roads[f"{name}.example"] = [wire]
        self.caller = self.rig.wire()

    def register(
        self, edge: str, reg_id: int = 1, *, instance: str = PHONE, user: str = "bob", path: str | None = None,
        parameters: str = "", call_id: str | None = None, cseq: int | None = None, **headers: str,
    ) -> Response:  # fmt: skip
        """Let a phone register through an edge; a second passes. Returns the answer."""
        serial = next(_serials)
        contact = f'<sip:{user}@10.0.0.{reg_id}:5062>;reg-id={reg_id};+sip.instance="<{instance}>"{parameters}'
        vias = f"SIP/2.0/TCP {edge}.example;branch=z9hG4bKe{serial}, SIP/2.0/TCP 10.0.0.1;branch=z9hG4bKp{serial}"
        headers = {"Contact": contact, "Supported": "path, outbound", "Expires": "1800"} | headers
        options = {"via": vias, "call_id": call_id, "cseq": cseq or serial, "Path": path or path_of(edge, reg_id)}
        wire = self.of[edge]
        self.rig.give(wire, request("REGISTER", "sip:example.com", user=user, to=f"<sip:{user}@example.com>",
                                    **options, **headers))  # type: ignore[arg-type]  # fmt: skip
        (answered,) = wire.responses("REGISTER")
        wire.take()
        self.rig.advance(1)
        return answered

    def direct(self, reg_id: int, *, instance: str = PHONE, user: str = "bob", transport: Transport = Transport.TCP,
               remote: tuple[str, int] | None = None) -> Wire:  # fmt: skip
        """Let a phone register at us directly; a second passes. Returns its flow."""
        wire = self.rig.wire(transport, remote)
        contact = f'<sip:{user}@10.0.1.{reg_id}:5062>;reg-id={reg_id};+sip.instance="<{instance}>"'
        headers = {"Contact": contact, "Supported": "path, outbound", "Expires": "1800"}
        self.rig.give(
            wire, request("REGISTER", "sip:example.com", user=user, to=f"<sip:{user}@example.com>", **headers)
        )
        assert wire.statuses("REGISTER") == [200]
        wire.take()
        self.rig.advance(1)
        return wire

    def call(self, method: str = "INVITE", uri: str = "sip:bob@example.com", **options: Any) -> bytes:
        """Let the caller send a request."""
        data = request(method, uri, **options)
        self.rig.give(self.caller, data)
        return data

    def sent(self, edge: str, method: str = "INVITE") -> list[Request]:
        """What has gone to an edge since the last look."""
        return self.to[edge].requests(method)

    def reply(self, edge: str, status: int, method: str = "INVITE", number: int = -1, **options: Any) -> None:
        """Let an edge answer the last request it got."""
        self.rig.give(self.to[edge], answer(self.sent(edge, method)[number], status, **options))

    def reg_ids(self, user: bytes = b"bob") -> list[int]:
        """The reg-ids of the bindings there are."""
        return sorted(binding.reg_id for binding in self.rig.stack.location.bindings(user + b"@example.com"))
