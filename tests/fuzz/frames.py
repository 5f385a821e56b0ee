"""MSRP frames that are nearly right: conversations as somebody at a socket would have them, changed in a few places.

A `Draft` is a frame in its parts. `bent` changes parts, so that the relay can read on after the frame; `broken` changes
them so that it cannot, or octets of the frame as it is written, so that anything may come out. Nothing here is shared
with `edge`.

Who is not authorised writes `STRANGER` into every line that is his own, so that not an octet of it is taken for
somebody else's. No frame names a host outside of 127.0.0.0/24 that could be dialled: see `may_be_sent`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

from tests.ua import digest

STRANGER = b"Str4nger"
Header = tuple[bytes, bytes]

_AUTHORITY = re.compile(rb"(?i)msrps?://([^\s/;]*)")
_UNDERSCORE = re.compile(rb"MSRP [^ \r\n]+ [A-Z]*_")
_HARMLESS = re.compile(rb"(?i)(?:127\.0\.0\.[0-9]{1,3}|[a-z0-9-]+\.invalid|\[::1\])(?::[0-9]*)?")


class Draft:
    """One frame in parts: `word` is a method, or a status with its comment; `body` is None where there is none."""

    __slots__ = ("body", "flag", "lines", "tid", "word")

    def __init__(
        self, tid: bytes, word: bytes, lines: list[Header], body: bytes | None = None, flag: bytes = b"$"
    ) -> None:
        self.tid, self.word, self.lines, self.body, self.flag = tid, word, lines, body, flag

    def octets(self) -> bytes:
        """The frame as it goes over the wire."""
        lines = b"".join([b"%b: %b\r\n" % line for line in self.lines])
        body = b"" if self.body is None else b"\r\n%b\r\n" % self.body
        return b"MSRP %b %b\r\n%b%b-------%b%b\r\n" % (self.tid, self.word, lines, body, self.tid, self.flag)


class Login:
    """A name with a password, and the challenge of the relay that is answered again and again."""

    def __init__(self, name: str, password: str) -> None:
        self.name, self.password = name, password
        self.challenge: digest.Challenge | None = None
        self._count = 0

    def take(self, challenge: digest.Challenge) -> None:
        """Answer this challenge from now on."""
        self.challenge, self._count = challenge, 0

    def authorization(self, uri: str) -> list[Header]:
        """The header that logs in, none before there is a challenge."""
        if self.challenge is None:
            return []
        self._count += 1
        answer = digest.answer(self.challenge, self.name, self.password, "AUTH", uri, count=self._count)
        return [(b"Authorization", answer.header.encode())]


class Person:
    """Who speaks over one connection, and what he knows.

    `own` is his URI and `issued` what the relay gave him for it, nothing for a stranger. `ways` are To-Paths that lead
    to somebody, or to nobody; `places` are URIs to be put where another one stands; `heard` are the transaction ids of
    requests that he may answer.
    """

    def __init__(self, source: random.Random, relay: bytes, own: bytes, login: Login, mark: bytes = b"") -> None:
        self.source, self.relay, self.own, self.login, self.mark = source, relay, own, login, mark
        self.issued = b""
        self.ways: list[bytes] = []
        self.places: list[bytes] = [relay, own, b"msrp://127.0.0.1:9/nobody;tcp", b"msrps://q.invalid:2855/x;ws"]
        self.heard: list[bytes] = []
        self._number = 0

    def name(self) -> bytes:
        """A new transaction or message id."""
        self._number += 1
        return b"%bt%06x%04x" % (self.mark, self._number, self.source.randrange(1 << 16))

    def ping(self) -> Draft:
        """A request without a fault, to the relay alone: its owner's URI is answered 200, all else an error."""
        return self._draft(b"SEND", self.issued or self.relay)

    def auth(self) -> Draft:
        """AUTH with right credentials."""
        draft = self._draft(b"AUTH", self.relay)
        draft.lines += self.login.authorization(self.relay.decode())
        return draft

    def say(self) -> list[Draft]:
        """Some frames without a fault that belong together, or nearly without one."""
        return self.source.choices(_KINDS, _WEIGHTS)[0](self)

    def _draft(
        self, word: bytes, to_path: bytes, lines: list[Header] | None = None, body: bytes | None = None
    ) -> Draft:
        mine = [(b"X-Who", self.mark)] if self.mark else []
        start = [(b"To-Path", to_path), (b"From-Path", self.own)]
        return Draft(self.name(), word, start + (lines or []) + mine, body)

    def _way(self) -> bytes:
        return self.source.choice(self.ways)

    def _text(self, size: int) -> bytes:
        piece = self.mark or self.source.randbytes(12)
        return (piece * (size // len(piece) + 1))[:size] if size else b""

    def _reports(self) -> list[Header]:
        lines = []
        if self.source.random() < 0.4:
            lines.append((b"Success-Report", self.source.choice((b"yes", b"no"))))
        if self.source.random() < 0.4:
            lines.append((b"Failure-Report", self.source.choice((b"yes", b"no", b"partial"))))
        return lines

    def _chunk(self, way: bytes, identifier: bytes, body: bytes, start: int, total: int) -> Draft:
        end = b"*" if len(body) > 2048 or self.source.random() < 0.3 else b"%d" % (start + len(body) - 1)
        lines = [(b"Message-ID", identifier), *self._reports(), (b"Byte-Range", b"%d-%b/%d" % (start, end, total))]
        draft = self._draft(b"SEND", way, lines, body)
        draft.lines.append((b"Content-Type", b"text/plain"))
        return draft

    def _send(self) -> list[Draft]:
        size = self.source.choice((0, 1, 5, 60, 300, 2047, 2049))
        return [self._chunk(self._way(), self.name(), self._text(size), 1, size)]

    def _send_in_chunks(self) -> list[Draft]:
        way, identifier, start = self._way(), self.name(), 1
        sizes = [self.source.choice((1, 30, 700, 2100)) for _ in range(self.source.randint(2, 5))]
        drafts = []
        for size in sizes:
            drafts.append(self._chunk(way, identifier, self._text(size), start, sum(sizes)))
            drafts[-1].flag = b"+"
            start += size
        drafts[-1].flag = self.source.choice((b"$", b"$", b"#"))
        return drafts

    def _send_large(self) -> list[Draft]:
        size = self.source.choice((9_000, 66_000, 140_000))
        return [self._chunk(self._way(), self.name(), self._text(size), 1, size)]

    def _send_bodiless(self) -> list[Draft]:
        lines = [(b"Message-ID", self.name())] if self.source.random() < 0.5 else []
        return [self._draft(b"SEND", self.source.choice((self.issued or self.relay, self._way())), lines)]

    def _report(self) -> list[Draft]:
        size = self.source.choice((1, 60, 5000))
        lines = [
            (b"Message-ID", self.name()),
            (b"Byte-Range", b"1-%d/%d" % (size, size)),
            (b"Status", self.source.choice((b"000 200 OK", b"000 413", b"123 777 odd"))),
        ]
        return [self._draft(b"REPORT", self._way(), lines)]

    def _other(self) -> list[Draft]:
        word = self.source.choice((b"NICKNAME", b"NICKNAME", b"XYZZY"))
        way = self.source.choice((self._way(), self._way(), self.issued or self.relay))
        draft = self._draft(word, way, [(b"Use-Nickname", b'"%b"' % self._text(12).hex().encode())])
        if self.source.random() < 0.3:
            draft.body = self._text(self.source.choice((0, 9, 10240, 10241)))
            draft.lines.append((b"Content-Type", b"text/plain"))
        return [draft]

    def _login(self) -> list[Draft]:
        target = self.source.choice((self.relay, self.issued or self.relay, self.source.choice(self.places)))
        draft = self._draft(b"AUTH", target)
        if self.source.random() < 0.5:
            draft.lines.append((b"Expires", self.source.choice((b"60", b"600", b"5", b"99999", b"x"))))
        if self.source.random() < 0.7:
            draft.lines += self.login.authorization(target.decode())
        return [draft]

    def _login_further_on(self) -> list[Draft]:
        return [self._draft(b"AUTH", self._way(), self.login.authorization(self.relay.decode()))]

    def _respond(self) -> list[Draft]:
        word = self.source.choice(
            (b"200 OK", b"200", b"413 Stop", b"481", b"501 what", b"506", b"999 x", b"000 \xc3\xbc")
        )
        draft = self._draft(word, self.issued or self._way())
        if self.heard:
            draft.tid = self.heard.pop(self.source.randrange(len(self.heard)))
        return [draft]


_KINDS: list[Callable[[Person], list[Draft]]] = [
    Person._send, Person._send_in_chunks, Person._send_large, Person._send_bodiless, Person._report, Person._other,
    Person._login, Person._login_further_on, Person._respond,
]  # fmt: skip
_WEIGHTS = [40, 10, 1, 6, 10, 8, 4, 1, 20]


# ------------------------------------------------------------------------------------------ changes to parts

_NUMBERS = (b"0", b"1", b"2048", b"9223372036854775807", b"9223372036854775808", b"4294967296", b"*", b"-1", b"")
_WORDS = (b"SEND", b"REPORT", b"NICKNAME", b"AUTH", b"XYZZY", b"200 OK", b"200", b"413", b"999 \xc3\xbc")
_VALUES = (
    b"", b"yes", b"no", b"partial", b"NO", b"maybe", b"text/plain", b"a" * 300, b"\xff\xfe", b"\xc3\xbc", b"a: b: c", b"\t",
    b"000 200 OK", b"000", b"000 413 " + b"c" * 900, b"1-*/*", b"x-------abcd$", b'"', b"0" * 40, b"Digest", b"Basic eDp5",
)  # fmt: skip
_NAMES = (
    b"To-Path", b"From-Path", b"Message-ID", b"Byte-Range", b"Status", b"Success-Report", b"Failure-Report", b"Expires",
    b"Content-Type", b"Content-Disposition", b"Use-Path", b"WWW-Authenticate", b"Authorization", b"X-Odd", b"", b"No Name",
    b"Authentication-Info", b"Min-Expires", b"Max-Expires", b"Use-Nickname", b"Keep-Alive", b"x" * 70,
)  # fmt: skip
_PATH_CHANGES: list[tuple[bytes, bytes]] = [
    (b"msrp:", b"MSRP:"), (b"msrp:", b"msrps:"), (b";tcp", b";TCP"), (b";tcp", b";ws"), (b";tcp", b";tcp;z=1"), (b";tcp", b""),
    (b" ", b"  "), (b" ", b"\t"), (b"//", b"//a;b=c@"), (b"/", b""), (b"127.0.0.1", b"127.0.0.9"), (b"127.0.0.1", b"[::1]"),
    (b":", b"::"), (b"127.0.0.1", b"x.invalid"), (b";", b"x;"), (b"/", b"/%2e/"), (b":1", b":99999"), (b":", b":0"),
]  # fmt: skip


def _bend_path(draft: Draft, person: Person) -> None:
    """Change a path, but for the first URI of To-Path: where that is not the relay's, it hangs up."""
    source, at = person.source, person.source.choice((0, 0, 0, 1))
    name, value = draft.lines[at]
    kept, *uris = value.split(b" ")
    if at:
        kept, uris = b"", [kept, *uris]
    what = source.randrange(6)
    if what == 0 and uris:
        uris[source.randrange(len(uris))] = source.choice(person.places)
    elif what == 1 and len(uris) < 7:
        uris.insert(source.randint(0, len(uris)), source.choice(person.places))
    elif what == 2 and uris:
        del uris[source.randrange(len(uris))]
    elif what == 3:
        source.shuffle(uris)
    elif what == 4:
        uris = (uris * 2)[:8]
    value = b" ".join(uris)
    if what == 5:
        value = value.replace(*source.choice(_PATH_CHANGES), source.choice((-1, 1)))
    draft.lines[at] = name, b" ".join(filter(None, (kept, value))) or person.own


def _bend_range(draft: Draft, person: Person) -> None:
    numbers = [person.source.choice(_NUMBERS) for _ in range(3)]
    _set(draft, b"Byte-Range", b"%b-%b/%b" % tuple(numbers))


def _bend_value(draft: Draft, person: Person) -> None:
    if len(draft.lines) > 2:
        name = person.source.choice(draft.lines[2:])[0]
        _set(draft, name, person.source.choice(_VALUES))


def _bend_name(draft: Draft, person: Person) -> None:
    at = person.source.randrange(len(draft.lines))
    name, value = draft.lines[at]
    changed = [name.lower(), name.upper(), name + b" ", person.source.choice(_NAMES)]
    draft.lines[at] = person.source.choice(changed[: 2 if at < 2 else 4]), value


def _drop_line(draft: Draft, person: Person) -> None:
    if len(draft.lines) > 2:
        del draft.lines[person.source.randrange(2, len(draft.lines))]


def _repeat_line(draft: Draft, person: Person) -> None:
    draft.lines.insert(person.source.randint(0, len(draft.lines)), person.source.choice(draft.lines))


def _move_line(draft: Draft, person: Person) -> None:
    line = draft.lines.pop(person.source.randrange(len(draft.lines)))
    draft.lines.insert(person.source.randint(0, len(draft.lines)), line)


def _add_lines(draft: Draft, person: Person) -> None:
    source = person.source
    line = source.choice(_NAMES), source.choice(_VALUES) * source.choice((1, 1, 1, 8))
    draft.lines[2:2] = [line] * source.choice((1, 1, 1, 2, 9))


def _bend_word(draft: Draft, person: Person) -> None:
    draft.word = person.source.choice(_WORDS)


def _bend_tid(draft: Draft, person: Person) -> None:
    draft.tid = person.source.choice((draft.tid[:4], (draft.tid * 2)[:32], draft.tid + b".-+%=", b"aaaa"))


def _bend_flag(draft: Draft, person: Person) -> None:
    draft.flag = person.source.choice((b"$", b"+", b"#"))


def _bend_body(draft: Draft, person: Person) -> None:
    source = person.source
    before = draft.body or b""
    likeness = b"\r\n-------" + draft.tid
    draft.body = source.choice(
        (
            None, b"", before[1:], before + b"\r\n", before + likeness[: source.randrange(1, len(likeness))], likeness + b"x$",
            b"\r\n-------nobody$\r\n" + before, source.randbytes(source.choice((3, 2050))), likeness + b"+$", b"-------\r\r\n",
        )
    )  # fmt: skip


_BENDS: list[Callable[[Draft, Person], None]] = [
    _bend_path, _bend_path, _bend_path, _bend_range, _bend_value, _bend_value, _bend_name, _drop_line, _repeat_line, _move_line,
    _add_lines, _add_lines, _bend_word, _bend_tid, _bend_flag, _bend_body, _bend_body,
]  # fmt: skip


def _break_path(draft: Draft, person: Person) -> None:
    at = person.source.randrange(2)
    name, value = draft.lines[at]
    uris = value.split(b" ")
    draft.lines[at] = (
        name,
        person.source.choice(
            (
                b"",
                b" ".join(uris * 17),
                b" ".join(uris[1:]),
                b" ".join([person.source.choice(person.places), *uris[1:]]),
                b"\0" + value,
            )
        ),
    )


def _break_lines(draft: Draft, person: Person) -> None:
    draft.lines[2:2] = person.source.choice(([(b"X-Odd", b"1")] * 65, [(b"X-Odd", b"1" * 9000)], [(b"X-Odd", b"\r")]))


def _break_start(draft: Draft, person: Person) -> None:
    draft.tid = person.source.choice((draft.tid, draft.tid[:3], b"-" + draft.tid, draft.tid + b"_", draft.tid * 4))
    draft.word = person.source.choice((draft.word, b"send", b"S2ND", b"99", b"", b"SEND " * 200))


def _break_end(draft: Draft, person: Person) -> None:
    draft.flag = person.source.choice((b"", b"x", b"$ ", b"$\n", b"$$"))


def _drop_path(draft: Draft, person: Person) -> None:
    del draft.lines[person.source.randrange(2)]


def _break_body(draft: Draft, person: Person) -> None:
    draft.word, draft.body = b"NICKNAME", b"n" * person.source.choice((10241, 30000))


_BREAKS: list[Callable[[Draft, Person], None]] = [
    _break_path, _break_lines, _break_start, _break_end, _drop_path, _break_body,
]  # fmt: skip


def _set(draft: Draft, name: bytes, value: bytes) -> None:
    """Give a header another value."""
    for at, (known, _) in enumerate(draft.lines):
        if known == name:
            draft.lines[at] = name, value
            return
    draft.lines.append((name, value))


def bend(draft: Draft, person: Person) -> bytes:
    """Change one part of a frame, or a few."""
    for _ in range(person.source.choice((1, 1, 1, 2, 4))):
        person.source.choice(_BENDS)(draft, person)
    return draft.octets()


# ------------------------------------------------------------------------------------------ changes to octets

_PIECES = (
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\0", b" ", b":", b"-------", b"$", b"MSRP ", b"\xff", b"\xd9\xa1", b"OPTIONS sip:x SIP/2.0\r\n",
    b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"x" * 600, b"X: " + b"y" * 9000, b"\r\n-------", b"\r\n" * 70, b"*", b"99999999999999999999",
)  # fmt: skip


def garble(data: bytes, other: bytes, source: random.Random) -> bytes:
    """Change octets of a frame in a few places; `other` is one to take pieces from."""
    for _ in range(source.choice((1, 1, 2, 5))):
        at = source.randint(0, min(len(data), 1500))
        until = at + source.choice((0, 0, 1, 2, 9, 60))
        begin = source.randrange(len(other))
        piece = source.choice(
            (
                source.choice(_PIECES),
                source.randbytes(source.randint(1, 4)),
                b"",
                data[at : at + 50],
                other[begin : begin + 90],
            )
        )
        data = data[:at] + piece + data[until:]
    return data[: source.randrange(len(data))] if data and source.random() < 0.1 else data


# ------------------------------------------------------------------------------------------ all together


def may_be_sent(data: bytes) -> bool:
    """Whether no URI of a frame can make anybody dial, or look up, a host that is not one of ours.

    Nor has a method `_` in it: the relay passes that on as it came (MSRP-FRM-01), and no strict parser reads it.
    """
    if _UNDERSCORE.search(data):
        return False
    return all(_HARMLESS.fullmatch(found.rpartition(b"@")[2]) for found in _AUTHORITY.findall(data))


def bent(person: Person) -> Iterator[bytes]:
    """Frames that are wrong in parts, without end; the relay can read on after them."""
    while True:
        for draft in person.say():
            data = bend(draft, person)
            if may_be_sent(data):
                yield data


def broken(person: Person) -> bytes:
    """One frame after which the relay has to hang up, or of which nobody knows what it has become."""
    source = person.source
    while True:
        draft = source.choice(person.say())
        if source.random() < 0.3:
            source.choice(_BREAKS)(draft, person)
            data = bend(draft, person) if source.random() < 0.3 and len(draft.lines) > 1 else draft.octets()
        else:
            data = garble(draft.octets(), person.say()[0].octets(), source)
        if data and may_be_sent(data):
            return data
