"""Which messages are understood, which are refused and with what, and which octets leave (requirements: SIP-MSG)."""

from __future__ import annotations

from typing import Any

import pytest

from edge.auth.digest import parse_credentials
from edge.connections import Transport
from edge.errors import RemoteError
from edge.sip import headers as h
from edge.sip.message import MessageLimits, check_request, frame_datagram, split_head
from tests.sip.desk import MESSAGE, Desk, answer_line_by_line, body_of, register, rows, sip, status_of

LIMITS = MessageLimits()
INVITE = b"INVITE sip:bob@example.com SIP/2.0"


@pytest.fixture
def desk() -> Desk:
    return Desk()


# ------------------------------------------------------------------------------------------ start lines


@pytest.mark.requirement("SIP-MSG-01")
@pytest.mark.parametrize(
    "start",
    [
        b"MESSAGE  sip:bob@example.com SIP/2.0",
        b"MESSAGE sip:bob@example.com  SIP/2.0",
        b"MESSAGE sip:bob@example.com\tSIP/2.0",
        b"MESSAGE sip:bob@exa\tmple.com SIP/2.0",
        b"MESSAGE sip:bob@example.com; lr SIP/2.0",
        b"MESSAGE <sip:bob@example.com> SIP/2.0",
        b"MESSAGE sip:bob@example.com SIP/2.0  ",
        b"MESS(AGE sip:bob@example.com SIP/2.0",
    ],
)
def test_rfc3261_7_1_a_request_line_has_two_single_blanks(desk: Desk, start: bytes) -> None:
    assert desk.status(sip(start, cseq=b"CSeq: 1 MESSAGE")) == 400
    assert desk.relayed() == []


@pytest.mark.requirement("SIP-MSG-02")
def test_rfc3261_7_1_the_version_ignores_case_and_leaves_in_capitals(desk: Desk) -> None:
    arrived = desk.relay(sip(b"MESSAGE sip:bob@example.com sip/2.0"))
    assert rows(arrived)[0].endswith(b" SIP/2.0")
    (answer,) = desk.reply(answer_line_by_line(arrived, b"sIp/2.0 200 OK"))
    assert rows(answer)[0] == b"SIP/2.0 200 OK"


@pytest.mark.requirement("SIP-MSG-03")
def test_rfc3261_21_5_6_another_version_is_a_505_also_with_that_version_in_the_via(desk: Desk) -> None:
    for start, via in (
        (b"MESSAGE sip:bob@example.com SIP/7.0", b"Via: SIP/7.0/UDP c.example;branch=z9hG4bKa"),
        (b"MESSAGE sip:bob@example.com SIP/7.0", b"Via: SIP/2.0/UDP c.example;branch=z9hG4bKb"),
        (b"MESSAGE sip:bob@example.com SIP/2.0", b"Via: SIP/7.0/UDP c.example;branch=z9hG4bKc"),
        (b"MESSAGE sip:bob@example.com SIP/3.0  ", b"Via: SIP/3.0/UDP c.example;branch=z9hG4bKd"),
    ):
        assert desk.status(sip(start, via=via)) == 505
    assert desk.relayed() == []


@pytest.mark.requirement("SIP-MSG-03")
def test_rfc3261_7_2_a_response_of_another_version_is_dropped(desk: Desk) -> None:
    arrived = desk.relay(sip())
    assert desk.reply(answer_line_by_line(arrived, b"SIP/7.0 200 OK")) == []
    assert len(desk.reply(answer_line_by_line(arrived, b"SIP/2.0 200 OK"))) == 1


@pytest.mark.requirement("SIP-MSG-04")
@pytest.mark.parametrize("method", [b"NEWMETHOD", b"invite", b"IN%56ITE", b"!odd-*_+`.%'~"])
def test_rfc3261_16_3_methods_are_tokens_in_their_case_and_unknown_ones_are_relayed(desk: Desk, method: bytes) -> None:
    back = desk.send(sip(method + b" sip:bob@example.com SIP/2.0"))
    assert back == []  # no 100: it is not an INVITE
    (arrived,) = desk.relayed()
    assert arrived.startswith(method + b" ")
    assert status_of(desk.send(sip(INVITE))[0]) == 100


@pytest.mark.requirement("SIP-MSG-05")
@pytest.mark.parametrize(
    "code",
    [b"4294967301", b"2_00", b"+200", b"99", b"099", b"700", b"-20", b"20", b"2OO", b" 200", "٢٠٠".encode(), b""],
)
def test_rfc3261_7_2_a_status_is_three_digits_from_100_to_699(desk: Desk, code: bytes) -> None:
    arrived = desk.relay(sip())
    assert desk.reply(answer_line_by_line(arrived, b"SIP/2.0 " + code + b" OK")) == []
    assert desk.rig.core.stats.rejected == {"status_code": 1}
    assert len(desk.reply(answer_line_by_line(arrived, b"SIP/2.0 699 OK"))) == 1


@pytest.mark.requirement("SIP-MSG-06")
@pytest.mark.parametrize("phrase", [b"", "Звонит".encode(), b'a  b \t;,<"', b"\xff\xfe"])
def test_rfc3261_7_2_the_phrase_is_passed_on_as_it_came(desk: Desk, phrase: bytes) -> None:
    arrived = desk.relay(sip(INVITE))
    (answer,) = desk.reply(answer_line_by_line(arrived, b"SIP/2.0 180 " + phrase))
    assert rows(answer)[0] == b"SIP/2.0 180 " + phrase


