"""Who may send what where, and what is answered (RFC 4976 §6)."""

from __future__ import annotations

import hashlib
from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.connections import Transport
from edge.errors import LocalError
from edge.msrp.handler import MsrpHandler
from edge.msrp.route import ROUTES_LIMIT
from edge.msrp.target import is_permitted
from edge.settings import Limits
from tests.msrp.parser import parse_frames
from tests.msrp.recorder import FAR, MINA, NORA, PABLO, TARIQ, XM, XN, Bench, E, Pair, Recorder, answer, send

# -- framing as the relay answers it


@pytest.mark.requirement("MSRP-FRM-01", "MSRP-RESP-02")
@pytest.mark.parametrize("method", ["send", "SEND2"])
def test_a_method_that_is_none(method: str) -> None:
    pair = Pair()
    pair.far.receive(send(f"{XN} {NORA}", FAR, method=method))
    assert pair.codes() == ["400"]
    assert not pair.far.closed


@pytest.mark.requirement("MSRP-FRM-09")
def test_path_headers_come_first() -> None:
    pair = Pair()
    pair.far.receive(send(f"{XN} {NORA}", FAR, None, mid=""))  # the two paths are enough
    assert pair.codes() == ["200"]
    pair.nora.take()
    lines = send(f"{XN} {NORA}", FAR, None).split(b"\r\n")
    pair.far.receive(b"\r\n".join([lines[0], lines[2], lines[1], *lines[3:]]))
    (swapped,) = parse_frames(pair.far.take())
    assert (swapped.method[:3], swapped["To-Path"], swapped["From-Path"]) == ("400", FAR, XN)
    pair.far.receive(b"\r\n".join([lines[0], lines[3], lines[1], lines[2], *lines[4:]]))
    assert pair.codes() == ["400"]
    pair.far.receive(b"\r\n".join([lines[0], lines[1], *lines[3:]]))
    assert pair.far.take() == b""
    assert pair.far.closed
    assert pair.nora.take() == b""


@pytest.mark.parametrize("name", ["9-Odd", "-Odd", "Od d", "", "Od/d"])
def test_rfc4975_9_a_header_name_begins_with_a_letter(name: str) -> None:
    pair = Pair()
    pair.far.receive(send(f"{XN} {NORA}", FAR, extra=f"{name}: 1"))
    assert pair.codes() == ["400"]
    pair.far.receive(send(f"{XN} {NORA}", FAR, extra="X-9.odd'`|~: 1"))
    assert pair.codes() == ["200"]
    assert [frame["X-9.odd'`|~"] for frame in parse_frames(pair.nora.take())] == ["1"]


@pytest.mark.requirement("MSRP-FRM-12")
def test_an_empty_path_closes() -> None:
    pair = Pair()
    pair.far.receive(send("", FAR))
    assert pair.far.closed
    assert pair.far.take() == b""


@pytest.mark.requirement("MSRP-FRM-13", "MSRP-FRM-19", "MSRP-SEND-08", "MSRP-SEND-12", "MSRP-RESP-02")
@pytest.mark.parametrize(
    "frame",
    [
        send(f"{XN} {NORA}", FAR, extra="Byte-Range: 1-2/2"),
        send(f"{XN} {NORA}", FAR, content_type=None),
        send(f"{XN} {NORA}", FAR, None, extra="Content-Type: text/plain"),
        send(f"{XN} {NORA}", FAR, extra="Failure-Report: maybe"),
        send(f"{XN} {NORA}", FAR, extra="Success-Report: perhaps"),
        send(f"{XN} {NORA}", FAR, mid=""),
        send(f"{XN} {NORA}", FAR, byte_range="5-3/9"),
        send(f"{XN} {NORA}", FAR, byte_range="0-5/6"),
        send(f"{XN} {NORA}", FAR, byte_range="1-9/8"),
        send(f"{XN} {NORA}", FAR, mid="m" * 257),
    ],
)
def test_syntax_errors_of_a_send(frame: bytes) -> None:
    pair = Pair()
    for wire in (frame, frame.replace(b"Message-ID", b"message-id")):  # the short way and the long one
        pair.far.receive(wire)
        assert pair.codes() == ["400"]
        assert pair.nora.take() == b""
    assert not pair.far.closed


@pytest.mark.requirement("MSRP-FRM-19", "MSRP-RPT-02")
@pytest.mark.parametrize(
    ("body", "content_type"), [(b"x", None), (None, "text/plain")], ids=["body without type", "type without body"]
)
def test_a_body_has_a_type_whatever_the_method(body: bytes | None, content_type: str | None) -> None:
    pair = Pair()
    for method, codes in (("XYZZY", ["400"]), ("NICKNAME", ["400"]), ("REPORT", [])):
        extra = "" if content_type is None else f"Content-Type: {content_type}"
        pair.far.receive(send(f"{XN} {NORA}", FAR, body, method=method, content_type=None, extra=extra))
        assert pair.codes() == codes
    assert pair.nora.take() == b""


@pytest.mark.requirement("MSRP-RESP-02", "MSRP-RPT-02")
def test_errors_are_not_answered_to_report_and_to_failure_report_no() -> None:
    pair = Pair()
    pair.far.receive(send(f"{XN} {NORA}", FAR, extra="Failure-Report: no", byte_range="5-3/9"))
    pair.far.receive(send(f"{XN} {NORA}", FAR, None, method="REPORT", byte_range="5-3/9"))
    pair.far.receive(send(f"{XN} {NORA}", FAR, None, method="REPORT", flag="+"))
    assert pair.far.take() == b""
    pair.far.receive(send(f"{XN} {NORA}", FAR, None, method="XYZZY", byte_range="5-3/9"))
    assert pair.codes() == ["400"]
    assert pair.nora.take() == b""


@pytest.mark.requirement("MSRP-FRM-20")
def test_only_send_can_be_interrupted() -> None:
    pair = Pair()
    pair.far.receive(send(f"{XN} {NORA}", FAR, None, method="NICKNAME", flag="+"))
    assert pair.codes() == ["400"]
    pair.far.receive(send(f"{XN} {NORA}", FAR, b"x" * 10240, method="NICKNAME"))
    assert parse_frames(pair.nora.take())[0].body == b"x" * 10240
    pair.far.receive(send(f"{XN} {NORA}", FAR, b"x" * 10241, method="NICKNAME"))
    assert pair.codes() == ["400"]
    assert pair.far.closed


