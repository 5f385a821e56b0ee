"""What a record says. The loop hands over tuples; the writer's thread makes records of them. Sans-IO.

Times in tuples are of the monotonic clock, those of records are seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Iterable

Values = tuple[object, ...]
Entry = tuple[str, Values]
Record = dict[str, object]

_CALL = (
    "call_id", "from_tag", "to_tag", "caller", "callee", "source", "transport", "flow", "peer_flow", "started",
    "answered", "ended", "code", "reason",
)  # fmt: skip
FIELDS: dict[str, tuple[str, ...]] = {
    "call": _CALL,
    "answer": _CALL,
    "registration": ("ended", "aor", "contact", "reason", "expires", "flow", "instance", "reg_id"),
    "session": ("session", "username", "flow", "started", "ended", "reason", "chunks", "octets"),
    "message": (
        "session", "username", "direction", "message_id", "started", "ended", "chunks", "octets", "code", "reason",
    ),
}  # fmt: skip
TIMES = ("started", "answered", "ended")
NUMBERS = ("code", "expires", "reg_id", "chunks", "octets")
COLUMNS = tuple(dict.fromkeys(name for names in FIELDS.values() for name in names))


def build_record(entry: Entry, identifier: str, offset_s: float) -> Record:
    """Make the record of an entry; `offset_s` is what the wall clock is ahead of the monotonic one.

    A call or session that ended has its `duration`: from answer, or start, to end.
    """
    kind, values = entry
    record: Record = {"id": identifier, "kind": kind}
    for name, value in zip(FIELDS[kind], values, strict=True):
        if isinstance(value, bytes):
            record[name] = value.decode("utf-8", "backslashreplace")
        elif name in TIMES and isinstance(value, float):
            record[name] = round(value + offset_s, 3)
        else:
            record[name] = value
    began = record.get("answered") if kind in ("call", "answer") else record.get("started")
    ended = record.get("ended")
    if isinstance(began, float) and isinstance(ended, float):
        record["duration"] = round(max(0.0, ended - began), 3)
    return record


def count_kinds(entries: Iterable[Entry], counts: dict[str, int]) -> None:
    """Add entries to counts by kind."""
    for kind, _ in entries:
        counts[kind] = counts.get(kind, 0) + 1