@pytest.mark.requirement("SIP-MSG-06")
def test_rfc3261_7_2_an_empty_phrase_may_lack_its_blank(desk: Desk) -> None:
    arrived = desk.relay(sip(INVITE))
    (answer,) = desk.reply(answer_line_by_line(arrived, b"SIP/2.0 180"))
    assert rows(answer)[0].rstrip() == b"SIP/2.0 180"


# ------------------------------------------------------------------------------------------ header lines


@pytest.mark.requirement("SIP-MSG-07")
def test_rfc3261_7_3_1_names_ignore_case_and_blanks_may_stand_around_the_colon(desk: Desk) -> None:
    arrived = desk.relay(
        sip(
            to=b"TO :<sip:bob@example.com>",
            cseq=b"cseq:1 MESSAGE",
            sender=b"FROM\t:\t<sip:alice@example.com>;tag=a1",
            max_forwards=b"MAX-forwards  :   0068",
            content_length=b"Content-Length   : 2",
            body=b"hi and more than that",
        )
    )
    assert b"Max-Forwards: 67" in rows(arrived)
    assert b"Content-Length   : 2" in rows(arrived)
    assert body_of(arrived) == b"hi"


COMPACT = {
    b"i": b"Call-ID", b"m": b"Contact", b"e": b"Content-Encoding", b"l": b"Content-Length", b"c": b"Content-Type",
    b"f": b"From", b"s": b"Subject", b"k": b"Supported", b"t": b"To", b"v": b"Via", b"o": b"Event",
    b"u": b"Allow-Events", b"r": b"Refer-To", b"x": b"Session-Expires", b"b": b"Referred-By", b"a": b"Accept-Contact",
    b"j": b"Reject-Contact", b"d": b"Request-Disposition", b"y": b"Identity",
}  # fmt: skip


@pytest.mark.requirement("SIP-MSG-07")
@pytest.mark.parametrize(
    "line", [b"m", b"Contact", b"Subject", b"Via", b"X", b"two words", b": x", b"a b: x", b"m\r\n : x"]
)
def test_rfc3261_7_3_1_a_line_without_name_or_colon_is_refused(desk: Desk, line: bytes) -> None:
    assert desk.status(sip(MESSAGE, b"Contact: <sip:a@h.example>", line)) == 400
    assert desk.status(register(line, b"Contact: <sip:a@h.example>")) == 400
    assert desk.relayed() == []


@pytest.mark.requirement("SIP-MSG-08")
def test_rfc3261_7_3_3_compact_names_do_all_that_long_ones_do(desk: Desk) -> None:
    others = [name + b": x" for name in sorted(COMPACT) if name not in b"ilcftv"]
    arrived = desk.relay(
        sip(
            MESSAGE,
            *others,
            b"c: text/plain",
            b"v: SIP/2.0/TCP second.example;branch=z9hG4bK2",
            b"Via: SIP/2.0/TCP third.example;branch=z9hG4bK3",
            via=b"V: SIP/2.0/UDP first.example;branch=z9hG4bKcompact;rport",
            sender=b"f: <sip:alice@example.com>;tag=a1",
            to=b"t: <sip:bob@example.com>",
            call_id=b"I: compact",
            content_length=b"l: 2",
            body=b"hi, cut",
        )
    )
    assert body_of(arrived) == b"hi"
    assert set(others) < set(rows(arrived))  # the rest goes on as it was written
    vias = [row for row in rows(arrived) if row.lower().startswith((b"v:", b"via:"))]
    assert [row.split()[2].split(b";")[0] for row in vias][1:] == [
        b"first.example",
        b"second.example",
        b"third.example",
    ]
    (answer,) = desk.reply(answer_line_by_line(arrived, b"SIP/2.0 200 OK"))
    assert rows(answer)[1].startswith(b"V: SIP/2.0/UDP first.example;branch=z9hG4bKcompact;rport=")


@pytest.mark.requirement("SIP-MSG-08")
@pytest.mark.parametrize("supported", [b"Supported", b"k", b"K", b"SUPPORTED"])
@pytest.mark.parametrize("contact", [b"Contact", b"m", b"M", b"CONTACT"])
def test_rfc3261_7_3_3_a_registration_may_be_written_with_compact_names(
    desk: Desk, supported: bytes, contact: bytes
) -> None:
    (granted,) = desk.send(
        register(
            supported + b": path, outbound",
            contact + b': <sip:carol@h.example>;reg-id=1;+sip.instance="<urn:uuid:0>"',
        )
    )
    assert b"Require: outbound" in rows(granted)
    assert any(row.startswith(b"Contact: <sip:carol@h.example>") and b"reg-id=1" in row for row in rows(granted))


@pytest.mark.requirement("SIP-MSG-09")
def test_rfc3261_7_3_1_a_fold_belongs_to_the_line_above_whatever_it_looks_like(desk: Desk) -> None:
    folded = b"Subject: a\r\n Route: <sip:evil.example;lr>\r\n\tVia: x"
    arrived = desk.relay(sip(MESSAGE, folded, sender=b"From:\r\n <sip:alice@example.com>\r\n\t;tag=a1"))
    assert b"\r\n" + folded + b"\r\n" in arrived
    assert desk.rig.asked == []  # nobody asked for evil.example
    assert desk.status(sip(MESSAGE + b"\r\n Route: <sip:evil.example;lr>")) == 400
    assert desk.status(sip(MESSAGE + b"\r\n ")) == 400


