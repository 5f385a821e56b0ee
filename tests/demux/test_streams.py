"""The first octets of a stream: sip-core.md table 3.1, rows 4 to 14."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.demux import Decision, PingScanner, Protocol, StreamSniffer, is_tls

REGISTER = b"REGISTER sip:calm.example SIP/2.0\r\nCall-ID: 1\r\n\r\n"
MESSAGE = b"MESSAGE sip:ravi@calm.example SIP/2.0\r\n\r\n"
RESPONSE = b"SIP/2.0 200 OK\r\n\r\n"
SEND = b"MSRP d93kswow SEND\r\nTo-Path: msrp://x:1/a;tcp\r\n"
UPGRADE = b"GET /sip HTTP/1.1\r\nHost: e1.calm.example\r\n\r\n"


def sniff_whole(data: bytes) -> tuple[Decision | None, int]:
    sniffer = StreamSniffer()
    return sniffer.receive_data(data, 0.0), sniffer.pongs


def sniff_octets(data: bytes, step_s: float = 0.0) -> tuple[Decision | None, int, int]:
    """Feed one octet at a time: the decision, the pongs until then and how many octets it took."""
    sniffer, pongs = StreamSniffer(), 0
    for count in range(len(data)):
        decision = sniffer.receive_data(data[count : count + 1], count * step_s)
        pongs += sniffer.pongs
        if decision is not None:
            return decision, pongs, count + 1
    return None, pongs, len(data)


@pytest.mark.requirement("SIP-DMX-02")
@pytest.mark.parametrize(
    "data, protocol, needed",
    [
        (REGISTER, Protocol.SIP, REGISTER.index(b"\n") + 1),
        (MESSAGE, Protocol.SIP, MESSAGE.index(b"\n") + 1),
        (RESPONSE, Protocol.SIP, 4),
        (b"sip/2.0 200 OK\r\n", Protocol.SIP, 4),
        (SEND, Protocol.MSRP, 5),
        (UPGRADE, Protocol.HTTP, UPGRADE.index(b"\n") + 1),
    ],
)
def test_a_protocol_is_decided_as_soon_as_its_row_can_and_no_earlier(
    data: bytes, protocol: Protocol, needed: int
) -> None:
    assert sniff_whole(data) == (Decision(protocol, data), 0)
    assert sniff_octets(data) == (Decision(protocol, data[:needed]), 0, needed)


@pytest.mark.requirement("SIP-DMX-02")
def test_one_octet_m_is_not_yet_msrp() -> None:
    sniffer = StreamSniffer()
    assert sniffer.receive_data(b"M", 0.0) is None
    assert sniffer.receive_data(MESSAGE[1:], 0.0) == Decision(Protocol.SIP, MESSAGE)
    sniffer = StreamSniffer()
    assert sniffer.receive_data(b"M", 0.0) is None
    assert sniffer.receive_data(SEND[1:], 0.0) == Decision(Protocol.MSRP, SEND)


@pytest.mark.parametrize(
    "line, protocol",
    [
        (b"OPTIONS * HTTP/1.1\r\n", Protocol.HTTP),
        (b"OPTIONS sip:x SIP/2.0\r\n", Protocol.SIP),
        (b"GET sip:x SIP/2.0\r\n", Protocol.SIP),
        (b"GET / HTTP/1.0\r\n", Protocol.HTTP),
        (b"PUT /x HTTP/1.1\r\n", Protocol.HTTP),
        (b"PROXY sip:x SIP/2.0\r\n", Protocol.SIP),
        (b"MSRPX sip:x SIP/2.0\r\n", Protocol.SIP),
        (b"SIP sip:x SIP/2.0\r\n", Protocol.SIP),
        (b"MSRP sip:x SIP/2.0\r\n", Protocol.MSRP),
        (b"!interesting-Method0123456789_*+`.%indeed'~ sip:x SIP/2.0\r\n", Protocol.SIP),
        (b"INVITE sip:x sip/2.0\r\n", Protocol.SIP),
        (b"INVITE sip:x SIP/7.0\r\n", Protocol.SIP),  # RFC 4475 badvers: answered 505
        (b"INVITE <sip:x> SIP/9.9\r\n", Protocol.SIP),
        (b"OPTIONS sip:x SIP/2.0  \r\n", Protocol.SIP),  # RFC 4475 trws: answered 400
        (b"INVITE  sip:x  SIP/2.0\r\n", Protocol.SIP),  # RFC 4475 lwsstart
        (b"INVITE sip:x;lr SIP/2.0\n", Protocol.SIP),  # bare LF: answered 400
    ],
)
def test_the_version_at_the_end_of_the_line_tells_shared_methods_apart(line: bytes, protocol: Protocol) -> None:
    assert sniff_whole(line)[0] == Decision(protocol, line)
    decision, _, _ = sniff_octets(line)
    assert decision is not None
    assert decision.protocol is protocol


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"\x00\x01\x00\x00\x21\x12\xa4\x42", "stun"),
        (b"\x03", "stun"),
        (b"\x16\x03\x01\x02\x00\x01", "tls"),
        (b"\xff\xfe", "junk"),
        (b"{}", "junk"),
        (b" INVITE sip:x SIP/2.0\r\n", "junk"),
        (b"HEP3\x00\x34", "junk"),
        (b"\n", "junk"),
        (b"\rI", "junk"),
        (b"\r\r", "junk"),
        (b"PRI * HTTP/2.0\r\n", "http2"),
        (b"GET /\r\n", "junk"),
        (b"HELO mail.example\r\n", "junk"),
        (b"INVITE SIP/2.0\r\n", "junk"),
        (b"hello world SIP/9.9\r\n", "junk"),
        (b"QUIT\r\n", "junk"),
    ],
)
def test_what_fits_no_row_is_closed_with_a_reason(data: bytes, reason: str) -> None:
    for decision in (sniff_whole(data)[0], sniff_octets(data)[0]):
        assert decision is not None
        assert decision.protocol is None
        assert decision.reason == reason


def test_a_start_line_without_end_is_closed_after_the_limit() -> None:
    assert sniff_whole(b"A" * 4095)[0] is None
    decision, _, taken = sniff_octets(b"A" * 5000)
    assert (decision is not None and decision.reason, taken) == ("start_line", 4096)
    whole, _ = sniff_whole(b"A" * 102400)
    assert whole is not None
    assert whole.reason == "start_line"


def test_a_long_sip_request_goes_to_the_sip_framer_for_its_414() -> None:
    line = b"INVITE sip:" + b"x" * 5000 + b" SIP/2.0\r\n"
    assert sniff_whole(line)[0] == Decision(Protocol.SIP, line)
    assert sniff_octets(line)[0] == Decision(Protocol.SIP, line[:4096])


def test_old_octets_are_not_searched_again() -> None:
    """A line feed forgotten behind the mark would show: the search starts where the last one stopped."""
    sniffer = StreamSniffer()
    sniffer.receive_data(b"INVITE sip:", 0.0)
    assert sniffer._scanned == 11
    sniffer.receive_data(b"ravi", 0.0)
    assert sniffer._scanned == 15


# -- keep-alives in front of the first message


@pytest.mark.requirement("OB-KA-05")
@pytest.mark.parametrize("message", [REGISTER, SEND, UPGRADE, RESPONSE])
def test_a_ping_is_owed_a_pong_and_does_not_settle_the_protocol(message: bytes) -> None:
    decision, pongs = sniff_whole(b"\r\n\r\n" + message)
    assert decision is not None
    assert (decision.data, pongs) == (message, 1)
    stepped, pongs, _ = sniff_octets(b"\r\n\r\n" + message)
    assert stepped is not None
    assert (stepped.protocol, pongs) == (decision.protocol, 1)


@pytest.mark.parametrize("crlfs, pongs", [(1, 0), (2, 1), (3, 1), (4, 2), (6, 3)])
def test_pings_are_counted_however_they_are_cut(crlfs: int, pongs: int) -> None:
    data = b"\r\n" * crlfs + REGISTER
    assert sniff_whole(data) == (Decision(Protocol.SIP, REGISTER), pongs)
    assert sniff_octets(data)[1] == pongs


def test_half_a_ping_is_forgotten_after_a_second() -> None:
    assert sniff_octets(b"\r\n\r\n", step_s=0.2)[1] == 1
    sniffer = StreamSniffer()
    sniffer.receive_data(b"\r\n", 0.0)
    sniffer.receive_data(b"\r\n", 2.0)
    assert sniffer.pongs == 0


def test_a_stranger_with_a_proxy_v2_header_gets_one_pong_and_is_closed() -> None:
    signature = b"\r\n\r\n\x00\r\nQUIT\n"
    assert sniff_whole(signature) == (Decision(None, signature[4:], "proxy_header"), 1)
    assert sniff_octets(signature) == (Decision(None, b"\x00", "proxy_header"), 1, 5)


def test_more_than_64_octets_of_keepalive_close() -> None:
    assert sniff_whole(b"\r\n" * 32) == (None, 16)
    decision, pongs = sniff_whole(b"\r\n" * 33)
    assert (decision is not None and decision.reason, pongs) == ("keepalive_flood", 0)
    stepped, pongs, taken = sniff_octets(b"\r\n" * 40)
    assert (stepped is not None and stepped.reason, pongs, taken) == ("keepalive_flood", 16, 66)


# -- TLS


def test_tls_is_a_handshake_record_with_a_hello() -> None:
    hello = b"\x16\x03\x01\x02\x00\x01"
    assert all(is_tls(hello[:length]) for length in range(1, 7))
    assert is_tls(b"\x16\x03\x04\x40\x00\x01")
    for wrong in (b"\x17", b"M", b"\x16\x02", b"\x16\x03\x05", b"\x16\x03\x01\x00\x00", b"\x16\x03\x01\x40\x01"):
        assert not is_tls(wrong)
    assert not is_tls(b"\x16\x03\x01\x02\x00\x02")


# -- properties


@given(
    st.lists(
        st.sampled_from([b"\r\n", b"\r", b"M", b"SRP ", b"INVITE sip:a SIP/2.0", b"\x00", b" ", b"GET / HTTP/1.1"])
    )
)
def test_the_cut_makes_no_difference(parts: list[bytes]) -> None:
    data = b"".join(parts)
    whole, pongs = sniff_whole(data)
    stepped, stepped_pongs, _ = sniff_octets(data)
    if whole is None or stepped is None:
        assert whole is None
        assert stepped is None
    else:
        assert (stepped.protocol, stepped.reason) == (whole.protocol, whole.reason)
        if whole.reason != "keepalive_flood":
            assert stepped_pongs == pongs


@given(st.lists(st.binary(max_size=3000), max_size=8))
def test_any_octets_stay_within_the_bound(pieces: list[bytes]) -> None:
    sniffer, fed = StreamSniffer(), 0
    for piece in pieces:
        fed += len(piece)
        decision = sniffer.receive_data(piece, 0.0)
        if decision is not None:
            assert len(decision.data) <= fed
            break
        assert len(sniffer._buffer) <= 4096


def test_scanner_leaves_a_trailing_cr_and_forgets_a_half_that_is_followed_by_something_else() -> None:
    scanner = PingScanner()
    assert scanner.scan(b"\r\n\r", 0.0) == 2
    assert scanner.pings == 0
    assert scanner.scan(b"\r\n", 0.1) == 2
    assert scanner.pings == 1
    assert scanner.scan(b"xx\r\n", 0.2, start=2) == 4
    assert scanner.scan(b"INVITE", 0.3) == 0
    assert scanner.scan(b"\r\n", 0.4) == 2
    assert scanner.pings == 0
    scanner.forget()
    assert scanner.scan(b"\r\n", 0.5) == 2
    assert scanner.pings == 0
