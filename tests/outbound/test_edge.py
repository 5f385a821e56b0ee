"""Role edge: Path, what is remembered of a registration, routing by token, Record-Route (RFC 5626 §5, RFC 3327)."""

from __future__ import annotations

from typing import Any, cast

import pytest

from edge.connections import Listener, Transport
from edge.events import Event, FlowFailed
from edge.settings import Listen
from tests.sip.rig import Port, Rig, Wire, answer, request

INSTANCE = '+sip.instance="<urn:uuid:6f1c2a58-93de-4b07-8f35-0c7be41a9d22>"'
CONTACT = f"<sip:alice@10.1.1.1:5062;transport=tcp>;reg-id=1;{INSTANCE}"


@pytest.fixture
def rig() -> Rig:
    return Rig(role="edge", sip={"next_hop": "sip:home.example;transport=tcp"})


@pytest.fixture
def core(rig: Rig) -> Wire:
    """The connection to the registrar."""
    wire = rig.wire(remote=("192.0.2.50", 5060))
    rig.roads["home.example"] = [wire]
    return wire


def register(rig: Rig, client: Wire, contact: str = CONTACT, **headers: str) -> None:
    rig.give(client, request("REGISTER", "sip:example.com", to="<sip:alice@example.com>", Contact=contact, **headers))


def path_of(rig: Rig, client: Wire, core: Wire, contact: str = CONTACT, **headers: str) -> list[str]:
    core.take()
    register(rig, client, contact, **headers)
    (sent,) = core.requests("REGISTER")
    return sent.values("Path")


def own_path(rig: Rig, client: Wire) -> str:
    return f"<sip:{rig.core.flows.token_of(client).decode()}@edge.example:5060;transport=tcp;lr;ob>"


def grant(rig: Rig, core: Wire, contact: str = CONTACT, **headers: str) -> None:
    (sent,) = core.requests("REGISTER")
    core.take()
    rig.give(core, answer(sent, 200, extra=(("Contact", contact + ";expires=600"), *headers.items())))


@pytest.mark.requirement("OB-EREG-01", "OB-EREG-03", "OB-EREG-10", "OB-EREG-11", "OB-EREG-17")
def test_rfc5626_5_1_register_of_a_first_hop_gets_path_with_token_and_ob_and_no_record_route(
    rig: Rig, core: Wire
) -> None:
    client = rig.wire()
    register(rig, client)
    (sent,) = core.requests("REGISTER")
    assert sent.values("Path") == [own_path(rig, client)]
    assert sent.all("Contact") == [CONTACT]
    assert sent.all("Record-Route") == []
    assert not any(b"192.0.2.1" in octets for octets in core.take())  # where the listener is bound


def compact(data: bytes, *names: bytes) -> bytes:
    """Write some header names in their one-letter forms (RFC 3261 §7.3.3)."""
    for name, short in ((b"Via", b"v"), (b"Contact", b"m")):
        data = data.replace(b"\r\n" + name + b":", b"\r\n" + short + b":") if name in names else data
    return data


VIA_A, VIA_B = "SIP/2.0/TCP a.example;branch=z9hG4bKa", "SIP/2.0/TCP b.example;branch=z9hG4bKb"


def register_behind(via: str, *others: str, short: tuple[bytes, ...] = ()) -> bytes:
    extra = tuple(("Via", other) for other in others)
    written = request(
        "REGISTER", "sip:example.com", to="<sip:alice@example.com>", via=via, extra=extra, Contact=CONTACT
    )
    return compact(written, *short)


@pytest.mark.requirement("OB-EREG-05", "OB-EREG-04")
@pytest.mark.parametrize(
    "data",
    [
        register_behind(f"{VIA_A}, {VIA_B}"),
        register_behind(VIA_A, VIA_B),
        register_behind(f"{VIA_A}, {VIA_B}", short=(b"Via",)),
        register_behind(VIA_A, VIA_B, short=(b"Via",)),
    ],
    ids=["list", "rows", "compact list", "compact rows"],
)
def test_rfc5626_5_1_behind_another_hop_there_is_no_path_of_ours(data: bytes, rig: Rig, core: Wire) -> None:
    rig.give(rig.wire(), data)
    (sent,) = core.requests("REGISTER")
    assert sent.values("Path") == []


@pytest.mark.requirement("OB-EREG-05")
def test_rfc5626_5_1_one_compact_via_is_the_first_hop(rig: Rig, core: Wire) -> None:
    client = rig.wire()
    rig.give(client, register_behind(VIA_A, short=(b"Via",)))
    assert core.requests("REGISTER")[0].values("Path") == [own_path(rig, client)]


