"""The clock, the waits and the certificates the simulated agents and their tests stand on."""

import asyncio
import ssl
from pathlib import Path

import pytest
from cryptography import x509

from tests.ua.certs import Authority
from tests.ua.clock import FakeClock
from tests.ua.hostile import HostileClient
from tests.ua.link import Link, listen
from tests.ua.wait import deadline, eventually, eventually_blocking, scaled, within


def test_clock_moves_only_when_told() -> None:
    clock = FakeClock(10.0)
    assert clock.advance(2.5) == clock.now == clock() == 12.5
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-1)


async def test_waits_are_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_TEST_TIMEOUT_SCALE", "0.001")
    assert scaled(5) == 0.005
    with pytest.raises(TimeoutError):
        await within(asyncio.Event().wait(), 20)
    with pytest.raises(TimeoutError):
        async with deadline(20):
            await asyncio.Event().wait()
    with pytest.raises(TimeoutError, match=r"the moon was not reached in 0\.02 s; last seen: 0"):
        await eventually(lambda: 0, 20, what="the moon")
    with pytest.raises(TimeoutError, match=r"last seen: \[\]"):
        eventually_blocking(list, 20)


async def test_eventually_takes_functions_and_coroutines() -> None:
    values = iter([0, 0, "there"])

    async def later() -> str | int:
        return next(values)

    assert await eventually(later) == "there"
    assert await eventually(lambda: 7) == 7
    assert eventually_blocking(lambda: 7) == 7


def test_certificate_carries_the_names(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    files = authority.issue("edge/1", dns=["edge.example"], uris=["sip:example.com"], ips=["127.0.0.1", "::1"])
    names = x509.load_pem_x509_certificate(files.certificate.read_bytes()).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["edge.example"]
    assert names.value.get_values_for_type(x509.UniformResourceIdentifier) == ["sip:example.com"]
    assert [str(ip) for ip in names.value.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert files.private_key.stat().st_mode & 0o077 == 0


def nothing(link: Link, data: bytes) -> None:
    """Take data and do nothing with it."""


async def is_refused(client: HostileClient) -> bool:
    """Whether TLS comes to nothing; with TLS 1.3 the first read tells of a certificate the server refused."""
    try:
        await client.handshake()
        await client.read_until(b"anything")
    except (ssl.SSLError, ConnectionError, EOFError):
        return True
    finally:
        client.close()
    return False


async def test_mutual_tls_and_the_ways_it_fails(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    server = ours.server_context(ours.issue("server", ips=["127.0.0.1"]), client_certificates=True)
    listener = await listen("tls", "127.0.0.1", 0, nothing, ssl_context=server)
    async with HostileClient(listener.address, tls=ours.client_context(ours.issue("client"))):
        pass
    for context in (
        ours.client_context(),
        theirs.client_context(check_hostname=False),
        ours.client_context(ours.issue("old", days=(-10, -1))),
        ours.client_context(theirs.issue("stranger")),
    ):
        assert await is_refused(await HostileClient(listener.address, tls=context).connect())
    await listener.close()