@pytest.mark.requirement("MSRP-FRM-21", "MSRP-FRM-22")
@pytest.mark.parametrize("extra", ["X: a\x01b", "X: " + "a" * 9000, "X: 1\r\n" * 70 + "X: 1"])
def test_what_cannot_be_trusted_is_answered_and_closed(extra: str) -> None:
    pair = Pair()
    pair.far.receive(send(f"{XN} {NORA}", FAR, extra=extra) + send(f"{XN} {NORA}", FAR))
    assert pair.codes() == ["400"]
    assert pair.far.closed
    assert pair.nora.take() == b""


@pytest.mark.requirement("MSRP-FRM-14", "MSRP-FRM-10", "MSRP-SEND-05", "MSRP-FRM-11")
def test_headers_pass_unchanged_and_in_order() -> None:
    pair = Pair()
    lines = "Content-Disposition: attachment; filename=x\r\nKeep-Alive: yes\r\nX-Odd: a:b: c\r\nfailure-report: No"
    for _ in range(2):
        pair.far.receive(send(f"{XN} {NORA}", FAR, extra=lines))
        assert f"\r\nByte-Range: 1-2/2\r\n{lines}\r\nContent-Type: text/plain\r\n".encode() in pair.nora.take()
    assert pair.far.take() == b""


@pytest.mark.requirement("MSRP-FRM-14", "MSRP-FRM-10", "MSRP-SEND-05", "MSRP-CHK-03")
def test_headers_of_every_piece_are_those_of_the_chunk() -> None:
    pair = Pair(max_chunk_size=2048)
    lines = "Content-Disposition: attachment; filename=x\r\nX-Odd:  a:b: c\t\r\nx-odd:d"
    pair.far.receive(send(f"{XN} {NORA}", FAR, b"x" * 5000, mid="m1\r\nX-Early:  q ", extra=lines))
    pieces = pair.nora.take().split(b"MSRP ")[1:]
    assert len(pieces) == 3
    assert all(b"\r\nMessage-ID: m1\r\nX-Early:  q \r\nByte-Range: " in piece for piece in pieces)
    assert all(f"/5000\r\n{lines}\r\nContent-Type: text/plain\r\n\r\nx".encode() in piece for piece in pieces)


@pytest.mark.requirement("MSRP-FRM-16", "MSRP-CHK-05")
def test_byte_range_may_be_absent() -> None:
    pair = Pair()
    pair.far.receive(send(f"{XN} {NORA}", FAR, None, byte_range=None) + send(f"{XN} {NORA}", FAR, byte_range=None))
    bodiless, bodied = parse_frames(pair.nora.take())
    assert bodiless.get("Byte-Range") is None
    assert (bodied["Byte-Range"], bodied.body) == ("1-*/*", b"hi")
    assert bodied.headers[-1][0] == "Content-Type"


@pytest.mark.requirement("MSRP-FRM-17", "MSRP-RPT-10")
def test_the_octets_count_not_the_claim() -> None:
    pair = Pair()
    pair.far.receive(send(f"{XN} {NORA}", FAR, b"x" * 23, byte_range="1-25/25"))
    sent = pair.nora.take()
    assert parse_frames(sent)[0].body == b"x" * 23
    pair.far.take()
    pair.nora.receive(answer(sent, "413 no"))
    (report,) = parse_frames(pair.far.take())
    assert report["Byte-Range"] == "1-23/25"


@pytest.mark.requirement("MSRP-FRM-18")
def test_a_response_that_differs_is_dropped() -> None:
    pair = Pair(ids=["00000000000000aa"])
    pair.far.receive(send(f"{XN} {NORA}", FAR))
    good = answer(pair.nora.take())
    pair.far.take()
    for odd in (good.replace(b"$\r\n", b"+\r\n"), good.replace(b"-------", b"\r\nbody\r\n-------")):
        pair.nora.receive(odd)
        assert len(pair.nora.handler.outbox.pending) == 1  # type: ignore[attr-defined]
    pair.nora.receive(good)
    assert not pair.nora.handler.outbox.pending  # type: ignore[attr-defined]


@pytest.mark.requirement("MSRP-FRM-23")
def test_a_uuid_as_message_id_survives() -> None:
    pair = Pair()
    uuid = "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"
    pair.far.receive(send(f"{XN} {NORA}", FAR, mid=uuid))
    sent = pair.nora.take()
    assert parse_frames(sent)[0]["Message-ID"] == uuid
    pair.far.take()
    pair.nora.receive(answer(sent, "415 no"))
    assert parse_frames(pair.far.take())[0]["Message-ID"] == uuid


@pytest.mark.requirement("MSRP-FRM-07")
def test_a_large_binary_body_arrives_unchanged() -> None:
    pair = Pair()
    body = hashlib.sha256(b"seed").digest() * 320_000 + b"\r\n-------zzzz$\r\n"
    wire = send(f"{XN} {NORA}", FAR, body, tid="abcd1234")
    for at in range(0, len(wire), 250_000):
        pair.far.receive(wire[at : at + 250_000])
    frames = parse_frames(pair.nora.take())
    assert b"".join(frame.body or b"" for frame in frames) == body
    assert pair.codes() == ["200"]


@pytest.mark.requirement("MSRP-URI-06", "MSRP-URI-09", "MSRP-URI-10", "MSRP-URI-03")
def test_uris_reappear_octet_for_octet() -> None:
    pair = Pair()
    odd = "MSRPS://u;x=1@Edge.Loom.Example:2855/Ub3nWq8ZkT1xY5cRm7VdHg;TCP;z=1"
    far = f"msrps://x.invalid/q;ws;foo=bar {FAR.replace(':50001', ':50001')}"
    pair.far.receive(send(f"{odd} {NORA}", f"{FAR} {far}"))
    (sent,) = parse_frames(pair.nora.take())
    assert sent["From-Path"] == f"{odd} {FAR} {far}"
    (ok,) = parse_frames(pair.far.take())
    assert (ok["From-Path"], ok["To-Path"]) == (odd, FAR)


@pytest.mark.requirement("MSRP-URI-10", "MSRP-URI-04")
@pytest.mark.parametrize(
    "next_hop", ["msrps://pablo.example/x;tcp", "msrps://pablo.example:2855/x", "msrps://192.0.2.1/x;tcp"]
)
def test_a_next_hop_we_have_to_dial_must_be_complete(next_hop: str) -> None:
    pair = Pair()
    pair.nora.receive(send(f"{XN} {next_hop}", NORA))
    assert pair.codes(pair.nora) == ["400"]
    assert not pair.bench.dialled


# -- who may use a session


