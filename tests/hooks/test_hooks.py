"""Hooks: which events they get, programs, signed requests, functions, their bounds; real programs and a real receiver."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import hmac
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from aiohttp import web

from edge.config import Hook as HookSettings
from edge.config import build_settings
from edge.errors import ConfigError
from edge.events import (
    EVENTS,
    AuthenticationFlood,
    ConnectionClosed,
    ConnectionFailed,
    Event,
    FlowFailed,
    PolicyEvent,
    StorageChanged,
    event_fields,
    event_name,
)
from edge.hooks.building import build_hooks
from edge.hooks.dispatcher import Dispatcher
from edge.hooks.selection import Occurrence, Selection
from tests.conftest import ROOT
from tests.ua.wait import eventually, within

FAILED = ConnectionFailed("0-1-1", "tls", "192.0.2.7:1", "192.0.2.1:5061", "stalled", 1.5)
FLOOD = AuthenticationFlood("sip", "192.0.2.7", 'x"; rm -rf /', "wrong_password", 60.0)


class Receiver:
    """An HTTP server that answers with the statuses it was given, then 200; None keeps the client waiting."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.statuses: list[int | None] = []
        self._runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0.1)
        self._end = asyncio.Event()
        self.url = ""

    async def start(self) -> None:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/hook"

    async def stop(self) -> None:
        self._end.set()
        await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        self.requests.append((dict(request.headers), await request.read()))
        status = self.statuses.pop(0) if self.statuses else 200
        if status is None:
            await self._end.wait()
        return web.Response(status=status or 200)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    server = Receiver()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def dispatcher(tmp_path: Path) -> AsyncIterator[Any]:
    """`dispatcher(events=..., exec=...)` gives one with that hook."""
    made: list[Dispatcher] = []

    def make(**settings: Any) -> Dispatcher:
        settings.setdefault("events", ("connection.failed",))
        new = Dispatcher("boot", lambda: 1764403200.25)
        new.replace(build_hooks((HookSettings(name="h", **settings),), str(tmp_path / "edge.toml")))
        made.append(new)
        return new

    yield make
    for each in made:
        await each.close(0.05)


def counts(dispatcher: Dispatcher) -> dict[str, int]:
    return {result: count for (_, result), count in dispatcher.counts().items() if count}


async def ended(dispatcher: Dispatcher, number: int = 1) -> dict[str, int]:
    """Wait until so many runs have ended."""

    def there() -> bool:
        now = counts(dispatcher)
        return now.get("done", 0) + now.get("failed", 0) + now.get("timed_out", 0) >= number

    await eventually(there, 10)
    return counts(dispatcher)


# -- which events


@pytest.mark.parametrize(
    ("names", "where", "chosen"),
    [
        (["connection.failed"], {}, True),
        (["connection.*"], {}, True),
        (["*"], {}, True),
        (["flow.*", "connection.failed"], {}, True),
        (["connection.closed"], {}, False),
        (["connection"], {}, False),
        (["*"], {"reason": "stalled", "transport": ("ws", "tls")}, True),
        (["*"], {"reason": "reset"}, False),
        (["*"], {"transport": ("ws", "wss")}, False),
        (["*"], {"flow": "0-1-1"}, False),
        (["*"], {"age_s": 1.5}, True),
    ],
)
def test_events_are_chosen_by_name_and_field(names: list[str], where: dict[str, Any], chosen: bool) -> None:
    assert Selection(names, where).matches(FAILED) is chosen


def test_a_filter_tells_true_from_one() -> None:
    assert Selection(["*"], {"healthy": True}).matches(StorageChanged(True))
    assert not Selection(["*"], {"healthy": 1}).matches(StorageChanged(True))


