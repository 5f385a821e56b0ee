"""What must be true of every event, flow and call: each function returns what is not, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from tests.chaos.clients import CallRecord, Client
from tests.chaos.world import Life, Node

# What a flow may go through: (state before, event) → state after.
STEPS = {
    (None, "flow.up"): "up",
    ("up", "flow.suspect"): "suspect",
    ("suspect", "flow.recovered"): "up",
    ("up", "flow.failed"): "failed",
    ("suspect", "flow.failed"): "failed",
    ("failed", "flow.recovered"): "up",  # a stream that had failed for its silence alone spoke again
}


def flows_of(life: Life) -> tuple[dict[str, str], list[str]]:
    """Follow the flow events of one process: the state each flow is left in, and the steps that may not be."""
    states: dict[str, str] = {}
    wrong: list[str] = []
    for _, event in life.events:
        kind = event["event"]
        if kind == "flow.replaced":
            if event["flow"] not in states:
                wrong.append(f"{life.name}.{life.number}: {event['flow']} was replaced and never up")
        elif kind.startswith("flow."):
            flow = event["flow"]
            after = STEPS.get((states.get(flow), kind))
            if after is None or (kind == "flow.recovered" and event["after"] != states[flow]):
                wrong.append(f"{life.name}.{life.number}: {kind} of {flow}, which was {states.get(flow)}")
            else:
                states[flow] = after
    return states, wrong


def check_events(life: Life) -> list[str]:
    """Event ids are numbers in a row from 1; the reader was never told that it lost any."""
    numbers = [int(event["id"].rpartition("-")[2]) for _, event in life.events]
    wrong = [] if numbers == list(range(1, len(numbers) + 1)) else [f"{life.name}.{life.number}: ids are not in a row"]
    return wrong + ([f"{life.name}.{life.number}: {life.lost} events lost"] if life.lost else [])


def check_flows(nodes: Iterable[Node]) -> list[str]:
    """Every flow that was up has failed, unless its process was killed first."""
    wrong = []
    for node in nodes:
        for life in node.lives:
            states, steps = flows_of(life)
            wrong += steps + check_events(life)
            if not life.killed:
                wrong += [
                    f"{life.name}.{life.number}: {flow} still is {s}" for flow, s in states.items() if s != "failed"
                ]
    return wrong


def check_calls(calls: Iterable[CallRecord]) -> list[str]:
    """Every call has ended; one with nothing in its way was answered, once, acknowledged and hung up."""
    wrong = []
    for call in calls:
        name = f"call {call.id} of {call.caller.user} over {call.edge} to {call.callee.user}"
        if not call.outcome:
            wrong.append(f"{name}: no outcome")
        if call.answered > 1:
            wrong.append(f"{name}: answered {call.answered} times")
        if call.steady and not (call.outcome == "ok" and call.acked):
            wrong.append(f"{name}: {call.outcome}, acknowledged: {call.acked}, and nothing was in its way")
        if call.calm and call.invites != 1:
            wrong.append(f"{name}: its INVITE came {call.invites} times, and nothing was in its way")
    return wrong


def check_clients(clients: Iterable[Client]) -> list[str]:
    """Nobody received what could not be read."""
    return [f"{client.user} could not read: {error!r}" for client in clients for error in client.errors]


async def still_wrong_at_rest(clients: list[Client], edges: list[Node], registrar: Node) -> list[str]:
    """With all clients registered: tables hold what is really open, and not one entry more."""
    wrong = []
    for edge in edges:
        expected = sorted(_address(c, edge.name) for c in clients)
        for kind, rows in (("flows", await edge.rows("flows")), ("connections", await edge.rows("connections"))):
            found = sorted(row["remote"] for row in rows if row["remote"].rpartition(":")[0] in _clients_of(expected))
            if found != expected:
                wrong.append(f"{edge.name}: {kind} differ by {sorted(set(found) ^ set(expected))}, {len(found)} in all")
        wrong += _only_those(edge.name, life_states(edge), {row["id"] for row in await edge.rows("flows")})
    return wrong + _bindings(clients, await registrar.rows("registrations"))


async def transactions_of(nodes: Iterable[Node]) -> list[str]:
    """What is left of calls that are over, after the longest clock."""
    wrong = []
    for node in nodes:
        open_ones = await node.rows("transactions")
        wrong += [f"{node.name}: {len(open_ones)} transactions, such as {open_ones[0]}"] if open_ones else []
    return wrong


def _clients_of(addresses: list[str]) -> set[str]:
    return {address.rpartition(":")[0] for address in addresses}


def _address(client: Client, edge: str) -> str:
    phone = next(phone for phone in client.phones if phone.edge == edge)
    return "{}:{}".format(*phone.ua.address) if phone.ua is not None and phone.alive_since is not None else "nowhere"


def life_states(edge: Node) -> set[str]:
    """The flows that are up by the events of the process that runs."""
    return {flow for flow, state in flows_of(edge.life)[0].items() if state != "failed"}


def _only_those(name: str, told: set[str], listed: set[str]) -> list[str]:
    return [] if told == listed else [f"{name}: flows up by its events and in its table differ by {told ^ listed}"]


def _bindings(clients: list[Client], rows: list[dict[str, Any]]) -> list[str]:
    found = Counter((row["aor"].removeprefix("sip:"), row["reg_id"]) for row in rows)
    expected = Counter((f"{c.user}@example.com", phone.reg_id) for c in clients for phone in c.phones)
    return [] if found == expected else [f"registrar: bindings differ: {found - expected} / {expected - found}"]


def report(nodes: list[Node], calls: list[CallRecord], clients: list[Client]) -> list[str]:
    """The account, line by line."""
    lines = []
    for node in nodes:
        kinds = Counter(event["event"] for life in node.lives for _, event in life.events)
        ends = Counter(state for life in node.lives for state in flows_of(life)[0].values())
        killed = sum(life.killed for life in node.lives)
        lines.append(f"{node.name}: {len(node.lives)} processes, {killed} killed; {sum(kinds.values())} events")
        lines += [f"    {kind:24} {count}" for kind, count in sorted(kinds.items())]
        lines += [f"    flows left {state:13} {count}" for state, count in sorted(ends.items())]
    outcomes = Counter((call.outcome, "steady" if call.steady else "troubled") for call in calls)
    lines.append(f"calls: {len(calls)}, of which nothing was in the way of {sum(call.steady for call in calls)}")
    lines += [f"    {outcome:32} {kind:9} {count}" for (outcome, kind), count in sorted(outcomes.items())]
    results = sum((client.results for client in clients), Counter())
    lines += [f"    {result:42} {count}" for result, count in sorted(results.items())]
    lines.append(f"connections of clients: {sum(phone.connects for client in clients for phone in client.phones)}")
    return lines