@pytest.mark.requirement("MSRP-BIND-01")
def test_the_owner_on_another_connection_is_a_stranger() -> None:
    pair = Pair()
    pair.far.receive(send(f"{XN} {PABLO}", NORA))
    assert pair.codes() == ["403"]
    assert not pair.bench.dialled


@pytest.mark.requirement("MSRP-RESP-09")
def test_a_client_behind_a_relay_that_is_gone_gets_nothing() -> None:
    pair = Pair()
    relay = "msrps://gate.fjord.example:2855/zz;tcp"
    link = pair.bench.connect(identities=("gate.fjord.example",))
    pair.bench.open(link, XM, relay, MINA)
    link.close("eof")
    pair.far.receive(send(f"{XM} {relay} {MINA}", FAR))
    assert pair.codes() == ["481"]


@pytest.mark.requirement("MSRP-BIND-02")
def test_a_client_behind_a_relay_is_reached_over_any_connection_of_that_relay() -> None:
    bench = Bench()
    relay = "msrps://gate.fjord.example:2855/zz;tcp"
    first = bench.connect(identities=("gate.fjord.example",))
    bench.open(first, XN, relay, NORA)
    first.close("eof")
    again = bench.connect(identities=("gate.fjord.example",))
    again.receive(send(f"{XN} {PABLO}", f"{relay} {NORA}"))
    assert parse_frames(again.take())[0].method == "200 OK"
    other = bench.connect(identities=("other.example",))
    other.receive(send(f"{XN} {PABLO}", f"{relay} {NORA}"))
    assert parse_frames(other.take())[0].method[:3] == "403"
    far = bench.dialled[0].connection
    far.receive(send(f"{XN} {relay} {NORA}", PABLO))
    assert parse_frames(again.take())[0].method == "SEND"


@pytest.mark.requirement("MSRP-BIND-03", "MSRP-CON-12", "MSRP-CON-06")
def test_closing_the_owners_connection_kills_its_uris() -> None:
    pair = Pair()
    pair.far.receive(send(f"{XN} {NORA}", FAR))
    pair.far.take()
    pair.nora.close("eof")
    pair.far.receive(send(f"{XN} {NORA}", FAR))
    assert pair.codes()[-1] == "481"
    back = pair.bench.connect()
    back.receive(send(f"{XN} {PABLO}", NORA))
    assert pair.codes(back) == ["481"]
    assert not pair.bench.dialled


@pytest.mark.requirement("MSRP-BIND-04", "MSRP-RESP-09")
def test_expiry_is_checked_at_each_request() -> None:
    pair = Pair()
    pair.far.receive(send(f"{XN} {NORA}", FAR))
    assert pair.codes() == ["200"]
    pair.bench.clock.advance(599.999)
    pair.far.receive(send(f"{XN} {NORA}", FAR))
    assert pair.codes() == ["200"]
    pair.bench.clock.advance(0.002)  # no sweep has run
    pair.far.receive(send(f"{XN} {NORA}", FAR))
    assert pair.codes() == ["481"]


@pytest.mark.requirement("MSRP-BIND-04")
def test_a_chunk_begun_before_the_end_may_finish() -> None:
    pair = Pair()
    wire = send(f"{XN} {NORA}", FAR, b"x" * 9000)
    pair.far.receive(wire[:5000])
    for at in range(5000, 5013):
        pair.bench.advance(50)
        pair.far.receive(wire[at : at + 1])
    assert len(pair.bench.relay.table) == 0
    pair.far.receive(wire[5013:])
    assert pair.codes() == ["200"]
    assert b"".join(frame.body or b"" for frame in parse_frames(pair.nora.take())) == b"x" * 9000


@pytest.mark.requirement("MSRP-BIND-05", "MSRP-BIND-06", "MSRP-SEC-01")
def test_a_stranger_reaches_only_the_owner() -> None:
    pair = Pair()
    for target in (PABLO, NORA.replace("nora9", "nora8"), XM, NORA.replace("49320", "49321")):
        pair.far.receive(send(f"{XN} {target}", FAR))
        assert pair.codes() == ["403"]
    assert pair.nora.take() == b""
    assert not pair.bench.dialled


@pytest.mark.source
@pytest.mark.requirement("MSRP-BIND-05")
def test_an_error_inside_the_check_forwards_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair()

    def fail(*_: object) -> None:
        raise LocalError("lookup")

    monkeypatch.setattr(type(pair.bench.relay.table), "find_raw", fail)
    with pytest.raises(LocalError):
        pair.far.receive(send(f"{XN} {NORA}", FAR))
    assert pair.nora.take() == b""


@pytest.mark.requirement("MSRP-BIND-07")
def test_two_local_users_are_two_relays_in_a_row() -> None:
    bench = Bench()
    nora, mina = bench.connect(), bench.connect(Transport.WSS)
    bench.open(nora, XN, NORA)
    bench.open(mina, XM, MINA, user="mina")
    nora.receive(send(f"{XN} {XM} {MINA}", NORA))
    assert parse_frames(nora.take())[0].method == "200 OK"
    sent = mina.take()
    assert parse_frames(sent)[0]["From-Path"] == f"{XM} {XN} {NORA}"
    mina.receive(answer(sent, "413 Stop"))
    (report,) = parse_frames(nora.take())
    assert (report["To-Path"], report["From-Path"]) == (NORA, f"{XN} {XM}")
    mina.receive(send(f"{XM} {XN} {NORA}", MINA))
    assert parse_frames(nora.take())[0]["From-Path"] == f"{XN} {XM} {MINA}"
    stranger = bench.connect()
    stranger.receive(send(f"{XM} {MINA}", FAR))
    assert parse_frames(stranger.take())[0].method[:3] == "506"


@pytest.mark.requirement("MSRP-BIND-07", "MSRP-RESP-09")
def test_no_way_of_an_earlier_message_leads_past_the_checks_of_the_second_session() -> None:
    bench = Bench()
    nora, mina = bench.connect(), bench.connect(Transport.WSS)
    bench.open(nora, XN, NORA)
    second = bench.open(mina, XM, MINA, user="mina")
    nora.receive(send(f"{XN} {XM} {MINA}", NORA))
    assert [parse_frames(who.take())[0].method for who in (nora, mina)] == ["200 OK", "SEND"]
    for nowhere in (XM.replace("p0Lr", "q0Lr"), "msrps://edge.loom.example:2855;tcp"):
        for method, codes in (("SEND", ["481"]), ("XYZZY", ["481"]), ("REPORT", [])):
            nora.receive(send(f"{XN} {nowhere} {MINA}", NORA, None, method=method))
            assert [frame.method[:3] for frame in parse_frames(nora.take())] == codes
    bench.relay.table.close(second, "expired", bench.clock.now)
    nora.receive(send(f"{XN} {XM} {MINA}", NORA))
    assert parse_frames(nora.take())[0].method[:3] == "481"
    assert mina.take() == b""