@pytest.mark.requirement("SIP-MSG-09")
def test_rfc3261_7_3_1_a_fold_counts_as_one_blank(desk: Desk) -> None:
    arrived = desk.relay(
        sip(
            INVITE,
            cseq=b"CSeq:\r\n 7\r\n\t INVITE",
            via=b"Via: SIP/2.0/UDP\r\n c.example\r\n ;branch=z9hG4bKf\r\n ;rport",
        )
    )
    (refused,) = desk.reply(answer_line_by_line(arrived, b"SIP/2.0 486 Busy"))
    assert status_of(refused) == 486
    assert b";branch=z9hG4bKf" in refused
    (ack,) = desk.relayed()  # what we write ourselves is found behind the folds too
    assert b"CSeq: 7 ACK" in rows(ack)


@pytest.mark.requirement("SIP-MSG-10")
def test_rfc3261_7_3_1_comma_lists_and_rows_mean_the_same_and_keep_their_order(desk: Desk) -> None:
    arrived = desk.relay(
        sip(
            MESSAGE,
            b"X-One: 1",
            b"v: SIP/2.0/UDP c.example;branch=z9hG4bKc",
            b"X-Two: 2",
            b"Supported: x, y",
            b"X-Three: 3",
            b"k: z",
            via=b'Via: SIP/2.0/UDP a.example;branch=z9hG4bKa;rport, SIP/2.0/UDP b.example;branch=z9hG4bKb;p="x, y"',
        )
    )
    kept = [row for row in rows(arrived) if row[:2] in (b"X-", b"Su", b"k:", b"v:")]
    assert kept == [
        b"X-One: 1", b"v: SIP/2.0/UDP c.example;branch=z9hG4bKc", b"X-Two: 2", b"Supported: x, y", b"X-Three: 3", b"k: z",
    ]  # fmt: skip
    (answer,) = desk.reply(answer_line_by_line(arrived, b"SIP/2.0 200 OK"))
    vias = [row for row in rows(answer) if row.lower().startswith(b"v")]
    assert vias[0].startswith(b"Via: SIP/2.0/UDP a.example;branch=z9hG4bKa;rport=")
    assert vias[0].endswith(b', SIP/2.0/UDP b.example;branch=z9hG4bKb;p="x, y"')
    assert vias[1:] == [b"v: SIP/2.0/UDP c.example;branch=z9hG4bKc"]


@pytest.mark.requirement("SIP-MSG-10")
def test_rfc3261_16_7_of_a_list_only_our_via_is_taken_off(desk: Desk) -> None:
    arrived = desk.relay(sip())
    ours, theirs = [row for row in rows(arrived) if row.startswith(b"Via: ")]
    joined = answer_line_by_line(arrived, b"SIP/2.0 200 OK").replace(
        ours + b"\r\n" + theirs, ours + b" , " + theirs[5:]
    )
    (answer,) = desk.reply(joined)
    assert [row for row in rows(answer) if row.lower().startswith(b"via")] == [theirs]
    several = desk.relay(sip(MESSAGE, b"v: SIP/2.0/UDP b.example;branch=z9hG4bKb", b"Via: SIP/2.0/UDP c.example"))
    vias = [row.partition(b": ")[2] for row in rows(several) if row.lower().startswith((b"v:", b"via"))]
    lines = [row for row in rows(answer_line_by_line(several, b"SIP/2.0 200 OK")) if not row.lower().startswith(b"v")]
    (answer,) = desk.reply(b"\r\n".join([lines[0], b"Via: " + b",".join(vias), *lines[1:-1], b"", b""]))
    left = b",".join(row.partition(b": ")[2] for row in rows(answer) if row.lower().startswith(b"v"))
    assert left.replace(b", ", b",") == b",".join(vias[1:])


@pytest.mark.requirement("SIP-MSG-10")
def test_rfc3261_7_3_1_commas_in_quotes_and_brackets_do_not_split_contacts(desk: Desk) -> None:
    (granted,) = desk.send(
        register(b'Contact: "x, y" <sip:a@h.example>, <sip:b@h.example;p=1>', b"m: <sip:c@h.example>")
    )
    contacts = [row for row in rows(granted) if row.startswith(b"Contact: ")]
    assert [row.partition(b">")[0] for row in contacts] == [
        b"Contact: <sip:a@h.example", b"Contact: <sip:b@h.example;p=1", b"Contact: <sip:c@h.example",
    ]  # fmt: skip


@pytest.mark.requirement("SIP-MSG-10")
def test_rfc3261_16_12_routes_are_followed_in_order_whether_joined_or_not(desk: Desk) -> None:
    first = desk.rig.wire()
    desk.rig.roads["one.example"] = [first]
    desk.send(
        sip(
            MESSAGE,
            b"Route: <sip:edge.example:5060;lr>, <sip:one.example;lr>",
            b"Route: <sip:two.example;lr>, <sip:three.example;lr>",
        )
    )
    (sent,) = first.take()
    routes = [row for row in rows(sent) if row.startswith(b"Route")]
    assert routes == [b"Route: <sip:one.example;lr>", b"Route: <sip:two.example;lr>, <sip:three.example;lr>"]


@pytest.mark.requirement("SIP-MSG-10")
def test_rfc3261_16_6_a_strict_next_hop_takes_only_the_first_of_a_joined_route(desk: Desk) -> None:
    strict = desk.rig.wire()
    desk.rig.roads["one.example"] = [strict]
    desk.send(sip(MESSAGE, b"Route: <sip:one.example>, <sip:two.example;lr>", b"Route: <sip:three.example;lr>"))
    (sent,) = strict.take()
    assert rows(sent)[0] == b"MESSAGE sip:one.example SIP/2.0"
    assert [row for row in rows(sent) if row.startswith(b"Route")] == [
        b"Route: <sip:two.example;lr>", b"Route: <sip:three.example;lr>", b"Route: <sip:bob@example.com>",
    ]  # fmt: skip