async def test_a_function_of_ours_subscribes_by_name_and_filter_and_ends_it(dispatcher: Any) -> None:
    own = dispatcher(events=("storage.changed",), exec=("/bin/true",))
    seen: list[Occurrence] = []
    end = own.subscribe(Selection(["connection.*"], {"reason": "stalled"}), seen.append)
    own.receive(FAILED)
    own.receive(ConnectionClosed("0-1-1", "tls", "192.0.2.7:1", "192.0.2.1:5061", "eof", 1.5))
    assert [occurrence.event for occurrence in seen] == [FAILED]
    assert json.loads(seen[0].encode()) == {
        "event": "connection.failed",
        "time": "2025-11-29T08:00:00.250Z",
        "id": "boot-1",
        **event_fields(FAILED),
    }
    end()
    own.receive(FAILED)
    assert len(seen) == 1


SAMPLES = {str: "some", int: 7, float: 1.5, bool: True}


def some_event(kind: type[Event]) -> Event:
    """An event of a class with a value in each field that needs one."""
    types = get_type_hints(kind)
    wanted = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    return kind(**{name: SAMPLES.get(types[name], ()) for name in wanted if types[name] != dict[str, Any]})


@pytest.mark.parametrize("kind", EVENTS.values(), ids=list(EVENTS))
async def test_every_event_starts_a_program_a_request_and_a_function_by_name_and_filter(
    kind: type[Event], tmp_path: Path, dispatcher: Any, receiver: Receiver
) -> None:
    event = some_event(kind)
    name = event_name(event)
    key = next(name for name, value in event_fields(event).items() if isinstance(value, str | bool))
    chosen = {"events": (name,), "filter": {} if isinstance(event, PolicyEvent) else {key: event_fields(event)[key]}}
    other = dataclasses.replace(event, **{key: "other" if isinstance(event_fields(event)[key], str) else False})
    module = write_module(tmp_path, "seen = []\ndef told(event):\n    seen.append(event)\n")
    out = tmp_path / "event.json"
    for action in ({"exec": ("/bin/sh", "-c", f"cat > {out}")}, {"url": receiver.url}, {"call": f"{module}:told"}):
        own = dispatcher(**chosen, **action)
        for each in (other, FAILED if kind is not ConnectionFailed else FLOOD, event):
            own.receive(each)
        assert await ended(own) == {"started": 1, "done": 1}
    told = [json.loads(out.read_text()), json.loads(receiver.requests[0][1]), *sys.modules[module].seen]
    assert [each["event"] for each in told] == [name] * 3
    assert {each[key] for each in told} == {event_fields(event)[key]}


# -- programs


async def test_a_program_gets_the_event_on_stdin_and_in_its_environment(tmp_path: Path, dispatcher: Any) -> None:
    script = tmp_path / "hook.py"
    script.write_text(
        "import json, os, sys\n"
        f"json.dump([sys.stdin.read(), dict(os.environ), os.getpid() == os.getpgid(0)], open({str(tmp_path / 'out')!r}, 'w'))\n"
    )
    os.environ["EDGE_TEST_SECRET"] = "not for hooks"
    own = dispatcher(events=("auth.flood",), exec=(sys.executable, str(script)))
    own.receive(FLOOD)
    assert await ended(own) == {"started": 1, "done": 1}
    stdin, environment, leads = json.loads((tmp_path / "out").read_text())
    assert json.loads(stdin) == json.loads(environment["EDGE_EVENT_JSON"])
    assert json.loads(stdin)["user"] == FLOOD.user
    assert (environment["EDGE_EVENT"], environment["EDGE_SOURCE"]) == ("auth.flood", "192.0.2.7")
    assert (environment["EDGE_USER"], environment["EDGE_BLOCKED_S"]) == (FLOOD.user, "60.0")
    assert leads
    assert "EDGE_TEST_SECRET" not in environment


async def test_a_large_event_reaches_stdin_whole_and_leaves_the_environment(tmp_path: Path, dispatcher: Any) -> None:
    registrations = tuple({"aor": f"user{n}@example.com", "instance": "", "reg_id": 1} for n in range(5000))
    own = dispatcher(events=("flow.failed",), exec=("/bin/sh", "-c", f"wc -c > {tmp_path}/size; env > {tmp_path}/env"))
    own.receive(FlowFailed("0-1-1", "tcp", "a", "b", "reset", 1.0, 1.0, registrations))
    assert await ended(own) == {"started": 1, "done": 1}
    assert int((tmp_path / "size").read_text()) > 200_000
    text = (tmp_path / "env").read_text()
    assert "EDGE_REASON=reset" in text
    assert "EDGE_EVENT_JSON" not in text