def test_who_stays_keeps_nothing_of_those_who_have_gone() -> None:
    bench = Bench()
    nora = bench.connect()
    bench.open(nora, XN, NORA)
    handler = nora.handler
    assert isinstance(handler, MsrpHandler)
    for _ in range(3):
        mina = bench.connect(Transport.WSS)
        bench.open(mina, XM, MINA, user="mina")
        nora.receive(send(f"{XN} {XM} {MINA}", NORA))
        assert len(handler.routes) == 1
        mina.close("eof")
        assert handler.routes == {}


@pytest.mark.requirement("MSRP-BIND-09")
def test_the_far_side_may_come_back() -> None:
    pair = Pair()
    pair.far.receive(send(f"{XN} {NORA}", FAR))
    pair.far.close("eof")
    again = pair.bench.connect()
    again.receive(send(f"{XN} {NORA}", FAR))
    assert pair.codes(again) == ["200"]
    again.close("eof")
    pair.nora.take()
    pair.nora.receive(send(f"{XN} {FAR}", NORA))
    assert pair.codes(pair.nora) == ["200"]
    assert len(pair.bench.dialled) == 1


@pytest.mark.requirement("MSRP-BIND-10", "MSRP-RESP-04", "MSRP-RESP-09")
def test_both_sides_keep_their_from_path() -> None:
    pair = Pair()
    pair.nora.receive(send(f"{XN} {PABLO}", NORA.replace("nora9", "nora8")))
    assert pair.codes(pair.nora) == ["403"]
    pair.far.receive(send(f"{XN} {NORA}", FAR))
    pair.far.receive(send(f"{XN} {NORA}", PABLO))
    assert pair.codes() == ["200", "481"]


def test_a_far_side_that_dials_us_while_we_dial_it() -> None:
    """RFC 4975 §5.4 binds the first connection; here each end has another first one."""
    pair = Pair()
    pair.nora.receive(send(f"{XN} {PABLO}", NORA))
    pair.far.receive(send(f"{XN} {NORA}", PABLO))
    assert pair.codes() == ["200"]
    assert [frame["From-Path"] for frame in parse_frames(pair.nora.take()) if frame.method == "SEND"] == [
        f"{XN} {PABLO}"
    ]
    pair.nora.receive(send(f"{XN} {PABLO}", NORA, tid="tid00002"))
    assert [frame.method for frame in parse_frames(pair.dialled.take())] == ["SEND", "SEND"]
    third = pair.bench.connect()
    third.receive(send(f"{XN} {NORA}", PABLO))
    assert pair.codes(third) == ["506"]


@pytest.mark.requirement("MSRP-BIND-08")
@pytest.mark.parametrize(("uri", "seconds"), [(TARIQ, 0), (PABLO.replace("pbl0", "pbl1"), 0), (PABLO, 11)])
def test_a_second_connection_of_somebody_else_or_too_late(uri: str, seconds: float) -> None:
    pair = Pair()
    pair.nora.receive(send(f"{XN} {PABLO}", NORA))
    pair.bench.advance(seconds)
    pair.far.receive(send(f"{XN} {NORA}", uri))
    assert pair.codes() == ["506"]


@pytest.mark.requirement("MSRP-BIND-08")
def test_a_second_connection_where_we_dialled_nobody() -> None:
    pair = Pair()
    pair.far.receive(send(f"{XN} {NORA}", FAR))
    second = pair.bench.connect()
    second.receive(send(f"{XN} {NORA}", FAR))
    assert pair.codes(second) == ["506"]


@pytest.mark.requirement("MSRP-BIND-11")
@pytest.mark.parametrize("strict", [False, True])
def test_a_second_far_path_is_counted_or_refused(strict: bool) -> None:
    pair = Pair(one_far_path=strict)
    pair.nora.receive(send(f"{XN} {PABLO}", NORA))
    pair.nora.receive(send(f"{XN} {TARIQ}", NORA, tid="tid00002"))
    assert pair.codes(pair.nora) == ["200", "403" if strict else "200"]
    assert pair.bench.relay.stats.second_far_paths == (not strict)
    assert len(pair.bench.dialled) == 2 - strict


@pytest.mark.requirement("MSRP-SEND-01")
def test_the_earliest_rule_broken_is_reported() -> None:
    pair = Pair()
    dead = XN.replace("Ub3n", "AAAA")
    pair.far.receive(send(f"{dead} {PABLO}", FAR, byte_range="5-3/9", mid=""))
    pair.far.receive(send(f"{dead} {PABLO}", FAR, mid=""))
    pair.far.receive(send(f"{XN} {PABLO}", FAR, mid=""))
    pair.far.receive(send(f"{XN} {NORA}", FAR, mid=""))
    assert pair.codes() == ["400", "481", "403", "400"]


@pytest.mark.requirement("MSRP-SEND-02")
def test_a_foreign_first_uri_closes() -> None:
    pair = Pair()
    pair.far.receive(send(f"msrps://other.example:2855/x;tcp {NORA}", FAR))
    assert pair.far.closed
    assert pair.far.take() == b""


@pytest.mark.requirement("MSRP-SEND-04", "MSRP-FRM-04")
def test_every_chunk_gets_an_id_of_its_own() -> None:
    bench = Bench(ids=["aaaaaaaaaaaaaaaa"] * 3 + ["bbbbbbbbbbbbbbbb"])
    nora, one = bench.connect(), bench.connect()
    bench.open(nora, XN, NORA)
    for _ in range(2):
        one.receive(send(f"{XN} {NORA}", FAR, tid="aaaaaaaa"))
    sent = [frame.identifier for frame in parse_frames(nora.take())]
    assert sent == ["aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb"]


@pytest.mark.requirement("MSRP-FRM-04")
def test_ids_are_of_64_random_bits() -> None:
    identifiers = Bench().relay.identifiers
    drawn = [identifiers.draw(()) for _ in range(100_000)]
    assert len(set(drawn)) == len(drawn)
    assert all(len(identifier) == 16 and identifier.isalnum() for identifier in drawn)


