"""The lexical rules all headers share, on values alone."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import RemoteError
from edge.sip.grammar import (
    end_of_quoted,
    find_parameter,
    is_digits,
    is_token,
    normalize_host,
    parse_parameters,
    parse_port,
    quote,
    split_host_port,
    split_list,
    split_outside,
    unescape,
    unfold,
    unquote,
)


def refused(call: object, *arguments: bytes) -> bool:
    """Whether a reader says 400."""
    try:
        call(*arguments)  # type: ignore[operator]
    except RemoteError as error:
        return error.status == 400
    return False


def test_rfc3261_25_1_tokens_and_digits() -> None:
    assert is_token(b"a-.!%*_+`'~Z9")
    assert not any(is_token(value) for value in (b"", b"a b", b"a\0", b"a\n", b"a@", b"\xe9", b"a,", b'"a"', b"a\r"))
    assert is_digits(b"0123456789")
    assert not any(is_digits(value) for value in (b"", b"+1", b"1_0", b" 1", b"1\n", "٣".encode()))


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (b"a\r\n b", b"a b"),
        (b"a \t\r\n\t  b\r\n c ", b"a b c"),
        (b"\r\n x", b"x"),
        (b'"a\\\\\r\n b"', b'"a\\\\ b"'),
        (b" as it is ", b"as it is"),
    ],
)
def test_rfc3261_7_3_1_a_fold_is_one_blank(value: bytes, plain: bytes) -> None:
    assert unfold(value) == plain


@pytest.mark.requirement("SIP-MSG-17")
def test_rfc3261_25_1_line_ends_cannot_be_protected() -> None:
    assert refused(unfold, b'"a\\\r\n b"')
    assert refused(unfold, b'"a\\\\\\\r\n b"')


@pytest.mark.requirement("SIP-MSG-17")
@pytest.mark.parametrize(
    ("value", "end"),
    [
        (b'"" x', 2),
        (b'"a\\"b" x', 6),
        (b'"a\\\\" "x"', 5),
        (b'"\\\\\\"\\\\"x', 8),
        (b'"a\\\x00;,<?>"x', 10),
        (b'"\\"', None),
        (b'"\\\\\\"', None),
        (b'"a', None),
        (b'"', None),
        (b'"\\', None),
    ],
)
def test_rfc3261_25_1_only_an_unprotected_quote_ends_a_quoted_string(value: bytes, end: int | None) -> None:
    if end is None:
        assert refused(lambda text: end_of_quoted(text, 0), value)
    else:
        assert end_of_quoted(value, 0) == end


@given(st.binary(max_size=40))
def test_quoting_and_unquoting_are_each_others_reverse(value: bytes) -> None:
    quoted = quote(value)
    assert end_of_quoted(quoted + b'"', 0) == len(quoted)
    assert unquote(quoted) == value


@given(st.text('a"\\<>,;', max_size=30).map(str.encode), st.sampled_from([b",", b";"]))
def test_splitting_agrees_with_reading_octet_by_octet(value: bytes, separator: bytes) -> None:
    pieces, piece, quoted, bracket, escaped = [], b"", False, False, False
    for octet in (value[i : i + 1] for i in range(len(value))):
        if not quoted and not bracket and octet == separator:
            pieces.append(piece.strip())
            piece = b""
            continue
        piece += octet
        if quoted:
            quoted = escaped or octet != b'"'
            escaped = octet == b"\\" and not escaped
        elif octet == b'"' and not bracket:
            quoted = True
        elif octet in b"<>":
            bracket = octet == b"<"
    if quoted or bracket:
        assert refused(split_outside, value, separator)
    else:
        assert split_outside(value, separator) == [*pieces, piece.strip()]


@pytest.mark.requirement("SIP-MSG-10", "SIP-MSG-33")
def test_rfc3261_7_3_1_lists_split_at_commas_and_have_no_empty_items() -> None:
    assert split_list(b'"x, y" <sip:a@h>, <sip:b@h,c> ,d') == [b'"x, y" <sip:a@h>', b"<sip:b@h,c>", b"d"]
    assert split_list(b'a;p="\\",",b') == [b'a;p="\\","', b"b"]
    for value in (b"a,,b", b",a", b"a,", b"", b"a, ,b"):
        assert refused(split_list, value)


@pytest.mark.requirement("SIP-MSG-23", "SIP-MSG-24", "SIP-MSG-33")
def test_rfc3261_7_3_1_parameters_have_names_without_case_and_values_as_they_are() -> None:
    read = parse_parameters(b';Tag=aB ; x; y = "a;b\\"=c" ;z=')
    assert read == [(b"tag", b"aB"), (b"x", None), (b"y", b'"a;b\\"=c"'), (b"z", b"")]
    assert find_parameter(read, b"tag") == (True, b"aB")
    assert find_parameter(read, b"x") == (True, None)
    assert find_parameter(read, b"none") == (False, None)
    assert refused(lambda name: find_parameter(parse_parameters(b";a=1;b;A=1"), name), b"a")
    for value in (b";;", b";a;", b";", b";=b", b";a b=c", b"a", b';a="x', b';"a"=b', b";a;;b"):
        assert refused(parse_parameters, value), value
    assert parse_parameters(b";reg-id=1; ;+sip.instance=x") == [(b"reg-id", b"1"), (b"+sip.instance", b"x")]


@pytest.mark.requirement("SIP-MSG-31")
def test_rfc3261_19_1_2_escapes_are_decoded_once() -> None:
    assert unescape(b"v%61lue%25%34%31") == b"value%41"
    assert unescape(b"%") == b"%"
    assert unescape(b"%4") == b"%4"
    assert unescape(b"%zz%00%fF") == b"%zz\0\xff"


@pytest.mark.requirement("SIP-MSG-28")
@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (b"[2001:DB8::192.0.2.1]", b"[2001:db8::c000:201]"),
        (b"[::ffff:192.0.2.10]", b"[::ffff:c000:20a]"),
        (b"[::]", b"[::]"),
        (b"[1:2:3:4:5:6:7:8]", b"[1:2:3:4:5:6:7:8]"),
        (b"[2001:db8::9:01]", b"[2001:db8::9:1]"),
        (b"[2001:db8:::192.0.2.1]", b"[2001:db8::c000:201]"),
        (b"192.0.2.1", b"192.0.2.1"),
        (b"255.255.255.255", b"255.255.255.255"),
    ],
)
def test_rfc5954_4_1_addresses_are_read_to_their_bits(text: bytes, canonical: bytes) -> None:
    found = normalize_host(text)
    if text[:1] == b"[":  # how a mapped address is written is Python's affair, as long as it is always the same
        assert IPv6Address(found[1:-1].decode()) == IPv6Address(canonical[1:-1].decode())
        assert b":::" not in found
    else:
        assert found == canonical


@pytest.mark.requirement("SIP-MSG-28")
@pytest.mark.parametrize(
    "text",
    [
        b"[1:2:3:4:5:6:7:8:9]", b"[1:2:3:4:5:6:7]", b"444.1.1.1", b"1.2.3.4.5", b"1.2.3", b"1", b"[fe80::1%25eth0]",
        b"[fe80::1%eth0]", b"2001:db8::10", b"[2001:db8::10", b"2001:db8::10]", b"[]", b"[x]", b"[1::2::3]", b"[192.0.2.1]",
        b"[::1.2.3.256]", b"[12345::]", b"[v1.x]", b"[\xd9\xa1::]",
    ],
)  # fmt: skip
def test_rfc5954_4_1_what_is_no_address_is_refused(text: bytes) -> None:
    assert refused(normalize_host, text)
    assert refused(normalize_host, text)  # nor is it remembered as one


@pytest.mark.requirement("SIP-MSG-30")
def test_rfc3261_25_1_host_names() -> None:
    for good in (
        b"edge1",
        b"host.docker1",
        b"a-1.example.com.",
        b"my_host.example.com",
        b"x",
        b"1.example.a1",
        b"a--b.c",
    ):
        assert normalize_host(good) == good
    assert normalize_host(b"EDGE.Example.COM") == b"edge.example.com"
    for bad in (b"a..b", b"-a.com", b"a-.com", b"a@*", b".", b"..", b".a", b"a.1", b"a b", b"a\0", b"", b"caf\xe9.example",
                b"a" * 256, b"a/b", b"a%62"):  # fmt: skip
        assert refused(normalize_host, bad), bad


def test_ports_are_1_to_65535() -> None:
    assert [parse_port(text) for text in (b"1", b"5060", b"00080", b"65535")] == [1, 5060, 80, 65535]
    for bad in (b"0", b"65536", b"99999", b"-1", b"+1", b"", b"5 0", b"1_0", b"000080", "٥".encode()):
        assert refused(parse_port, bad)
    assert split_host_port(b"[2001:db8::1]:5070") == (b"[2001:db8::1]", 5070)
    assert split_host_port(b"[2001:db8::10:5070]") == (b"[2001:db8::10:5070]", None)
    assert split_host_port(b"H.example : 4000") == (b"h.example", 4000)
    for bad in (b"[::1]5060", b"[::1]:", b"h:", b"h:1:2", b":5060"):
        assert refused(split_host_port, bad)
