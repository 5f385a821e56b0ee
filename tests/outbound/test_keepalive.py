"""CRLF keep-alives on a SIP stream: outbound.md OB-KA-01 to OB-KA-04."""

import pytest

from edge.outbound.keepalive import StreamKeepalive
from edge.stream import StreamConnection
from tests.outbound.links import Links

OPTIONS = b"OPTIONS sip:calm.example SIP/2.0\r\n"


@pytest.fixture
def stream() -> StreamConnection:
    connection = Links().open()
    assert isinstance(connection, StreamConnection)
    return connection


def sent(connection: StreamConnection) -> bytes:
    data, connection._out = b"".join(connection._out or ()), None
    return data


@pytest.mark.requirement("OB-KA-01")
def test_rfc5626_4_4_1_double_crlf_is_answered_by_one_crlf(stream: StreamConnection) -> None:
    keepalive = StreamKeepalive()
    assert keepalive.skip(stream, b"\r\n\r\n", 0.0) == 4
    assert sent(stream) == b"\r\n"


@pytest.mark.requirement("OB-KA-03")
@pytest.mark.parametrize("step_s", [0.0, 0.2])
def test_a_ping_octet_by_octet(stream: StreamConnection, step_s: float) -> None:
    keepalive, buffer = StreamKeepalive(), b""
    for count in range(4):
        buffer += b"\r\n\r\n"[count : count + 1]
        buffer = buffer[keepalive.skip(stream, buffer, count * step_s) :]
    assert (buffer, sent(stream)) == (b"", b"\r\n")


@pytest.mark.requirement("OB-KA-03")
@pytest.mark.parametrize("crlfs, pongs", [(1, 0), (2, 1), (3, 1), (6, 3), (1000, 64)])
def test_pings_in_one_read_in_front_of_a_message(stream: StreamConnection, crlfs: int, pongs: int) -> None:
    keepalive = StreamKeepalive()
    data = b"x" + b"\r\n" * crlfs + OPTIONS
    assert keepalive.skip(stream, data, 0.0, start=1) == 1 + 2 * crlfs
    assert sent(stream) == b"\r\n" * pongs


@pytest.mark.requirement("OB-KA-04")
def test_a_single_crlf_is_filler_and_half_a_ping_is_forgotten_after_a_second(stream: StreamConnection) -> None:
    keepalive = StreamKeepalive()
    assert keepalive.skip(stream, b"\r\nSIP/2.0 200 OK\r\n", 0.0) == 2
    assert keepalive.skip(stream, b"\r\n", 10.0) == 2
    assert keepalive.skip(stream, b"\r\n", 12.0) == 2
    assert sent(stream) == b""
    assert keepalive.skip(stream, b"\r\n", 12.5) == 2
    assert sent(stream) == b"\r\n"


def test_half_a_ping_does_not_join_with_one_behind_a_message(stream: StreamConnection) -> None:
    keepalive = StreamKeepalive()
    assert keepalive.skip(stream, b"\r\n" + OPTIONS, 0.0) == 2
    assert keepalive.skip(stream, b"\r\n", 0.1) == 2
    assert sent(stream) == b""


@pytest.mark.parametrize("data", [b"", b"OPTIONS", b"\r", b"\n\n", b"\rO", b" \r\n\r\n"])
def test_what_is_no_keepalive_stays(stream: StreamConnection, data: bytes) -> None:
    assert StreamKeepalive().skip(stream, data, 0.0) == 0
    assert sent(stream) == b""


@pytest.mark.requirement("OB-KA-03")
def test_pings_of_a_peer_that_does_not_read_get_one_pong_when_there_is_room(stream: StreamConnection) -> None:
    keepalive = StreamKeepalive()
    stream.writable = False
    for _ in range(1000):
        assert keepalive.skip(stream, b"\r\n\r\n", 0.0) == 4
    assert sent(stream) == b""
    stream.writable = True
    keepalive.handle_writable(stream)
    keepalive.handle_writable(stream)
    assert sent(stream) == b"\r\n"
