"""Several relays as processes: Use-Path of two hops, links between relays; and who is not let through, and counted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.conftest import EdgeServer, EdgeServerFactory, free_port
from tests.server.agents import LOOPBACK, USERS, counted, enrolled, msrp_client, open_config
from tests.ua.certs import Authority
from tests.ua.hostile import HostileClient
from tests.ua.msrp import AuthFailed, HashSink, MsrpEndpoint, MsrpListener
from tests.ua.msrp_frame import Frame
from tests.ua.wait import eventually


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Whom the relays trust."""
    return Authority(tmp_path_factory.mktemp("ca"))


HOSTS = ("localhost", "127.0.0.2", "127.0.0.3")


def relay_config(authority: Authority, port: int, host: str = HOSTS[0], **msrp: Any) -> dict[str, Any]:
    """A relay of that name, with a certificate for it, that asks others for theirs."""
    names = {"dns": [host]} if host == HOSTS[0] else {"ips": [host]}
    own = authority.issue(f"relay{port}", **names)
    trust = str(authority.path)
    return {
        "listen": [{"bind": f"{'127.0.0.1' if host == HOSTS[0] else host}:{port}"}],
        "tls": {
            "certificate": str(own.certificate),
            "private_key": str(own.private_key),
            "trust": trust,
            "client_ca": trust,
        },
        "msrp": {"allow_targets": LOOPBACK, "use_path": f"{host}:{port}", **msrp},
        "limits": {"trusted": LOOPBACK},
    }


