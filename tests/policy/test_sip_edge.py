"""docs/examples/sip_edge.py in the running server: each thing it does, and what it keeps from whom."""

from __future__ import annotations

import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conftest import ROOT, EdgeServer, EdgeServerFactory
from tests.server.agents import USERS, answering, counted, open_config, sip_ua
from tests.ua.sip import SipUA
from tests.ua.wait import eventually

# Friday at noon, unless the test has written another time down.
MODULE = """
from datetime import datetime
from pathlib import Path
from sip_edge import SipEdge

class Mine(SipEdge):
    blocked_file = "blocked.txt"
    upstreams = ("127.0.0.1:{first}", "127.0.0.1:{second}")

    def now(self):
        return datetime.fromisoformat(Path("now.txt").read_text())
"""
NOON, NIGHT, SUNDAY = "2026-11-27T12:00", "2026-11-27T23:00", "2026-11-29T12:00"


@dataclass
class Desk:
    """The server with the example, Alice of its domain, two upstreams, and a stranger."""

    server: EdgeServer
    alice: SipUA
    first: SipUA
    second: SipUA
    stranger: SipUA

    def write(self, name: str, text: str) -> None:
        (self.server.directory / name).write_text(text)


@pytest.fixture
async def desk(edge_server: EdgeServerFactory) -> AsyncIterator[Desk]:
    server = edge_server({**open_config(), "policy": {"module": "mine:Mine"}}, USERS, started=False)

    def outsider(name: str) -> SipUA:
        return SipUA(name, domain="elsewhere.example", server=("127.0.0.1", server.port), transport="udp")

    async with AsyncExitStack() as stack:
        first, second, stranger = [
            await stack.enter_async_context(outsider(name)) for name in ("first", "second", "stranger")
        ]
        shutil.copy(ROOT / "docs" / "examples" / "sip_edge.py", server.directory)
        module = MODULE.format(first=first.address[1], second=second.address[1])
        (server.directory / "mine.py").write_text(module)
        (server.directory / "blocked.txt").write_text("")
        (server.directory / "now.txt").write_text(NOON)
        server.start()
        alice = await stack.enter_async_context(sip_ua(server, "alice"))
        assert (await alice.register()).status == 200
        yield Desk(server, alice, first, second, stranger)


def noting(seen: list[str], status: int = 200) -> Callable[[SipUA, object], int]:
    """Answer with a status, and write down who was asked for what."""

    def answer(ua: SipUA, request: object) -> int:
        seen.append(f"{ua.user} {request.uri}")  # type: ignore[attr-defined]
        return status

    return answer


async def test_a_number_goes_to_the_first_upstream_in_its_international_form(desk: Desk) -> None:
    seen: list[str] = []
    desk.first.on_request = desk.second.on_request = noting(seen)
    answer = await desk.alice.message("sip:0049301234567@example.com", b"hello")
    assert (answer.status, answer.challenges) == (200, 1)  # authentication comes before everything
    assert (await desk.alice.message("sip:+49301234567@example.com", b"hello")).status == 200
    assert seen == [f"first sip:+49301234567@127.0.0.1:{desk.first.address[1]}"] * 2


async def test_the_second_upstream_takes_over_where_the_first_has_no_room_and_nothing_else(desk: Desk) -> None:
    seen: list[str] = []
    desk.first.on_request, desk.second.on_request = noting(seen, 503), noting(seen)
    assert (await desk.alice.message("sip:+49301234567@example.com", b"hello")).status == 200
    assert [line.split()[0] for line in seen] == ["first", "second"]
    desk.first.on_request = noting(seen, 486)  # an answer is an answer
    assert (await desk.alice.message("sip:+49301234567@example.com", b"hello")).status == 486
    assert len(seen) == 3


async def test_strangers_reach_our_users_and_neither_numbers_nor_other_domains(desk: Desk) -> None:
    desk.alice.on_request = answering()
    assert (await desk.stranger.message("sip:alice@example.com", b"hello")).status == 200
    for uri in ("sip:+49301234567@example.com", "sip:somebody@far.example"):
        refused = await desk.stranger.message(uri, b"hello")
        assert (refused.status, refused.reason) == (403, "Not for strangers")


@pytest.mark.parametrize(("now", "desk_called"), [(NOON, "alice"), (NIGHT, "bob"), (SUNDAY, "bob")])
async def test_the_desk_is_called_by_day_and_the_voicemail_by_night(
    edge_server: EdgeServerFactory, now: str, desk_called: str
) -> None:
    server = edge_server({**open_config(), "policy": {"module": "mine:Mine"}}, USERS, started=False)
    shutil.copy(ROOT / "docs" / "examples" / "sip_edge.py", server.directory)
    desks = '\n    day_desk, night_desk = "sip:alice@example.com", "sip:bob@example.com"\n'
    (server.directory / "mine.py").write_text(MODULE.format(first=1, second=2) + desks)
    (server.directory / "blocked.txt").write_text("")
    (server.directory / "now.txt").write_text(now)
    server.start()
    seen: list[str] = []
    async with sip_ua(server, "alice") as alice, sip_ua(server, "bob") as bob, sip_ua(server, "carol") as carol:
        for called in (alice, bob):
            assert (await called.register()).status == 200
            called.on_request = noting(seen)
        assert (await carol.message("sip:alice@example.com", b"hello")).status == 200
    assert [line.split()[0] for line in seen] == [desk_called]


async def silence(ua: SipUA, **options: Any) -> bool:
    """Ask, and tell whether nothing came back."""
    try:
        await ua.options("sip:example.com", timeout=0.5, **options)
    except TimeoutError:
        return True
    return False


async def test_scanners_and_blocked_addresses_hear_nothing(desk: Desk) -> None:
    assert await silence(desk.stranger, headers=[("User-Agent", "friendly-scanner")])
    assert not await silence(desk.stranger)
    desk.write("blocked.txt", "127.0.0.0/8  # everybody\n")
    await eventually(lambda: silence(desk.stranger), 20)  # the file is looked at again within two seconds
    assert await counted(desk.server, "edge_policy_counts_total", 2, label="blocked") >= 2


async def test_a_flood_is_told_to_come_back_later(desk: Desk) -> None:
    slow = "\n    def __init__(self):\n        super().__init__()\n        self.floods = FloodDetector(rate=0.01, burst=5)\n"
    text = (desk.server.directory / "mine.py").read_text()
    desk.write("mine.py", "from edge.policy import FloodDetector\n" + text + slow)
    desk.server.signal(signal.SIGHUP)
    await eventually(lambda: "configuration reloaded" in desk.server.log_text())
    answers = [await desk.stranger.options("sip:example.com") for _ in range(8)]
    assert [answer.status for answer in answers] == [200] * 5 + [503] * 3
    assert answers[-1].get("Retry-After") == "30"