@pytest.mark.requirement("SIP-MSG-11")
def test_rfc3261_20_7_rows_of_credentials_and_challenges_are_neither_joined_nor_split(desk: Desk) -> None:
    credentials = [
        b'Proxy-Authorization: Digest username="a", realm="x, y"',
        b"Authorization: Other a=b, c",
        b'Proxy-Authorization: Digest username="b", realm="z"',
        b"authorization: Third ,",
    ]
    arrived = desk.relay(sip(INVITE, *credentials))
    assert [row for row in rows(arrived) if b"uthorization" in row] == credentials
    challenges = [b'WWW-Authenticate: Digest realm="x, y", nonce="n"', b"WWW-Authenticate: New a, b"]
    (answer,) = desk.reply(answer_line_by_line(arrived, b"SIP/2.0 401 No", *challenges))
    assert [row for row in rows(answer) if b"uthenticate" in row] == challenges


ONCE = {
    "sender": (b"From", b"f", b"<sip:alice@example.com>;tag=a1"),
    "to": (b"To", b"t", b"<sip:bob@example.com>"),
    "call_id": (b"Call-ID", b"i", b"once"),
    "cseq": (b"CSeq", b"cSEQ ", b"1 MESSAGE"),
    "max_forwards": (b"Max-Forwards", b"MAX-FORWARDS", b"70"),
    "content_length": (b"Content-Length", b"l", b"0"),
    "content_type": (b"Content-Type", b"c", b"text/plain"),
}


@pytest.mark.requirement("SIP-MSG-12", "SIP-MSG-08")
@pytest.mark.parametrize("which", ONCE)
def test_rfc3261_7_3_1_what_may_stand_once_is_refused_twice_even_if_equal(desk: Desk, which: str) -> None:
    long, other, value = ONCE[which]
    replaced: dict[str, Any] = {} if which == "content_type" else {which: long + b": " + value}
    if which == "content_type":
        assert desk.status(sip(MESSAGE, long + b": " + value, other + b": " + value)) == 400
    else:
        assert desk.status(sip(MESSAGE, other + b": " + value, **replaced)) == 400
        assert desk.status(sip(MESSAGE, long + b": " + value, **replaced)) == 400
    assert desk.relayed() == []


@pytest.mark.requirement("SIP-MSG-12")
@pytest.mark.parametrize("which", ONCE)
def test_rfc3261_7_3_1_a_response_with_one_twice_is_dropped(desk: Desk, which: str) -> None:
    _, other, value = ONCE[which]
    arrived = desk.relay(sip())
    extra = [other + b": " + value] * (2 if which in ("content_type", "max_forwards") else 1)
    assert desk.reply(answer_line_by_line(arrived, b"SIP/2.0 200 OK", *extra)) == []
    assert desk.rig.core.stats.rejected == {"duplicate_header": 1}
    assert len(desk.reply(answer_line_by_line(arrived, b"SIP/2.0 200 OK"))) == 1


@pytest.mark.requirement("SIP-MSG-12")
def test_a_second_content_length_ends_a_stream_after_its_400(desk: Desk) -> None:
    for second in (b"l: 5", b"Content-Length: 5", b"Content-Length: 50"):
        stream = desk.stream()
        assert stream.statuses(sip(MESSAGE, second, body=b"12345") + sip()) == [400]
        assert stream.closed
    assert desk.relayed() == []


@pytest.mark.requirement("SIP-MSG-13")
@pytest.mark.parametrize(
    "missing", [("sender",), ("to",), ("call_id",), ("cseq",), ("sender", "to", "call_id", "cseq")]
)
def test_rfc3261_8_1_1_a_missing_header_is_a_400_with_those_that_are_there(
    desk: Desk, missing: tuple[str, ...]
) -> None:
    gone: dict[str, Any] = dict.fromkeys(missing)
    (answer,) = desk.send(sip(MESSAGE, **gone))
    assert status_of(answer) == 400
    names = {row.partition(b":")[0].decode() for row in rows(answer)[1:]}
    known = {"sender": "From", "to": "To", "call_id": "Call-ID", "cseq": "CSeq"}
    assert names == {
        "Via",
        "Content-Length",
        *(known.keys() - gone.keys() and {known[k] for k in known.keys() - gone.keys()}),
    }


@pytest.mark.requirement("SIP-MSG-13")
def test_rfc3261_8_1_1_without_a_via_there_is_silence(desk: Desk) -> None:
    assert desk.send(sip(via=None)) == []
    assert desk.send(sip(via=b"Via: not one at all")) == []
    assert desk.relayed() == []
    arrived = desk.relay(sip())
    for name in (b"CSeq", b"Call-ID", b"From", b"To", b"Via"):
        whole = answer_line_by_line(arrived, b"SIP/2.0 200 OK")
        kept = [row for row in rows(whole) if not row.startswith(name + b":")]
        assert desk.reply(b"\r\n".join([*kept, b"", b""])) == []


@pytest.mark.requirement("SIP-MSG-14")
def test_rfc3261_20_16_cseq_is_32_bits_and_names_the_method(desk: Desk) -> None:
    for good in (b"0", b"4294967295", b"0009", b"00000000000000000001"):
        assert good + b" MESSAGE" in desk.relay(sip(cseq=b"CSeq: " + good + b" MESSAGE"))
    for bad in (b"4294967296 MESSAGE", b"-1 MESSAGE", b"+1 MESSAGE", b"1_0 MESSAGE", b"MESSAGE", b"1", b"1 MESSAGE x",
                b"1 message", b"8 INVITE", b"x MESSAGE", "١ MESSAGE".encode(), b"9" * 5000 + b" MESSAGE", b""):  # fmt: skip
        assert desk.status(sip(cseq=b"CSeq: " + bad)) == 400
    assert desk.status(sip(b"NEWMETHOD sip:bob@example.com SIP/2.0", cseq=b"CSeq: 1 INVITE")) == 501
    assert desk.status(sip(b"OPTIONS sip:bob@example.com SIP/2.0", cseq=b"CSeq: 1 NEWMETHOD")) == 400
    assert desk.relayed() == []


