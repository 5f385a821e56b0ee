"""What a hook can do with SIP requests and responses: routing, tokens, Path, flows, ends of connections."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from queue import Empty

import pytest

from tests.conftest import EdgeServer, EdgeServerFactory
from tests.policy.conftest import PolicyFactory
from tests.server.agents import all_registered, answering, counted, registered, sip_ua
from tests.server.stub_hop import StubHop
from tests.ua.sip import SipUA

HOP = """
    def sip_request(self, request):
        hop = request.header("X-Hop")
        if hop:
            request.relay(hop, existing_only=request.header("X-Existing") is not None,
                          close_after=request.header("X-Close") is not None)
"""


@pytest.fixture
def hop() -> Iterator[StubHop]:
    made = StubHop()
    with made.running():
        yield made


def via_hop(hop: StubHop, *marks: str) -> list[tuple[str, str]]:
    return [("X-Hop", f"sip:{hop.address};transport=tcp"), *((mark, "yes") for mark in marks)]


async def nothing(hop: StubHop) -> None:
    with pytest.raises(Empty):
        await hop.next(0.2)


async def test_relay_to_a_next_hop_leaves_the_request_uri_and_opens_no_connection_where_that_is_wanted(
    with_policy: PolicyFactory, hop: StubHop
) -> None:
    server = with_policy(HOP)
    async with sip_ua(server, "alice") as alice:
        refused = await alice.message("sip:far@far.example", b"x", headers=via_hop(hop, "X-Existing"))
        assert refused.status == 480
        await nothing(hop)
        assert (await alice.message("sip:far@far.example", b"x", headers=via_hop(hop))).status == 200
        transport, data = await hop.next()
        assert (transport, data.split(b"\r\n")[0]) == ("tcp", b"MESSAGE sip:far@far.example SIP/2.0")
        assert (await alice.message("sip:far@far.example", b"x", headers=via_hop(hop, "X-Existing"))).status == 200
        await hop.next()
    assert server.metrics().value("edge_connections_opened_total", transport="tcp") == 2


async def test_the_connection_a_request_left_on_ends_after_its_answer(with_policy: PolicyFactory, hop: StubHop) -> None:
    server = with_policy(HOP)
    async with sip_ua(server, "alice") as alice:
        answer = await alice.message("sip:far@far.example", b"x", headers=via_hop(hop, "X-Close"))
        assert answer.status == 200
        await counted(server, "edge_connections_closed_total", reason="policy")
        assert (await alice.message("sip:far@far.example", b"x", headers=via_hop(hop, "X-Existing"))).status == 480


async def test_the_connection_of_somebody_rejected_ends_after_the_answer(with_policy: PolicyFactory) -> None:
    server = with_policy("""
        def sip_request(self, request):
            request.reply(488, close_after=True)
    """)
    async with sip_ua(server, "alice") as alice, sip_ua(server, "bob", "udp") as bob:
        assert (await alice.options("sip:example.com")).status == 488
        assert alice.link is not None
        await alice.link.wait_closed()
        assert (await bob.options("sip:example.com")).status == 488
        assert (await bob.options("sip:example.com")).status == 488  # UDP has nothing to close
    assert server.metrics().value("edge_connections_closed_total", reason="policy") == 1


async def test_rfc3327_a_path_with_a_token_is_added_to_a_register_that_goes_on_and_leads_back(
    with_policy: PolicyFactory, hop: StubHop
) -> None:
    server = with_policy(f"""
        def sip_request(self, request):
            if request.method == "REGISTER" and request.from_uri.startswith("sip:carol"):
                request.add_path()
                request.relay("sip:{hop.address};transport=tcp")
    """)
    async with AsyncExitStack() as stack:
        carol = await registered(server, stack, "carol")
        alice = await registered(server, stack, "alice")
        _, data = await hop.next()
        path = re.search(rb"\r\nPath: (<sip:[^>]*@[^>]*;ob>)\r\n", data)
        assert path is not None, data
        carol.on_request = answering(202)
        answer = await alice.message(carol.contact_uri(), b"x", headers=[("Route", path[1].decode())])
        assert answer.status == 202
        assert (await alice.message(carol.uri, b"x")).status == 480  # the registrar here was not asked


@pytest.mark.requirement("OB-EREG-08")
async def test_rfc5626_5_1_an_edge_adds_a_path_for_a_client_that_did_not_ask_or_leaves_it_out(
    edge_server: EdgeServerFactory, hop: StubHop
) -> None:
    config = {
        "role": "edge",
        "sip": {"next_hop": f"sip:{hop.address};transport=tcp", "allow_targets": ["127.0.0.0/8"]},
        "policy": {"module": "mine:Mine"},
    }
    server = edge_server(config, started=False)
    (server.directory / "mine.py").write_text("""
