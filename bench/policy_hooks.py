"""What a hook costs for each message: `python bench/policy_hooks.py` (no sockets; half a minute).

The figures are the call as the core or the relay makes it, what the hook is given, and the hook; not what follows from
its decision, which the server does without a policy, too. The best of five rounds of CPU time counts.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edge.connections import Connection
from edge.events import EventBus
from edge.policy import MsrpFrame, Policy, SipRequest
from edge.policy.default import DefaultPolicy
from edge.policy.runner import PolicyRunner
from edge.sip.message import Message
from tests.sip.rig import Rig, frame_datagram, request

COUNT = 100_000
SEND = (
    b"MSRP d93kswow SEND\r\nTo-Path: msrp://192.0.2.1:5060/aaaaaaaaaaaaaaaa;tcp msrp://192.0.2.1:5060/b;tcp\r\n"
    b"From-Path: msrp://198.51.100.7:2855/c;tcp\r\nMessage-ID: 456s9\r\nByte-Range: 1-5/5\r\nContent-Type: text/plain"
    b"\r\n\r\nhello\r\n-------d93kswow$\r\n"
)
BODY_AT = SEND.index(b"hello")


class Plain(Policy):
    """Hooks that do nothing."""

    def sip_request(self, request: SipRequest) -> None:
        """Do nothing."""

    def msrp_frame(self, frame: MsrpFrame) -> None:
        """Do nothing."""


class Waiting(Policy):
    """Hooks away from the way of messages; they drop, so that nothing follows."""

    async def sip_request(self, request: SipRequest) -> None:
        """Do nothing with it."""
        request.drop()

    async def msrp_frame(self, frame: MsrpFrame) -> None:
        """Do nothing with it."""
        frame.drop()


class Bench:
    """A SIP element and a relay of which only what a hook touches is real, with one message of each protocol."""

    def __init__(self, policy: Policy) -> None:
        self.rig = Rig(limits={"body": 65536})
        self.core = self.rig.core
        self.connection: Connection = self.rig.wire()
        data = request("MESSAGE", "sip:bob@example.com", body=b"hello")
        self.message: Message = frame_datagram(data, self.core.limits)
        self.message.key = b"key"
        forwarder = SimpleNamespace(handle_frame=lambda *rest: None)
        self.relay = cast("Any", SimpleNamespace(forwarder=forwarder, clock=time.monotonic))
        self.handler = cast("Any", SimpleNamespace(connection=self.connection, relay=self.relay, lost=False, held=None))
        self.handler.reader = SimpleNamespace(hold=lambda: None, release=lambda: None, rest=b"")
        self.handler.outbox = SimpleNamespace(websocket=False)
        self.runner = PolicyRunner(self.rig.stack, self.relay, cast("Any", SimpleNamespace()), EventBus())
        self.runner.install(policy)

    def sip(self) -> Callable[[], object]:
        """Return the question about a request, as the core asks it."""
        assert self.core.request_hook is not None
        return partial(self.core.request_hook, self.connection, self.message, 0.0)

    def sip_afresh(self) -> Callable[[], object]:
        """Return the same about a request of which nothing has been said yet."""
        ask, message = self.sip(), self.message

        def work() -> None:
            message.directions = None
            ask()

        return work

    def msrp(self) -> Callable[[], object]:
        """Return the question about a frame, as the relay asks it."""
        return partial(self.relay.frame_hook, self.handler, None, SEND, 0, BODY_AT, BODY_AT + 5, 0.0)


def best_of(work: Callable[[], object], count: int = COUNT) -> float:
    """Return the microseconds of one call."""
    rounds = []
    for _ in range(5):
        began = time.process_time()
        for _ in range(count):
            work()
        rounds.append((time.process_time() - began) / count * 1e6)
    return min(rounds)


async def best_of_waits(work: Callable[[], object], count: int = 10_000) -> float:
    """Return the microseconds of one call with all that follows: task, queue of the connection, going on."""
    rounds = []
    for _ in range(5):
        began = time.process_time()
        for _ in range(count):
            work()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        rounds.append((time.process_time() - began) / count * 1e6)
    return min(rounds)


def main() -> None:
    """Print the table."""
    plain, waiting, default = Bench(Plain()), Bench(Waiting()), Bench(DefaultPolicy())
    rows = [
        ("empty plain hook", best_of(plain.sip()), best_of(plain.msrp())),
        ("empty async hook", *(asyncio.run(best_of_waits(work)) for work in (waiting.sip(), waiting.msrp()))),
        ("default policy", best_of(default.sip_afresh()), best_of(default.msrp())),
    ]
    print(f"{'microseconds for each message':32}{'sip_request':>12}{'msrp_frame':>12}")  # noqa: T201
    for name, sip, msrp in rows:
        print(f"{name:32}{sip:12.2f}{msrp:12.2f}")  # noqa: T201


if __name__ == "__main__":
    main()
