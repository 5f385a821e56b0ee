"""The ready-made checks of `edge.policy`: by what the running server does with real messages, and by their bounds."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from edge.errors import RemoteError
from edge.policy import AddressList, DomainList, FloodDetector, MethodRates, ScannerList
from tests.conftest import EdgeServer, EdgeServerFactory
from tests.server.agents import USERS, answering, counted, enrolled, msrp_client, open_config, sip_ua
from tests.ua.certs import Authority
from tests.ua.clock import FakeClock
from tests.ua.msrp import AuthFailed, MsrpEndpoint
from tests.ua.sip import SipUA
from tests.ua.wait import eventually

MODULE = "from edge.policy import *\n\nclass Mine(Policy):\n"


@pytest.fixture
def with_policy(edge_server: EdgeServerFactory) -> Any:
    def make(methods: str, files: dict[str, bytes] | None = None, **sections: Any) -> EdgeServer:
        config = {**open_config(), "policy": {"module": "mine:Mine"}, **sections}
        server = edge_server(config, USERS, started=False)
        for name, data in (files or {}).items():
            (server.directory / name).write_bytes(data)
        lines = dedent(methods).strip().splitlines()
        (server.directory / "mine.py").write_text(MODULE + "".join(f"    {line}\n" for line in lines))
        server.start()
        return server

    return make


def stranger(server: EdgeServer, host: str = "127.0.0.1", transport: str = "udp", **options: Any) -> SipUA:
    domain = options.pop("domain", "elsewhere.example")
    return SipUA(
        "eve", domain=domain, server=("127.0.0.1", server.port), transport=transport, local_host=host, **options
    )


async def ask(ua: SipUA, **options: Any) -> int:
    """The answer to OPTIONS."""
    return (await ua.options("sip:example.com", **options)).status


# -- address lists


async def test_an_address_list_is_read_again_and_a_broken_line_keeps_what_was_there(with_policy: Any) -> None:
    server = with_policy(
        """
        allowed = AddressList("allowed.txt", networks=["192.0.2.0/24"])

        def sip_request(self, request):
            if not self.allowed.lists(request):
                request.reject(403, "Not On The List")
        """,
        files={"allowed.txt": b"127.0.0.2  # the one\n\n"},
    )
    allowed = server.directory / "allowed.txt"
    async with stranger(server) as one, stranger(server, "127.0.0.2") as two:
        assert (await ask(one), await ask(two)) == (403, 200)
        allowed.write_text("127.0.0.0/31\n")

        async def swapped() -> bool:
            return (await ask(one), await ask(two)) == (200, 403)

        await eventually(swapped, 20)
        allowed.write_text("127.0.0.2\nnobody knows\n")

        async def refused() -> bool:
            return await swapped() and "address list kept as it was file=allowed.txt" in server.log_text()

        await eventually(refused, 20)
        allowed.unlink()

        async def gone() -> bool:
            return await swapped() and "No such file" in server.log_text()

        await eventually(gone, 20)


def test_an_address_list_that_cannot_be_read_is_an_error_when_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        AddressList(tmp_path / "nowhere")
    (tmp_path / "list").write_text("192.0.2.1/24\n2001:db8::/32\n")
    found = AddressList(tmp_path / "list")
    assert [address in found for address in ("192.0.2.9", "2001:db8::9", "198.51.100.1")] == [True, True, False]
    with pytest.raises(ValueError, match="nobody"):
        AddressList(networks=["nobody"])


def test_a_list_is_looked_at_again_only_every_two_seconds(tmp_path: Path) -> None:
    clock, path = FakeClock(), tmp_path / "list"
    path.write_text("192.0.2.1\n")
    found = AddressList(path, clock=clock)
    assert "192.0.2.1" in found
    path.write_text("192.0.2.22\n")
    os.utime(path, (1, 1))
    assert "192.0.2.1" in found
    clock.advance(2.0)
    assert ("192.0.2.1" in found, "192.0.2.22" in found) == (False, True)


# -- floods and rates


async def test_a_source_that_floods_is_refused_and_others_are_not(with_policy: Any) -> None:
    server = with_policy("""
        floods = FloodDetector(rate=0.001, burst=3)

        def sip_request(self, request):
            if self.floods.floods(request):
                request.reject(503)
    """)
    async with (
        stranger(server) as one,
        stranger(server, "127.0.0.2") as two,
        stranger(server, transport="tcp") as three,
    ):
        assert [await ask(one) for _ in range(5)] == [200, 200, 200, 503, 503]
        assert await ask(two) == 200
        assert await ask(three) == 503  # the same source by another transport


def test_tokens_come_back_with_time_and_never_more_than_the_burst() -> None:
    clock = FakeClock()
    floods = FloodDetector(rate=2, burst=3, clock=clock)
    assert [floods.exceeds("alice") for _ in range(4)] == [False, False, False, True]
    clock.advance(0.5)
    assert [floods.exceeds("alice") for _ in range(2)] == [False, True]
    clock.advance(3600)
    assert [floods.exceeds("alice") for _ in range(4)] == [False, False, False, True]
    assert not floods.floods("2001:db8::1")
    assert [floods.floods(f"2001:db8::{number}") for number in range(2, 5)] == [False, False, True]  # one /64
    assert not floods.floods("2001:db8:0:1::1")


def test_buckets_are_bounded_and_the_quietest_goes_first() -> None:
    clock = FakeClock()
    floods = FloodDetector(rate=0.001, burst=1, clock=clock)
    assert not floods.exceeds("first")
    assert not floods.exceeds("second")
    assert floods.exceeds("first")  # spoke again: "second" is the quietest now
    for number in range(65535):
        floods.exceeds(str(number))
    assert len(floods) == 65536
    assert floods.exceeds("first")
    assert not floods.exceeds("second")


RATES = """
    rates = MethodRates({"REGISTER": (0.001, 2), "INVITE": (0.001, 2), "AUTH": (0.001, 2), "SEND": (0.001, 2)})