from edge.policy import Policy

class Mine(Policy):
    def sip_request(self, request):
        if request.header("X-Path") == "force":
            request.force_token()
        elif request.header("X-Path") == "forbid":
            request.forbid_token()
""")
    server.start()
    async with sip_ua(server, "alice", "udp") as alice, sip_ua(server, "bob", "tcp") as bob:
        for agent, wanted, there in (
            (alice, "", False),
            (alice, "force", True),
            (bob, "", True),
            (bob, "forbid", False),
        ):
            assert (await agent.register(headers=[("X-Path", wanted)])).status == 200
            _, data = await hop.next()
            assert (b"\r\nPath: <sip:" in data) is there, (agent.user, wanted)


@pytest.mark.requirement("OB-EDLG-03")
async def test_a_message_is_recorded_with_a_token_that_leads_back_to_its_sender(with_policy: PolicyFactory) -> None:
    server = with_policy("""
        def sip_request(self, request):
            if request.method == "MESSAGE" and request.header("X-Record"):
                request.record_route_with_token()
    """)
    async with AsyncExitStack() as stack:
        alice, bob = await all_registered(server, stack, "alice", "bob")
        alice.on_request = answering(202)
        bob.on_request = answering()
        await alice.message(bob.uri, b"x")
        await alice.message(bob.uri, b"x", headers=[("X-Record", "yes")])
        plain, recorded = bob.received("MESSAGE")
        assert b"\r\nRecord-Route: " not in plain
        routes = re.findall(rb"\r\nRecord-Route: (<sip:[^>]*@[^>]*>)", recorded)
        assert len(routes) == 2, recorded  # a token for each side
        answer = await bob.message(alice.contact_uri(), b"x", headers=[("Route", route.decode()) for route in routes])
        assert answer.status == 202


async def test_rfc5626_5_3_a_policy_tells_a_live_token_from_a_dead_and_a_forged_one(with_policy: PolicyFactory) -> None:
    server = with_policy("""
        def sip_request(self, request):
            if request.method == "INFO":
                request.reject(488, request.route_by_token().name)
            elif request.method == "OPTIONS":
                request.reject(488, request.best_flows("bob@example.com")[0][0].token)
    """)
    async with AsyncExitStack() as stack:
        alice = await registered(server, stack, "alice")
        bob = await registered(server, stack, "bob")
        token = (await alice.options("sip:example.com")).reason

        async def told(token: str) -> str:
            route = f"<sip:{token}@127.0.0.1:{server.port};transport=tcp;lr>"
            return (await alice.request("INFO", bob.contact_uri(), headers=[("Route", route)])).reason

        assert await told(token) == "FLOW"
        swapped = token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "BBBB")
        assert await told(swapped) == "FORGED"
        assert await told("bob") == "NONE"
        await bob.stop()
        await counted(server, "edge_connections_closed_total", reason="eof")
        assert await told(token) == "GONE"


FLOWS = """
    def sip_request(self, request):
        if request.method == "OPTIONS":
            devices = request.best_flows("bob@example.com")
            request.reject(488, " / ".join(" ".join(f"{f.reg_id}:{f.state}:{f.transport}" for f in d) for d in devices))
        elif request.method == "MESSAGE":
            devices = request.best_flows("bob@example.com")
            wanted = request.header("X-Targets")
            if wanted == "worst":
                request.set_targets([list(reversed(device)) for device in devices])
            elif wanted == "all":
                request.set_targets(devices)
            elif wanted == "one":
                request.set_targets(devices[0][0])
            elif wanted == "each":
                request.dispatch(*devices[0])

    def sip_response(self, response):
        if response.code == 486:
            response.count("next" if response.next_flow() else "none")