@pytest.mark.requirement("OB-FAIL-09")
async def test_ob_fail_09_a_program_that_hangs_is_killed_with_its_group_and_counted(
    tmp_path: Path, dispatcher: Any
) -> None:
    own = dispatcher(exec=("/bin/sh", "-c", f"sleep 1000 & echo $! > {tmp_path}/child; wait"), timeout=0.3)
    own.receive(FAILED)
    assert await ended(own) == {"started": 1, "timed_out": 1}
    child = int((tmp_path / "child").read_text())

    def is_gone() -> bool:
        try:
            return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    await eventually(is_gone)


@pytest.mark.parametrize("command", [("/bin/sh", "-c", "echo what went wrong >&2; exit 3"), ("/nowhere/program",)])
async def test_a_program_that_fails_is_counted_and_said_why(
    command: tuple[str, ...], dispatcher: Any, caplog: pytest.LogCaptureFixture
) -> None:
    own = dispatcher(exec=command)
    own.receive(FAILED)
    assert await ended(own) == {"started": 1, "failed": 1}
    assert re.search("exit status 3: what went wrong|cannot be started: .*No such file", caplog.text)


async def test_a_program_that_complains_without_end_is_not_held_up(dispatcher: Any) -> None:
    own = dispatcher(exec=("/bin/sh", "-c", "head -c 1000000 /dev/zero >&2"))
    own.receive(FAILED)
    assert await ended(own) == {"started": 1, "done": 1}


@pytest.mark.requirement("OB-FAIL-09")
async def test_ob_fail_09_the_queue_is_bounded_and_losses_are_counted(tmp_path: Path, dispatcher: Any) -> None:
    own = dispatcher(exec=("/bin/sh", "-c", f"until [ -e {tmp_path}/go ]; do sleep 0.01; done"), queue=2)
    own.receive(FAILED)
    await eventually(lambda: counts(own).get("started") == 1)
    for _ in range(5):
        own.receive(FAILED)
    assert counts(own) == {"started": 1, "dropped": 3}
    (tmp_path / "go").touch()
    assert await ended(own, 3) == {"started": 3, "done": 3, "dropped": 3}


# -- requests


async def test_a_request_is_signed_over_timestamp_and_body(receiver: Receiver, dispatcher: Any) -> None:
    own = dispatcher(url=receiver.url, secret="s3cret")
    own.receive(FAILED)
    assert await ended(own) == {"started": 1, "done": 1}
    ((headers, body),) = receiver.requests
    expected = hmac.new(b"s3cret", headers["X-Edge-Timestamp"].encode() + body, hashlib.sha256).hexdigest()
    assert headers["X-Edge-Signature"] == f"sha256={expected}"
    assert headers["Content-Type"] == "application/json"
    assert (headers["X-Edge-Event"], headers["X-Edge-Id"]) == ("connection.failed", "boot-1")
    assert json.loads(body)["reason"] == "stalled"


async def test_what_the_documentation_has_a_receiver_check_is_right_for_ours_and_wrong_for_others(
    receiver: Receiver, dispatcher: Any
) -> None:
    page = (ROOT / "docs" / "events.md").read_text()
    code = re.search(r"^    (expected = .*\n    if .*:)\n        \.\.\.", page, re.MULTILINE)
    assert code is not None
    check = "def refuses(secret, timestamp, body, signature):\n" + "".join(
        f"    {line.strip()}\n" for line in code[1].splitlines()
    ).replace(":\n", ":\n        return True\n")
    names: dict[str, Any] = {"hmac": hmac, "time": time}
    exec(check + "    return False\n", names)
    own = dispatcher(url=receiver.url, secret="s3cret")
    own.receive(FAILED)
    await ended(own)
    ((headers, body),) = receiver.requests
    timestamp, signature = headers["X-Edge-Timestamp"], headers["X-Edge-Signature"]
    assert not names["refuses"](b"s3cret", timestamp, body, signature)
    assert names["refuses"](b"other", timestamp, body, signature)
    assert names["refuses"](b"s3cret", timestamp, body + b" ", signature)
    assert names["refuses"](b"s3cret", str(int(timestamp) - 1000), body, signature)