@pytest.mark.requirement("MSRP-SEND-09")
def test_an_error_may_come_while_the_chunk_arrives_and_is_the_only_answer() -> None:
    pair = Pair()
    wire = send(f"{XN.replace('Ub3n', 'AAAA')} {NORA}", FAR, b"x" * 500_000)
    pair.far.receive(wire[:4000])
    assert pair.codes() == ["481"]
    for at in range(4000, len(wire), 60_000):
        pair.far.receive(wire[at : at + 60_000])
    pair.far.receive(send(f"{XN} {NORA}", FAR))
    assert pair.codes() == ["200"]
    assert len(parse_frames(pair.nora.take())) == 1


@pytest.mark.requirement("MSRP-SEND-07")
@pytest.mark.parametrize("extra", ["", "X: 1"])  # the short way and the long one
def test_responses_to_a_send_go_to_the_previous_hop_alone(extra: str) -> None:
    pair = Pair()
    for uri, code in ((XN, "200"), (XN.replace("Ub3n", "AAAA"), "481")):
        pair.far.receive(send(f"{uri} {NORA}", f"{FAR} {PABLO}", tid="the.id", extra=extra))
        (response,) = parse_frames(pair.far.take())
        assert (response.method[:3], response.identifier, response.flag) == (code, "the.id", "$")
        assert (response["To-Path"], response["From-Path"]) == (FAR, uri)


@pytest.mark.requirement("MSRP-SEND-10", "MSRP-RESP-01", "MSRP-RESP-09")
def test_a_send_to_us_is_a_keepalive_or_an_error() -> None:
    pair = Pair()
    pair.nora.receive(send(XN, NORA, None))
    assert pair.codes(pair.nora) == ["200"]
    pair.nora.receive(send(XN, NORA))
    assert pair.codes(pair.nora) == ["481"]
    pair.far.receive(send(XN, FAR, None))
    assert pair.codes() == ["481"]


@pytest.mark.requirement("MSRP-SEND-13")
def test_many_sessions_on_one_connection() -> None:
    bench = Bench(sessions_per_connection=1000)
    mina, far = bench.connect(Transport.WSS), bench.connect()
    uris = [f"msrps://edge.loom.example:2855/s{number:021};tcp" for number in range(100)]
    for number, uri in enumerate(uris):
        bench.open(mina, uri, f"{MINA[:-3]}{number};ws", user="mina")
    for number, uri in enumerate(uris):
        far.receive(send(f"{uri} {MINA[:-3]}{number};ws", f"{FAR[:-4]}{number};tcp"))
        mina.receive(send(f"{uri} {FAR[:-4]}{number};tcp", f"{MINA[:-3]}{number};ws"))
    assert [frame.method[:4] for frame in parse_frames(mina.take())].count("SEND") == 100
    assert [frame.method[:4] for frame in parse_frames(far.take())].count("SEND") == 100


@pytest.mark.requirement("MSRP-SEND-13")
def test_more_pairs_of_paths_than_are_remembered_are_found_anew_and_nobody_loses_anything() -> None:
    bench = Bench()
    mina, link = bench.connect(), bench.connect()
    handler = bench.relay.handler_for(link)
    link.handler = handler

    def from_link(number: int) -> bytes:
        uri, near = f"msrps://edge.loom.example:2855/s{number:021};tcp", f"{MINA[:-3]}{number};ws"
        if handler.relay.table.find_raw(uri.encode(), bench.clock.now) is None:
            bench.open(mina, uri, near, user="mina")
        return send(f"{uri} {near}", f"{FAR[:-4]}{number};tcp", mid=f"m{number}")

    link.receive(from_link(0))
    first = mina.take()
    for number in range(1, ROUTES_LIMIT + 100):
        link.receive(from_link(number))
        assert len(handler.routes) <= ROUTES_LIMIT
    kept = [route.session.uri.raw.decode()[-8:-4] for route in handler.routes.values()]
    assert (kept[0], kept[-1]) == ("0100", f"{ROUTES_LIMIT + 99}")
    assert all(route.valid for route in handler.routes.values())
    link.receive(from_link(0))
    assert {frame.method for frame in parse_frames(link.take())} == {"200 OK"}
    assert len(parse_frames(mina.take())) == ROUTES_LIMIT + 100
    mina.receive(answer(first, "413 no"))  # whose route was forgotten meanwhile
    (report,) = parse_frames(link.take())
    assert (report.method, report["Message-ID"], report["Status"]) == ("REPORT", "m0", "000 413 no")


@pytest.mark.requirement("MSRP-SEND-15", "MSRP-RESP-07")
def test_content_types_are_not_judged() -> None:
    pair = Pair()
    pair.far.receive(send(f"{XN} {NORA}", FAR, content_type="x/unknown"))
    assert pair.codes() == ["200"]
    assert parse_frames(pair.nora.take())[0]["Content-Type"] == "x/unknown"


