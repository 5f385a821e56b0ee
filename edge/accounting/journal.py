"""Records as lines of JSON in a file, which is never torn.

A batch is appended by one write and is on disk when that returns. What of it does not fit on a full disk is cut off
again. A line that a kill left without its end is cut off at the next start. A file that somebody moved away
(logrotate) is left to them, and a new one is begun with the next batch at the latest.

    accounting.jsonl ─ full ─► accounting.jsonl.1 ─► .2 ─► ... ─► .keep ─► gone
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edge.accounting.records import Record
from edge.log import FieldAdapter

_TAIL = 65536


class Journal:
    """One file at `path`; `rotate_size` octets make it full (0: never), `keep` older ones are kept.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, log: FieldAdapter, *, rotate_size: int = 0, keep: int = 10) -> None:
        self._path = path
        self._log = log
        self._rotate_size = rotate_size
        self._keep = keep
        self._file = -1
        self._open()

    def write(self, records: Sequence[Record]) -> int:
        """Append records, all or none; returns how many could not be written for what they are: none.

        Raises:
            OSError: the disk is full, or the folder is gone.
        """
        if self._file < 0 or self._is_moved():
            self._open()
        if not records:
            return 0
        data = b"".join(msgspec.json.encode(record) + b"\n" for record in records)
        if 0 < self._rotate_size < self._size() + len(data) and self._size():
            self._rotate()
        self._append(data)
        return 0

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def _size(self) -> int:
        return os.fstat(self._file).st_size

    def _append(self, data: bytes) -> None:
        before = self._size()
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            with contextlib.suppress(OSError):
                os.fdatasync(self._file)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, before)
            raise

    def _is_moved(self) -> bool:
        ours = os.fstat(self._file)
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return True
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)

    def _open(self) -> None:
        self.close()
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._mend()

    def _mend(self) -> None:
        """Cut off what stands behind the last whole line."""
        size = self._size()
        keep = end = size
        while end:
            start = max(0, end - _TAIL)
            data = os.pread(self._file, end - start, start)
            found = data.rfind(b"\n")
            if found >= 0:
                keep = start + found + 1
                break
            keep = end = start
        if keep < size:
            os.ftruncate(self._file, keep)
            self._log.warning("accounting mended", file=self._path, octets=size - keep)

    def _rotate(self) -> None:
        for number in range(self._keep, 0, -1):
            older = self._numbered(number)
            newer = self._numbered(number - 1) if number > 1 else self._path
            with contextlib.suppress(FileNotFoundError):
                newer.replace(older)
        if not self._keep:
            self._path.unlink()
        self._open()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")
