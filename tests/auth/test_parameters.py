"""Credentials read by what is remembered of others: the same as read with care, or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.auth import parameters
from edge.auth.parameters import read_known, read_parameters, split_scheme
from edge.errors import RemoteError

USUAL = (
    b'Digest username="bob", realm="example.com", nonce="abc", uri="sip:example.com", algorithm=SHA-256, '
    b'response="0a4f113b", cnonce="x,y=z", nc=00000001, qop=auth'
)


def read_with_care(value: bytes) -> dict[bytes, bytes] | None:
    """What the two other functions make of a Digest value, None where it is an error, something else, or said twice."""
    try:
        scheme, start = split_scheme(value)
        found = read_parameters(value, start)
    except RemoteError:
        return None
    read = {name: quoted or bare for name, quoted, bare, _ in found}
    return read if scheme == b"digest" and len(read) == len(found) else None


def test_the_usual_is_read() -> None:
    for number in range(3):  # learned, and remembered
        known = read_known(USUAL.replace(b"bob", b"bob%d" % number))
        assert known is not None
        assert (known[b"username"], known[b"cnonce"], known[b"nc"]) == (b"bob%d" % number, b"x,y=z", b"00000001")
        assert len(known) == 9


@pytest.mark.parametrize(
    "value",
    [
        b'Basic realm="x"', b'realm="x"', b'Digest realm="x" nonce="y"', b'Digest realm="x"nonce="y"', b'Digest realm="x', b"",
        b'Digest realm="x", nonce=', b'Digest realm="x", nonce=,', b'Digest realm="x", ="y"', b'Digest realm="x" y',
        b'Digest realm="x", realm="y"', b'Digest nc=1, realm="x", nc=2', b'Digest realm="x", nc=1, nc=2',
        b'Digest realm="a\\"b"', b'Digest realm="a\\b"', b'Digest realm="a\x01b"', b'Digest realm="a\x7f"', b'Digest realm="a\r\n"',
        b'Digest realm="x", nc=\x011', b'"', b'""', b'Digest ""', b'Digest "x"', b"Digest realm=x",
        b"Digest " + b", ".join(b'p%d="x"' % number for number in range(65)),
        b'Digest realm="' + b"x" * 8192 + b'"',
    ],
)  # fmt: skip
def test_all_else_is_left_to_those_who_read_with_care(value: bytes) -> None:
    for _ in range(2):
        assert read_known(value) is None


PIECES = [
    b'"', b"\\", b",", b"=", b" ", b"\t", b"\r\n ", b"x", b"nc=2", b", ", b'realm="', b'"",', b"Digest ", b"\x00", b"\x7f",
    b"\xc3\xa9", b",,", b'""',
]  # fmt: skip


@settings(max_examples=1500, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(USUAL)), st.integers(0, 3), st.sampled_from(PIECES)), min_size=1, max_size=4)
)
def test_what_is_read_so_is_what_care_reads(changes: list[tuple[int, int, bytes]]) -> None:
    value = USUAL
    for place, gone, piece in changes:
        value = value[:place] + piece + value[place + gone :]
    for _ in range(2):
        known = read_known(value)
        assert known is None or known == read_with_care(value)


def test_little_is_remembered_of_strangers() -> None:
    for number in range(3000):
        value = b'Digest realm%d="x", nc%d=1, nonce="y", qop%d=auth' % (number, number, number)
        assert read_known(value) == read_with_care(value)
    assert read_known(b'Digest realm="x", ' + b"long" * 30 + b'="y"') is not None
    for known in (parameters._openings, parameters._between, parameters._endings):
        assert 0 < len(known) <= 1024
        assert max(map(len, known)) <= 64