@pytest.mark.requirement("SIP-MSG-15")
def test_rfc3261_20_22_max_forwards_is_an_octet(desk: Desk) -> None:
    for given, left in ((b"0068", b"67"), (b"255", b"254"), (b"1", b"0"), (b"000000070", b"69"), (b"300", b"69")):
        assert b"Max-Forwards: " + left in rows(desk.relay(sip(max_forwards=b"Max-Forwards: " + given)))
    for bad in (b"-1", b"+5", b"7_0", b"seventy", b"", b"70 70", "٧٠".encode()):
        assert desk.status(sip(max_forwards=b"Max-Forwards: " + bad)) == 400
    assert desk.status(sip(max_forwards=b"Max-Forwards: " + b"9" * 30)) == 400
    assert desk.relayed() == []


@pytest.mark.requirement("SIP-MSG-16")
@pytest.mark.parametrize(
    "value", [b"-999", b"+5", b"5_0", b"five", b"5, 5", b"5 5", b"0x5", b"", "٥".encode(), b"00000000005", b"5\r\n 5"]
)
def test_rfc3261_20_14_content_length_is_digits_and_nothing_else(desk: Desk, value: bytes) -> None:
    data = sip(content_length=b"Content-Length: " + value, body=b"12345")
    desk.assert_unframed(data)


@pytest.mark.requirement("SIP-MSG-17")
def test_rfc3261_25_1_a_backslash_protects_the_next_octet_in_quotes(desk: Desk) -> None:
    sender = b'From: "A \\"<sip:evil@x.example>;tag=z\\" B" <sip:alice@example.com>;tag=1'
    message = frame_datagram(sip(sender=sender), LIMITS)
    check_request(message, LIMITS)
    address = message.address(h.FROM)
    assert (address.uri, address.tag()) == (b"sip:alice@example.com", b"1")
    assert sender in rows(desk.relay(sip(sender=sender)))
    for name in (b'"a\\\\"', b'"a\\\x00b"', b'"<,;?>"', b'"a;tag=2"'):
        assert desk.relay(sip(sender=b"From: " + name + b" <sip:alice@example.com>;tag=1"))
    for broken in (
        b'To: "Mr. J. User <sip:bob@example.com>',
        b'To: "a\\" <sip:bob@example.com>',
        b'To: <sip:bob@example.com>;p="x',
        b'To: <sip:bob@example.com>;p="x\\',
        b'To: "a\\\r\n b" <sip:bob@example.com>',  # a line end cannot be protected
    ):
        assert desk.status(sip(to=broken)) == 400
    assert desk.status(sip(sender=b'From: "a <sip:alice@example.com>;tag=1')) == 400
    assert desk.relayed() == []


@pytest.mark.requirement("SIP-MSG-18")
def test_rfc3261_20_10_without_brackets_parameters_belong_to_the_header(desk: Desk) -> None:
    (granted,) = desk.send(register(b"Contact: sip:+1@gw.example;unknownparam"))
    assert any(row.startswith(b"Contact: <sip:+1@gw.example>;unknownparam") for row in rows(granted))
    for contact in (b"sip:u@h?Route=%3Csip:x%3E", b"sip:u@h,x", b'sip:"u@h"'):
        assert desk.status(register(b"Contact: " + contact)) == 400
    quoted = b'Contact: sip:carol@h.example;+x="<urn:y>"'  # brackets in a quoted parameter make no name-addr
    assert desk.status(register(quoted)) == 200
    for name in (b"From", b"To"):
        key = {b"From": "sender", b"To": "to"}[name]
        replaced: dict[str, Any] = {key: name + b": sip:u@h.example?x=y;tag=a1"}
        assert desk.status(sip(**replaced)) == 400


@pytest.mark.requirement("SIP-MSG-19")
def test_rfc4475_3_1_1_6_a_name_may_touch_its_bracket_and_one_with_commas_needs_quotes(desk: Desk) -> None:
    assert desk.relay(sip(sender=b"From: caller<sip:alice@example.com>;tag=1"))
    assert desk.relay(sip(sender=b'From: "x"<sip:alice@example.com>;tag=1'))
    for name in (b"Bell, Alexander ", b"a;b ", b"a(b) ", b'a "b" ', b'"a" b ', b"caf\xe9 "):
        assert desk.status(sip(sender=b"From: " + name + b"<sip:alice@example.com>;tag=1")) == 400
    assert desk.relayed() == []


@pytest.mark.requirement("SIP-MSG-20", "SIP-MSG-21")
def test_rfc3261_16_6_what_we_do_not_use_goes_on_unread(desk: Desk) -> None:
    strange = [
        b"UnknownHeaderWithUnusualValue: ;;,,;;,;",
        b"Date: Fri, 01 Jan 2010 16:00:00 EST",
        b"Warning: junk",
        b"Subject: caf\xe9 \xff\xfe\x01",
        b'Contact: <;;,"',
        b"Accept:,,;",
        b'Retry-After: never "',
        b"X: one \\",
        b"extension-!.%*+_`'~:\xef\xbb\xbf",
        b"Empty:",
    ]
    arrived = desk.relay(
        sip(
            b"MESSAGE sip:bob@example.com;new=\x7f;p=1;p=2 SIP/2.0",
            *strange,
            to=b"To: <sip:bob@example.com;unknown=1;unknown=2>;new=x;new=y",
        )
    )
    assert [row for row in rows(arrived) if row in strange] == strange
    assert b"To: <sip:bob@example.com;unknown=1;unknown=2>;new=x;new=y" in rows(arrived)


