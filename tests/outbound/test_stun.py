"""The STUN Binding responder: outbound.md E10 and RFC 8489; requests are written out by hand."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.outbound.stun import answer

ID = "3f1c77a90b52e4d86610fa2e"
REQUEST = bytes.fromhex("000100002112a442" + ID)
V4 = ("203.0.113.77", 40112)
V6 = ("2001:db8:77::9", 5062)
ANSWER_V4 = bytes.fromhex("0101000c2112a442" + ID + "002000080001bda2ea12d50f")
ANSWER_V6 = bytes.fromhex("010100182112a442" + ID + "00200014000232d40113a9fa3f6b77a90b52e4d86610fa27")
REQUIRED = bytes.fromhex("000100082112a442" + ID + "7ff00004deadbeef")
ERROR_420 = bytes.fromhex(
    "011100242112a442" + ID + "0009001500000414556e6b6e6f776e20417474726962757465000000" + "000a00027ff00000"
)


def build(attributes: bytes, kind: int = 0x0001) -> bytes:
    return kind.to_bytes(2, "big") + len(attributes).to_bytes(2, "big") + REQUEST[4:] + attributes


def add_fingerprint(message: bytes, wrong: int = 0) -> bytes:
    length = len(message) - 20 + 8
    message = message[:2] + length.to_bytes(2, "big") + message[4:]
    return message + b"\x80\x28\x00\x04" + (zlib.crc32(message) ^ 0x5354554E ^ wrong).to_bytes(4, "big")


@pytest.mark.requirement("OB-KA-10")
@pytest.mark.parametrize("source, expected", [(V4, ANSWER_V4), (V6, ANSWER_V6)])
def test_rfc5626_8_a_binding_request_is_answered_byte_for_byte(source: tuple[str, int], expected: bytes) -> None:
    assert answer(REQUEST, source) == expected


def test_mapped_and_scoped_sources_are_written_as_their_address() -> None:
    assert answer(REQUEST, ("::ffff:203.0.113.77", 40112)) == ANSWER_V4
    scoped, plain = answer(REQUEST, ("fe80::1%lo", 5060)), answer(REQUEST, ("fe80::1", 5060))
    assert scoped == plain


@pytest.mark.requirement("SIP-KA-04")
def test_the_source_is_told_and_an_indication_gets_nothing() -> None:
    request = bytes.fromhex("000100002112a442000102030405060708090a0b")
    expected = bytes.fromhex("0101000c2112a442000102030405060708090a0b002000080001bd52e112a645")
    assert answer(request, ("192.0.2.7", 40000)) == expected
    for kind in ("0011", "0101", "0111", "0003", "0004"):
        assert answer(bytes.fromhex(kind) + request[2:], V4) is None


@pytest.mark.requirement("OB-KA-11")
def test_rfc8489_6_3_1_an_unknown_required_attribute_gives_420() -> None:
    assert answer(REQUIRED, V4) == ERROR_420


@pytest.mark.requirement("OB-KA-11")
def test_rfc8489_6_3_1_an_unknown_optional_attribute_is_ignored() -> None:
    assert answer(build(bytes.fromhex("80220003616263ff")), V4) == ANSWER_V4
    assert answer(build(bytes.fromhex("ffff0000")), V4) == ANSWER_V4


def test_credentials_somebody_sends_along_do_not_matter() -> None:
    assert answer(build(bytes.fromhex("0006000461626364" + "00080014" + "00" * 20)), V4) == ANSWER_V4


@pytest.mark.requirement("OB-KA-11")
def test_a_fingerprint_is_checked() -> None:
    assert answer(add_fingerprint(REQUEST), V4) == ANSWER_V4
    assert answer(add_fingerprint(REQUIRED), V4) == ERROR_420
    assert answer(add_fingerprint(REQUEST, wrong=1), V4) is None
    assert answer(build(add_fingerprint(REQUEST)[20:] + bytes.fromhex("ffff0000")), V4) is None
    assert answer(build(bytes.fromhex("802800080000000000000000")), V4) is None


@pytest.mark.requirement("OB-KA-11")
def test_a_repeated_request_gets_the_same_answer() -> None:
    assert answer(REQUEST, V4) == answer(REQUEST, V4)


@pytest.mark.requirement("OB-KA-11", "OB-KA-09")
@pytest.mark.parametrize(
    "datagram",
    [
        REQUEST[:4] + b"\x00\x00\x00\x00" + REQUEST[8:],
        REQUEST[:2] + b"\x00\x08" + b"\x00\x00\x00\x00" + REQUEST[8:] + bytes.fromhex("80220003616263ff"),
        build(b"\x80\x22\x00\x08abcd"),
        REQUEST[:2] + b"\x00\x04" + REQUEST[4:],
        REQUEST + b"\x00\x00\x00\x00",
        REQUEST[:19],
        b"",
    ],
)
def test_old_and_broken_stun_is_dropped(datagram: bytes) -> None:
    assert answer(datagram, V4) is None


def test_an_error_answer_is_not_much_larger_than_its_request() -> None:
    reply = answer(build(b"\x7f\xf0\x00\x00" * 300), V4)
    assert reply is not None
    assert len(reply) < 150


@given(st.binary(max_size=120))
def test_any_attributes_are_answered_or_dropped(attributes: bytes) -> None:
    reply = answer(build(attributes + bytes(-len(attributes) % 4)), V4)
    assert reply is None or reply[8:20] == REQUEST[8:]