async def test_a_request_is_repeated_until_it_is_taken(receiver: Receiver, dispatcher: Any) -> None:
    receiver.statuses = [500, None, 429]
    own = dispatcher(url=receiver.url, backoff=0.01, timeout=0.3)
    own.receive(FAILED)
    assert await ended(own) == {"started": 1, "done": 1, "retried": 3}
    assert len({headers["X-Edge-Id"] for headers, _ in receiver.requests}) == 1
    assert len(receiver.requests) == 4


@pytest.mark.parametrize(
    ("statuses", "found"),
    [
        ([400], {"started": 1, "failed": 1}),
        ([302], {"started": 1, "failed": 1}),
        ([503] * 9, {"started": 1, "failed": 1, "retried": 2}),
        ([None] * 9, {"started": 1, "timed_out": 1, "retried": 2}),
    ],
)
async def test_a_request_that_is_not_taken_is_counted(
    receiver: Receiver, dispatcher: Any, statuses: list[int | None], found: dict[str, int]
) -> None:
    receiver.statuses = statuses
    own = dispatcher(url=receiver.url, backoff=0.01, timeout=0.2, retries=2)
    own.receive(FAILED)
    assert await ended(own) == found
    assert len(receiver.requests) == 1 + found.get("retried", 0)


async def test_nobody_at_the_url_is_a_failure(dispatcher: Any) -> None:
    own = dispatcher(url="http://127.0.0.1:9/", backoff=0.01, retries=1)
    own.receive(FAILED)
    assert await ended(own) == {"started": 1, "failed": 1, "retried": 1}


# -- functions


def write_module(tmp_path: Path, text: str) -> str:
    name = f"hooks_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(text)
    return name


async def test_functions_plain_and_async_are_called(tmp_path: Path, dispatcher: Any) -> None:
    name = write_module(
        tmp_path,
        "seen = []\ndef plain(event):\n    seen.append(event['reason'])\n"
        "async def later(event):\n    seen.append(event['event'])\n",
    )
    for function in ("plain", "later"):
        own = dispatcher(call=f"{name}:{function}")
        own.receive(FAILED)
        assert await ended(own) == {"started": 1, "done": 1}
        assert sys.modules[name].seen == ["stalled" if function == "plain" else "connection.failed"]


async def test_functions_that_raise_or_hang_are_counted_and_hurt_nobody(tmp_path: Path, dispatcher: Any) -> None:
    name = write_module(
        tmp_path,
        "import asyncio, threading\ngo = threading.Event()\ndef bad(event):\n    1 / 0\ndef stuck(event):\n    go.wait(60)\n"
        "async def never(event):\n    await asyncio.Event().wait()\n",
    )
    bad = dispatcher(call=f"{name}:bad")
    bad.receive(FAILED)
    assert await ended(bad) == {"started": 1, "failed": 1}
    never = dispatcher(call=f"{name}:never", timeout=0.05)
    never.receive(FAILED)
    assert await ended(never) == {"started": 1, "timed_out": 1}
    stuck = dispatcher(call=f"{name}:stuck", timeout=0.05)
    stuck.receive(FAILED)
    stuck.receive(FAILED)
    assert await ended(stuck) == {"started": 2, "timed_out": 1}  # the second waits for the first to come back
    sys.modules[name].go.set()
    assert await ended(stuck, 2) == {"started": 2, "timed_out": 1, "done": 1}


def test_a_function_that_is_not_there_is_a_configuration_error(tmp_path: Path) -> None:
    name = write_module(tmp_path, "x = 1\n")
    for call in (f"{name}:missing", f"{name}:x", "no_such_module:f"):
        with pytest.raises(ConfigError, match=r"hooks\[0\]\.call"):
            build_hooks((HookSettings(events=("*",), call=call),), str(tmp_path / "edge.toml"))


