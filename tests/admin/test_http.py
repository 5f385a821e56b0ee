"""edge/admin/http.py and page.py: routes, who may use them, health, and the port itself."""

from __future__ import annotations

import json
import logging
from html.parser import HTMLParser
from typing import Any

import pytest

from edge.admin.http import AdminServer
from edge.errors import ConfigError
from tests.admin.conftest import Admin, Edge
from tests.ua.sip import SipUA
from tests.ua.wait import within

TOKEN = "correct-horse"
with_token = pytest.mark.parametrize("admin", [TOKEN], indirect=True)
PROTECTED = ["/", "/metrics", "/api/connections", "/api/nothing", "/nowhere", "/healthz/", "//healthz"]


# -- health


async def test_alive_and_ready_without_token(admin: Admin) -> None:
    assert (await admin.get("/healthz"))["status"] == "alive"
    assert await admin.get("/readyz") == {"status": "ready", "reasons": []}


@pytest.mark.parametrize("part", ["listening", "draining", "storage"])
async def test_not_ready_says_why_and_stays_alive(edge: Edge, admin: Admin, part: str) -> None:
    if part == "storage":
        edge.storage.healthy = False
    else:
        setattr(edge, part, part == "draining")
    response, body = await admin.ask("/readyz")
    assert response.status == 503
    reasons = {"listening": "not listening", "draining": "draining", "storage": "storage down"}
    assert json.loads(body) == {"status": "not ready", "reasons": [reasons[part]]}
    assert (await admin.ask("/healthz"))[0].status == 200


# -- the token


@with_token
@pytest.mark.parametrize("path", PROTECTED)
async def test_without_the_token_nothing_is_told(admin: Admin, path: str) -> None:
    for given in (None, "", "Bearer", "Bearer ", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}2", f"Basic {TOKEN}", TOKEN,
                  "Bearer caf\u00e9"):  # fmt: skip
        response, body = await admin.ask(path, headers={} if given is None else {"Authorization": given})
        assert response.status == 401
        assert response.headers["WWW-Authenticate"].startswith("Bearer ")
        assert set(json.loads(body)) == {"error"}


@with_token
async def test_the_token_opens_everything(admin: Admin) -> None:
    for path in ("/", "/metrics", "/api/connections"):
        assert (await admin.ask(path))[0].status == 200
        assert (await admin.ask(path, headers={"Authorization": f"bearer  {TOKEN}"}))[0].status == 200
    assert (await admin.ask("/nowhere"))[0].status == 404


@with_token
@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_health_checks_need_no_token(admin: Admin, path: str) -> None:
    assert (await admin.ask(path, headers={}))[0].status == 200


@with_token
async def test_post_needs_the_token_too(edge: Edge, admin: Admin) -> None:
    async with SipUA("bob", server=edge.address, transport="tcp") as bob:
        await bob.register()
        (row,) = await admin.items("connections")
        response, _ = await admin.ask(f"/api/connections/{row['id']}/disconnect", method="POST", headers={})
        assert response.status == 401
        assert len(edge.table.connections) == 1


@with_token
async def test_denials_are_logged_without_the_token_and_not_each(
    admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(5):
        await admin.ask("/metrics?token=letmein-1", headers={"Authorization": "Bearer letmein-2"})
    records = [record for record in caplog.records if record.name == "edge.security"]
    assert [record.levelname for record in records] == ["WARNING"]
    text = records[0].getMessage()
    assert text.startswith("admin denied src=127.0.0.1:")
    assert "path=/metrics reason=wrong_token" in text
    assert "letmein" not in caplog.text
    assert TOKEN not in caplog.text


# -- routes


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/api", 404),
        ("GET", "/api/", 404),
        ("GET", "/api/nothing", 404),
        ("GET", "/api/health", 404),
        ("GET", "/api/disconnect", 404),
        ("GET", "/api/__class__", 404),
        ("GET", "/api/connections/1/disconnect", 405),
        ("POST", "/api/connections", 405),
        ("POST", "/metrics", 405),
        ("PUT", "/", 405),
        ("DELETE", "/api/connections", 405),
        ("POST", "/api/connections/1/disconnect", 404),
        ("GET", "/api/connections?limit=0", 400),
        ("GET", "/api/connections?limit=-1", 400),
        ("GET", "/api/connections?limit=", 400),
        ("GET", "/api/connections?limit=%C2%B2", 400),
        ("GET", "/api/connections?limit=" + "9" * 5000, 400),
    ],
)
async def test_errors_are_json_with_a_reason(admin: Admin, method: str, path: str, status: int) -> None:
    response, body = await admin.ask(path, method=method)
    assert response.status == status
    assert response.content_type == "application/json"
    error = json.loads(body)
    assert set(error) == {"error"}
    assert error["error"]
    assert (status == 405) == ("Allow" in response.headers)


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/api/connections"])
async def test_head_is_not_served(admin: Admin, path: str) -> None:
    assert (await admin.ask(path, method="HEAD"))[0].status == 405


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/readyz", "/api/flows", "/nowhere"])
async def test_answers_are_not_cached_and_do_not_name_the_library(admin: Admin, path: str) -> None:
    response, _ = await admin.ask(path)
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Server"] == "edge"