@pytest.mark.requirement("OB-EREG-04")
def test_path_always_leads_back_to_the_hop_before_us_without_ob() -> None:
    rig = Rig(role="edge", sip={"next_hop": "sip:home.example;transport=tcp"}, outbound={"path_always": True})
    core = rig.wire(remote=("192.0.2.50", 5060))
    rig.roads["home.example"] = [core]
    before = rig.wire()
    rig.give(before, register_behind(VIA_A, VIA_B))
    (sent,) = core.requests("REGISTER")
    (path,) = sent.values("Path")
    assert path == own_path(rig, before).replace(";ob", "")
    rig.give(core, request("MESSAGE", "sip:alice@10.1.1.1:5062", user="bob", Route=path))
    assert before.requests("MESSAGE")[0].uri == "sip:alice@10.1.1.1:5062"


@pytest.mark.requirement("OB-EREG-06", "OB-EREG-07")
def test_rfc5626_5_1_what_asks_for_a_token_over_udp_where_nothing_is_forced(rig: Rig, core: Wire) -> None:
    udp, tcp = rig.wire(Transport.UDP), rig.wire()
    plain = "<sip:alice@10.1.1.1>"
    assert path_of(rig, udp, core, plain) == []
    assert path_of(rig, tcp, core, plain) == [own_path(rig, tcp)]
    assert path_of(rig, udp, core, f"{plain};{INSTANCE}") == [own_path(rig, udp)]
    assert path_of(rig, udp, core, f"{plain};reg-id=1") == [own_path(rig, udp)]
    assert path_of(rig, udp, core, f'{plain};expires=60;REG-id=1;q="0.5"') == [own_path(rig, udp)]
    assert path_of(rig, udp, core, f"{plain};expires=60\r\nContact: <sip:b@10.1.1.2>;reg-id=1") == [own_path(rig, udp)]
    two = f"{plain}, <sip:b@10.1.1.2>;Reg-ID=1"
    assert path_of(rig, udp, core, two) == [own_path(rig, udp)]
    core.take()
    rig.give(
        udp, compact(request("REGISTER", "sip:example.com", to="<sip:alice@example.com>", Contact=two), b"Contact")
    )
    assert core.requests("REGISTER")[0].values("Path") == [own_path(rig, udp)]


@pytest.mark.requirement("OB-EREG-12")
def test_rfc3327_5_2_one_path_above_those_there_are(rig: Rig, core: Wire) -> None:
    client = rig.wire()
    assert path_of(rig, client, core, Path="<sip:p0.example;lr>") == [own_path(rig, client), "<sip:p0.example;lr>"]


@pytest.mark.requirement("OB-EREG-14", "OB-EREG-15")
def test_rfc5626_5_4_flow_timer_is_ours_and_only_with_require_outbound(rig: Rig, core: Wire) -> None:
    client = rig.wire()
    paths = "<sip:x@edge.example;lr;ob>, <sip:p0.example;lr>"
    register(rig, client)
    grant(rig, core, Require="outbound", **{"Flow-Timer": "25", "Path": paths})
    (response,) = client.responses("REGISTER")
    assert response.all("Flow-Timer") == ["120"]
    assert response.all("Path") == [paths]
    client.take()
    register(rig, client)
    grant(rig, core, **{"Flow-Timer": "25"})
    assert client.responses("REGISTER")[0].all("Flow-Timer") == []


@pytest.mark.requirement("OB-EREG-16")
def test_what_was_granted_is_remembered_with_its_flow_and_forgotten_when_it_is_removed(rig: Rig, core: Wire) -> None:
    client = rig.wire()
    register(rig, client)
    assert client.registered == 0
    grant(rig, core)
    (flow,) = rig.core.flows
    (row,) = flow.describe(rig.clock.now)
    assert (row["aor"], row["reg_id"], row["expires_s"]) == ("alice@example.com", 1, 600)
    assert row["instance"] == "urn:uuid:6f1c2a58-93de-4b07-8f35-0c7be41a9d22"
    register(rig, client, Expires="0")
    (sent,) = core.requests("REGISTER")
    rig.give(core, answer(sent, 200))
    assert client.registered == 0


PHONE = "urn:uuid:6f1c2a58-93de-4b07-8f35-0c7be41a9d22"


def flow_events(rig: Rig) -> list[Event]:
    """What will have been published from now on."""
    events: list[Event] = []
    rig.bus.subscribe(Event, events.append)
    return events


