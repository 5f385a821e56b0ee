"""The work of reading grows with the input and not faster, shown by counting it (requirements: SIP-MSG-34).

Work in Python is counted as lines run; work inside the interpreter's own functions as octets handed to those that walk them.
Regular expressions are judged by their structure: what makes them slow is a choice between two ways to match the same octets.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from re import _parser  # type: ignore[attr-defined]
from types import FrameType
from typing import Any

import pytest

from edge.auth.digest import parse_credentials
from edge.errors import RemoteError
from edge.sip import grammar, headers, uri
from edge.sip.message import MessageLimits, check_request, check_response, frame_datagram
from tests.sip.desk import MESSAGE, Desk, register, sip

HUGE = MessageLimits(
    start_line=1 << 20,
    request_uri=1 << 20,
    header_line=1 << 20,
    header_lines=1 << 20,
    vias=1 << 20,
    header_block=1 << 20,
)


def lines_run(work: Callable[[], object]) -> int:
    """Count the lines of Python that `work` runs in edge."""
    count = 0

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return local

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        return local if "/edge/" in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        work()
    except RemoteError:
        pass
    finally:
        sys.settrace(before)
    return count


class Counted(bytes):
    """Octets that count how many of them are walked by a search, also those of their pieces."""

    walked = 0

    def find(self, sub: Any, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
        stop = len(self) if end is None else min(end, len(self))
        found = super().find(sub, start, stop)
        Counted.walked += (stop if found < 0 else found) - start + 1
        return found


def read_all(data: bytes) -> None:
    message = frame_datagram(data, HUGE)
    check = check_response if message.status else lambda m: check_request(m, HUGE)
    check(message)


def from_(value: bytes) -> Callable[[], object]:
    return lambda: read_all(sip(sender=b"From: " + value))


# Each makes an input of about `n` octets: the attacks of the requirements' list of slow inputs, and our own.
INPUTS: dict[str, Callable[[int], Callable[[], object]]] = {
    "quoted credentials": lambda n: (
        lambda: parse_credentials(b"Digest " + b", ".join(b'a%d="x"' % i for i in range(n // 10)) + b" !")
    ),
    "half quotes in an address": lambda n: from_(b'"' + b'" <' * (n // 3)),
    "tel digits": lambda n: from_(b"<tel:" + b"1" * n + b"!>;tag=1"),
    "distinct headers": lambda n: lambda: read_all(sip(MESSAGE, *[b"X%d: 1" % i for i in range(n // 9)])),
    "host labels": lambda n: lambda: uri.parse_uri(b"sip:" + b"a." * (n // 2) + b"!"),
    "host hyphens": lambda n: lambda: grammar.normalize_host(b"a" + b"-" * n),
    "uri parameters": lambda n: lambda: uri.parse_uri(b"sip:a@b" + b";x=1" * (n // 4)),
    "escapes": lambda n: (
        lambda: uri.uri_equal(
            uri.parse_uri(b"sip:" + b"%61" * (n // 3) + b"@b"), uri.parse_uri(b"sip:" + b"%62" * (n // 3) + b"@b")
        )
    ),
    "uri headers": lambda n: (
        lambda: uri.uri_equal(
            uri.parse_uri(b"sip:a@b?" + b"&".join([b"x=%d" % i for i in range(n // 6)])),
            uri.parse_uri(b"sip:a@b?" + b"&".join([b"x=%d" % i for i in range(n // 6, 0, -1)])),
        )
    ),
    "via parameters": lambda n: lambda: headers.parse_via(b"SIP/2.0/UDP h" + b";a=b" * (n // 4) + b"!!;"),
    "via blanks": lambda n: lambda: headers.parse_via(b"SIP" + b" " * n + b"/" + b" " * n + b"2.0"),
    "joined vias": lambda n: lambda: read_all(sip(via=b"Via: " + b", ".join([b"SIP/2.0/UDP h"] * (n // 15)))),
    "joined contacts": lambda n: lambda: headers.parse_name_addr_list([b", ".join([b'"a, b" <sip:a@b>'] * (n // 18))]),
    "via rows": lambda n: lambda: read_all(sip(MESSAGE, *[b"v: SIP/2.0/UDP h"] * (n // 18))),
    "one long value": lambda n: lambda: read_all(sip(MESSAGE, b"X: " + b"y" * n)),
    "escaped octets in quotes": lambda n: from_(b'"' + b"\\x" * (n // 2) + b'" <sip:a@b>'),
    "escaped quotes": lambda n: from_(b'"' + b'\\"' * (n // 2) + b'" <sip:a@b>'),
    "backslashes without end": lambda n: from_(b'"' + b"\\" * n),
    "quoted parameters": lambda n: from_(b"<sip:a@b>" + b';p="x;y"' * (n // 8)),
    "quotes in a list": lambda n: lambda: grammar.split_list(b'"a",' * (n // 4) + b"x"),
    "brackets": lambda n: lambda: grammar.split_list(b"<" * n),
    "parameters": lambda n: from_(b"<sip:a@b>" + b";tag=1" * (n // 6)),
    "parameters that fail late": lambda n: from_(b"<sip:a@b>" + b";a=b" * (n // 4) + b"\xff"),
    "a name of blanks": lambda n: from_(b" \t" * (n // 2) + b"!\xff <sip:a@b>"),
    "a name of words": lambda n: from_(b"a " * (n // 2) + b"<sip:a@b"),
    "folds": lambda n: lambda: read_all(sip(MESSAGE, b"X: y" + b"\r\n z" * (n // 4))),
    "folded names": lambda n: from_(b"\r\n a" * (n // 4) + b" <sip:a@b>"),
    "escaped folds": lambda n: from_(b'"' + b"\\\\\r\n a" * (n // 6) + b'" <sip:a@b>'),
    "protected nul": lambda n: lambda: read_all(sip(MESSAGE, b'X: "' + b"\\\0" * (n // 2) + b'"')),
    "open quotes and nul": lambda n: lambda: read_all(sip(MESSAGE, b'X: \0"' + b'\\"' * (n // 2))),
    "blanks in the start line": lambda n: lambda: read_all(sip(b"MESSAGE " + b" " * n + b"sip:a@b SIP/2.0")),
    "empty lines": lambda n: lambda: read_all(b"\r\n" * (n // 2) + sip()),
    "phrase": lambda n: lambda: read_all(sip(b"SIP/2.0 200 " + b"x" * n)),
}


@pytest.mark.requirement("SIP-MSG-34")
@pytest.mark.parametrize("name", INPUTS)
def test_four_times_the_input_is_at_most_four_times_the_work(name: str) -> None:
    work = [lines_run(INPUTS[name](size)) for size in (4096, 16384, 65536)]
    assert work[1] <= work[0] * 4.1 + 50
    assert work[2] <= work[1] * 4.1 + 50


@pytest.mark.requirement("SIP-MSG-34")
@pytest.mark.parametrize(
    "make",
    [
        lambda n: b'"' + b"\\x" * n + b'"',
        lambda n: b'"' + b'\\"' * n + b'"',
        lambda n: b'"' + b"\\" * (2 * n),
        lambda n: b'"' + b"x" * n,
    ],
)
def test_a_quoted_string_is_walked_twice_at_most(make: Callable[[int], bytes]) -> None:
    for size in (1000, 8000):
        text = Counted(make(size))
        Counted.walked = 0
        try:
            grammar.end_of_quoted(text, 0)
        except RemoteError:
            pass
        assert Counted.walked <= 4 * len(text)


@pytest.mark.requirement("SIP-MSG-34")
@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_a_head_that_comes_in_pieces_is_not_searched_from_its_start_again(cut: int) -> None:
    work = []
    for size in (4000, 16000):
        data = sip(MESSAGE, *[b"X: " + b"y" * 93] * (size // 98))
        stream = Desk().stream()
        pieces = [data[i : i + cut] for i in range(0, len(data), cut)]
        work.append(lines_run(lambda stream=stream, pieces=pieces: stream.send(*pieces)) / len(pieces))  # type: ignore[misc]
    assert work[1] <= work[0] * 1.6 + 20  # for each piece


@pytest.mark.requirement("SIP-MSG-34")
def test_a_register_with_26_quoted_credentials_is_little_work() -> None:
    credentials = b"Authorization: Digest " + b", ".join(b'a%d="x"' % i for i in range(26)) + b" !"
    desk = Desk()
    data = register(credentials)
    few = lines_run(lambda: desk.send(register()))
    assert lines_run(lambda: desk.send(data)) < few + 26 * 40


# ------------------------------------------------------------------------------------------ regular expressions

PATTERNS = [
    (module.__name__, name, value)
    for module in map(
        importlib.import_module,
        ["edge.sip.grammar", "edge.sip.headers", "edge.sip.message", "edge.sip.forward", "edge.sip.uri", "edge.demux",
         "edge.sip.framing", "edge.sip.refresh", "edge.auth.parameters", "edge.auth.digest"],
    )
    for name, value in vars(module).items()
    if isinstance(value, re.Pattern)
]  # fmt: skip
_REPEATS = {_parser.MAX_REPEAT, _parser.MIN_REPEAT}


def first_octets(items: Any) -> set[int]:
    """The octets a sequence of parsed items may begin with; those behind it where it may be empty are not looked at."""
    found: set[int] = set()
    for operation, argument in items:
        octets, empty = _first_of(operation, argument)
        found |= octets
        if not empty:
            break
    return found


def _first_of(operation: Any, argument: Any) -> tuple[set[int], bool]:
    if operation is _parser.LITERAL:
        return {argument}, False
    if operation is _parser.NOT_LITERAL:
        return set(range(256)) - {argument}, False
    if operation is _parser.ANY:
        return set(range(256)), False
    if operation is _parser.IN:
        return _members(argument), False
    if operation in _REPEATS:
        least, _, inner = argument
        return first_octets(inner), least == 0
    if operation is _parser.SUBPATTERN:
        return first_octets(argument[-1]), False
    if operation is _parser.BRANCH:
        return set().union(*(first_octets(branch) for branch in argument[1])), False
    raise AssertionError(operation)


def _members(argument: Any) -> set[int]:
    members: set[int] = set()
    for operation, value in argument:
        if operation is _parser.LITERAL:
            members.add(value)
        elif operation is _parser.RANGE:
            members |= set(range(value[0], value[1] + 1))
        else:
            assert operation is _parser.NEGATE, operation
    return set(range(256)) - members if argument[0][0] is _parser.NEGATE else members


def nested(items: Any) -> list[set[int]]:
    """For each unbounded repeat inside another: the octets that it repeats, without those its parent starts with."""
    problems: list[set[int]] = []
    for operation, argument in items:
        if operation in _REPEATS:
            _, most, inner = argument
            endless = most > 16
            if endless:
                start = first_octets(inner)
                for repeated in _endless_parts(inner):
                    if repeated & start:
                        problems.append(repeated & start)
            problems += nested(inner)
        elif operation is _parser.SUBPATTERN:
            problems += nested(argument[-1])
        elif operation is _parser.BRANCH:
            for branch in argument[1]:
                problems += nested(branch)
    return problems


def _endless_parts(items: Any) -> list[set[int]]:
    """The octets each unbounded repeat directly or indirectly inside `items` may take."""
    found: list[set[int]] = []
    for operation, argument in items:
        if operation in _REPEATS:
            if argument[1] > 16:
                found.append(first_octets(argument[2]))
            found += _endless_parts(argument[2])
        elif operation is _parser.SUBPATTERN:
            found += _endless_parts(argument[-1])
        elif operation is _parser.BRANCH:
            for branch in argument[1]:
                found += _endless_parts(branch)
    return found


@pytest.mark.requirement("SIP-MSG-34")
@pytest.mark.parametrize(("module", "name", "pattern"), PATTERNS, ids=[f"{m}.{n}" for m, n, _ in PATTERNS])
def test_no_pattern_can_match_the_same_octets_in_two_ways_again_and_again(
    module: str, name: str, pattern: re.Pattern[bytes]
) -> None:
    """A repeat inside a repeat is harmless only if what it repeats cannot begin the next round: then there is one way."""
    assert nested(_parser.parse(pattern.pattern, pattern.flags)) == []


@pytest.mark.requirement("SIP-MSG-34")
@pytest.mark.parametrize("bad", [rb"(a+)+b", rb"(?:x*y*)*z", rb"(?:[a-z]+,?)*;", rb'("[^,]*",?)*!', rb"(?:a|a*)*"])
def test_the_judge_of_patterns_knows_the_slow_ones(bad: bytes) -> None:
    assert nested(_parser.parse(bad)) != []