@pytest.mark.requirement("SIP-MSG-22")
@pytest.mark.parametrize(
    "line",
    [
        b"X: a\nVia: SIP/2.0/UDP evil.example",
        b"X: a\rb",
        b"X: a\x00b",
        b'X: "a\x00b"',
        b'X: "a\\\\\x00b"',
        b"X: \\\x00",
        b"X: a\n",
        b"X\n: a",
    ],
)
def test_rfc3261_7_bare_line_ends_and_nul_are_refused(desk: Desk, line: bytes) -> None:
    data = sip(MESSAGE, line, b"Y: z")
    desk.assert_unframed(data)


@pytest.mark.requirement("SIP-MSG-22")
@pytest.mark.parametrize("octet", [b"\r", b"\n", b"\0"])
def test_rfc3261_7_bare_line_ends_and_nul_in_the_start_line_are_refused(desk: Desk, octet: bytes) -> None:
    assert desk.status(sip(b"MESSAGE sip:bo" + octet + b"b@example.com SIP/2.0")) == 400
    arrived = desk.relay(sip(INVITE))
    assert desk.reply(answer_line_by_line(arrived, b"SIP/2.0 180 Ring" + octet + b"ing")) == []


@pytest.mark.requirement("SIP-MSG-23")
def test_rfc3261_7_3_1_a_parameter_we_act_on_may_not_occur_twice(desk: Desk) -> None:
    via = b"Via: SIP/2.0/UDP c.example;branch=z9hG4bKp"
    for extra in (b";branch=z9hG4bKq", b";BRANCH=x", b";rport;rport", b";received=1.2.3.4;received=1.2.3.4"):
        assert desk.status(sip(via=via + extra)) == 400
    for tags in (b";tag=a;tag=b", b";tag=a;TAG=a", b";tag=a;x;tag=b"):
        assert desk.status(sip(sender=b"From: <sip:alice@example.com>" + tags)) == 400
        assert desk.status(sip(to=b"To: <sip:bob@example.com>" + tags)) == 400
    assert desk.status(sip(MESSAGE, b"Route: <sip:edge.example;lr;lr>")) == 400
    instance = b';+sip.instance="<urn:x:1>"'
    for parameters in (b";expires=1000;Expires=1000", b";q=1;q=0.5", instance + b";reg-id=1;reg-id=1", instance * 2):
        assert desk.status(register(b"Contact: <sip:carol@h.example>" + parameters)) == 400
    for name in (
        b"username",
        b"realm",
        b"nonce",
        b"uri",
        b"response",
        b"cnonce",
        b"nc",
        b"qop",
        b"opaque",
        b"algorithm",
    ):
        with pytest.raises(RemoteError) as refused:
            parse_credentials(b'Digest %b="x", %b="x"' % (name, name))
        assert refused.value.status == 400
    assert desk.relayed() == []
    assert desk.relay(sip(sender=b"From: <sip:alice@example.com>;x=1;tag=a;x=2"))


@pytest.mark.requirement("SIP-MSG-24")
def test_rfc3261_7_3_1_names_and_tokens_ignore_case_quotes_and_call_ids_do_not(desk: Desk) -> None:
    (granted,) = desk.send(register(b"Contact: <sip:carol@h.example>;EXPIRES=120"))
    assert any(row.startswith(b"Contact: ") and row.endswith(b";expires=120") for row in rows(granted))

    twice = sip(INVITE, via=b"Via: SIP/2.0/UDP c.example;BRANCH=z9hG4bKupper;RPORT")
    assert [status_of(one) for one in desk.send(twice)] == [100]
    assert [status_of(one) for one in desk.send(twice)] == [100]
    assert len(desk.relayed()) == 1  # found again by its branch

    for call_id, number, status in ((b"A@x", 5, 200), (b"a@x", 4, 200), (b"a@x", 4, 400)):
        cseq = b"CSeq: %d REGISTER" % number
        contact = b"Contact: <sip:dave@h.example>"
        assert desk.status(register(contact, user=b"dave", call_id=b"Call-ID: " + call_id, cseq=cseq)) == status

    for name in (b'"<urn:x:a>"', b'"<urn:x:A>"'):
        (granted,) = desk.send(register(b"Contact: <sip:e@h.example>;reg-id=1;+sip.instance=" + name, user=b"erin"))
    assert sum(row.startswith(b"Contact: ") for row in rows(granted)) == 2


@pytest.mark.requirement("SIP-MSG-25")
def test_rfc3261_7_4_2_bodies_are_octets(desk: Desk) -> None:
    body = bytes(range(256)) * 3 + b"\n\n\0\r\n\r\nMESSAGE sip:x SIP/2.0\r\n\r\n"
    assert body_of(desk.relay(sip(MESSAGE, b"Transfer-Encoding: chunked", body=body))) == body
    stream = desk.stream()
    assert stream.send(sip(MESSAGE, b"Transfer-Encoding: chunked", b"Content-Encoding: gzip", body=body)) == b""
    assert [body_of(one) for one in desk.relayed()] == [body]


