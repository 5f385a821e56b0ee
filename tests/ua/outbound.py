"""What a user agent with several flows does (RFC 5626 §4): register each, keep each alive, recover the failed.

Time is the test's: intervals come from functions with the dice passed in, and nothing here sleeps. The faulty
agents of the requirement tables are ordinary ones with a switch: silent (`on_request = lambda ua, r: None`), pong
swallower (`answer_pings = False`), slow reader (`link.pause_reading()`), port changer and reconnect without REGISTER
(`reconnect()`), old Route after a reconnect (a `Dialog` keeps its route set; move its `link`), one reg-id on two
devices (two agents with the same `instance` and `reg_id`), duplicate REGISTER (`send_raw(sent("REGISTER")[-1])`),
CSeq going backwards (`headers={"CSeq": "1 REGISTER"}`).
"""

import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from tests.ua.link import Address
from tests.ua.sip import Response, SipUA

PONG_S = 10.0
MAX_WAIT_S = 1800.0
BASE_ALL_FAILED_S = 30.0
BASE_S = 90.0


def keepalive_interval(flow_timer: int | None, transport: str, dice: random.Random) -> float:
    """Return seconds until the next keep-alive, new each time (RFC 5626 §4.4.1, §4.4.2).

    With a Flow-Timer between 80 and 100 percent of it; without 95 to 120 s on streams and 24 to 29 s on UDP.
    """
    if flow_timer is not None:
        return dice.uniform(0.8 * flow_timer, flow_timer)
    return dice.uniform(24, 29) if transport == "udp" else dice.uniform(95, 120)


def recovery_wait(failures: int, *, all_failed: bool, dice: random.Random, retry_after: int | None = None) -> float:
    """Return seconds to wait before flow recovery (RFC 5626 §4.5).

    Args:
        failures: consecutive failures of this flow, the one just seen included.
        all_failed: whether no other flow of the instance is usable.
        retry_after: seconds a 503 asked for; never less than that.
    """
    base = BASE_ALL_FAILED_S if all_failed else BASE_S
    upper = min(MAX_WAIT_S, base * 2.0 ** min(failures, 16))
    return max(dice.uniform(upper / 2, upper), retry_after or 0)


@dataclass(slots=True)
class Flow:
    """One flow: a SIP agent towards one edge, with a reg-id of its own."""

    ua: SipUA
    alive: bool = False
    failures: int = 0
    mapped: Address | None = None
    retry_after: int | None = None


@dataclass(slots=True)
class OutboundClient:
    """One user agent instance with a flow to each of several edges.

    `edges` are (address, transport); flow n has reg-id n + 1. A new object with the same `instance` is the same
    device after a reboot. `options` go to every `SipUA`.
    """

    user: str
    password: str
    edges: Sequence[tuple[Address, str]]
    domain: str = "example.com"
    instance: str = field(default_factory=lambda: f"urn:uuid:{uuid.uuid4()}")
    dice: random.Random = field(default_factory=lambda: random.Random(5626))
    options: dict[str, Any] = field(default_factory=dict)
    flows: list[Flow] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        for number, (server, transport) in enumerate(self.edges, 1):
            ua = SipUA(
                self.user,
                self.password,
                self.domain,
                server=server,
                transport=transport,
                instance=self.instance,
                reg_id=number,
                **self.options,
            )
            await ua.start()
            self.flows.append(Flow(ua))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for flow in self.flows:
            await flow.ua.stop()
        broken = [problem for flow in self.flows for problem in flow.ua.errors]
        if kind is None and broken:
            raise AssertionError(f"{self.user} received what it could not read: {broken}")

    async def register(self, expires: int = 3600) -> list[Response]:
        """Register over every flow and return the final responses."""
        return [await self.register_flow(flow, expires) for flow in self.flows]

    async def register_flow(self, flow: Flow, expires: int = 3600) -> Response:
        """Register over one flow; on 439 once more without reg-id (RFC 5626 §4.2.1)."""
        response = await flow.ua.register(expires)
        if response.status == 439:
            flow.ua.reg_id = None
            response = await flow.ua.register(expires)
        flow.alive = response.status == 200
        flow.failures = 0 if flow.alive else flow.failures + 1
        flow.retry_after = int(response["Retry-After"].split()[0]) if response.get("Retry-After") else None
        return response

    def next_keepalive(self, flow: Flow) -> float | None:
        """Return seconds until this flow's next keep-alive; None if the registrar did not grant outbound."""
        if not flow.ua.outbound_active:
            return None
        return keepalive_interval(flow.ua.flow_timer, flow.ua.transport, self.dice)

    async def check(self, flow: Flow, seconds: float = PONG_S) -> bool:
        """Send a keep-alive and wait; no answer, an error or another mapped address fails the flow (§4.4)."""
        try:
            mapped = await flow.ua.ping(seconds)
        except (TimeoutError, ConnectionError, ValueError):
            flow.alive = False
        else:
            flow.alive = flow.mapped in (None, mapped)
            flow.mapped = mapped
        flow.failures += not flow.alive
        return flow.alive

    def next_recovery(self, flow: Flow) -> float:
        """Return seconds to wait before `recover` (§4.5)."""
        nobody = not any(other.alive for other in self.flows)
        return recovery_wait(flow.failures, all_failed=nobody, dice=self.dice, retry_after=flow.retry_after)

    async def recover(self, flow: Flow) -> Response:
        """Register again with the same instance and reg-id: on a new flow, or on the old one while it answers pings."""
        if not flow.alive:
            flow.mapped = None
            await flow.ua.reconnect()
        return await self.register_flow(flow)