@pytest.mark.requirement("MSRP-RESP-07")
@pytest.mark.parametrize(
    ("content_type", "code"),
    [
        ("text/plain", "200"), ("Text/Plain;charset=utf-8", "200"), ("image/png", "200"), ("text/html", "415"),
        ("imagex/png", "415"), ("image", "415"), ("text/plainer", "415"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [2, 50_000])
def test_types_an_operator_does_not_want_get_415_and_go_nowhere(content_type: str, code: str, size: int) -> None:
    pair = Pair(content_types=frozenset((b"text/plain", b"image/*")))
    pair.far.receive(send(f"{XN} {NORA}", FAR))  # the route of the next one is known
    assert pair.codes() == ["200"]
    assert len(parse_frames(pair.nora.take())) == 1
    wire = send(f"{XN} {NORA}", FAR, b"x" * size, content_type=content_type, tid="second01", mid="m2")
    pair.far.receive(wire[:20_000])
    if size > 20_000:
        pair.far.receive(wire[20_000:])
    assert pair.codes() == [code]
    passed = b"".join(frame.body or b"" for frame in parse_frames(pair.nora.take()))
    assert len(passed) == (size if code == "200" else 0)
    pair.far.receive(send(f"{XN} {NORA}", FAR, None, byte_range=None, tid="third001"))  # no body, no type
    assert pair.codes() == ["200"]


@pytest.mark.requirement("MSRP-RESP-06")
def test_a_size_limit_is_answered_413_at_the_crossing_octet() -> None:
    pair = Pair(max_message_size=10_000)
    pair.far.receive(send(f"{XN} {NORA}", FAR, b"x" * 10_000, mid="a"))
    pair.far.receive(send(f"{XN} {NORA}", FAR, b"x" * 10_001, mid="b"))
    assert pair.codes() == ["200", "413"]
    assert len(parse_frames(pair.nora.take())) == 1
    wire = send(f"{XN} {NORA}", FAR, b"x" * 50_000, mid="c")
    pair.far.receive(wire[:5000])
    pair.far.receive(wire[5000:9000])
    assert pair.far.take() == b""
    pair.far.receive(wire[9000:20_000])
    assert pair.codes() == ["413"]
    pair.far.receive(wire[20_000:])
    assert pair.far.take() == b""
    (cut,) = parse_frames(pair.nora.take())
    assert cut.flag == "#"


# -- other methods


@pytest.mark.requirement("MSRP-RESP-10")
def test_an_unknown_method_to_us_is_501_over_the_full_path() -> None:
    pair = Pair()
    pair.far.receive(send(XN, f"{FAR} {PABLO}", None, method="XYZZY"))
    (no,) = parse_frames(pair.far.take())
    assert (no.method, no["To-Path"], no["From-Path"]) == ("501 Unknown method", f"{FAR} {PABLO}", XN)
    pair.far.receive(send(XN, FAR, None, method="REPORT"))
    assert pair.far.take() == b""


@pytest.mark.requirement("MSRP-METH-01", "MSRP-METH-02", "MSRP-METH-05", "MSRP-RESP-14")
@pytest.mark.parametrize("nickname", ['"Nora af Næs"', '""', '"' + "n" * 1023 + '"'])
def test_nicknames_and_their_answers_pass(nickname: str) -> None:
    pair = Pair()
    pair.far.receive(
        send(f"{XN} {NORA}", f"{FAR} {PABLO}", None, mid="", method="NICKNAME", extra=f"Use-Nickname: {nickname}")
    )
    (asked,) = parse_frames(pair.nora.take())
    assert (asked["Use-Nickname"], asked["To-Path"]) == (nickname, NORA)
    pair.nora.receive(
        f"MSRP {asked.identifier} 424 Odd\r\nTo-Path: {asked['From-Path']}\r\nFrom-Path: {NORA}\r\nX: 1\r\n"
        f"-------{asked.identifier}$\r\n".encode()
    )
    (said,) = parse_frames(pair.far.take())
    assert (said.identifier, said.method, said["X"]) == ("tid00001", "424 Odd", "1")
    assert (said["To-Path"], said["From-Path"]) == (f"{FAR} {PABLO}", f"{XN} {NORA}")
    assert pair.far.uses == 0


@pytest.mark.requirement("MSRP-METH-03")
def test_other_methods_wait_for_their_end() -> None:
    pair = Pair()
    wire = send(f"{XN} {NORA}", FAR, b"x" * 8000, method="XYZZY")
    for at in range(0, len(wire) - 1, 100):
        pair.far.receive(wire[at : min(at + 100, len(wire) - 1)])
        assert pair.nora.take() == b""
    pair.far.receive(wire[-1:])
    assert parse_frames(pair.nora.take())[0].body == b"x" * 8000


@pytest.mark.requirement("MSRP-METH-04")
def test_blocked_methods() -> None:
    pair = Pair(blocked_methods=(b"XYZZY",))
    pair.far.receive(send(f"{XN} {NORA}", f"{FAR} {PABLO}", None, method="XYZZY"))
    (no,) = parse_frames(pair.far.take())
    assert (no.method[:3], no["To-Path"]) == ("403", f"{FAR} {PABLO}")
    assert pair.nora.take() == b""


@pytest.mark.requirement("MSRP-TMR-03")
def test_an_answer_after_thirty_seconds_is_dropped() -> None:
    pair = Pair()
    pair.far.receive(send(f"{XN} {NORA}", FAR, None, method="NICKNAME"))
    (asked,) = parse_frames(pair.nora.take())
    pair.bench.advance(32)
    pair.nora.receive(
        f"MSRP {asked.identifier} 200 OK\r\nTo-Path: {asked['From-Path']}\r\nFrom-Path: {NORA}\r\n"
        f"-------{asked.identifier}$\r\n".encode()
    )
    assert pair.far.take() == b""
    assert pair.far.uses == 0


# -- responses


@pytest.mark.requirement("MSRP-RESP-13", "MSRP-CON-05")
def test_which_responses_count() -> None:
    pair = Pair()
    pair.far.receive(send(f"{XN} {NORA}", FAR))
    good = answer(pair.nora.take())
    pair.far.take()
    wrong_uri = good.replace(XN.encode(), XM.encode())
    unknown = good.replace(good.split()[1], b"ffffffffffffffff")
    pending = pair.nora.handler.outbox.pending  # type: ignore[attr-defined]
    for stray in (wrong_uri, unknown):
        pair.nora.receive(stray)
    pair.far.receive(good.replace(b"200 OK", b"413 no"))
    assert len(pending) == 1
    pair.nora.receive(good.replace(XN.encode(), f"{XN} {FAR}".encode(), 1))
    assert not pending
    pair.nora.receive(good.replace(b"200 OK", b"413 no"))
    assert pair.far.take() == b""


@pytest.mark.requirement("MSRP-CON-05")
def test_an_answer_to_somebody_who_left_is_dropped() -> None:
    pair = Pair()
    pair.far.receive(send(f"{XN} {NORA}", FAR, None, method="NICKNAME"))
    (asked,) = parse_frames(pair.nora.take())
    pair.far.close("eof")
    pair.nora.receive(
        f"MSRP {asked.identifier} 200 OK\r\nTo-Path: {asked['From-Path']}\r\nFrom-Path: {NORA}\r\n"
        f"-------{asked.identifier}$\r\n".encode()
    )
    assert not pair.bench.dialled


# -- connections


class Counted(Recorder):
    """A connection that the table counts."""

    def close(self, reason: str) -> None:
        self.end = self.end or reason
        self.table.end(self, reason, failed=False)

    @classmethod
    def admitted(cls, bench: Bench) -> Counted | None:
        """One more MSRP connection that has been of use; None: there was no room."""
        if bench.table.admit("192.0.2.17"):
            return None
        connection = cls(bench.table, Transport.TLS, bench.clock)
        connection.handler = handler = bench.relay.handler_for(connection)
        bench.table.add(connection)
        handler.succeed()
        return connection


@pytest.mark.requirement("MSRP-CON-13")
def test_an_idle_connection_is_kept_for_an_hour() -> None:
    bench = Bench()
    idle = Counted.admitted(bench)
    assert idle is not None
    for _ in range(59):
        bench.advance(60)
        bench.table.wheel.advance(bench.clock.now)
    assert not idle.closed
    bench.advance(120)
    bench.table.wheel.advance(bench.clock.now)
    assert idle.end == "idle"


@pytest.mark.requirement("MSRP-CON-13")
def test_where_there_is_no_room_the_longest_idle_connection_without_a_session_goes() -> None:
    bench = Bench()
    bench.table.relieve = bench.relay.relieve
    bench.table.reconfigure(Limits(connections=4))
    owner, far, asking, spare = (Counted.admitted(bench) for _ in range(4))
    assert owner is not None
    assert far is not None
    assert asking is not None
    assert spare is not None
    bench.open(owner, XN, NORA, lifetime=3000)
    far.receive(send(f"{XN} {NORA}", FAR))
    asking.uses += 1  # a request that was passed on waits for its answer
    assert Counted.admitted(bench) is None  # nobody has been idle for long
    bench.advance(29)
    assert Counted.admitted(bench) is None
    bench.advance(600)
    spare.last_received -= 1
    young = Counted.admitted(bench)
    assert young is not None
    assert spare.end == "pressure"
    assert not owner.closed
    assert not far.closed
    assert not asking.closed
    bench.advance(2)
    assert Counted.admitted(bench) is None


@pytest.mark.requirement("MSRP-CON-13")
def test_the_most_recently_used_connections_stay_when_enough_others_went() -> None:
    bench = Bench()
    bench.table.relieve = bench.relay.relieve
    bench.table.reconfigure(Limits(connections=20))
    opened = []
    for _ in range(20):
        opened.append(Counted.admitted(bench))
        bench.advance(1)
    bench.advance(60)
    assert Counted.admitted(bench) is not None
    ends = [connection.end for connection in opened if connection is not None]
    assert ends == ["pressure"] * 16 + [""] * 4


@pytest.mark.requirement("MSRP-CON-03")
def test_five_failures_close_a_stranger() -> None:
    pair = Pair()
    frame = send(f"{XN.replace('Ub3n', 'AAAA')} {NORA}", FAR)
    for _ in range(4):
        pair.far.receive(frame)
    assert not pair.far.closed
    pair.far.receive(frame)
    assert pair.codes() == ["481"] * 5
    assert pair.far.end == "failures"
    good = pair.bench.connect()
    good.receive(send(f"{XN} {NORA}", FAR) + frame * 9)
    assert not good.closed


@pytest.mark.requirement("MSRP-CON-03", "MSRP-CON-02")
def test_a_connection_must_succeed_in_thirty_seconds() -> None:
    pair = Pair()
    silent = pair.bench.connect()
    pair.bench.advance(20)
    pair.far.receive(send(f"{XN} {NORA}", FAR, None))
    pair.bench.advance(9.5)
    assert not silent.closed
    pair.bench.advance(1)
    assert silent.closed
    pair.bench.advance(20)
    assert not pair.far.closed


@pytest.mark.requirement("MSRP-CON-04", "MSRP-FLOW-03")
@pytest.mark.parametrize(("share", "count"), [(True, 1), (False, 2)])
def test_links_to_another_relay(share: bool, count: int) -> None:
    bench = Bench(share_links=share)
    users = [(bench.connect(), f"{XN[:-5]}{number};tcp", f"{NORA[:-4]}{number};tcp") for number in range(2)]
    for number, (connection, uri, path) in enumerate(users):
        bench.open(connection, uri, path, user=f"u{number}")
    for _ in range(2):
        for number, (connection, uri, path) in enumerate(users):
            connection.receive(send(f"{uri} msrps://gate.fjord.example:2855/g{number};tcp {TARIQ}", path))
    assert len(bench.dialled) == count


@pytest.mark.requirement("MSRP-CON-06", "MSRP-RESP-09")
@pytest.mark.parametrize(
    "target", ["msrps://q.example:2855/x;ws", "msrps://q.invalid:2855/x;tcp", "msrps://q.example:9/x;tcp"]
)
def test_what_is_never_dialled(target: str) -> None:
    pair = Pair()
    pair.nora.receive(send(f"{XN} {target}", NORA))
    assert pair.codes(pair.nora) == ["481"]
    assert not pair.bench.dialled


@pytest.mark.requirement("MSRP-CON-12")
@pytest.mark.parametrize("cut", range(1, len(E["E6.1"]), 29))
def test_the_end_of_the_stream_never_completes_a_frame(cut: int) -> None:
    pair = Pair()
    pair.nora.receive(E["E6.1"][:cut])
    pair.nora.close("eof")
    for dialled in pair.bench.dialled:
        assert b"$" not in dialled.connection.take()
    assert pair.nora.take() == b""


@pytest.mark.requirement("MSRP-CON-12")
def test_the_owner_is_gone_before_the_next_frame_is_handled() -> None:
    pair = Pair()
    pair.far.receive(send(f"{XN} {NORA}", FAR))
    pair.nora.close("reset")
    pair.far.receive(send(f"{XN} {NORA}", FAR))
    assert pair.codes() == ["200", "REP", "481"]


def test_a_dialled_connection_without_sessions_is_closed() -> None:
    pair = Pair()
    pair.nora.receive(E["E6.1"])
    assert not pair.dialled.closed
    pair.bench.advance(601)
    assert pair.dialled.end == "unused"
    assert (pair.nora.registered, pair.dialled.registered) == (0, 0)


# -- safety


@pytest.mark.requirement("MSRP-SEC-02")
@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "169.254.1.1", "::1", "::ffff:127.0.0.1", "224.0.0.1", "10.0.0.1", "192.168.1.1", "0.0.0.0", "::", "fe80::1",
     "fc00::1", "ff02::1", "64:ff9b::7f00:1", "2002:7f00:1::", "fe80::1%eth0", "100.64.0.1"],
)  # fmt: skip
def test_addresses_that_are_not_dialled(address: str) -> None:
    assert not is_permitted(address, ())


