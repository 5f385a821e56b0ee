"""The Outbound part of a policy (RFC 5626): what tokens lead to, the flows of devices, where a request is to go."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING

from edge.connections import format_address
from edge.outbound.flows import FlowFault
from edge.policy.text import decode, encode
from edge.sip.message import Aim
from edge.sip.uri import parse_uri

if TYPE_CHECKING:
    from edge.policy.tools import Tools
    from edge.sip.branch import Target
    from edge.sip.location import Binding


class Route(Enum):
    """What a flow token of ours led to (RFC 5626 §5.3)."""

    NONE = "none"
    FLOW = "flow"
    GONE = "gone"
    FORGED = "forged"


ROUTES = {FlowFault.GONE: Route.GONE, FlowFault.FORGED: Route.FORGED, FlowFault.NOT_A_TOKEN: Route.NONE}


class Flow:
    """One way to a device: a binding of a user, and the connection it came by.

    `state` is up, suspect (silent for too long) or dead; `connection`, `address`, `transport` and `token` are empty
    where the way is a Path or an address. `reg_id` is 0 and `instance` empty without outbound.
    """

    __slots__ = (
        "address", "aor", "connection", "contact", "instance", "key", "path", "q", "reg_id", "state", "token",
        "transport",
    )  # fmt: skip

    def __init__(self, tools: Tools, binding: Binding) -> None:
        self.aor = binding.aor
        self.key = binding.key
        self.contact = decode(binding.contact)
        self.instance = decode(binding.instance)
        self.reg_id = binding.reg_id
        self.path = tuple(map(decode, binding.path))
        self.q = binding.q / 1000
        self.connection = self.address = self.transport = self.token = ""
        self.state = "up"
        connection = binding.connection
        if connection is not None:
            flows = tools.core.flows
            self.connection, self.address = connection.name, format_address(connection.remote)
            self.transport, self.token = connection.transport.name.lower(), decode(flows.token_of(connection))
            self.state = flows.state_of(connection, tools.core.clock()).name.lower()


Destination = str | Flow | Sequence[Flow]
Step = Destination | Sequence[Destination]


def find_flows(tools: Tools, user: str) -> list[list[Flow]]:
    """Return the flows of each device of a user, best first."""
    groups = tools.core.targets.flows_of(encode(user), tools.core.clock())
    found = [[Flow(tools, binding) for binding in map(_binding_of, group) if binding is not None] for group in groups]
    return [device for device in found if device]


def _binding_of(target: Target) -> Binding | None:
    return target.binding


def read_step(step: Step) -> list[Aim]:
    """Turn what a policy gives as one step into what routing understands; ValueError or RemoteError for no URI."""
    if isinstance(step, str | Flow) or _is_device(step):
        return [_read_aim(step)]  # type: ignore[arg-type]
    return [_read_aim(item) for item in step]


def _is_device(step: Sequence[object]) -> bool:
    """Several flows without a list around them are one device's, to be tried one after the other."""
    return len(step) > 0 and all(isinstance(item, Flow) for item in step)


def _read_aim(item: Destination) -> Aim:
    if isinstance(item, str):
        parse_uri(encode(item))
        return Aim(encode(item), [])
    flows = [item] if isinstance(item, Flow) else list(item)
    if not flows or any(flow.aor != flows[0].aor for flow in flows):
        raise ValueError("the flows of a device belong to one user")
    return Aim(flows[0].aor, [flow.key for flow in flows])