@pytest.mark.requirement("OB-EREG-16")
def test_a_flow_that_fails_says_who_was_registered_over_it(rig: Rig, core: Wire) -> None:
    client = rig.wire()
    register(rig, client)
    grant(rig, core)
    events = flow_events(rig)
    client.fail("reset")
    (failed,) = [event for event in events if isinstance(event, FlowFailed)]
    (row,) = failed.registrations
    assert (row["aor"], row["instance"], row["reg_id"], failed.reason) == ("alice@example.com", PHONE, 1, "reset")


@pytest.mark.requirement("OB-EREG-16")
def test_bindings_of_one_uri_are_told_apart_by_instance_and_reg_id(rig: Rig, core: Wire) -> None:
    """The answer to a removal lists the other flow of the same phone, with the same URI."""
    client, other = rig.wire(), rig.wire()
    register(rig, client)
    grant(rig, core)
    second = CONTACT.replace("reg-id=1", "reg-id=2")
    register(rig, other, second)
    grant(rig, core, second)
    register(rig, client, Expires="0")
    grant(rig, core, second)
    assert (client.registered, other.registered) == (0, 1)
    plain = rig.wire()
    without = CONTACT.partition(";reg-id")[0]
    register(rig, plain, without)
    grant(rig, core, without)
    assert plain.registered == 1
    register(rig, plain, without, Expires="0")
    grant(rig, core, second)
    assert (plain.registered, other.registered) == (0, 1)


@pytest.mark.requirement("OB-EREG-16", "OB-EREG-17")
def test_rfc3261_10_2_2_a_star_clears_all_of_an_aor_and_of_no_other(rig: Rig, core: Wire) -> None:
    client, other, stranger = rig.wire(), rig.wire(), rig.wire()
    register(rig, client)
    grant(rig, core)
    second = CONTACT.replace("reg-id=1", "reg-id=2")
    register(rig, other, second)
    grant(rig, core, second)
    rig.give(stranger, request("REGISTER", "sip:example.com", user="bob", to="<sip:bob@example.com>", Contact=CONTACT))
    grant(rig, core)
    register(rig, client, "*", Expires="0")
    (sent,) = core.requests("REGISTER")
    assert (sent.values("Path"), sent.all("Record-Route"), sent.all("Contact")) == ([], [], ["*"])
    rig.give(core, answer(sent, 200))
    assert (client.registered, other.registered, stranger.registered) == (0, 0, 1)


@pytest.mark.requirement("OB-EREG-17")
def test_rfc3261_10_2_3_a_question_for_bindings_needs_no_path_and_own_routes_are_taken_off(
    rig: Rig, core: Wire
) -> None:
    client = rig.wire()
    route = "<sip:edge.example:5060;transport=tcp;lr>"
    rig.give(client, request("REGISTER", "sip:example.com", to="<sip:alice@example.com>", Route=route))
    (sent,) = core.requests("REGISTER")
    assert (sent.values("Path"), sent.all("Route")) == ([], [])


@pytest.mark.requirement("OB-EREG-02")
def test_rfc5626_5_1_no_room_for_a_flow_is_503_and_never_a_path_without_token() -> None:
    rig = Rig(role="edge", sip={"next_hop": "sip:home.example;transport=tcp"}, limits={"bindings": 1})
    core = rig.wire(remote=("192.0.2.50", 5060))
    rig.roads["home.example"] = [core]
    first, second = rig.wire(), rig.wire()
    register(rig, first)
    grant(rig, core)
    register(rig, second)
    (refusal,) = second.responses("REGISTER")
    assert (refusal.status, int(refusal["Retry-After"]) > 0) == (503, True)
    assert core.requests("REGISTER") == []
    register(rig, first)  # one that is there may come again
    assert len(core.requests("REGISTER")) == 1
    assert len(rig.transactions.servers) == 1


@pytest.mark.requirement("OB-EREG-13")
def test_rfc3327_5_2_without_path_in_supported_it_is_421_where_that_is_wanted(rig: Rig, core: Wire) -> None:
    client = rig.wire()
    assert path_of(rig, client, core) == [own_path(rig, client)]
    strict = edge_rig(outbound={"without_path": "reject"})
    client, core = strict.wire(), cast("list[Wire]", strict.roads["home.example"])[0]
    register(strict, client)
    (refusal,) = client.responses("REGISTER")
    assert (refusal.status, refusal["Require"]) == (421, "path")
    assert not strict.transactions.servers
    assert path_of(strict, client, core, Supported="gruu, Path") == [own_path(strict, client)]
    udp = strict.wire(Transport.UDP)
    assert path_of(strict, udp, core, "<sip:alice@10.1.1.1>") == []  # needs no flow, and none is forced on it