@pytest.mark.requirement("MSRP-SEC-02")
def test_addresses_that_are_dialled() -> None:
    assert is_permitted("8.8.8.8", ())
    assert is_permitted("2001:4860::1", ())
    assert is_permitted("10.1.2.3", [ip_network("10.0.0.0/8")])
    assert is_permitted("::ffff:10.1.2.3", [ip_network("10.0.0.0/8")])
    assert not is_permitted("10.1.2.3", [ip_network("192.168.0.0/16")])
    assert not is_permitted("224.0.0.1", [ip_network("0.0.0.0/0")])


@pytest.mark.requirement("MSRP-SEC-02", "MSRP-RESP-04")
def test_a_refused_target_is_a_failure_403() -> None:
    pair = Pair()
    pair.nora.receive(E["E6.1"])
    dialled = pair.bench.dialled[0]
    assert not dialled.check("127.0.0.1")
    assert dialled.check("192.0.2.77")
    pair.nora.take()
    dialled.connection.close("refused_target")
    (report,) = parse_frames(pair.nora.take())
    assert report["Status"] == "000 403 Target not allowed"


@pytest.mark.requirement("MSRP-SEC-03")
def test_connects_and_reports_are_limited() -> None:
    pair = Pair()
    for number in range(30):
        pair.nora.receive(send(f"{XN} msrps://p{number}.example:1/x;tcp", NORA, tid=f"tid{number:05}"))
    assert len(pair.bench.dialled) == 10
    for dialled in pair.bench.dialled:
        dialled.connection.close("refused")
    codes = pair.codes(pair.nora)
    assert codes.count("403") == 20
    assert codes.count("REP") == 10