@pytest.mark.requirement("SIP-MSG-26")
def test_rfc3261_18_3_a_datagram_ends_where_content_length_says(desk: Desk) -> None:
    arrived = desk.relay(sip(body=b"hello") + b" and " + sip())
    assert body_of(arrived) == b"hello"
    assert body_of(desk.relay(sip(content_length=None, body=b"to the end\0"))) == b"to the end\0"
    assert desk.status(sip(content_length=b"Content-Length: 9999", body=b"154 octets")) == 400
    whole = sip()
    for end in (b"Max-Forwards: 70\r\n", b"\r\nCSeq: 1 MESSAGE\r\n", b"\r\nCSeq: 1 MESSAGE"):
        cut = whole[: whole.index(end) + len(end)]
        assert desk.status(cut) == 400, end
    assert desk.relayed() == []
    assert desk.status(b"\r\n\r\n" + register(b"Contact: <sip:carol@h.example>")) == 200  # CRLF in front (§7.5)


@pytest.mark.requirement("SIP-MSG-26")
def test_rfc3261_18_3_a_response_cut_short_is_dropped(desk: Desk) -> None:
    arrived = desk.relay(sip())
    whole = answer_line_by_line(arrived, b"SIP/2.0 200 OK", body=b"12345")
    assert desk.reply(whole[:-1]) == []
    assert desk.reply(whole.partition(b"\r\n\r\n")[0] + b"\r\n") == []
    (answer,) = desk.reply(whole + b"678")
    assert body_of(answer) == b"12345"


@pytest.mark.requirement("SIP-MSG-27")
@pytest.mark.parametrize(
    "broken",
    [
        {"cseq": b"CSeq: x ACK"},
        {"cseq": b"CSeq: 1 INVITE"},
        {"to": None},
        {"to": b'To: "x'},
        {"content_length": b"Content-Length: -1"},
        {"content_length": b"Content-Length: 100000000"},
        {"via": b"Via: SIP/2.0/UDP h.example;;"},
        {"max_forwards": b"Max-Forwards: 0"},
        {"call_id": b"Call-ID: \nx"},
    ],
)
def test_rfc3261_17_nothing_is_said_to_an_ack(desk: Desk, broken: dict[str, bytes | None]) -> None:
    assert desk.send(sip(b"ACK sip:bob@example.com SIP/2.0", **broken)) == []
    assert desk.send(sip(b"ACK sip:bob@example.com SIP/3.0", **broken)) == []
    assert desk.stream().send(sip(b"ACK sip:bob@example.com SIP/2.0", **broken)) == b""
    assert desk.relayed() == []


@pytest.mark.requirement("SIP-MSG-27")
def test_rfc3261_18_3_nothing_is_said_to_a_response(desk: Desk) -> None:
    arrived = desk.relay(sip())
    good = answer_line_by_line(arrived, b"SIP/2.0 200 OK")
    for old, new in (
        (b"CSeq: 1", b"CSeq: x"),
        (b"Length: 0", b"Length: -1"),
        (b"Via: SIP", b"Via: ;;"),
        (b"200", b"2000"),
    ):
        assert desk.reply(good.replace(old, new)) == []
        assert desk.bob.take() == []
        assert desk.stream().send(good.replace(old, new)) == b""


def test_rfc4475_3_3_10_an_answer_follows_the_connection_and_never_a_via_of_its_own(desk: Desk) -> None:
    arrived = desk.relay(sip())
    theirs = next(row for row in rows(arrived) if b"caller.example" in row)
    forged = answer_line_by_line(arrived, b"SIP/2.0 200 OK").replace(
        theirs, b"Via: SIP/2.0/UDP 255.255.255.255;branch=x"
    )
    (answer,) = desk.reply(forged)
    assert status_of(answer) == 200
    assert not any(wire.remote[0] == "255.255.255.255" for wire in desk.rig.table.connections.values())


# ------------------------------------------------------------------------------------------ separators, escapes


@pytest.mark.requirement("SIP-MSG-33")
def test_rfc4475_3_1_2_1_lone_separators_are_refused_where_we_read(desk: Desk) -> None:
    for value in (
        b";;,;,,",
        b";branch=z9hG4bKs;",
        b";;branch=z9hG4bKs",
        b";branch=z9hG4bKs;;rport",
        b",",
        b";branch=z9hG4bKs,",
    ):
        for _ in range(2):  # also the second time, when the sent-by is known
            assert desk.status(sip(via=b"Via: SIP/2.0/UDP c.example" + value)) == 400, value
    for value in (b";", b";;tag=1", b";tag=1;", b";=x", b", <sip:x@y>"):
        assert desk.status(sip(sender=b"From: <sip:alice@example.com>" + value)) == 400, value
    for value in (b"<sip:a@h.example>,,<sip:b@h.example>", b",", b"<sip:a@h.example>,", b"<sip:a@h.example>;;q=1"):
        assert desk.status(register(b"Contact: " + value)) == 400, value
    for value in (b"<sip:edge.example;lr>,", b",<sip:edge.example;lr>", b"<sip:edge.example;;lr>"):
        assert desk.status(sip(MESSAGE, b"Route: " + value)) == 400, value
    assert desk.relayed() == []