@pytest.fixture(scope="module")
def relays(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[list[EdgeServer]]:
    """Three relays that know each other by certificate, each with a host of `HOSTS`."""
    servers = []
    for host in HOSTS:
        port = free_port()
        server = EdgeServer(tmp_path_factory.mktemp("relay"), relay_config(authority, port, host), port=port)
        server.import_users(USERS)
        server.start()
        servers.append(server)
    yield servers
    for server in servers:
        server.finish()


def uri_of(relays: list[EdgeServer], number: int) -> str:
    """What an AUTH for a relay is addressed to."""
    return f"msrps://{HOSTS[number]}:{relays[number].port};tcp"


def ports_of(path: list[str]) -> list[int]:
    """The ports of the URIs of a path."""
    return [int(uri.split(":")[2].split("/")[0]) for uri in path]


async def exchange(one: MsrpEndpoint, other: MsrpEndpoint) -> Frame:
    """A file and its report each way, and a refusal; returns the first chunk that `other` got."""
    for sender, receiver in ((one, other), (other, one)):
        path = [*sender.use_path, *receiver.path]
        sent = await sender.send(path, bytes(range(256)) * 1000, "application/octet-stream", success_report="yes")
        assert sent.ok
        message = await receiver.next_message()
        assert bytes(message.data) == bytes(range(256)) * 1000
        assert message.from_path[-1] == sender.uri
        report = await sender.next_report()
        assert (report["Message-ID"], report["Status"]) == (message.message_id, "000 200 OK")
    other.answer = 413
    assert (await one.send([*one.use_path, *other.path], b"no more")).ok
    assert (await one.next_report())["Status"].startswith("000 413")
    await other.next_message()
    return message.chunks[0]


# ------------------------------------------------------------------------------------------ Use-Path of several hops


@pytest.mark.requirement("MSRP-AUTH-25", "MSRP-AUTH-26", "MSRP-AUTH-27", "MSRP-SEND-03")
@pytest.mark.parametrize("transport", ["tls", "wss"])
async def test_a_client_enrols_with_a_second_relay_through_its_own(relays: list[EdgeServer], transport: str) -> None:
    one, two = relays[:2]
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(msrp_client(one, "alice", transport))
        bob = await stack.enter_async_context(msrp_client(two, "bob", host=HOSTS[1]))
        (first,) = await alice.auth()
        path = [first, uri_of(relays, 1)]
        with pytest.raises(AuthFailed) as failed:
            await alice.auth(5, to_path=path)
        assert (failed.value.status, failed.value.frame.get("Min-Expires")) == (423, "60")
        use_path = await alice.auth(900, to_path=path)
        assert use_path[0] == first
        assert ports_of(use_path) == [one.port, two.port]
        assert alice.expires == 900
        shown = two.run("show", "sessions", "--json", "--admin", two.admin_url).stdout
        assert "alice" in {row["user"].partition("@")[0] for row in json.loads(shown)["items"]}
        await bob.auth()
        assert ports_of((await exchange(alice, bob)).from_path[:-1]) == [one.port, two.port, two.port]
        alice.password = "wrong"
        with pytest.raises(AuthFailed) as failed:
            await alice.auth(to_path=path)
        assert failed.value.status == 401


@pytest.mark.requirement("MSRP-AUTH-25", "MSRP-AUTH-27", "MSRP-RPT-01")
async def test_a_use_path_of_three_relays(relays: list[EdgeServer]) -> None:
    one, two, three = relays
    async with msrp_client(one, "alice") as alice, msrp_client(three, "bob", host=HOSTS[2]) as bob:
        for number in range(3):
            await alice.auth(to_path=[*alice.use_path, uri_of(relays, number)])
        assert ports_of(alice.use_path) == [one.port, two.port, three.port]
        await bob.auth()
        chunk = await exchange(alice, bob)
        assert ports_of(chunk.from_path[:-1]) == [one.port, two.port, three.port, three.port]


@pytest.mark.requirement("MSRP-AUTH-02", "MSRP-SEND-02")
async def test_the_name_in_use_path_is_one_of_ours(relays: list[EdgeServer]) -> None:
    async with msrp_client(relays[0], "alice") as alice:
        (first,) = await alice.auth(to_path=[uri_of(relays, 0)])
        unknown = first.replace(f":{relays[0].port}/", f":{relays[0].port}/x")
        assert (await alice.send([unknown, alice.uri], b"?")).statuses == [481]


@pytest.mark.requirement("MSRP-AUTH-28")
async def test_a_second_relay_that_is_not_there_gives_408(relays: list[EdgeServer]) -> None:
    async with msrp_client(relays[0], "alice") as alice:
        (first,) = await alice.auth()
        with pytest.raises(AuthFailed) as failed:
            await alice.auth(to_path=[first, f"msrps://localhost:{free_port()};tcp"])
        assert failed.value.status == 408
        assert failed.value.frame.to_path == [alice.uri]


@pytest.mark.requirement("MSRP-AUTH-26")
async def test_nobody_else_enrols_through_a_clients_uri(relays: list[EdgeServer]) -> None:
    one, two = relays[:2]
    async with msrp_client(one, "alice") as alice, msrp_client(one, "erin") as erin:
        (first,) = await alice.auth()
        await erin.auth()
        opened = two.metrics().value("edge_connections_opened_total", transport="tls")
        with pytest.raises(AuthFailed) as failed:
            await erin.auth(to_path=[first, uri_of(relays, 1)])
        assert failed.value.status == 403
        assert two.metrics().value("edge_connections_opened_total", transport="tls") == opened


# ------------------------------------------------------------------------------------------ links


@pytest.mark.requirement("MSRP-CON-04", "MSRP-FLOW-03")
@pytest.mark.parametrize(("share", "links"), [(True, 1), (False, 3)])
async def test_sessions_share_a_link_to_another_relay_or_have_one_each(
    edge_server: EdgeServerFactory, authority: Authority, share: bool, links: int
) -> None:
    ports = free_port(), free_port()
    one = edge_server(relay_config(authority, ports[0], share_links=share), USERS, port=ports[0])
    two = edge_server(relay_config(authority, ports[1], HOSTS[1]), USERS, port=ports[1])
    async with AsyncExitStack() as stack:
        pairs = []
        for here, there in (("alice", "bob"), ("carol", "dave"), ("erin", "alice")):
            near = await enrolled(one, stack, here)
            far = await enrolled(two, stack, there, host=HOSTS[1])
            pairs.append((near, far))
        before = two.metrics().value("edge_connections_opened_total", transport="tls")
        await asyncio.gather(*(exchange(near, far) for near, far in pairs))
        for near, far in pairs:  # used again, in both directions
            far.answer = 200
            await exchange(far, near)
            near.answer = 200
        assert two.metrics().value("edge_connections_opened_total", transport="tls") == before + links
        assert one.metrics().value("edge_connections_opened_total", transport="tls") == len(pairs) + links


async def uris_for(client: MsrpEndpoint, count: int) -> list[str]:
    """So many URIs of the client's relay, all over this one connection."""
    client.reuse_nonce = True
    return [(await client.auth())[0] for _ in range(count)]


async def talk(sender: MsrpEndpoint, receiver: MsrpEndpoint, pairs: list[tuple[str, str]]) -> None:
    """A message in each of the sessions, all at once: each is answered, and comes once, along its own path."""
    paths = [[near, far, receiver.uri] for near, far in pairs]
    sent = await asyncio.gather(*(sender.send(path, b"%d" % number) for number, path in enumerate(paths)))
    assert all(one.ok for one in sent)
    came = {int(bytes(message.data)): message for message in [await receiver.next_message() for _ in paths]}
    assert len(came) == len(paths)
    for number, (near, far) in enumerate(pairs):
        assert came[number].from_path == [far, near, sender.uri]


@pytest.mark.requirement("MSRP-SEND-13", "MSRP-AUTH-24")
async def test_a_hundred_sessions_of_one_websocket_client_and_none_beyond_its_quota(
    edge_server: EdgeServerFactory,
) -> None:
    server = edge_server(open_config(msrp={"sessions_per_connection": 100}), USERS)
    async with (
        msrp_client(server, "alice", "ws") as alice,
        msrp_client(server, "bob", "tcp") as bob,
        msrp_client(server, "alice", "ws") as other,
    ):
        near, far = await uris_for(alice, 100), await uris_for(bob, 100)
        pairs = list(zip(near, far, strict=True))
        for _ in range(3):
            with pytest.raises(AuthFailed) as failed:
                await alice.auth()
            assert (failed.value.status, failed.value.frame.comment) == (403, "Too many sessions")
        assert server.metrics().value("edge_msrp_rejected_total", reason="session_quota") == 3
        await talk(alice, bob, pairs)
        await talk(bob, alice, [(far, near) for near, far in pairs])
        assert len(await uris_for(other, 1)) == 1  # the same user over another connection
        assert server.metrics().value("edge_msrp_sessions") == 201
        assert server.metrics().value("edge_connections_opened_total", transport="ws") == 2


@pytest.mark.requirement("MSRP-SEND-13", "MSRP-CON-04")
async def test_a_thousand_sessions_over_one_link_between_relays(
    edge_server: EdgeServerFactory, authority: Authority
) -> None:
    ports = free_port(), free_port()
    many = {"sessions_per_connection": 1000, "share_links": True}
    one = edge_server(relay_config(authority, ports[0], **many), USERS, port=ports[0])
    two = edge_server(relay_config(authority, ports[1], HOSTS[1], **many), USERS, port=ports[1])
    async with msrp_client(one, "alice") as alice, msrp_client(two, "bob", host=HOSTS[1]) as bob:
        pairs = list(zip(*await asyncio.gather(uris_for(alice, 1000), uris_for(bob, 1000)), strict=True))
        await talk(alice, bob, pairs)
        await talk(bob, alice, [(far, near) for near, far in pairs])
        assert two.metrics().value("edge_msrp_sessions") == 1000
        for server in (one, two):  # a client each, and the link
            assert server.metrics().value("edge_connections_opened_total", transport="tls") == 2


async def test_both_ends_speak_first_at_the_same_time(edge_server: EdgeServerFactory) -> None:
    """Their relays dial each other, and do not know each other by certificate."""
    one, two = edge_server(open_config(), USERS), edge_server(open_config(), USERS)
    for _ in range(5):
        async with msrp_client(one, "alice", "tcp") as alice, msrp_client(two, "bob", "tcp") as bob:
            await alice.auth()
            await bob.auth()
            ends = (alice, bob), (bob, alice)
            for text in (b"first", b"second"):
                await asyncio.gather(*(near.send([*near.use_path, *far.path], text) for near, far in ends))
                assert [bytes((await near.next_message()).data) for near, _ in ends] == [text, text]


@pytest.mark.requirement("MSRP-CHK-15", "MSRP-RPT-07", "MSRP-BIND-09")
async def test_a_relay_that_is_killed_in_the_middle_of_a_file_and_comes_back(
    edge_server: EdgeServerFactory, authority: Authority
) -> None:
    ports = free_port(), free_port()
    one = edge_server(relay_config(authority, ports[0]), USERS, port=ports[0])
    two = edge_server(relay_config(authority, ports[1], HOSTS[1]), USERS, port=ports[1])
    async with AsyncExitStack() as stack:
        alice = await enrolled(one, stack, "alice")
        bob = await enrolled(two, stack, "bob", host=HOSTS[1])
        begun = asyncio.Event()
        bob.sink, bob.on_body = HashSink, lambda frame, data: begun.set()

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield bytes(65536)

        sending = asyncio.ensure_future(
            alice.send([*alice.use_path, *bob.path], endless(), message_id="file", seconds=60)
        )
        async with asyncio.timeout(20):
            await begun.wait()
        assert two.process is not None
        two.process.kill()
        two.process.wait()
        assert (await sending).statuses == [408]
        # Nothing of it is reported as well: the next report is of what follows.
        two.start()
        bob.sink, bob.on_body = None, None
        await bob.connect()
        await bob.auth()
        assert (await alice.send([*alice.use_path, *bob.path], b"back", message_id="next", success_report="yes")).ok
        assert bytes((await bob.next_message()).data) == b"back"
        report = await alice.next_report()
        assert (report["Message-ID"], report["Status"]) == ("next", "000 200 OK")


# ------------------------------------------------------------------------------------------ who is not let through


@pytest.mark.requirement("MSRP-SEC-02")
async def test_targets_that_are_not_public_are_not_dialled_and_counted(edge_server: EdgeServerFactory) -> None:
    server = edge_server(open_config(msrp={"allow_targets": []}), USERS)
    async with msrp_client(server, "alice", "tcp") as alice, MsrpListener("peer") as peer:
        port = peer.address[1]
        hosts = ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "localhost", "10.1.2.3", "192.168.3.4", "169.254.1.1"]
        for number, host in enumerate(hosts, 1):
            (uri,) = await alice.auth()
            sent = await alice.send([uri, f"msrp://{host}:{port}/x;tcp"], b"?", message_id=f"to {number}")
            assert sent.ok
            report = await alice.next_report()
            assert (report["Message-ID"], report["Status"].split()[1]) == (f"to {number}", "403")
            await counted(server, "edge_connections_failed_total", number, reason="refused_target")
        assert peer.links == []


