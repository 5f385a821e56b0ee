"""`edge show` and `edge disconnect`, against an HTTP server that answers as the admin port does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edge.cli import COLUMNS, Kind
from tests.cli.conftest import Command
from tests.conftest import free_port


class Admin:
    """An HTTP server: `answers` maps "METHOD path" to status and body; `seen` has the requests."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, str]] = {}
        self.seen: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def respond(self) -> None:
                request = f"{self.command} {self.path}"
                outer.seen.append((request, self.headers.get("Authorization")))
                status, body = outer.answers.get(request, (404, ""))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())

            def do_GET(self) -> None:
                self.respond()

            def do_POST(self) -> None:
                self.respond()

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def admin() -> Iterator[Admin]:
    server = Admin()
    yield server
    server.close()


def test_a_table_has_known_columns_first_and_in_order(edge: Command, admin: Admin) -> None:
    items = [
        {"zebra": 1, "remote": "192.0.2.1:5060", "id": "w0-67aa-12", "transport": "tls", "uses": [], "idle": 1.2600001},
        {"id": "w0-67aa-13", "transport": "udp", "remote": None, "writable": True, "owner": {"a": 1}},
    ]
    admin.answers["GET /api/connections"] = (200, json.dumps({"items": items}))
    done = edge("show", "connections", "--admin", admin.url)
    assert (done.returncode, done.stderr) == (0, "")
    head, first, second = (line.split() for line in done.stdout.splitlines())
    assert head == ["id", "transport", "remote", "uses", "idle", "zebra", "writable", "owner"]
    assert first == ["w0-67aa-12", "tls", "192.0.2.1:5060", "-", "1.26", "1", "-", "-"]
    assert second[:5] == ["w0-67aa-13", "udp", "-", "-", "-"]
    assert "yes" in second
    assert '{"a": 1}' in done.stdout


def test_wide_rows_are_not_cut_in_a_pipe(edge: Command, admin: Admin) -> None:
    contact = "<sip:" + "x" * 300 + "@192.0.2.1>"
    admin.answers["GET /api/registrations"] = (200, json.dumps({"items": [{"aor": "sip:a@b", "contact": contact}]}))
    assert contact in edge("show", "registrations", "--admin", admin.url).stdout


@pytest.mark.requirement("SIP-DOS-05")
def test_what_came_from_the_wire_cannot_steer_the_terminal(edge: Command, admin: Admin) -> None:
    items = [{"aor": "sip:a@b", "user_agent": "evil\x1b[2J\r\n[red]x[/red]"}]
    admin.answers["GET /api/registrations"] = (200, json.dumps({"items": items}))
    done = edge("show", "registrations", "--admin", admin.url)
    assert r"evil\x1b[2J\r\n[red]x[/red]" in done.stdout
    assert len(done.stdout.splitlines()) == 2


def test_json_is_what_the_server_sent(edge: Command, admin: Admin) -> None:
    answer = {"items": [{"id": "ä", "n": 1.25}], "more": 1}
    admin.answers["GET /api/flows"] = (200, json.dumps(answer))
    assert json.loads(edge("show", "flows", "--json", "--admin", admin.url + "/").stdout) == answer


@pytest.mark.parametrize("kind", list(Kind))
def test_an_empty_list_still_has_its_columns(edge: Command, admin: Admin, kind: Kind) -> None:
    admin.answers[f"GET /api/{kind.value}"] = (200, '{"items": []}')
    done = edge("show", kind.value, "--admin", admin.url)
    assert done.stdout.split() == " ".join(COLUMNS[kind]).replace("_", " ").split()


def test_address_and_token_come_from_the_configuration(edge: Command, admin: Admin, tmp_path: Path) -> None:
    port = admin.server.server_port
    (tmp_path / "edge.toml").write_text(f'[admin]\nbind = "0.0.0.0:{port}"\ntoken = "env:TOKEN"')
    admin.answers["GET /api/sessions"] = (200, '{"items": []}')
    edge("show", "sessions", "--config", "edge.toml", env={"TOKEN": "from-env", "http_proxy": "http://127.0.0.1:1"})
    edge("show", "sessions", "--config", "edge.toml", "--token", "given", env={"TOKEN": "from-env"})
    edge("show", "sessions", "--admin", admin.url)
    assert [token for _, token in admin.seen] == ["Bearer from-env", "Bearer given", None]


def test_a_connection_is_closed_by_its_id(edge: Command, admin: Admin) -> None:
    admin.answers["POST /api/connections/w0-67aa-12/disconnect"] = (200, "{}")
    done = edge("disconnect", "w0-67aa-12", "--admin", admin.url)
    assert (done.returncode, done.stdout) == (0, "w0-67aa-12 disconnected\n")
    done = edge("disconnect", "../x y", "--admin", admin.url)
    assert (done.returncode, done.stderr) == (1, "edge: ../x y: no such connection\n")
    assert admin.seen[-1][0] == "POST /api/connections/..%2Fx%20y/disconnect"


@pytest.mark.parametrize(
    ("answer", "arguments", "reason"),
    [
        ((401, ""), [], "the token is missing; give --token or set admin.token"),
        ((401, ""), ["--token", "x"], "the token is wrong"),
        ((500, "oops"), [], "/api/flows: the server answered 500"),
        ((200, "no json"), [], "no answer from a running server: "),
        ((200, "[]"), [], "the server sent no list of flows"),
        ((200, '{"items": [1]}'), [], "the server sent no list of flows"),
    ],
)
def test_answers_that_are_no_list(
    edge: Command, admin: Admin, answer: tuple[int, str], arguments: list[str], reason: str
) -> None:
    admin.answers["GET /api/flows"] = answer
    done = edge("show", "flows", "--admin", admin.url, *arguments)
    assert done.returncode == 1
    assert reason in done.stderr
    assert done.stderr.startswith("edge: ")
    assert done.stderr.count("\n") == 1


def test_no_server_is_one_line(edge: Command) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = edge("show", "flows", "--admin", url)
    assert done.returncode == 1
    assert done.stderr == f"edge: {url}: no answer from a running server: Connection refused\n"


def test_an_admin_url_of_another_kind_is_refused(edge: Command) -> None:
    done = edge("show", "flows", "--admin", "file:///etc/passwd")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "edge: --admin: file:///etc/passwd is not an http:// or https:// URL\n"
