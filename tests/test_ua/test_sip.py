"""Two simulated SIP user agents talking to each other, without a server between them."""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from tests.ua import digest, stun
from tests.ua.certs import Authority
from tests.ua.sip import CallFailed, Dialog, Request, SipUA, stun_binding
from tests.ua.sip_message import HeaderList, SipStreamReader, encode, header_parameter, parse, split_commas
from tests.ua.wait import eventually, within

TRANSPORTS = ["udp", "tcp", "tls", "ws", "wss"]
SDP = b"v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"

Pair = Callable[..., AbstractAsyncContextManager[tuple[SipUA, SipUA]]]


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    directory: Path = tmp_path_factory.mktemp("certs")
    authority = Authority(directory)
    certificate = authority.issue("far", dns=["localhost"], ips=["127.0.0.1"], uris=["sip:example.com"])
    return authority.server_context(certificate), authority.client_context()


@pytest.fixture
def pair(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> Pair:
    """Make a listening UA and one connected to it: (near, far)."""

    @asynccontextmanager
    async def make(transport: str, **options):
        async with SipUA("far", transport=transport, ssl_context=contexts[0]) as far:
            near = SipUA(
                "near", "zanzibar", server=far.address, transport=transport, ssl_context=contexts[1], **options
            )
            async with near:
                yield near, far

    return make


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_message_and_its_answer(pair: Pair, transport: str) -> None:
    async with pair(transport) as (near, far):
        task = asyncio.create_task(near.message("sip:far@example.com", "Grüße", headers={"X-Odd": "a:b: c"}))
        request = await far.next_request("MESSAGE")
        assert request.body == "Grüße".encode()
        assert request["x-odd"] == "a:b: c"
        assert request.raw == near.sent("MESSAGE")[0]
        assert request.parsed().headers["Content-Length"] == "7"
        far.respond(request, 180)
        far.respond(request, 202, "Taken", headers={"Subject": "noted"})
        response = await within(task)
        assert (response.status, response.reason, response["s"]) == (202, "Taken", "noted")
        assert [r.status for r in response.provisionals] == [180]
        assert response.to_tag == response.provisionals[0].to_tag
        assert header_parameter(response["Via"], "rport") == str(near.address[1]) or transport in ("ws", "wss")
        assert response.raw == near.received("SIP/2.0 202")[0] == far.sent("SIP/2.0 202")[0]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_call_with_route_set(pair: Pair, transport: str) -> None:
    async with pair(transport) as (near, far):
        call = near.start_invite("sip:far@example.com", SDP)
        invite = await far.next_request("INVITE")
        far.respond(invite, 180)
        await call.provisional(180)
        routes = [("Record-Route", "<sip:p2.example.com;lr>, <sip:p1.example.com;lr>")]
        callee = far.accept(invite, SDP, headers=routes)
        caller = await call.dialog()
        assert caller.route_set == ["<sip:p1.example.com;lr>", "<sip:p2.example.com;lr>"]
        await caller.ack()
        ack = await far.next_request("ACK")
        assert ack.cseq.sequence == invite.cseq.sequence
        assert ack.branch != invite.branch
        assert ack.all("Route") == caller.route_set
        assert ack.uri == far.contact_uri()
        await check_requests_both_ways(near, far, caller, callee)


async def check_requests_both_ways(near: SipUA, far: SipUA, caller: Dialog, callee: Dialog) -> None:
    far.on_request = lambda ua, request: 200
    assert (await caller.reinvite(SDP)).status == 200
    await caller.ack()
    near.on_request = lambda ua, request: (200, "Fine") if request.method == "BYE" else None
    response = await callee.bye()
    assert (response.status, response.reason) == (200, "Fine")
    bye = parse(near.received("BYE")[0])
    assert (bye.from_tag, bye.to_tag) == (caller.response.to_tag, caller.invite.from_tag)
    assert bye.uri == near.contact_uri()


async def test_strict_route_swaps_request_uri(pair: Pair) -> None:
    async with pair("udp") as (near, far):
        far.on_request = lambda ua, r: (200, "OK", {"Record-Route": "<sip:old.example.com>"})
        dialog = await near.invite("sip:far@example.com", SDP)
        await dialog.bye()
        bye = parse(far.received("BYE")[0])
        assert bye.uri == "sip:old.example.com"
        assert bye.all("Route") == [f"<{far.contact_uri()}>"]


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_failed_call_is_acknowledged_on_the_same_branch(pair: Pair, transport: str) -> None:
    async with pair(transport) as (near, far):
        far.on_request = lambda ua, r: 486 if r.method == "INVITE" else ua.incoming.put_nowait(r)
        with pytest.raises(CallFailed, match="486 Busy Here") as caught:
            await near.invite("sip:far@example.com")
        ack = await far.next_request("ACK")
        assert ack.branch == caught.value.response.request.branch
        assert ack.to_tag == caught.value.response.to_tag


async def test_cancel(pair: Pair) -> None:
    async with pair("tcp") as (near, far):
        call = near.start_invite("sip:far@example.com")
        invite = await far.next_request("INVITE")
        far.respond(invite, 100)
        cancelling = asyncio.create_task(call.cancel())
        cancel = await far.next_request("CANCEL")
        assert (cancel.branch, cancel.uri) == (invite.branch, invite.uri)
        far.respond(cancel, 200)
        far.respond(invite, 487)
        assert (await cancelling).status == 200
        assert (await call.result()).status == 487


def registrar(algorithms: list[str], users: dict[str, str]) -> Callable[[SipUA, Request], object]:
    """Return a handler that challenges everything but ACK and believes right answers once for each nc."""
    seen: set[tuple[str, str]] = set()

    def handle(ua: SipUA, request: Request) -> object:
        value = request.get("Authorization")
        if value is not None:
            found = digest.parse_parameters(value.removeprefix("Digest "))
            challenge = digest.Challenge(found["realm"], found["nonce"], found["algorithm"], qop=("auth",))
            expected = digest.response(
                challenge,
                found["username"],
                users.get(found["username"], ""),
                request.method,
                found["uri"],
                nc=found["nc"],
                cnonce=found["cnonce"],
            )
            if expected == found["response"] and (found["nonce"], found["nc"]) not in seen:
                seen.add((found["nonce"], found["nc"]))
                headers = [("Contact", value) for value in request.values("Contact")]
                return 200, "OK", [*headers, ("Require", "outbound"), ("Flow-Timer", "25")]
        nonce = f"n{len(ua.trace)}"
        offers = [f'Digest realm="loom", nonce="{nonce}", algorithm={a}, qop="auth"' for a in algorithms]
        return 401, None, [("WWW-Authenticate", offer) for offer in offers]

    return handle


@pytest.mark.parametrize(("offered", "taken"), [(["SHA-256", "MD5"], "SHA-256"), (["SHA-512", "MD5"], "MD5")])
async def test_register_answers_the_topmost_challenge_it_knows(pair: Pair, offered: list[str], taken: str) -> None:
    async with pair("tcp", reg_id=1) as (near, far):
        far.on_request = registrar(offered, {"near": "zanzibar"})
        response = await near.register()
        assert (response.status, response.challenges, near.challenges) == (200, 1, 1)
        first, second = (parse(raw) for raw in far.received("REGISTER"))
        assert f"algorithm={taken}" in second["Authorization"]
        assert (first.call_id, first.cseq.sequence, second.cseq.sequence) == (second.call_id, 1, 2)
        assert first.branch != second.branch
        assert first["Supported"] == "path, outbound"
        assert header_parameter(first["Contact"], "+sip.instance") == f"<{near.instance}>"
        assert near.outbound_active
        assert near.flow_timer == 25


async def test_known_nonce_is_used_again_with_rising_count(pair: Pair) -> None:
    async with pair("udp") as (near, far):
        far.on_request = registrar(["SHA-256"], {"near": "zanzibar"})
        near.reuse_nonce = True
        assert [(await near.register()).challenges for _ in range(3)] == [1, 0, 0]
        assert "nc=00000003" in far.received("REGISTER")[-1].decode()


async def test_wrong_password_gives_up_after_one_answer(pair: Pair) -> None:
    async with pair("udp") as (near, far):
        far.on_request = registrar(["MD5"], {"near": "another"})
        response = await near.register()
        assert (response.status, response.challenges) == (401, 1)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_ping(pair: Pair, transport: str) -> None:
    async with pair(transport) as (near, far):
        assert await near.ping() == (near.address if transport == "udp" else None)
        if transport != "udp":
            assert near.keepalives == [("sent", b"\r\n\r\n"), ("received", b"\r\n")]
            assert far.keepalives == [("received", b"\r\n\r\n"), ("sent", b"\r\n")]


async def test_swallowed_ping_times_out(pair: Pair) -> None:
    async with pair("tcp") as (near, far):
        far.answer_pings = False
        with pytest.raises(TimeoutError):
            await near.ping(seconds=0.1)


async def test_lost_connection_fails_the_open_transaction(pair: Pair) -> None:
    async with pair("tcp") as (near, far):
        task = asyncio.create_task(near.options("sip:far@example.com"))
        await far.next_request("OPTIONS")
        far.listener.links[0].reset()
        with pytest.raises(ConnectionError):
            await within(task)


async def test_reconnect_comes_from_another_port(pair: Pair) -> None:
    async with pair("tcp") as (near, far):
        before = near.address
        await near.reconnect(reset=True)
        assert near.address != before
        far.on_request = lambda ua, request: 200
        assert (await near.options("sip:far@example.com")).status == 200


async def test_retransmission_on_udp_and_its_absorption(pair: Pair) -> None:
    async with pair("udp", retransmit=True) as (near, far):
        task = asyncio.create_task(near.options("sip:far@example.com"))
        request = await far.next_request("OPTIONS")
        await eventually(lambda: far.retransmissions_absorbed)
        assert far.incoming.empty()
        assert far.received("OPTIONS") == [request.raw, request.raw]
        far.respond(request, 200)
        assert (await within(task)).status == 200


async def test_forced_headers_and_raw_bytes(pair: Pair) -> None:
    async with pair("tcp") as (near, far):
        far.on_request = lambda ua, request: 200
        headers = [("Call-ID", "fixed"), ("Max-Forwards", None), ("X-A", "1"), ("X-A", "2")]
        await near.request("OPTIONS", "sip:far@example.com", headers=headers)
        options = parse(far.received("OPTIONS")[0])
        assert (options.call_id, options.get("Max-Forwards"), options.all("x-a")) == ("fixed", None, ["1", "2"])
        near.send_raw(options.raw + options.raw)
        await eventually(lambda: len(near.stray) == 2)


def test_stream_reader_octet_by_octet_and_glued() -> None:
    message = encode("OPTIONS sip:a@b SIP/2.0", HeaderList([("l", "3")]), b"abc")
    stream = b"\r\n\r\n" + message + b"\r\n" + message
    expected = [b"\r\n", b"\r\n", message, b"\r\n", message]
    reader = SipStreamReader()
    assert list(reader.feed(stream)) == expected
    assert [piece for octet in stream for piece in reader.feed(bytes([octet]))] == expected
    assert reader.unfinished == b""


def test_stream_reader_wants_content_length() -> None:
    with pytest.raises(ValueError, match="Content-Length"):
        list(SipStreamReader().feed(b"OPTIONS sip:a@b SIP/2.0\r\nX-Content-Length: 3\r\n\r\n"))


def test_commas_in_quotes_and_brackets_do_not_split() -> None:
    assert split_commas('"a, b" <sip:x,y@h>;q=1, <sip:z@h>') == ['"a, b" <sip:x,y@h>;q=1', "<sip:z@h>"]


# outbound.md, E10: the same octets on both sides
STUN_REQUEST = bytes.fromhex("000100002112a4423f1c77a90b52e4d86610fa2e")
STUN_V4 = bytes.fromhex("0101000c2112a4423f1c77a90b52e4d86610fa2e002000080001bda2ea12d50f")
STUN_V6 = bytes.fromhex("010100182112a4423f1c77a90b52e4d86610fa2e00200014000232d40113a9fa3f6b77a90b52e4d86610fa27")


@pytest.mark.parametrize(
    ("octets", "address"), [(STUN_V4, ("203.0.113.77", 40112)), (STUN_V6, ("2001:db8:77::9", 5062))]
)
def test_stun_worked_example(octets: bytes, address: tuple[str, int]) -> None:
    request = stun.parse(STUN_REQUEST)
    assert stun.binding_request(request.transaction).encode() == STUN_REQUEST
    assert stun.binding_success(request, address).encode() == octets
    assert stun.mapped_address(stun.parse(octets)) == address


async def test_stun_binding_helper() -> None:
    async with SipUA("far") as far:
        host, port = await stun_binding(*far.address)
        assert (host, port > 0) == ("127.0.0.1", True)
