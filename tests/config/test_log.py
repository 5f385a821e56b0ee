"""Log lines: one event, one line, whatever a peer puts into it."""

import io
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.log import ConnectionAdapter, FieldAdapter, RateLimited, quote, set_up_logging


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    for handler in handlers:  # the test runner's own, which must not be closed
        root.removeHandler(handler)
    written = io.StringIO()
    set_up_logging(stream=written)
    yield written
    for handler in list(root.handlers):
        root.removeHandler(handler)
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)
    logging.getLogger("edge").setLevel(logging.NOTSET)


def test_a_line_has_time_level_logger_text_and_fields(stream: io.StringIO) -> None:
    log = ConnectionAdapter(logging.getLogger("edge.conn"), "w0-67aa-12", ("2001:db8::1", 5060))
    log.info("closed", reason="peer closed", received=12, contact=None)
    stamp, rest = stream.getvalue().split(" ", 1)
    assert (
        rest
        == 'INFO edge.conn closed src=[2001:db8::1]:5060 conn=w0-67aa-12 reason="peer closed" received=12 contact=-\n'
    )
    assert stamp.endswith("Z")
    assert len(stamp) == len("2026-11-20T19:40:00.123Z")


@pytest.mark.requirement("SIP-DOS-05")
def test_a_user_name_with_line_end_and_escape_is_one_clean_line(stream: io.StringIO) -> None:
    log = FieldAdapter(logging.getLogger("edge.security"))
    log.warning("login failed", user=b'al\nice\r\x00\x1b[2J"\\', password='"secret word"')
    logging.getLogger("other").warning("raw al\nice\x1b[2J Authorization: Digest response=abc")
    logging.getLogger("edge.sip").warning('odd header Digest username="a", response="%s"', "0a" * 16)
    logging.getLogger("edge.sip").warning("odd\r\nProxy-Authorization\t: Digest hunter2")
    logging.getLogger("edge.storage").warning("storage down url=postgresql://edge:hunter2@db.example/edge")
    text = stream.getvalue()
    assert len(text.splitlines()) == 5
    assert r'user="al\nice\r\x00\x1b[2J\"\\"' in text
    assert not {character for character in text if character != "\n" and not " " <= character <= "~"}
    assert not [secret for secret in ("secret word", "response=abc", "0a0a", "hunter2") if secret in text]
    assert "postgresql://edge:***@db.example/edge" in text


def test_a_traceback_cannot_forge_a_line(stream: io.StringIO) -> None:
    try:
        raise ValueError("bad\n2026-11-20T19:40:00.123Z INFO edge.conn forged\x1b[0m")
    except ValueError:
        logging.getLogger("edge.sip").exception("handling failed")
    first, *others = stream.getvalue().splitlines()
    assert first.endswith("ERROR edge.sip handling failed")
    assert all(line.startswith("  | ") for line in others)
    assert "\x1b" not in stream.getvalue()


def test_nothing_is_formatted_for_a_level_that_is_off(stream: io.StringIO) -> None:
    class Loud:
        def __str__(self) -> str:
            raise AssertionError

    FieldAdapter(logging.getLogger("edge.sip")).debug("x", value=Loud())
    assert stream.getvalue() == ""


def test_percent_signs_are_only_the_texts_own(stream: io.StringIO) -> None:
    FieldAdapter(logging.getLogger("edge.sip")).info("%d of 5", 3, share="100%s")
    assert stream.getvalue().endswith("3 of 5 share=100%s\n")


def test_other_libraries_are_heard_from_warning_up(stream: io.StringIO) -> None:
    logging.getLogger("some.library").info("chatter")
    logging.getLogger("some.library").warning("trouble")
    assert "chatter" not in stream.getvalue()
    assert "trouble" in stream.getvalue()


@given(st.one_of(st.text(), st.binary()))
def test_a_quoted_value_is_one_field(value: str | bytes) -> None:
    text = quote(value)
    assert text
    assert all(" " <= character <= "~" for character in text)
    if not text.startswith('"'):
        assert not set(text) & set(' "=\\')
    else:
        assert text.endswith('"')
        inner = text[1:-1].replace("\\\\", "")
        assert '"' not in inner.replace('\\"', "")


def test_long_values_are_cut() -> None:
    assert len(quote("a" * 100_000)) == 256 + 3


def test_rate_limit_says_how_many_were_held_back() -> None:
    limited = RateLimited(10.0)
    assert [limited.allow("a", now) for now in (0.0, 1.0, 9.9)] == [0, None, None]
    assert limited.allow("b", 9.9) == 0
    assert limited.allow("a", 10.0) == 2
    assert limited.allow("b", 10.0) == 0


def test_rate_limit_holds_against_invented_keys() -> None:
    limited = RateLimited(10.0, limit=5)
    allowed = [key for key in range(1000) if limited.allow(key, 1.0) is not None]
    assert allowed == [0, 1, 2, 3, 4]
    assert limited.allow(999, 11.0) == 0