# -- reload, settings, documentation


async def test_replaced_hooks_finish_what_they_have_and_get_no_more(tmp_path: Path, dispatcher: Any) -> None:
    own = dispatcher(exec=("/bin/sh", "-c", f"until [ -e {tmp_path}/go ]; do sleep 0.01; done; echo >> {tmp_path}/old"))
    own.receive(FAILED)
    own.receive(FAILED)
    new = HookSettings(name="h", events=("connection.failed",), exec=("/bin/sh", "-c", f"echo >> {tmp_path}/new"))
    own.replace(build_hooks((new,), "edge.toml"))
    own.receive(FAILED)
    await eventually((tmp_path / "new").exists)
    (tmp_path / "go").touch()
    await eventually(lambda: counts(own) == {"started": 3, "done": 3})
    assert (tmp_path / "old").read_text() == "\n\n"
    assert (tmp_path / "new").read_text() == "\n"


@pytest.mark.parametrize(
    ("hook", "key"),
    [
        ({"exec": ["/bin/true"]}, "hooks[0].events"),
        (
            {"events": ["flow.faild"], "exec": ["/bin/true"]},
            'hooks[0].events[0]: no event is called "flow.faild"; did you',
        ),
        ({"events": ["*"]}, "hooks[0]: one of exec, url and call"),
        ({"events": ["*"], "exec": ["/bin/true"], "url": "http://a/"}, "hooks[0]: one of exec, url and call"),
        ({"events": ["*"], "exec": [""]}, "hooks[0].exec[0]"),
        ({"events": ["*"], "url": "ftp://a/"}, "hooks[0].url"),
        ({"events": ["*"], "call": "a b:c"}, "hooks[0].call"),
        ({"events": ["*"], "exec": ["/bin/true"], "secret": "x"}, "hooks[0].secret"),
        ({"events": ["*"], "url": "http://a/", "secret": "env:EDGE_NOT_SET"}, "hooks[0].secret"),
        ({"events": ["flow.*"], "exec": ["/bin/true"], "filter": {"user": "x"}}, "hooks[0].filter.user"),
        ({"events": ["*"], "exec": ["/bin/true"], "parallel": 0}, "hooks[0].parallel"),
    ],
)
def test_hooks_that_cannot_be_used_are_refused(hook: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(key)):
        build_settings({"hooks": [hook]}, "edge.toml")


def test_a_secret_comes_from_the_environment_and_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_HOOK_SECRET", "s3cret")
    hook = {"events": ["*"], "url": "https://example.com/", "secret": "env:EDGE_HOOK_SECRET"}
    settings = build_settings({"hooks": [hook]}, "edge.toml")
    assert settings.hooks[0].secret == "s3cret"
    assert "s3cret" not in repr(settings)


def documented() -> dict[str, list[str]]:
    """The fields of each event in docs/events.md."""
    text = (ROOT / "docs" / "events.md").read_text()
    sections = re.split(r"^### `([a-z.]+)`$", text[: text.index("\n## Hooks")], flags=re.MULTILINE)[1:]
    return {
        name: re.findall(r"^\| `(\w+)` \|", body, re.MULTILINE)
        for name, body in zip(sections[::2], sections[1::2], strict=True)
    }


def test_the_documentation_names_every_event_with_its_fields() -> None:
    assert documented() == {name: [field.name for field in dataclasses.fields(kind)] for name, kind in EVENTS.items()}


def test_an_event_is_told_by_its_class_alone() -> None:
    assert set(EVENTS.values()) == {kind for kind in Event.__subclasses__() if EVENTS[kind.name] is kind}
    assert len({kind.name for kind in EVENTS.values()}) == len(EVENTS)


async def test_dispatcher_close_waits_for_what_runs(tmp_path: Path, dispatcher: Any) -> None:
    own = dispatcher(exec=("/bin/sh", "-c", f"sleep 0.2; echo > {tmp_path}/done"))
    own.receive(FAILED)
    await within(own.close(10.0), 15)
    assert (tmp_path / "done").exists()
