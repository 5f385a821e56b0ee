"""Split an Authorization value into its scheme and parameters (RFC 7235 §2.1, RFC 3261 §25.1) in linear time.

One pass of a possessive regular expression reads the usual shape. A value it does not take to the end (an escape, or
an error) is read again by hand, which knows escapes and says what is wrong. Neither can look at an octet
more than a few times.

Clients write the same between the quotes each time, and `read_known` remembers what that means:

    Digest username=  "bob"  , realm=  "example.com"  …  "0a4f113b"  , nc=00000001, qop=auth
    ─── opening ────          ─ between ─                             ────── ending ───────

This module knows no parameter by name; `edge.auth.digest` does.
"""

import re

from edge.errors import RemoteError

MAX_OCTETS = 8192
"""Longest value read at all; the longest honest ones stay under 1 KiB."""

MAX_PARAMETERS = 64
"""Digest has a dozen parameters; the rest is room for extensions."""

_BLANK = rb"[ \t\r\n]*+"
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_PLAIN = rb"[^\"\\\x00-\x08\x0a-\x1f\x7f]*+"
_BARE = rb"[^\",\x00-\x20\x7f]++"

_scheme = re.compile(_BLANK + rb"(" + _TOKEN + rb")(?:[ \t\r\n]++|\Z)")
_usual = re.compile(
    rb'[ \t\r\n,]*+(?:(%b)%b=%b(?:"(%b)"|(%b))%b(?=,|\Z)|(.).*+)' % (_TOKEN, _BLANK, _BLANK, _PLAIN, _BARE, _BLANK),
    re.DOTALL,
)
_name = re.compile(rb"[ \t\r\n,]*+(" + _TOKEN + rb")" + _BLANK + rb"=" + _BLANK)
_plain = re.compile(_PLAIN)
_bare = re.compile(_BARE)
_separator = re.compile(_BLANK + rb"(?:,|\Z)")

_REMEMBERED = 1024
_LONGEST_REMEMBERED = 64
_PLAIN_OCTETS = bytes(octet for octet in range(256) if octet == 0x09 or (octet >= 0x20 and octet not in b"\\\x7f"))

Parameter = tuple[bytes, bytes, bytes, bytes]
"""Name as written, unescaped quoted value, bare value (empty: it was quoted), always empty."""


def split_scheme(value: bytes) -> tuple[bytes, int]:
    """Return the scheme in lower case and the offset where its parameters begin.

    Raises:
        RemoteError: longer than `MAX_OCTETS`, or no scheme in front (status 400, label "credentials").
    """
    if len(value) > MAX_OCTETS:
        raise RemoteError(400, "credentials", "size")
    found = _scheme.match(value)
    if found is None:
        raise RemoteError(400, "credentials", "scheme")
    return found[1].lower(), found.end()


def read_parameters(value: bytes, start: int) -> list[Parameter]:
    """Read the parameters from offset `start` on; order and repeats are kept, empty list elements are skipped.

    Blanks, TABs and line folds may stand around `=` and `,`. A bare value may hold anything but blanks, quotes, commas
    and controls, since clients leave quotes out where the grammar wants them.

    Raises:
        RemoteError: not a list of `name=value`, a control character in a value, or more than `MAX_PARAMETERS`
            (status 400, label "credentials").
    """
    # Without the strip the expression would look at trailing blanks once from each of them.
    value = value.rstrip(b" \t\r\n,")
    parameters: list[Parameter] = _usual.findall(value, start)
    if parameters and parameters[-1][3]:
        parameters = _read_by_hand(value, start)
    if len(parameters) > MAX_PARAMETERS:
        raise RemoteError(400, "credentials", "count")
    return parameters


class Shape:
    """What stands between two quoted values: the parameters without quotes, and whose value comes next."""

    __slots__ = ("bare", "name")

    def __init__(self, name: bytes, bare: dict[bytes, bytes]) -> None:
        self.name = name
        self.bare = bare


_openings: dict[bytes, Shape] = {}
_between: dict[bytes, Shape] = {}
_endings: dict[bytes, Shape] = {}


def read_known(value: bytes) -> dict[bytes, bytes] | None:
    """Read a whole Digest value by what is remembered of others: parameters by their names as written.

    None where `split_scheme` and `read_parameters` have to: for another scheme, an escape, a parameter twice, an error.
    """
    pieces = value.split(b'"')
    last = len(pieces) - 1
    if last % 2 or not 0 < last < MAX_PARAMETERS or len(value) > MAX_OCTETS or value.translate(None, _PLAIN_OCTETS):
        return None
    found: dict[bytes, bytes] = {}
    count = 0
    known = _openings
    for index in range(0, last, 2):
        shape = known.get(pieces[index]) or _learn(known, pieces[index])
        if shape is None:
            return None
        found.update(shape.bare)
        found[shape.name] = pieces[index + 1]
        count += len(shape.bare) + 1
        known = _between
    shape = _endings.get(pieces[last]) or _learn(_endings, pieces[last])
    if shape is None:
        return None
    found.update(shape.bare)
    return found if len(found) == count + len(shape.bare) else None


def _learn(known: dict[bytes, Shape], piece: bytes) -> Shape | None:
    """Read what stands between quotes, by putting some around it."""
    before = [] if known is _openings else [b'Digest x=""']
    after = [] if known is _endings else [b'""']
    text = b"".join([*before, piece, *after])
    try:
        scheme, start = split_scheme(text)
        parameters = read_parameters(text, start)[len(before) :]
    except RemoteError:
        return None
    name = parameters.pop()[0] if after else b""
    shape = Shape(name, {each[0]: each[2] for each in parameters})
    if scheme != b"digest" or len(shape.bare) < len(parameters):  # one of them twice
        return None
    if len(piece) <= _LONGEST_REMEMBERED:
        if len(known) >= _REMEMBERED:
            known.clear()
        known[piece] = shape
    return shape


def _read_by_hand(value: bytes, start: int) -> list[Parameter]:
    parameters: list[Parameter] = []
    position = start
    while position < len(value):
        name = _name.match(value, position)
        if name is None:
            raise RemoteError(400, "credentials", "syntax")
        position = name.end()
        if value.startswith(b'"', position):
            text, position = _read_quoted(value, position + 1)
            parameters.append((name[1], text, b"", b""))
        else:
            bare = _bare.match(value, position)
            if bare is None:
                raise RemoteError(400, "credentials", "syntax")
            position = bare.end()
            parameters.append((name[1], b"", bare[0], b""))
        separator = _separator.match(value, position)
        if separator is None:
            raise RemoteError(400, "credentials", "syntax")
        position = separator.end()
    return parameters


def _read_quoted(value: bytes, position: int) -> tuple[bytes, int]:
    """Return the unescaped text from behind an opening quote, and the offset behind the closing one."""
    pieces: list[bytes] = []
    while plain := _plain.match(value, position):
        pieces.append(plain[0])
        position = plain.end()
        if value.startswith(b'"', position):
            return b"".join(pieces), position + 1
        escaped = value[position + 1 : position + 2]
        if not value.startswith(b"\\", position) or (escaped < b" " and escaped != b"\t") or escaped == b"\x7f":
            break
        pieces.append(escaped)
        position += 2
    raise RemoteError(400, "credentials", "syntax")