@pytest.mark.requirement("MSRP-RPT-07")
@pytest.mark.parametrize("host", ["two..dots.example", "x" * 64 + ".example", "nobody.example"])
async def test_a_name_that_is_not_found_is_reported_with_408(relays: list[EdgeServer], host: str) -> None:
    server = relays[0]
    async with msrp_client(server, "alice") as alice:
        (uri,) = await alice.auth()
        failed = server.metrics().value("edge_connections_failed_total", reason="not_found")
        assert (await alice.send([uri, f"msrps://{host}:2855/x;tcp"], b"?")).ok
        assert (await alice.next_report(20))["Status"].startswith("000 408")
        assert server.metrics().value("edge_connections_failed_total", reason="not_found") == failed + 1


@pytest.mark.requirement("MSRP-SEC-01", "MSRP-BIND-05", "MSRP-BIND-01", "MSRP-BIND-10")
async def test_strangers_are_refused_and_counted(edge_server: EdgeServerFactory) -> None:
    server = edge_server(open_config(), USERS)
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(msrp_client(server, "alice", "tcp"))
        peer = await stack.enter_async_context(MsrpListener("peer"))
        await alice.auth()

        async def statuses(path: list[str], count: int = 1) -> list[int]:
            async with msrp_client(server, "erin", "tcp") as erin:
                return [status for _ in range(count) for status in (await erin.send(path, b"?")).statuses]

        # A stranger has nobody dialled through Alice's URI, and does not speak for her over a connection of his own.
        assert await statuses([*alice.use_path, peer.uri]) == [403]
        await counted(server, "edge_msrp_rejected_total", 1, reason="target")
        assert (await alice.send([*alice.use_path, peer.uri], b"hello")).ok
        await peer.next_message()
        assert await statuses([*alice.use_path, alice.uri]) == [506]
        await counted(server, "edge_msrp_rejected_total", 1, reason="bound")
        # Who knows no session, and is nobody: five guesses; somebody else's relay: not one.
        nobody = alice.use_path[0].replace("/", "/x").replace("msrp:/x/x", "msrp://")
        assert await statuses([nobody, alice.uri], 5) == [481] * 5
        await counted(server, "edge_msrp_rejected_total", 5, reason="session")
        await counted(server, "edge_msrp_rejected_total", 1, reason="failures")
        async with HostileClient(("127.0.0.1", server.port)) as client:
            await client.send(
                b"MSRP a786hjs2 SEND\r\nTo-Path: msrp://gate.example:2855/x;tcp msrp://b.example:2/y;tcp\r\n"
                b"From-Path: msrp://c.example:9/y;tcp\r\nMessage-ID: 1\r\n-------a786hjs2$\r\n"
            )
            assert await client.read_until_close() == b""
        await counted(server, "edge_msrp_rejected_total", 1, reason="foreign")
        assert len(peer.links) == 1


async def test_a_flood_of_auth_is_refused_and_counted(edge_server: EdgeServerFactory) -> None:
    server = edge_server(open_config(limits={"trusted": []}), USERS)
    ends = 0
    for _ in range(30):
        async with msrp_client(server, "alice", "tcp") as alice:
            alice.password = "wrong"
            for _ in range(5):
                with pytest.raises(AuthFailed) as failed:
                    await alice.auth()
                if failed.value.status == 403:
                    break
            if failed.value.status == 403:
                break
            await alice.wait_closed()
            ends += 1
    assert ends > 0
    assert failed.value.status == 403
    await counted(server, "edge_msrp_rejected_total", 1, reason="locked_out")
    await counted(server, "edge_connections_closed_total", ends, reason="auth_failures")
    await eventually(lambda: "auth flood src=127.0.0.1" in server.log_text())