@pytest.mark.requirement("MSRP-SEC-03")
def test_reports_are_limited() -> None:
    pair = Pair()
    for number in range(300):
        pair.nora.receive(send(f"{XN} {PABLO}", NORA, tid=f"tid{number:05}", mid=f"m{number}"))
    pair.nora.take()
    pair.dialled.close("reset")
    assert pair.codes(pair.nora) == ["REP"] * 100
    assert pair.bench.relay.stats.refused["report_rate"] == 200


def test_guessing_ends_a_connection_without_a_word_about_others() -> None:
    pair = Pair()
    for number in range(6):
        if not pair.far.closed:
            pair.far.receive(send(f"{XN[:-10]}{number:06};tcp {NORA}", FAR))
    assert pair.far.closed


@pytest.mark.requirement("MSRP-SEC-07", "MSRP-RESP-04")
def test_loops() -> None:
    bench = Bench()
    nora = bench.connect()
    third = "msrps://edge.loom.example:2855/third0000000000000000X;tcp"
    bench.open(nora, XN, NORA)
    bench.open(bench.connect(), XM, MINA)
    bench.open(bench.connect(), third, PABLO)
    for number, path in enumerate((f"{XN} {XM} {XN} {PABLO}", f"{XN} {XM} {third} {PABLO}", f"{XN} {XN} {NORA}"), 1):
        nora.receive(send(path, NORA))
        assert parse_frames(nora.take())[0].method[:3] == "403"
        assert bench.relay.stats.refused == {"loop": number}


@pytest.mark.requirement("MSRP-SEC-06")
def test_slow_heads_are_closed_and_slow_bodies_are_not() -> None:
    pair = Pair()
    pair.far.receive(send(f"{XN} {NORA}", FAR, None))
    wire = send(f"{XN} {NORA}", FAR, b"x" * 5000)
    for octet in wire[:40]:
        pair.bench.advance(1)
        if not pair.far.closed:
            pair.far.receive(bytes([octet]))
    assert pair.far.end == "slow_head"
    slow = pair.bench.connect()
    pair.session.far.clear()
    slow.receive(wire[:4000])
    for octet in wire[4000:4100]:
        pair.bench.advance(1)
        slow.receive(bytes([octet]))
    for octet in wire[4100:4103]:
        pair.bench.advance(59)
        slow.receive(bytes([octet]))
    assert not slow.closed
    pair.bench.advance(59)
    assert not slow.closed
    pair.bench.advance(36)
    assert slow.end == "slow_body"


_wire = st.sampled_from([E["E6.1"], E["E6.5"], E["E7.8"], E["E17.1"], E["E6.4"], E["E14.1"], E["E1.1"]])


@pytest.mark.requirement("MSRP-SEC-01")
@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(_wire, st.integers(0, 400), st.binary(max_size=6), st.integers(0, 8)), max_size=6))
def test_a_stranger_with_mutated_frames_opens_nothing(edits: list[tuple[bytes, int, bytes, int]]) -> None:
    bench = Bench()
    nora, stranger = bench.connect(), bench.connect()
    bench.open(nora, XN, NORA)
    for frame, at, octets, gone in edits:
        if not stranger.closed:
            stranger.receive(frame[:at] + octets + frame[at + gone :])
    assert not bench.dialled
    for frame in parse_frames(nora.take()):
        assert frame["To-Path"] == NORA


@pytest.mark.requirement("MSRP-SEC-04")
def test_no_session_id_in_what_operators_see() -> None:
    pair = Pair()
    pair.far.receive(send(f"{XN} {NORA}", FAR))
    pair.nora.close("eof")
    seen = f"{pair.bench.events} {pair.bench.relay.sessions()} {pair.bench.relay.stats.refused}"
    assert "Ub3nWq8ZkT1xY5cRm7VdHg" not in seen


def test_counters() -> None:
    pair = Pair()
    for _ in range(3):
        pair.far.receive(send(f"{XN} {NORA}", FAR))
    pair.far.receive(send(f"{XN} {NORA}", FAR, None, method="REPORT"))
    pair.far.receive(send(f"{XN} {NORA}", FAR, extra="Failure-Report: no"))
    pair.far.receive(send(f"{XN.replace('Ub3n', 'AAAA')} {NORA}", FAR))
    stats = pair.bench.relay.stats
    assert stats.frames == {"SEND": 5, "REPORT": 1}
    assert stats.responses == {200: 3, 481: 1}
    assert stats.reports == {"relayed": 1, "made": 0}
    assert stats.octets == 8
    assert stats.refused == {"session": 1}


@pytest.mark.requirement("MSRP-SEC-08")
def test_octets_of_a_user_in_an_hour() -> None:
    bench = Bench(octets_per_user=5000)
    nora, mina = bench.connect(), bench.connect()
    bench.open(nora, XN, NORA, lifetime=9000)
    bench.open(mina, XM, MINA, user="mina", lifetime=9000)

    def offer(size: int, tid: str) -> str:
        nora.receive(send(f"{XN} {XM} {MINA}", NORA, bytes(size), tid=tid, mid=tid))
        mina.take()
        return next(frame.method[:3] for frame in parse_frames(nora.take()) if frame.identifier == tid)

    assert [offer(3000, "aaaa"), offer(2000, "bbbb"), offer(1, "cccc")] == ["200", "200", "413"]
    mina.receive(send(f"{XM} {XN} {NORA}", MINA, b"others may"))
    assert parse_frames(nora.take())[-1].body == b"others may"
    bench.clock.advance(3600)
    assert [offer(5000, "dddd"), offer(1, "eeee")] == ["200", "413"]
