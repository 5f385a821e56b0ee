"""PROXY headers of both versions (HAProxy, "The PROXY protocol", 2.1 and 2.2; outbound.md E15)."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import LocalError, RemoteError
from edge.proxyprotocol import SIGNATURE, ProxyHeader, ProxyReader, ProxyTls

E15_V1 = b"PROXY TCP4 203.0.113.77 192.0.2.11 40112 5061\r\n"
E15_V2 = bytes.fromhex("0d0a0d0a000d0a515549540a2111000ccb00714dc000020b9cb013c5")
E15_LOCAL = bytes.fromhex("0d0a0d0a000d0a515549540a20000000")
SOURCE, DESTINATION = ("203.0.113.77", 40112), ("192.0.2.11", 5061)


def read_by_needed(stream: bytes) -> tuple[ProxyHeader, int]:
    """Read as the listener does, never more than is safe: the header and how many octets were taken."""
    reader, position = ProxyReader(), 0
    while reader.result is None:
        piece = stream[position : position + reader.needed()]
        assert piece
        position += len(piece)
        reader.receive_data(piece)
    assert reader.needed() == 0
    return reader.result, position


def read_octets(stream: bytes) -> ProxyHeader | None:
    reader = ProxyReader()
    for count in range(len(stream)):
        reader.receive_data(stream[count : count + 1])
    return reader.result


def build_v2(command: int = 0x21, family: int = 0x11, block: bytes = E15_V2[16:]) -> bytes:
    return SIGNATURE + bytes([command, family]) + len(block).to_bytes(2, "big") + block


def build_tlv(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + len(value).to_bytes(2, "big") + value


@pytest.mark.parametrize(
    "header, expected",
    [
        (E15_V1, ProxyHeader(1, False, SOURCE, DESTINATION)),
        (E15_V2, ProxyHeader(2, False, SOURCE, DESTINATION)),
        (E15_LOCAL, ProxyHeader(2, True, None, None)),
        (
            b"PROXY TCP6 2001:DB8:77::9 2001:db8::1 5062 5060\r\n",
            ProxyHeader(1, False, ("2001:db8:77::9", 5062), ("2001:db8::1", 5060)),
        ),
        (b"PROXY UNKNOWN\r\n", ProxyHeader(1, False, None, None)),
        (b"PROXY UNKNOWN ffff:f::ffff ff:: 65535 65535\r\n", ProxyHeader(1, False, None, None)),
        (
            b"PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n",
            ProxyHeader(1, False, ("0.0.0.0", 0), ("255.255.255.255", 65535)),
        ),
        (
            build_v2(
                family=0x21,
                block=bytes.fromhex("20010db8007700000000000000000009" + "20010db8" + "00" * 11 + "01" + "13c613c4"),
            ),
            ProxyHeader(2, False, ("2001:db8:77::9", 5062), ("2001:db8::1", 5060)),
        ),
        (build_v2(command=0x20, block=bytes(12)), ProxyHeader(2, True, None, None)),
        (build_v2(family=0x00, block=b""), ProxyHeader(2, False, None, None)),
        (build_v2(family=0x12), ProxyHeader(2, False, None, None)),
        (build_v2(family=0x31, block=bytes(216)), ProxyHeader(2, False, None, None)),
    ],
)
@pytest.mark.parametrize(
    "behind", [b"", b"\x16\x03\x01\x02\x00\x01", b"\r\n\r\n", b"REGISTER sip:calm.example SIP/2.0\r\n"]
)
def test_a_header_is_read_and_not_one_octet_behind_it(header: bytes, expected: ProxyHeader, behind: bytes) -> None:
    assert read_by_needed(header + behind) == (expected, len(header))
    assert read_octets(header) == expected


def test_a_peeked_v1_line_is_consumed_up_to_its_end() -> None:
    reader = ProxyReader()
    assert reader.consume_v1(E15_V1 + b"\x16\x03\x01") == len(E15_V1)
    assert reader.result == ProxyHeader(1, False, SOURCE, DESTINATION)
    reader = ProxyReader()
    assert reader.consume_v1(E15_V1[:20]) == 20
    assert reader.is_v1
    assert reader.consume_v1(E15_V1[20:] + b"INVITE") == len(E15_V1) - 20
    assert reader.result is not None


@pytest.mark.requirement("OB-PRX-02")
@pytest.mark.parametrize(
    "line",
    [
        b"PROXY TCP4 203.0.113.077 192.0.2.11 40112 5061\r\n",
        b"PROXY TCP4 203.0.113.77 192.0.2.11 040112 5061\r\n",
        b"PROXY TCP4 203.0.113.77 192.0.2.11 40112 65536\r\n",
        b"PROXY TCP4 203.0.113.77 192.0.2.11 -1 5061\r\n",
        b"PROXY TCP4 203.0.113.77 192.0.2.11 40112\r\n",
        b"PROXY TCP4 2001:db8::1 192.0.2.11 40112 5061\r\n",
        b"PROXY TCP6 203.0.113.77 192.0.2.11 40112 5061\r\n",
        b"PROXY TCP6 fe80::1%eth0 2001:db8::1 40112 5061\r\n",
        b"PROXY TCP4  203.0.113.77 192.0.2.11 40112 5061\r\n",
        b"PROXY TCP4 203.0.113.77 192.0.2.11 40112 5061 \r\n",
        b"PROXY TCP5 203.0.113.77 192.0.2.11 40112 5061\r\n",
        b"PROXY UNKNOWNX\r\n",
        b"PROXY TCP4 203.0.113.77 192.0.2.11 40112 5061\n",
        b"PROXY UNKNOWN\n",
        b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
        b"PROXY UNKNOWN " + b"x" * 94,
        b"proxy TCP4 203.0.113.77 192.0.2.11 40112 5061\r\n",
    ],
)
def test_a_broken_v1_line_is_refused(line: bytes) -> None:
    for feed in (read_octets, lambda data: ProxyReader().consume_v1(data)):
        with pytest.raises(RemoteError) as caught:
            feed(line)
        assert (caught.value.status, caught.value.label) == (0, "proxy_header")


@pytest.mark.requirement("OB-PRX-02")
def test_a_v1_line_of_107_octets_is_the_longest() -> None:
    line = b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n"
    assert len(line) == 107
    assert read_octets(line) is not None
    assert read_by_needed(line)[1] == 107


@pytest.mark.requirement("OB-PRX-03")
@pytest.mark.parametrize(
    "header",
    [
        build_v2(command=0x22),
        build_v2(command=0x2F),
        build_v2(command=0x11),
        build_v2(command=0x31),
        build_v2(family=0x41),
        build_v2(family=0x13),
        build_v2(family=0x01),
        build_v2(block=bytes(11)),
        build_v2(family=0x21, block=bytes(12)),
        build_v2(block=bytes(12) + b"\x02\x00"),
        build_v2(block=bytes(12) + b"\x02\x00\x05abc"),
        build_v2(block=bytes(12) + build_tlv(0x20, b"\x01\x00\x00\x00\x00\x21\x00\x09x")),
        build_v2(block=bytes(2049)),
        E15_V2[:5] + b"x" + E15_V2[6:],
        b"\x16\x03\x01\x02\x00\x01" + bytes(20),
    ],
)
def test_a_broken_v2_header_is_refused(header: bytes) -> None:
    with pytest.raises(RemoteError) as caught:
        read_octets(header)
    assert (caught.value.status, caught.value.label) == (0, "proxy_header")


@pytest.mark.requirement("OB-PRX-03")
def test_900_octets_of_values_are_read() -> None:
    header = build_v2(block=E15_V2[16:] + build_tlv(0x04, bytes(897)))
    result, taken = read_by_needed(header + b"\x16\x03")
    assert (result.source, taken, len(result.tlvs[4])) == (SOURCE, 16 + 12 + 900, 897)


@pytest.mark.requirement("OB-PRX-03")
def test_authority_unique_id_and_tls_are_readable() -> None:
    inner = build_tlv(0x21, b"TLSv1.3") + build_tlv(0x22, b"tove")
    values = (
        build_tlv(0x01, b"sip/2")
        + build_tlv(0x02, b"e1.calm.example")
        + build_tlv(0x05, b"lb-7731")
        + build_tlv(0x20, b"\x07\x00\x00\x00\x00" + inner)
    )
    result, _ = read_by_needed(build_v2(block=E15_V2[16:] + values))
    assert result.alpn == b"sip/2"
    assert result.authority == b"e1.calm.example"
    assert result.unique_id == b"lb-7731"
    assert result.tls == ProxyTls(b"TLSv1.3", True, b"tove")
    plain, _ = read_by_needed(E15_V2)
    assert (plain.authority, plain.unique_id, plain.tls) == (b"", b"", None)


@pytest.mark.parametrize("client, verify", [(b"\x01", bytes(4)), (b"\x03", b"\x00\x00\x00\x12")])
def test_a_client_certificate_counts_only_when_shown_and_good(client: bytes, verify: bytes) -> None:
    result, _ = read_by_needed(build_v2(block=E15_V2[16:] + build_tlv(0x20, client + verify)))
    assert result.tls == ProxyTls(b"", False, b"")


@pytest.mark.requirement("OB-PRX-03")
def test_a_checksum_is_compared_when_there_is_one() -> None:
    """The CRC was computed apart from the code under test: bit by bit over the whole header with zeros in its place."""
    block = E15_V2[16:] + build_tlv(0x04, b"pad") + build_tlv(0x03, bytes(4)) + build_tlv(0x02, b"e1")
    header = build_v2(block=block)
    crc = 0xFFFFFFFF
    for octet in header:
        crc ^= octet
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 * (crc & 1))
    at = header.index(b"\x03\x00\x04", 16) + 3
    good = header[:at] + (crc ^ 0xFFFFFFFF).to_bytes(4, "big") + header[at + 4 :]
    assert read_by_needed(good)[0].source == SOURCE
    for wrong in (header, good[:-1] + b"2", build_v2(block=bytes(12) + build_tlv(0x03, b"abc"))):
        with pytest.raises(RemoteError):
            read_octets(wrong)


def test_crc32c_known_answer() -> None:
    """The check value of CRC-32C over "123456789" is e3069283 (RFC 3720 B.4 uses the same polynomial)."""
    from edge.proxyprotocol import _crc32c

    assert _crc32c(b"123456789") == 0xE3069283


def test_reading_too_much_is_a_bug_of_ours() -> None:
    reader = ProxyReader()
    reader.receive_data(E15_V2[:16])
    with pytest.raises(LocalError):
        reader.receive_data(E15_V2[16:] + b"x")


@given(st.binary(max_size=300), st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11"]))
def test_any_octets_parse_or_are_refused(data: bytes, start: bytes) -> None:
    reader = ProxyReader()
    with contextlib.suppress(RemoteError):
        for octet in start + data:
            if reader.result is not None:
                break
            reader.receive_data(bytes([octet]))
            assert len(reader._buffer) <= 16 + 2048