"""


async def test_requests_of_a_source_are_bounded_by_method(with_policy: Any) -> None:
    server = with_policy(f"""
        {RATES.strip()}

        def sip_request(self, request):
            if self.rates.by_source(request):
                request.reject(503)

        def msrp_frame(self, frame):
            if self.rates.by_source(frame):
                frame.reject(413)
    """)
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(sip_ua(server, "alice"))
        # Each registration is two requests, the first without credentials.
        assert (await alice.register()).status == 200
        assert (await alice.register()).status == 503
        calls = [await alice.request("INVITE", "sip:nobody@example.com", auth=False) for _ in range(3)]
        assert [answer.status for answer in calls] == [407, 407, 503]
        assert [(await alice.options("sip:example.com")).status for _ in range(5)] == [200] * 5  # has no bound
        one = await enrolled(server, stack, "alice", "tcp")
        with pytest.raises(AuthFailed) as refused:
            await one.auth()
        assert refused.value.status == 413
        two = MsrpEndpoint("bob", "bob-secret", relay=("127.0.0.1", server.port), host="127.0.0.2")
        await stack.enter_async_context(two)
        await two.auth()
        sent = [await one.send([*one.use_path, *two.path], b"hello") for _ in range(3)]
        assert [message.responses[0].status for message in sent] == [200, 200, 413]
        assert (await two.send([*two.use_path, *one.path], b"hello")).ok


async def test_requests_of_a_user_are_bounded_by_method_wherever_they_come_from(with_policy: Any) -> None:
    server = with_policy(f"""
        {RATES.strip()}

        def sip_request(self, request):
            if request.header("Authorization") or request.header("Proxy-Authorization"):
                if self.rates.by_user(request, request.from_uri):
                    request.reject(503)

        def msrp_frame(self, frame):
            session = frame.look_up(frame.current_hop) if frame.method == "SEND" else None
            if session is not None and self.rates.by_user(frame, session.user):
                frame.reject(413)
    """)

    async def register(name: str, host: str) -> int:
        password = f"{name}-secret"
        async with SipUA(name, password, server=("127.0.0.1", server.port), local_host=host) as ua:
            return (await ua.register()).status

    statuses = [await register("alice", host) for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3")]
    assert (statuses, await register("bob", "127.0.0.1")) == ([200, 200, 503], 200)
    async with sip_ua(server, "alice") as alice, sip_ua(server, "bob") as bob:
        calls = [(await alice.request("INVITE", "sip:nobody@example.com")).status for _ in range(3)]
        assert calls == [404, 404, 503]
        assert (await bob.request("INVITE", "sip:nobody@example.com")).status == 404
    async with msrp_client(server, "alice", "tcp") as one, msrp_client(server, "bob", "tcp") as two:
        for ua in (one, two):
            await ua.auth()
        sent = [await one.send([*one.use_path, *two.path], b"hello") for _ in range(3)]
        assert [message.responses[0].status for message in sent] == [200, 200, 413]
        assert (await two.send([*two.use_path, *one.path], b"hello")).ok


async def test_logins_of_a_user_are_bounded_once_the_name_is_proved(with_policy: Any) -> None:
    server = with_policy("""
        logins = FloodDetector(rate=0.001, burst=2)

        def user_known(self, user):
            if self.logins.exceeds(user.name):
                user.count(user.protocol)
                user.reject()
    """)
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(sip_ua(server, "alice"))
        wrong = await stack.enter_async_context(SipUA("alice", "wrong", server=("127.0.0.1", server.port)))
        assert [(await wrong.register()).status for _ in range(3)] == [401] * 3  # costs Alice nothing
        assert [(await alice.register()).status for _ in range(3)] == [200, 200, 403]
        one = await stack.enter_async_context(msrp_client(server, "alice", "tcp"))
        for _ in range(2):
            await one.auth()
        with pytest.raises(AuthFailed) as refused:
            await one.auth()
        assert refused.value.status == 403
    assert await counted(server, "edge_policy_counts_total", label="sip") == 1
    assert await counted(server, "edge_policy_counts_total", label="msrp") == 1


def test_a_method_without_a_rate_has_no_bound() -> None:
    with pytest.raises(ValueError, match="above 0"):
        MethodRates({"SEND": (0, 5)})
    with pytest.raises(ValueError, match="at least 1"):
        FloodDetector(rate=1, burst=0)


# -- user agents, domains, sizes, certificates


async def test_scanners_get_no_answer_and_phones_do(with_policy: Any) -> None:
    server = with_policy("""
        scanners = ScannerList()

        def sip_request(self, request):
            if self.scanners.names(request.header("User-Agent")):
                request.count("scanner")
                request.drop()
    """)
    names = ["friendly-scanner", "SIPVicious 0.3", "sipcli/v1.8", "SIPsak 0.9.8", "pplsip"]
    async with stranger(server) as eve:
        for name in names:
            eve.send_request(_options(eve, name))
        assert await ask(eve, headers=[("User-Agent", "Yealink SIP-T46G 28.80")]) == 200
        assert await ask(eve) == 200
    assert await counted(server, "edge_policy_counts_total", len(names), label="scanner") == len(names)
    assert ScannerList(["Mine"]).names("not mine/1.0")
    assert not ScannerList(["Mine"]).names("friendly-scanner")


def _options(ua: SipUA, agent: str) -> bytes:
    lines = [
        "OPTIONS sip:example.com SIP/2.0", f"Via: {ua.via()}", "Max-Forwards: 70", f"From: <{ua.uri}>;tag=1",
        "To: <sip:example.com>", f"Call-ID: {agent.split(maxsplit=1)[0].replace('/', '-')}", "CSeq: 1 OPTIONS",
        f"User-Agent: {agent}", "Content-Length: 0", "", "",
    ]  # fmt: skip
    return "\r\n".join(lines).encode()


async def test_domains_are_let_in_by_a_list_in_both_protocols(with_policy: Any) -> None:
    server = with_policy("""
        partners = DomainList(["Partner.Example", ".branch.example", "127.0.0.1"])

        def sip_request(self, request):
            if not request.from_us and not self.partners.lists(request.from_uri):
                request.reject(403, "Not A Partner")

        def msrp_frame(self, frame):
            if frame.method == "SEND" and not self.partners.lists(frame.last_hop):
                frame.reject(403, "Not A Partner")
    """)
    answers = {}
    for domain in ("partner.example", "a.b.branch.example", "branch.example", "notpartner.example"):
        async with stranger(server, domain=domain) as eve:
            answers[domain] = await ask(eve)
    assert list(answers.values()) == [200, 200, 403, 403]
    async with msrp_client(server, "alice", "tcp") as alice, msrp_client(server, "bob", "tcp") as bob:
        await alice.auth()
        await bob.auth()
        assert (await alice.send([*alice.use_path, *bob.path], b"hello")).ok
        sent = await alice.send([*alice.use_path, "msrp://elsewhere.example:9/x;tcp"], b"hello")
        assert (sent.responses[0].status, sent.responses[0].comment) == (403, "Not A Partner")
    with pytest.raises(RemoteError):
        DomainList(["example.com"]).lists("tel:+49301234567")


async def test_a_message_that_is_too_large_is_refused_in_both_protocols(with_policy: Any) -> None:
    server = with_policy("""
        def sip_request(self, request):
            if is_larger(request.size, 2000):
                request.reject(513)

        def msrp_frame(self, frame):
            if is_larger(frame.size, 2000):
                frame.reject(413)
    """)
    async with sip_ua(server, "alice") as alice, sip_ua(server, "bob") as bob:
        await alice.register()
        await bob.register()
        bob.on_request = answering()
        assert [(await alice.message(bob.uri, b"x" * size)).status for size in (100, 2000)] == [200, 513]
    async with msrp_client(server, "alice", "tcp") as one, msrp_client(server, "bob", "tcp") as two:
        await one.auth()
        await two.auth()
        path = [*one.use_path, *two.path]
        assert (await one.send(path, b"x" * 2000)).ok
        for size in (2001, 200_000):  # the second is still coming when it is refused
            sent = await one.send(path, b"x" * size)
            assert sent.responses[0].status == 413
        chunks = await one.send(path, b"x" * 6000, chunk_size=1000)  # each is small, the message is not
        assert chunks.responses[0].status == 413


async def test_a_connection_is_let_in_by_the_certificate_it_came_with(with_policy: Any, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    own = authority.issue("edge", dns=["example.com"])
    server = with_policy(
        """
        def connection_accepted(self, connection):
            if connection.transport == "tls" and not has_identity(connection, ["gateway.example"]):
                connection.reject()
        """,
        files={"e.crt": own.certificate.read_bytes(), "e.key": own.private_key.read_bytes()},
        tls={"certificate": "e.crt", "private_key": "e.key", "client_ca": str(authority.path)},
    )
    gateway = authority.client_context(authority.issue("gateway", dns=["gateway.example"]), check_hostname=False)
    async with stranger(server, transport="tls", ssl_context=gateway) as known:
        assert await ask(known) == 200
    other = authority.client_context(authority.issue("other", dns=["other.example"]), check_hostname=False)
    with pytest.raises((OSError, EOFError)):
        async with stranger(server, transport="tls", ssl_context=other) as unknown:
            await ask(unknown, timeout=10)
    assert await counted(server, "edge_connections_refused_total", reason="policy") == 1


async def test_what_a_certificate_says_is_asked_of_its_bearer(with_policy: Any, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    own = authority.issue("edge", dns=["example.com"])
    server = with_policy(
        """
        def sip_request(self, request):
            if not has_identity(request, ["gateway.example", "spare.example"]):
                request.reject(403, "Show A Certificate")
        """,
        files={"e.crt": own.certificate.read_bytes(), "e.key": own.private_key.read_bytes()},
        tls={"certificate": "e.crt", "private_key": "e.key", "client_ca": str(authority.path)},
    )
    bearers = [
        authority.issue("gateway", dns=["gateway.example"]),
        authority.issue("other", dns=["other.example"]),
        None,
    ]
    answers = []
    for bearer in bearers:
        context = authority.client_context(bearer, check_hostname=False)
        async with stranger(server, transport="tls", ssl_context=context) as gateway:
            answers.append(await ask(gateway))
    assert answers == [200, 403, 403]
    async with stranger(server, transport="tcp") as plain:
        assert await ask(plain) == 403
