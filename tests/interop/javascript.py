"""SIP.js and JsSIP as clients: in Node, and SIP.js in headless Chromium too.

A client takes its orders from a small HTTP server of the test and reports there what happened to it
(`clients/control.js`). The packages of `package.json` are installed beside it when they are not there.
"""

from __future__ import annotations

import asyncio
import functools
import http.server
import json
import queue
import subprocess
import threading
import urllib.parse
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import pytest

from tests.conftest import EdgeServer
from tests.interop.conftest import USERS, StartProgram
from tests.interop.programs import Program, find_program
from tests.ua.wait import eventually, scaled

HERE = Path(__file__).parent
CLIENTS = HERE / "clients"

# Nothing that talks to anybody but the test. The camera and microphone are made up, and there is no one to ask for leave.
_CHROMIUM = [
    "chromium",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--no-proxy-server",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--ignore-certificate-errors",
    "--autoplay-policy=no-user-gesture-required",
]


@functools.cache
def missing_packages() -> str:
    """Install what package.json names; return why it is not there afterwards, or nothing."""
    if find_program("node") is None or find_program("npm") is None:
        return "not installed: node, npm"
    wanted = json.loads((HERE / "package.json").read_text())["dependencies"]
    if all(_installed_version(name) == version for name, version in wanted.items()):
        return ""
    command = [find_program("npm") or "npm", "install", "--no-save", "--ignore-scripts", "--loglevel=error"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=scaled(180), check=False)
    return "" if done.returncode == 0 else f"npm could not install its packages: {done.stderr[-500:]}"


def _installed_version(name: str) -> str:
    path = HERE / "node_modules" / name / "package.json"
    return str(json.loads(path.read_text())["version"]) if path.exists() else ""


def require_packages() -> None:
    """Skip the test where the packages cannot be had."""
    if reason := missing_packages():
        pytest.skip(reason)


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Static files of this folder, `/next` for the client's next order, `/report` for what it has to say."""

    def __init__(self, client: JavaScriptClient, *arguments: Any) -> None:
        self.client = client
        super().__init__(*arguments, directory=str(HERE))

    def do_GET(self) -> None:
        if self.path != "/next":
            super().do_GET()
            return
        try:
            self._answer(200, json.dumps(self.client.orders.get(timeout=1)).encode())
        except queue.Empty:
            self._answer(204)

    def do_POST(self) -> None:
        self.client.events.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer(204)

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class JavaScriptClient:
    """One user agent and its control server. `events`: what it reported, oldest first; clear it at will."""

    def __init__(self, user: str, password: str, server: str) -> None:
        self.user = user
        self.instance = str(uuid.uuid4())
        self.events: list[dict[str, Any]] = []
        self.orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.program: Program | None = None
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, self))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), name=f"control of {user}")
        self.control = f"http://127.0.0.1:{self._http.server_port}"
        self.settings = {
            "control": self.control,
            "server": server,
            "user": user,
            "domain": "example.com",
            "password": password,
            "instance": self.instance,
        }

    async def __aenter__(self) -> Self:
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.order("quit")
        if self.program is not None:
            await asyncio.to_thread(self.program.stop)
        await asyncio.to_thread(self._http.shutdown)
        self._thread.join()
        self._http.server_close()

    def run_in_node(self, start: Callable[..., Program], script: str, trust: Path) -> None:
        """Start `clients/SCRIPT` under Node, which verifies the server's certificate against `trust`."""
        arguments = ["node", CLIENTS / script, json.dumps(self.settings)]
        self.program = start(f"{script}-{self.user}", arguments, env={"NODE_EXTRA_CA_CERTS": str(trust)})

    def run_in_chromium(self, start: Callable[..., Program], profile: Path) -> None:
        """Open `clients/page.html` in a browser with a new profile."""
        address = f"{self.control}/clients/page.html#{urllib.parse.quote(json.dumps(self.settings))}"
        self.program = start("chromium", [*_CHROMIUM, f"--user-data-dir={profile}", address])

    def order(self, name: str, **argument: Any) -> None:
        """Let the client do something: see `obey` in the scripts."""
        self.orders.put({"name": name, "argument": argument})

    async def event(self, name: str, seconds: float = 15.0, **wanted: Any) -> dict[str, Any]:
        """Wait until it has reported such an event with these values, and return the first."""

        def found() -> dict[str, Any] | None:
            return next((e for e in self.events if e["event"] == name and wanted.items() <= e.items()), None)

        try:
            return await eventually(found, seconds, what=f"{name} {wanted or ''} of {self.user}")
        except TimeoutError as error:
            raise TimeoutError(f"{error}; reported so far: {self.events}") from None


async def registered_clients(
    stack: AsyncExitStack, start: StartProgram, ca: Path, *members: tuple[str, str, EdgeServer]
) -> list[JavaScriptClient]:
    """Clients in Node, each a user of `USERS`, a script and the server it uses; all of them registered with outbound."""
    clients = []
    for user, script, server in members:
        client = JavaScriptClient(user, USERS[f"{user}@example.com"], f"wss://127.0.0.1:{server.port}")
        clients.append(await stack.enter_async_context(client))
        client.run_in_node(start, script, ca)
    for client in clients:
        registered = await client.event("registered")
        assert (registered["status"], registered["require"]) == (200, "outbound")
        assert int(registered["flowTimer"]) > 0
    return clients