"""


async def two_flows(stack: AsyncExitStack, server: EdgeServer) -> tuple[SipUA, SipUA]:
    """Two flows of one device of bob; the second one is the best, for it was registered last."""
    made = []
    instance = "urn:uuid:00000000-0000-1000-8000-000a95a0e128"
    for reg_id in (1, 2):
        made.append(await registered(server, stack, "bob", reg_id=reg_id, instance=instance))
    return made[0], made[1]


async def test_rfc5626_7_the_flows_of_a_device_are_looked_up_best_first_and_used_in_any_order(
    with_policy: PolicyFactory,
) -> None:
    server = with_policy(FLOWS)
    async with AsyncExitStack() as stack:
        alice = await registered(server, stack, "alice")
        first, second = await two_flows(stack, server)
        assert (await alice.options("sip:example.com")).reason == "2:up:tcp 1:up:tcp"
        first.on_request, second.on_request = answering(201), answering(202)
        assert (await alice.message("sip:bob@example.com", b"x")).status == 202
        for wanted, status in (("worst", 201), ("all", 202), ("one", 202), ("each", 202)):
            answer = await alice.message("sip:bob@example.com", b"x", headers=[("X-Targets", wanted)])
            assert answer.status == status, wanted


async def test_rfc5626_7_the_next_flow_is_tried_after_an_answer_a_policy_takes_for_a_failure(
    with_policy: PolicyFactory,
) -> None:
    server = with_policy(FLOWS)
    async with AsyncExitStack() as stack:
        alice = await registered(server, stack, "alice")
        first, second = await two_flows(stack, server)
        first.on_request, second.on_request = answering(201), answering(486)
        assert (await alice.message("sip:bob@example.com", b"x")).status == 201
        first.on_request = answering(486)
        assert (await alice.message("sip:bob@example.com", b"x")).status == 486
        assert len(second.received("MESSAGE")) == len(first.received("MESSAGE")) == 2
        assert len((await alice.options("sip:example.com")).reason.split()) == 2  # no binding was taken for dead
    assert server.metrics().value("edge_policy_counts_total", label="next") == 2
    assert server.metrics().value("edge_policy_counts_total", label="none") == 1


async def test_targets_of_a_later_step_are_tried_when_all_of_the_first_have_refused(with_policy: PolicyFactory) -> None:
    server = with_policy("""
        def sip_request(self, request):
            if request.method == "MESSAGE":
                request.set_targets(["sip:bob@example.com", "sip:carol@example.com"], "sip:dave@example.com")
    """)
    async with AsyncExitStack() as stack:
        alice, bob, carol, dave = await all_registered(server, stack, "alice", "bob", "carol", "dave")
        bob.on_request, carol.on_request, dave.on_request = answering(486), answering(480), answering(202)
        assert (await alice.message("sip:team@example.com", b"x")).status == 202
        assert len(bob.received("MESSAGE")) == len(carol.received("MESSAGE")) == 1


@pytest.mark.parametrize(("user", "status"), [("nobody", 404), ("erin", 480)])
async def test_a_target_that_is_nobody_or_not_there_is_answered_as_usual(
    with_policy: PolicyFactory, user: str, status: int
) -> None:
    server = with_policy(f"""
        def sip_request(self, request):
            if request.method == "MESSAGE":
                request.set_targets("sip:{user}@example.com")
    """)
    async with AsyncExitStack() as stack:
        alice = await registered(server, stack, "alice")
        assert (await alice.message("sip:anybody@example.com", b"x")).status == status


async def test_credentials_are_asked_for_or_not_as_a_policy_says(with_policy: PolicyFactory) -> None:
    server = with_policy("""
        def sip_request(self, request):
            wanted = request.header("X-Wanted")
            if wanted == "accept":
                request.accept()
            elif wanted == "challenge":
                request.challenge()
                request.relay()
            elif wanted == "drop":
                request.drop()
    """)
    async with AsyncExitStack() as stack:
        alice, bob = await all_registered(server, stack, "alice", "bob")
        bob.on_request = answering()
        for wanted, challenges in (("accept", 0), ("challenge", 1), ("", 1)):
            answer = await alice.message(bob.uri, b"x", headers=[("X-Wanted", wanted)])
            assert (answer.status, answer.challenges) == (200, challenges), wanted
        mallory = await stack.enter_async_context(sip_ua(server, "mallory", domain="far.example"))
        assert (await mallory.message(bob.uri, b"x", headers=[("X-Wanted", "challenge")])).status == 403
        assert (await mallory.message(bob.uri, b"x")).status == 200
        with pytest.raises(TimeoutError):
            await mallory.message(bob.uri, b"x", headers=[("X-Wanted", "drop")], timeout=0.5)
    assert server.metrics().value("edge_sip_rejected_total", reason="policy_dropped") == 1


async def test_a_branch_can_be_left_out_and_bodies_and_uris_rewritten(with_policy: PolicyFactory) -> None:
    server = with_policy("""
        def sip_request(self, request):
            if request.method == "MESSAGE":
                request.set_uri("sip:carol@example.com")
                request.set_body(request.body.upper(), "text/x-loud")

        def before_forward(self, branch):
            if branch.came_from == "127.0.0.1" and branch.header("X-Refuse"):
                branch.refuse()

        def sip_response(self, response):
            if response.code == 202:
                response.set_header("X-Asked", response.request_uri)
    """)
    async with AsyncExitStack() as stack:
        alice, carol = await all_registered(server, stack, "alice", "carol")
        carol.on_request = answering(202)
        answer = await alice.message("sip:bob@example.com", b"quiet")
        assert (answer.status, answer.get("X-Asked")) == (202, carol.contact_uri())
        (message,) = carol.received("MESSAGE")
        assert message.endswith(b"\r\n\r\nQUIET")
        assert b"\r\nContent-Type: text/x-loud\r\n" in message
        assert b"\r\nContent-Length: 5\r\n" in message
        refused = await alice.message("sip:bob@example.com", b"x", headers=[("X-Refuse", "yes")])
        assert refused.status == 480
        assert len(carol.received("MESSAGE")) == 1


@pytest.mark.parametrize(
    "mistake",
    [
        'request.add_header("X-Bad", "a\\r\\nX-Worse: b")',
        'request.add_header("Via", "SIP/2.0/TCP evil.example")',
        'request.set_uri("no uri at all")',
        "request.reject(100)",
        'request.set_targets("sip:")',
    ],
)
async def test_what_cannot_be_is_an_error_and_does_not_leave(with_policy: PolicyFactory, mistake: str) -> None:
    server = with_policy(f"""
        def sip_request(self, request):
            if request.method == "MESSAGE":
                {mistake}
    """)
    server.expect_traceback = True
    async with AsyncExitStack() as stack:
        alice, bob = await all_registered(server, stack, "alice", "bob")
        bob.on_request = answering()
        assert (await alice.message(bob.uri, b"x")).status in (400, 500)
        assert not bob.received("MESSAGE")


async def test_labels_are_bounded_and_tags_end_with_their_connection(with_policy: PolicyFactory) -> None:
    server = with_policy("""
        def sip_request(self, request):
            for number in range(80):
                request.count("label" + "abcdefgh"[number // 10] + "abcdefghij"[number % 10])
            before = request.tagged("seen") or "never"
            request.tag("seen", "before")
            request.reject(488, before)
    """)
    async with sip_ua(server, "alice") as alice:
        assert (await alice.options("sip:example.com")).reason == "never"
        assert (await alice.options("sip:example.com")).reason == "before"
    async with sip_ua(server, "alice") as alice:
        assert (await alice.options("sip:example.com")).reason == "never"
    metrics = server.metrics()
    counts = {s.labels["label"]: s.value for s in metrics.samples if s.name == "edge_policy_counts_total"}
    assert len(counts) == 65
    assert (counts["labelaa"], counts["_other"]) == (3, 48)
