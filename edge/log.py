r"""Logging: one event is one line, and nothing from the wire can break or forge a line.

    2026-11-20T19:40:00.123Z INFO edge.conn opened src=192.0.2.7:50612 conn=w0-67aa-12 transport=tls

Loggers are named by part: `edge.conn`, `edge.sip`, `edge.msrp`, `edge.security`, `edge.admin`, `edge.storage`,
`edge.server`. What stands before `src=` is fixed for each event, and `src` is the socket's peer or the PROXY header's,
so that a log watcher can trust it. Values pass through `quote`. Bodies and credentials are never logged on purpose;
what looks like a credential is masked all the same, because a peer chooses what it puts into a user name.
"""

import logging
import re
import sys
import time
from collections.abc import Hashable, MutableMapping
from typing import Any, TextIO

LONGEST_VALUE = 256

_PLAIN = re.compile(r"[!#-<>-\[\]-~]+")  # visible ASCII without quote, equals sign and backslash
_SPECIAL = re.compile(r"[^ !#-\[\]-~]")
_BREAKS_LINE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t", '"': r"\"", "\\": r"\\"}
_QUOTED = r'"(?:[^"\\]|\\.)*"|\\"(?:[^"\\]|\\[^"])*\\"|[^\s"\\,;]+'  # also one inside a value that is quoted itself
_SECRETS = (
    (re.compile(r"(?i)(authorization(?:\s|\\[nrt])*:).*"), r"\1 ***"),
    (re.compile(rf"(?i)\b((?:password|token|secret)\s*=\s*)(?:{_QUOTED})"), r"\1***"),
    (re.compile(r'(?i)\b(response\s*=\s*\\?"?)[0-9a-f]{32,}'), r"\1***"),
    (re.compile(r"(://[^\s:/@]+:)[^\s/@]+(?=@)"), r"\1***"),
)
_LOGGING_KEYWORDS = frozenset({"exc_info", "stack_info", "stacklevel", "extra"})


def quote(value: object) -> str:
    """Write a value so that it stays one field of one line.

    Visible ASCII without quotes, backslashes and equals signs stays as it is; anything else is put in double quotes,
    with backslash escapes for all that is not printable ASCII. Bytes are taken as UTF-8, `None` is `-`, and 256
    characters are enough.
    """
    if value is None:
        return "-"
    text = (
        bytes(value).decode("utf-8", "backslashreplace")
        if isinstance(value, bytes | bytearray | memoryview)
        else str(value)
    )
    if len(text) > LONGEST_VALUE:
        text = text[:LONGEST_VALUE] + "..."
    return text if _PLAIN.fullmatch(text) else f'"{_SPECIAL.sub(_escape, text)}"'


def printable(text: str) -> str:
    """Escape what could end a line or steer a terminal; everything else stays readable."""
    return _BREAKS_LINE.sub(_escape, text)


def format_fields(fields: MutableMapping[str, Any]) -> str:
    """Write `key=value` pairs in their order, values quoted where they must be."""
    return " ".join(f"{key}={quote(value)}" for key, value in fields.items())


def format_peer(address: tuple[str, int]) -> str:
    """Write a socket address as `host:port`, IPv6 in brackets."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class FieldAdapter(logging.LoggerAdapter[logging.Logger]):
    """A logger whose keyword arguments become fields: `log.info("closed", reason=reason)` says `closed reason=...`.

    Fields given here come first in every line. Nothing is formatted for a level that is switched off.
    """

    def __init__(self, logger: logging.Logger, **fields: object) -> None:
        super().__init__(logger, fields)
        self._fields = fields

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log a fixed text with fields; `%` arguments are merged in first."""
        if self.isEnabledFor(level):
            kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
            super().log(level, str(msg) % args if args else msg, **kwargs)

    def process(self, msg: object, kwargs: MutableMapping[str, Any]) -> tuple[str, MutableMapping[str, Any]]:
        """Move what is not logging's own keyword into the text."""
        fields = self._fields | {name: kwargs.pop(name) for name in list(kwargs) if name not in _LOGGING_KEYWORDS}
        return (f"{msg} {format_fields(fields)}" if fields else str(msg)), kwargs


class ConnectionAdapter(FieldAdapter):
    """A logger for one connection: `src` and `conn` stand first in every line."""

    def __init__(self, logger: logging.Logger, name: str, remote: tuple[str, int]) -> None:
        super().__init__(logger, src=format_peer(remote), conn=name)


class LineFormatter(logging.Formatter):
    """Time (UTC), level, logger and message in one line; a traceback follows in lines that all begin with `  |`."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        """Write a record, whoever logged it, without control characters and without credentials."""
        lines = [f"{self.formatTime(record)} {record.levelname} {record.name} {_clean(record.getMessage())}"]
        if record.exc_info:
            lines += [f"  | {_clean(line)}" for line in self.formatException(record.exc_info).split("\n")]
        if record.stack_info:
            lines += [f"  | {_clean(line)}" for line in record.stack_info.split("\n")]
        return "\n".join(lines)


class RateLimited:
    """Decides whether a line may be logged: one for each key and interval, and `limit` lines for all keys together.

    The second bound holds when somebody invents keys. Memory is bounded by `limit` as well.
    """

    __slots__ = ("_counts", "_earlier", "_interval_s", "_limit", "_since")

    def __init__(self, interval_s: float, limit: int = 100) -> None:
        self._interval_s = interval_s
        self._limit = limit
        self._since = float("-inf")
        self._counts: dict[Hashable, int] = {}
        self._earlier: dict[Hashable, int] = {}

    def allow(self, key: Hashable, now: float) -> int | None:
        """Return None to stay silent, else how many lines of this key were held back since its last one."""
        if now - self._since >= self._interval_s:
            self._since, self._earlier, self._counts = now, self._counts, {}
        count = self._counts.get(key)
        if count is not None:
            self._counts[key] = count + 1
            return None
        if len(self._counts) >= self._limit:
            return None
        self._counts[key] = 1
        return self._earlier.pop(key, 1) - 1


def set_up_logging(level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Send log lines to a stream (standard error by default): ours from `level` up, other libraries' from WARNING up.

    Calling it again replaces what was set up before.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("edge").setLevel(level)


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    if character in _SHORT:
        return _SHORT[character]
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _clean(text: str) -> str:
    text = printable(text)
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text