@pytest.mark.requirement("OB-EREG-09")
def test_rfc3608_6_2_two_values_where_the_sides_differ_and_that_is_wanted() -> None:
    rig = edge_rig(outbound={"path_double": True})
    core = cast("list[Wire]", rig.roads["home.example"])[0]
    udp, tcp = rig.wire(Transport.UDP), rig.wire()
    token = rig.core.flows.token_of(udp).decode()
    top, below = path_of(rig, udp, core)
    assert (top, below) == ("<sip:edge.example:5060;transport=tcp;lr>", f"<sip:{token}@edge.example:5060;lr;ob>")
    assert path_of(rig, tcp, core) == [own_path(rig, tcp)]
    rig.give(core, request("MESSAGE", "sip:alice@10.1.1.1", user="bob", Route=f"{top}, {below}"))
    assert udp.requests("MESSAGE")[0].all("Route") == []


@pytest.mark.requirement("OB-EREG-09")
def test_one_path_value_where_udp_comes_in_and_tcp_goes_out(rig: Rig, core: Wire) -> None:
    udp = rig.wire(Transport.UDP)
    assert path_of(rig, udp, core) == [own_path(rig, udp)]


def edge_rig(**options: Any) -> Rig:
    """An edge in front of home.example, which is reached over TCP."""
    rig = Rig(role="edge", sip={"next_hop": "sip:home.example;transport=tcp"} | options.pop("sip", {}), **options)
    rig.roads["home.example"] = [rig.wire(remote=("192.0.2.50", 5060))]
    return rig


PLAIN = "<sip:alice@10.1.1.1>"


def tokens_of(rig: Rig, client: Wire, contact: str) -> tuple[bool, bool]:
    """Whether a REGISTER gets a Path, and an INVITE a Record-Route, with the token of their flow."""
    core = cast("list[Wire]", rig.roads["home.example"])[0]
    path = path_of(rig, client, core, contact)
    core.take()
    rig.give(client, request("INVITE", "sip:bob@example.com", Contact=contact))
    (invite,) = core.requests("INVITE")
    token = rig.core.flows.token_of(client).decode()
    return any(token in value for value in path), any(token in value for value in invite.values("Record-Route"))


@pytest.mark.requirement("OB-EREG-08", "OB-EDLG-03")
@pytest.mark.parametrize(
    ("mode", "tcp", "udp", "asked"),
    [
        ("off", False, False, True),
        ("streams", True, False, True),
        ("all", True, True, True),
        ("never", False, False, False),
    ],
)
def test_force_decides_alike_for_path_and_record_route(mode: str, tcp: bool, udp: bool, asked: bool) -> None:
    rig = edge_rig(outbound={"force": mode})
    assert tokens_of(rig, rig.wire(), PLAIN) == (tcp, tcp)
    assert tokens_of(rig, rig.wire(Transport.UDP), PLAIN) == (udp, udp)
    asking = f"<sip:alice@10.1.1.1;ob>;reg-id=1;{INSTANCE}"
    assert tokens_of(rig, rig.wire(Transport.UDP), asking) == (asked, asked)


@pytest.mark.requirement("OB-EREG-08", "OB-EDLG-03")
def test_force_by_listener_and_by_the_network_of_the_client() -> None:
    listen = (Listen(bind="192.0.2.1:5060"), Listen(bind="192.0.2.2:5060", force="all"))
    sources = {"203.0.113.0/24": "all", "203.0.113.128/25": "never", "198.51.100.0/24": "off"}
    rig = edge_rig(listen=listen, outbound={"force": "streams", "force_sources": sources})
    port = Port(1, ("192.0.2.2", 5060), ("edge.example", 5060))
    udp = Transport.UDP
    assert tokens_of(rig, rig.wire(udp, ("10.0.0.1", 5060), cast("Listener", port)), PLAIN) == (True, True)
    assert tokens_of(rig, rig.wire(udp, ("10.0.0.2", 5060)), PLAIN) == (False, False)
    assert tokens_of(rig, rig.wire(udp, ("203.0.113.1", 5060)), PLAIN) == (True, True)
    assert tokens_of(rig, rig.wire(Transport.TCP, ("203.0.113.200", 5060)), PLAIN) == (False, False)
    assert tokens_of(rig, rig.wire(udp, ("198.51.100.1", 5060), cast("Listener", port)), PLAIN) == (False, False)


def incoming(rig: Rig, client: Wire, method: str = "INVITE") -> bytes:
    return request(method, "sip:kk4v1q@t8w2m0.invalid;transport=ws", user="bob", Route=own_path(rig, client))