@pytest.mark.requirement("SIP-MSG-31")
def test_rfc3261_19_1_2_escapes_are_left_alone_outside_of_uris(desk: Desk) -> None:
    sender = b'From: "%61%00" <sip:alice@example.com>;tag=a%20b;%74ag=other'
    via = b"Via: SIP/2.0/UDP c.example;branch=z9hG4bK-.!%66*_+`'~%00;rport"
    first = sip(MESSAGE, b"%52oute: <sip:evil.example>", sender=sender, via=via)
    arrived = desk.relay(first)
    assert {sender, b"%52oute: <sip:evil.example>"} < set(rows(arrived))
    (answer,) = desk.reply(answer_line_by_line(arrived, b"SIP/2.0 200 OK"))
    assert b";branch=z9hG4bK-.!%66*_+`'~%00;rport=" in answer
    message = frame_datagram(first, LIMITS)
    assert message.address(h.FROM).tag() == b"a%20b"
    assert desk.status(sip(b"MESSAGE sip:bob@ex%61mple.com SIP/2.0")) == 400


# ------------------------------------------------------------------------------------------ limits


@pytest.mark.requirement("SIP-MSG-35")
def test_rfc3261_21_4_12_a_long_request_uri_gets_414_and_the_connection_goes_on(desk: Desk) -> None:
    def to(length: int) -> bytes:
        uri = b"sip:bob@example.com;x="
        return b"MESSAGE " + uri + b"x" * (length - len(uri)) + b" SIP/2.0"

    assert desk.status(sip(to(2049))) == 414
    assert desk.relay(sip(to(2048)))
    stream = desk.stream()
    assert stream.statuses(sip(to(2049)) + register(b"Contact: <sip:carol@h.example>")) == [414, 200]
    assert not stream.closed


@pytest.mark.requirement("SIP-MSG-36")
@pytest.mark.parametrize(
    ("fits", "too_much"),
    [
        ([b"X: 1"] * 249, [b"X: 1"] * 250),  # with the seven there are: 256
        ([b"X: " + b"y" * 8189], [b"X: " + b"y" * 8190]),
        ([b"v: SIP/2.0/UDP h"] * 127, [b"v: SIP/2.0/UDP h"] * 128),
        ([b"v: " + b",".join([b"SIP/2.0/UDP h"] * 127)], [b"v: " + b",".join([b"SIP/2.0/UDP h"] * 128)]),
        ([b"X: " + b"y" * 8000] * 4, [b"X: " + b"y" * 8000] * 5),
        ([b"X: 1\r\n " + b"y" * 8000], [b"X: 1\r\n " + b"y" * 9000]),
    ],
    ids=["rows", "row", "vias", "joined vias", "section", "folded row"],
)
def test_rfc3261_21_5_7_too_much_of_headers_gets_513(desk: Desk, fits: list[bytes], too_much: list[bytes]) -> None:
    assert desk.relay(sip(MESSAGE, *fits))
    assert desk.status(sip(MESSAGE, *too_much)) == 513
    stream = desk.stream()
    assert stream.statuses(sip(MESSAGE, *too_much)) == [513]
    assert desk.relayed() == []
    if b"," not in too_much[0]:  # rows: where the end is was never sure
        assert stream.closed


@pytest.mark.requirement("SIP-MSG-36")
def test_rfc3261_21_5_7_headers_without_an_end_get_513_when_it_is_enough(desk: Desk) -> None:
    stream, row = desk.stream(), b"X: " + b"y" * 995 + b"\r\n"
    assert stream.send(sip().removesuffix(b"\r\n"), *[row] * 31) == b""
    assert stream.statuses(*[row] * 3) == [513]
    assert stream.closed
    assert desk.relayed() == []


@pytest.mark.requirement("SIP-MSG-37")
@pytest.mark.parametrize("length", [65537, 100000000, 9999999999])
def test_rfc3261_21_4_11_a_long_body_gets_413_before_it_comes(desk: Desk, length: int) -> None:
    stream = desk.stream()
    head = sip(content_length=b"Content-Length: %d" % length)
    assert stream.statuses(head) == [413]
    assert stream.closed
    whole = desk.stream(Transport.TLS)
    assert whole.statuses(sip(body=b"x" * 65536)) == []
    (arrived,) = desk.relayed()
    assert len(body_of(arrived)) == 65536
    assert desk.status(sip(body=b"x" * 65537)) == 413
    assert desk.relayed() == []


def test_a_start_line_is_bounded_whatever_it_is_made_of(desk: Desk) -> None:
    assert desk.status(sip(b"M" * 5000 + b" sip:bob@example.com SIP/2.0")) == 414
    with pytest.raises(RemoteError):
        split_head(b"M" * 9000, LIMITS)


# ------------------------------------------------------------------------------------------ amplification


@pytest.mark.requirement("SIP-DOS-06")
@pytest.mark.parametrize(
    "data",
    [
        sip(INVITE.replace(b"bob", b"nobody"), sender=b"From: <sip:x@foreign.example>;tag=1"),
        sip(MESSAGE.replace(b"bob", b"nobody"), sender=b"From: <sip:x@foreign.example>;tag=1"),
        sip(b"INVITE sip:x@foreign.example SIP/2.0", sender=b"From: <sip:x@foreign.example>;tag=1"),
        sip(b"OPTIONS sip:example.com SIP/2.0"),
        sip(b"BYE sip:example.com SIP/2.0"),
        sip(b"CANCEL sip:bob@example.com SIP/2.0"),
        sip(b"INVITE tel:1 SIP/2.0"),
        sip(INVITE, cseq=b"CSeq: x"),
        sip(INVITE, max_forwards=b"Max-Forwards: 0"),
        sip(INVITE, b"Proxy-Require: x"),
    ],
)
def test_one_answer_to_a_stranger_and_no_large_one(desk: Desk, data: bytes) -> None:
    back = desk.send(data)
    desk.rig.advance(40)
    assert desk.caller.take() == []  # nothing is repeated into the dark
    (answer,) = back
    assert len(answer) < 2 * len(data)
