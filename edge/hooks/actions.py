"""What a hook does: start a program, or send a request. Each is one `run` with an outcome, and never raises.

A program gets the event as JSON on standard input and in its environment, and a process group of its own, which is
killed when its time is over. What it prints is thrown away; when it fails, the beginning of its standard error goes
into the log. A request is signed where there is a secret, and sent again after a failure that may be over next time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import signal
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from typing import Protocol

import aiohttp

from edge.hooks.selection import Occurrence

LONGEST_VALUE = 100_000  # octets of one environment variable; the kernel takes 131,071
LONGEST_PAUSE_S = 60.0
_REASON_OCTETS = 200
_KEPT_VARIABLES = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ")
_TRANSIENT = frozenset((408, 425, 429))


class Result(Enum):
    """How a run ended."""

    DONE = "done"
    FAILED = "failed"
    TIMED_OUT = "timed_out"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a run; `reason` is one line for the log."""

    result: Result
    reason: str = ""


DONE = Outcome(Result.DONE)


class Action(Protocol):
    """What is done for an event."""

    async def run(self, occurrence: Occurrence) -> Outcome:
        """Do it, within its time limit. Cancelled, it leaves nothing running."""

    async def close(self) -> None:
        """Let go of what is kept between runs."""


# -- programs


class Program:
    """Starts a command for each event."""

    def __init__(self, command: tuple[str, ...], timeout_s: float) -> None:
        self._command = command
        self._timeout_s = timeout_s

    async def run(self, occurrence: Occurrence) -> Outcome:
        """Run the command; exit status 0 is success."""
        complaint = _Complaint()
        try:
            process = await self._start(occurrence, complaint.write_end)
        except (OSError, ValueError) as error:
            complaint.close()
            return Outcome(Result.FAILED, f"cannot be started: {error}")
        complaint.listen()
        try:
            async with asyncio.timeout(self._timeout_s):
                status = await process.wait()
        except TimeoutError:
            return Outcome(Result.TIMED_OUT, f"killed after {self._timeout_s:g} s")
        finally:
            await _end(process)
            said = complaint.close()
        return DONE if status == 0 else Outcome(Result.FAILED, f"exit status {status}: {said}".rstrip(": "))

    async def _start(self, occurrence: Occurrence, complaints: int) -> asyncio.subprocess.Process:
        stdin = os.memfd_create("event")
        try:
            os.write(stdin, occurrence.encode() + b"\n")
            os.lseek(stdin, 0, os.SEEK_SET)
            return await asyncio.create_subprocess_exec(
                *self._command,
                stdin=stdin,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=complaints,
                env=build_environment(occurrence, os.environ),
                start_new_session=True,
            )
        finally:
            os.close(stdin)

    async def close(self) -> None:
        """Nothing is kept."""


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill what still runs of a process and its group, unless the process has ended by itself."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


class _Complaint:
    """A pipe for standard error, of which the beginning is kept and the rest thrown away."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._read_end, self.write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(self.write_end, True)
        self._said = b""

    def listen(self) -> None:
        os.close(self.write_end)
        self.write_end = -1
        self._loop.add_reader(self._read_end, self._read)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._read_end, 65536)
            if not data:
                self._loop.remove_reader(self._read_end)
            self._said = (self._said + data)[:_REASON_OCTETS]

    def close(self) -> str:
        """Listen no more; return what was said, in one line."""
        if self.write_end >= 0:
            os.close(self.write_end)
        else:
            self._read()
            self._loop.remove_reader(self._read_end)
        os.close(self._read_end)
        return " ".join(self._said.decode("utf-8", "backslashreplace").split())


def build_environment(occurrence: Occurrence, ours: os._Environ[str] | dict[str, str]) -> dict[str, str]:
    """Make a program's environment: a few variables of ours, EDGE_EVENT, EDGE_EVENT_JSON, and EDGE_ with plain fields.

    What is too long for a variable is left out; it is on standard input in any case.
    """
    environment = {name: ours[name] for name in _KEPT_VARIABLES if name in ours}
    described = occurrence.describe()
    details = described.get("details")
    values: dict[str, object] = {"EVENT_JSON": occurrence.encode().decode()}
    if isinstance(details, dict):  # of a policy's event
        values |= {name.upper(): value for name, value in details.items()}
    values |= {name.upper(): value for name, value in described.items()}
    for name, value in values.items():
        if isinstance(value, str | int | float):
            text = str(value).lower() if isinstance(value, bool) else str(value)
            text = text.replace("\0", "").encode("utf-8", "backslashreplace").decode()
            if len(text.encode()) <= LONGEST_VALUE:
                environment[f"EDGE_{name}"] = text
    return environment


# -- requests


class Request:
    """Posts each event to a URL. `again` is called before each repetition."""

    def __init__(
        self,
        url: str,
        timeout_s: float,
        *,
        secret: str = "",
        retries: int = 4,
        backoff_s: float = 1.0,
        tls: Callable[[], ssl.SSLContext] | None = None,
        again: Callable[[], None] = lambda: None,
    ) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._secret = secret.encode()
        self._retries = retries
        self._backoff_s = backoff_s
        self._tls = tls
        self._again = again
        self._session: aiohttp.ClientSession | None = None

    async def run(self, occurrence: Occurrence) -> Outcome:
        """Post until somebody answers 2xx, the answer says that it never will, or there were enough attempts."""
        pause_s = self._backoff_s
        outcome, final = await self._post(occurrence)
        for _ in range(self._retries):
            if final:
                break
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            self._again()
            outcome, final = await self._post(occurrence)
        return outcome

    async def _post(self, occurrence: Occurrence) -> tuple[Outcome, bool]:
        """Send one request; return how it ended, and whether another attempt is pointless."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._timeout_s))
        body = occurrence.encode()
        tls = self._tls() if self._tls is not None else True
        try:
            async with self._session.post(
                self._url, data=body, headers=self._headers(occurrence, body), allow_redirects=False, ssl=tls
            ) as response:
                status = response.status
        except TimeoutError:
            return Outcome(Result.TIMED_OUT, f"no answer within {self._timeout_s:g} s"), False
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Outcome(Result.FAILED, f"{type(error).__name__}: {error}"), False
        if 200 <= status < 300:
            return DONE, True
        return Outcome(Result.FAILED, f"answered {status}"), status < 500 and status not in _TRANSIENT

    def _headers(self, occurrence: Occurrence, body: bytes) -> dict[str, str]:
        moment = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "edge",
            "X-Edge-Event": occurrence.name,
            "X-Edge-Id": occurrence.id,
            "X-Edge-Timestamp": moment,
        }
        if self._secret:
            headers["X-Edge-Signature"] = sign(self._secret, moment, body)
        return headers

    async def close(self) -> None:
        """Close the connections that were kept."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def sign(secret: bytes, timestamp: str, body: bytes) -> str:
    """Return `sha256=` and the HMAC-SHA256, in hexadecimal digits, of the timestamp with the body right behind it."""
    return "sha256=" + hmac.new(secret, timestamp.encode() + body, sha256).hexdigest()