@pytest.mark.requirement("OB-RTE-01", "OB-EDLG-06", "OB-EDLG-05", "OB-EDLG-16")
def test_rfc5626_5_3_1_a_token_leads_to_its_flow_whatever_the_request_uri_says(rig: Rig, core: Wire) -> None:
    client = rig.wire()
    token = rig.core.flows.token_of(client).decode()
    rig.give(core, incoming(rig, client))
    (invite,) = client.requests("INVITE")
    assert invite.uri == "sip:kk4v1q@t8w2m0.invalid;transport=ws"
    assert invite.all("Route") == []
    assert invite.values("Record-Route") == [f"<sip:{token}@edge.example:5060;transport=tcp;lr>"]
    client.take()
    rig.give(core, incoming(rig, client, "MESSAGE"))
    assert client.requests("MESSAGE")[0].all("Record-Route") == []
    assert rig.asked == []


@pytest.mark.requirement("OB-EDLG-06")
def test_rfc5626_5_3_1_the_token_that_led_to_a_flow_is_recorded_where_none_is_forced_too(rig: Rig, core: Wire) -> None:
    client = rig.wire(Transport.UDP)
    token = rig.core.flows.token_of(client).decode()
    rig.give(core, incoming(rig, client))
    (invite,) = client.requests("INVITE")
    core_side = "<sip:edge.example:5060;transport=tcp;lr>"
    assert invite.values("Record-Route") == [f"<sip:{token}@edge.example:5060;lr>", core_side]


@pytest.mark.requirement("OB-FAIL-01", "OB-RTE-03")
def test_rfc5626_5_3_1_a_flow_that_is_gone_is_430_and_is_not_dialled(rig: Rig, core: Wire) -> None:
    client = rig.wire()
    late = incoming(rig, client)
    rig.give(core, incoming(rig, client))
    core.take()
    client.close("peer")
    rig.run_soon()
    assert core.statuses("INVITE") == [430]
    core.take()
    rig.give(core, late)
    assert core.statuses("INVITE") == [430]
    assert rig.asked == []


@pytest.mark.requirement("OB-EDLG-09")
def test_other_requests_of_clients_go_to_the_next_hop_with_the_token_of_the_caller(rig: Rig, core: Wire) -> None:
    client = rig.wire()
    token = rig.core.flows.token_of(client).decode()
    rig.give(client, request("INVITE", "sip:bob@example.com", Contact="<sip:alice@10.1.1.1>"))
    (invite,) = core.requests("INVITE")
    assert invite.uri == "sip:bob@example.com"
    assert invite.values("Record-Route") == [f"<sip:{token}@edge.example:5060;transport=tcp;lr>"]


# -- the next hop is away


@pytest.mark.requirement("OB-LIM-05")
@pytest.mark.parametrize("method", ["REGISTER", "INVITE", "MESSAGE"])
@pytest.mark.parametrize("how", ["refused", "avoided"])
def test_rfc5626_4_2_1_while_the_next_hop_is_away_it_is_503_with_a_time_to_come_back(
    rig: Rig, core: Wire, method: str, how: str
) -> None:
    client = rig.wire()
    if how == "avoided":
        rig.roads["home.example"] = 500  # what the resolver says while every address is to be left alone
    if method == "REGISTER":
        register(rig, client)
    else:
        rig.give(client, request(method, "sip:bob@example.com"))
    if how == "refused":
        core.fail("refused")
        rig.run_soon()
    (refused,) = (response for response in client.responses() if response.status != 100)
    assert (refused.status, 5 <= int(refused["Retry-After"]) <= 36) == (503, True)


@pytest.mark.requirement("OB-LIM-05")
@pytest.mark.parametrize(("asked", "status"), [({"Retry-After": "17 (busy)"}, 503), ({}, 500)])
def test_rfc3261_16_7_a_503_of_the_next_hop_keeps_its_time_and_nobody_else_is_cut_off(
    rig: Rig, core: Wire, asked: dict[str, str], status: int
) -> None:
    client = rig.wire()
    register(rig, client)
    rig.give(core, answer(core.requests("REGISTER")[0], 503, extra=tuple(asked.items())))
    (refused,) = client.responses()
    assert (refused.status, refused.get("Retry-After")) == (status, "17" if asked else None)
    assert rig.avoided == []  # there is no other way, and a drain lets calls through


def test_rfc3261_16_7_a_client_that_answers_503_says_nothing_of_us(rig: Rig, core: Wire) -> None:
    client = rig.wire()
    rig.give(core, incoming(rig, client))
    rig.give(client, answer(client.requests("INVITE")[0], 503, extra=(("Retry-After", "17"),)))
    assert core.statuses() == [100, 500]
