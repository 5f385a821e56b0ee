"""MSRP URIs (RFC 4975 §6)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import RemoteError
from edge.msrp.uri import is_same_uri, parse_uri


@pytest.mark.requirement("MSRP-URI-01")
def test_a_uri_needs_its_transport() -> None:
    uri = parse_uri(b"msrp://h.example:2855/abc;tcp;x=1;y")
    assert (uri.secure, uri.host, uri.port, uri.session_id, uri.transport) == (False, "h.example", 2855, b"abc", b"tcp")
    for wrong in (
        b"msrp://h.example:2855/abc",
        b"http://h.example:2855/abc;tcp",
        b"msrp:h.example;tcp",
        b"msrp:///a;tcp",
    ):
        with pytest.raises(RemoteError, match="400"):
            parse_uri(wrong)


@pytest.mark.requirement("MSRP-URI-02")
def test_without_session_id_the_host_ends_at_the_semicolon() -> None:
    for text in (b"msrps://edge.loom.example;tcp", b"msrps://edge.loom.example;tcp;lr;a=b"):
        uri = parse_uri(text)
        assert (uri.secure, uri.host, uri.port) == (True, "edge.loom.example", 0)
        assert (uri.session_id, uri.transport) == (b"", b"tcp")


@pytest.mark.requirement("MSRP-URI-03")
def test_user_part_may_hold_delimiters_and_does_not_count() -> None:
    plain = b"msrps://edge.loom.example:2855/x1;tcp"
    for user in (b"a;b=c", b"a:b", b"a%40b", b"x@y"):
        assert is_same_uri(b"msrps://" + user + b"@edge.loom.example:2855/x1;tcp", plain)


@pytest.mark.requirement("MSRP-URI-04")
@pytest.mark.parametrize(
    "wrong",
    [
        b"msrp://192.0.2.1/s;tcp", b"msrp://h.example:0/s;tcp", b"msrp://h.example:65536/s;tcp", b"msrp://h:28x5/s;tcp",
        b"msrp://[2001:db8::7]/s;tcp", b"msrp://[2001:db8::7:2855/s;tcp", b"msrp://[2001:db8:::7]:2855/s;tcp",
        b"msrp://h.example:/s;tcp", b"msrp://h.example:99999999999999999999/s;tcp",
    ],
)  # fmt: skip
def test_numeric_hosts_and_ports(wrong: bytes) -> None:
    assert parse_uri(b"msrp://[2001:db8::7]:2855/s;tcp").host == "2001:db8::7"
    assert parse_uri(b"msrp://192.0.2.1:1/s;tcp").port == 1
    with pytest.raises(RemoteError) as caught:
        parse_uri(wrong)
    assert caught.value.status == 400


@pytest.mark.requirement("MSRP-URI-05")
def test_session_id_runs_to_the_first_semicolon() -> None:
    assert parse_uri(b"msrp://h.example:2855/a/b+c==;tcp").session_id == b"a/b+c=="


_BASE = b"msrps://edge.loom.example:2855/Ab;tcp"


@pytest.mark.requirement("MSRP-URI-07", "MSRP-URI-08")
@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (_BASE, b"MSRPS://edge.loom.example:2855/Ab;tcp", True),
        (_BASE, b"msrp://edge.loom.example:2855/Ab;tcp", False),
        (_BASE, b"msrps://edge.loom.example:2855/Ab;TCP", True),
        (_BASE, b"msrps://edge.loom.example:2855/Ab;ws", False),
        (_BASE, b"msrps://edge.loom.example:2855/ab;tcp", False),
        (_BASE, b"msrps://edge.loom.example:2855;tcp", False),
        (_BASE, b"msrps://edge.loom.example/Ab;tcp", False),
        (_BASE, b"msrps://edge.loom.example:2856/Ab;tcp", False),
        (_BASE, b"msrps://EDGE.Loom.example:2855/Ab;tcp", True),
        (_BASE, b"msrps://edge%2Eloom.example:2855/Ab;tcp", True),
        (_BASE, b"msrps://edge%2eloom.example:2855/Ab;tcp", True),
        (_BASE, b"msrps://u@edge.loom.example:2855/Ab;tcp", True),
        (_BASE, b"msrps://edge.loom.example:2855/Ab;tcp;p=1", True),
        (_BASE, b"msrps://edge.loom.example:02855/Ab;tcp", True),
        (b"msrp://[2001:db8::1]:1/a;tcp", b"msrp://[2001:DB8:0:0::1]:1/a;tcp", True),
        (b"msrp://[2001:db8::1]:1/a;tcp", b"msrp://[2001:db8::2]:1/a;tcp", False),
        (b"msrp://h:1/a/./b;tcp", b"msrp://h:1/a/b;tcp", False),
        (b"msrp://127.0.0.1:1/a;tcp", b"msrp://localhost:1/a;tcp", False),
        (b"msrp://h:2855/a;tcp", b"msrp://h/a;tcp", False),
        (b"msrp://h/a;tcp", b"msrp://h/a;tcp;x", True),
        (b"garbage", b"garbage", True),
        (b"garbage", _BASE, False),
    ],
)
def test_equality(one: bytes, other: bytes, same: bool) -> None:
    assert is_same_uri(one, other) is same
    assert is_same_uri(other, one) is same


@given(st.binary(max_size=80) | st.text("msrp:/.;@[]%aB1", max_size=60).map(str.encode))
def test_any_octets_parse_or_are_refused(raw: bytes) -> None:
    try:
        uri = parse_uri(raw)
    except RemoteError as error:
        status = error.status
    else:
        assert uri.raw == raw
        assert uri.host
        status = 400
    assert status == 400
