"""What a hook costs for each message: `python bench/policy_hooks.py` (no server, no sockets).

Only the cost of the hook is in the figures: the call from the core or the relay, what the hook is given, the hook.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from edge.connections import Connection
from edge.policy import MsrpFrame, Policy, SipRequest
from edge.policy.order import OrderedReceiver
from edge.policy.runner import PolicyRunner
from edge.sip.message import Message, MessageLimits

COUNT = 200_000


class Plain(Policy):
    """Hooks that do nothing."""

    def sip_request(self, request: SipRequest) -> None:
        """Do nothing."""

    def msrp_frame(self, frame: MsrpFrame) -> None:
        """Do nothing."""


class Waiting(Policy):
    """A hook that does nothing, away from the way of messages."""

    async def sip_request(self, request: SipRequest) -> None:
        """Do nothing."""


def best_of(work: Callable[[], object], count: int) -> float:
    """Return the microseconds of one call, the best of five rounds."""
    rounds = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(count):
            work()
        rounds.append((time.perf_counter() - began) / count * 1e6)
    return min(rounds)


def runner_for(policy: Policy) -> PolicyRunner:
    """Return a runner without a server around it."""
    core = SimpleNamespace(limits=MessageLimits(), clock=time.monotonic, proceed=lambda *rest: None)
    core.access = SimpleNamespace(waiting=set())
    runner = PolicyRunner.__new__(PolicyRunner)
    runner.__dict__.update(_policy=policy, _core=core, tools=None)
    runner.__dict__["_receiver"] = OrderedReceiver(cast("Any", core), lambda *rest: None)
    return runner


async def wait_all(runner: PolicyRunner, connection: Connection, message: Message) -> float:
    """Return the microseconds of one asynchronous hook, task and queue of the connection included."""
    rounds = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(20_000):
            runner._request_later(connection, message, 0.0)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        rounds.append((time.perf_counter() - began) / 20_000 * 1e6)
    return min(rounds)


def main() -> None:
    """Print the three figures."""
    connection = cast("Any", SimpleNamespace(id=1, pause_reading=lambda: None, resume_reading=lambda: None))
    message = Message()
    message.key = b"key"
    handler = cast("Any", SimpleNamespace(connection=connection))
    runner = runner_for(Plain())
    print(f"plain sip_request   {best_of(lambda: runner._request(connection, message, 0.0), COUNT):6.2f} us")  # noqa: T201
    print(f"plain msrp_frame    {best_of(lambda: runner._frame(handler, None, b'', 0, 0, 0, 0.0), COUNT):6.2f} us")  # noqa: T201
    print(f"async sip_request   {asyncio.run(wait_all(runner_for(Waiting()), connection, message)):6.2f} us")  # noqa: T201


if __name__ == "__main__":
    main()