@pytest.mark.parametrize(
    "name", ["", "x", "0-6560a3f1-", "0-6560a3f1-99", "1-6560a3f1-1", "0-00000000-1", "0-6560a3f1-%C2%B2",
             "0-6560a3f1-" + "1" * 5000, "%00", "..%2F..%2F", "%FF"],
)  # fmt: skip
async def test_disconnecting_what_is_not_there_is_404(edge: Edge, admin: Admin, name: str) -> None:
    async with SipUA("bob", server=edge.address, transport="tcp") as bob:
        await bob.register()
        response, body = await admin.ask(f"/api/connections/{name}/disconnect", method="POST")
        assert response.status == 404
        assert "error" in json.loads(body)
        assert len(edge.table.connections) == 1


async def test_a_page_of_another_origin_cannot_disconnect(edge: Edge, admin: Admin) -> None:
    async with SipUA("bob", server=edge.address, transport="tcp") as bob:
        await bob.register()
        (row,) = await admin.items("connections")
        path = f"/api/connections/{row['id']}/disconnect"
        for origin in ("https://evil.example", "null", "http://127.0.0.1"):
            response, _ = await admin.ask(path, method="POST", headers={"Origin": origin})
            assert response.status == 403
        assert len(edge.table.connections) == 1
        response, _ = await admin.ask(path, method="POST", headers={"Origin": admin.url})
        assert response.status == 200
        assert not edge.table.connections


# -- the page


class Links(HTMLParser):
    """Collects what a page links to, and the elements it has."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]


async def test_page_shows_the_numbers_and_its_links_work(edge: Edge, admin: Admin) -> None:
    async with SipUA("bob", server=edge.address, transport="tcp", reg_id=1) as bob:
        await bob.register()
        response, body = await admin.ask("/")
        assert (response.status, response.content_type) == (200, "text/html")
        page = Links()
        page.feed(body.decode())
        assert "edge: ready" in body.decode()
        assert "script" not in page.tags
        assert len(page.links) == 8
        for link in page.links:
            assert (await admin.ask(link))[0].status == 200
        for kind in ("connections", "flows", "registrations"):
            assert f"{kind}</a></td><td>1</td>" in body.decode()
        assert "sessions</a></td><td>0</td>" in body.decode()


async def test_page_says_what_is_wrong(edge: Edge, admin: Admin) -> None:
    edge.draining, edge.listening = True, False
    assert b"edge: not listening, draining" in (await admin.ask("/"))[1]


# -- the port


async def test_a_port_that_is_taken_is_named(edge: Edge, admin: Admin) -> None:
    host, port = admin.server.address
    second = AdminServer(f"{host}:{port}", "", edge.source, bytes, config="edge.toml")
    with pytest.raises(ConfigError, match="address already in use") as caught:
        await second.start()
    assert (caught.value.source, caught.value.key) == ("edge.toml", "admin.bind")
    assert f"{host}:{port}" in caught.value.reason
    await second.stop()


async def test_an_address_we_do_not_have_is_named(edge: Edge) -> None:
    with pytest.raises(ConfigError) as caught:
        await AdminServer("192.0.2.1:9060", "", edge.source, bytes).start()
    assert caught.value.key == "admin.bind"


async def test_ipv6(edge: Edge, admin: Admin) -> None:
    server = AdminServer("[::1]:0", "", edge.source, bytes)
    await server.start()
    host, port = server.address
    assert host == "::1"
    async with admin.client.get(f"http://[::1]:{port}/healthz") as response:
        assert response.status == 200
    await server.stop()


async def test_after_stop_nobody_answers_and_the_port_is_free(edge: Edge, admin: Admin) -> None:
    await admin.get("/healthz")  # leaves a connection that is kept alive
    host, port = admin.server.address
    await within(admin.server.stop(), 5)
    again = AdminServer(f"{host}:{port}", "", edge.source, bytes)
    await again.start()
    await again.stop()
    await again.stop()
