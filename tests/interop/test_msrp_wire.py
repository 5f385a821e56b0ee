"""The judge of MSRP frames finds what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.msrp_wire import KEPT, check_ids, check_range, check_with_tshark, cut, cut_frames
from tests.interop.programs import needs
from tests.ua.msrp_frame import FrameError

pytestmark = pytest.mark.interop

STREAM = (40000, 50000)


def send(body: bytes = b"hello", byte_range: str = "1-5/5", end: str = "abcd1234$", kind: str = "text/plain") -> bytes:
    paths = "To-Path: msrp://a.example:1/x;tcp\r\nFrom-Path: msrp://b.example:2/y;tcp\r\n"
    head = f"MSRP abcd1234 SEND\r\n{paths}Message-ID: m1\r\nByte-Range: {byte_range}\r\nContent-Type: {kind}\r\n\r\n"
    return head.encode() + body + f"\r\n-------{end}\r\n".encode()


def answer(identifier: str = "abcd1234") -> bytes:
    paths = "To-Path: msrp://b.example:2/y;tcp\r\nFrom-Path: msrp://a.example:1/x;tcp\r\n"
    return f"MSRP {identifier} 200 OK\r\n{paths}-------{identifier}$\r\n".encode()


@pytest.mark.parametrize(
    "data",
    [send(end="abcd1235$"), send(end="abcd1234!"), send()[:-1], send() + b"\r\n" + send(), b"\r\n" + send()],
    ids=["another id", "another flag", "no end", "octets between", "octets before"],
)
def test_a_stream_that_is_not_frame_after_frame(data: bytes) -> None:
    with pytest.raises(AssertionError):
        list(cut(STREAM, data))


@pytest.mark.parametrize(("old", "new"), [(b"From-Path", b"X-Path"), (b"Content-Type: text/plain\r\n", b"")])
def test_a_head_that_breaks_the_grammar(old: bytes, new: bytes) -> None:
    with pytest.raises(FrameError):
        list(cut(STREAM, send().replace(old, new)))


def test_only_who_vanished_ends_in_a_frame() -> None:
    assert len(list(cut(STREAM, send() + send()[:-20], unfinished=True))) == 1
    with pytest.raises(AssertionError):
        list(cut(STREAM, send(), unfinished=True))


def test_a_websocket_message_of_two_frames() -> None:
    def message(data: bytes) -> bytes:
        return b"GET / HTTP/1.1\r\n\r\n" + b"\x82\xfe" + len(data).to_bytes(2, "big") + b"\0\0\0\0" + data

    assert [frame.raw for frame in cut(STREAM, message(send()))] == [send()]
    for data in (message(send() + send()), message(send()) + b"\x82\x01", message(send())[:-1]):
        with pytest.raises((AssertionError, ValueError)):
            list(cut(STREAM, data))


@pytest.mark.parametrize(
    ("byte_range", "flag"),
    [("1-6/6", "$"), ("1-4/5", "$"), ("2-5/5", "$"), ("1-*/4", "+"), ("1-*/6", "$"), ("1-6/9", "+")],
)
def test_a_range_that_is_not_that_of_the_body(byte_range: str, flag: str) -> None:
    (frame,) = cut_frames(STREAM, send(byte_range=byte_range, end=f"abcd1234{flag}"))
    with pytest.raises(AssertionError):
        check_range(frame)


def test_ids_that_do_not_go_together() -> None:
    asked, answered = list(cut_frames(STREAM, send())), list(cut_frames(STREAM[::-1], answer()))
    check_ids(asked + answered)
    stray = list(cut_frames(STREAM[::-1], answer("abcd1235")))
    for frames in (asked + asked, asked + answered + answered, answered, asked + stray):
        with pytest.raises(AssertionError):
            check_ids(frames)


@needs("tshark")
def test_what_tshark_complains_of_or_reads_otherwise(tmp_path: Path) -> None:
    large = b"line\r\n-------\r\n" * KEPT
    size = f"1-{len(large)}/{len(large)}"
    good = [send(), send(large, size), send(b"\0" * len(large), size, kind="image/png"), send(b"", "1-0/0"), answer()]
    frames = [frame for data in good for frame in cut_frames(STREAM, data)]
    check_with_tshark(frames, tmp_path / "good.pcap")
    (odd,) = cut_frames(STREAM, send(b"a\0b", "1-3/3"))
    (misread,) = cut_frames(STREAM, send())
    misread.read.headers[2] = ("Message-ID", "m2")
    for bad in (odd, misread):
        with pytest.raises(AssertionError):
            check_with_tshark([*frames, bad], tmp_path / "bad.pcap")
