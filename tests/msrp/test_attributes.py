"""What a policy can ask about a frame."""

from __future__ import annotations

from edge.msrp.attributes import FrameAttributes
from edge.msrp.frame import Head, parse_start_line
from tests.msrp.recorder import NORA, TARIQ, XN, Bench, E


def test_attributes_of_a_request_and_of_a_response() -> None:
    connection = Bench().connect()
    line, _, rest = E["E7.8"].partition(b"\r\n")
    request = FrameAttributes(connection, Head(parse_start_line(line), rest[: rest.rindex(b"-------")], False), 0)
    assert (request.method, request.code, request.transaction_id) == (b"REPORT", 0, b"e15f8b30a7c4d962")
    assert (request.current_hop, request.next_hop, request.last_hop) == (XN.encode(), NORA.encode(), NORA.encode())
    assert (request.first_hop, request.hops_done, request.hops_left) == (TARIQ.encode(), 2, 2)
    assert request.previous_hop == b"msrps://gate.fjord.example:2855/Zm8TqB5hVr3yLx0DnS7kWu;tcp"
    assert request.session_id == b"Ub3nWq8ZkT1xY5cRm7VdHg"
    assert (request.source, request.socket) == (("192.0.2.17", 49320), ("192.0.2.1", 2855))
    assert (request.header(b"STATUS"), request.header(b"Content-Type")) == (b"000 200 OK", None)
    line, _, rest = E["E7.4"].partition(b"\r\n")
    response = FrameAttributes(connection, Head(parse_start_line(line), rest[: rest.rindex(b"-------")], False), 0)
    assert (response.method, response.code, response.next_hop) == (b"", 200, None)
