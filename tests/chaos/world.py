"""Two edges and a registrar as three processes in network namespaces, and what can be done to them.

              10.77.1.0/24           10.77.11.0/24
           ┌─ cl ───────── edge1 ──────────── core ─┐
    clients│                                        │ registrar, 10.77.10.1
           └─ cl ───────── edge2 ──────────── core ─┘
              10.77.2.0/24           10.77.12.0/24

A third link leads from the clients to each process (10.77.101.0/24 and so on): the admin interface is never cut off.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.conftest import PACKAGE_FOLDER, ROOT, to_toml
from tests.ua.wait import eventually

FLOW_TIMER_S = 5
SIP_PORT = 5060
TOKEN = "chaos"
REGISTRAR = "10.77.10.1"
EDGES = ("edge1", "edge2")
NAMES = (*EDGES, "registrar")


def client_side(edge: str) -> str:
    """The address clients reach an edge at; theirs ends in 1."""
    return f"10.77.{edge[-1]}.2"


def admin_address(name: str) -> str:
    return f"10.77.{101 + NAMES.index(name)}.2"


def namespaces(prefix: str) -> list[str]:
    return [f"{prefix}-{name}" for name in (*NAMES, "clients")]


# -- made and removed from outside


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


def _link(prefix: str, one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    (space, name, address), (far_space, far_name, far_address) = one, other
    here, there = f"{prefix}-{space}", f"{prefix}-{far_space}"
    _ip("link", "add", name, "netns", here, "type", "veth", "peer", "name", far_name, "netns", there)
    for where, device, value in ((here, name, address), (there, far_name, far_address)):
        _ip("-n", where, "address", "add", f"{value}/24", "dev", device)
        _ip("-n", where, "link", "set", device, "up")


def build(prefix: str) -> None:
    """Make the namespaces and their links."""
    for space in namespaces(prefix):
        _ip("netns", "add", space)
        _ip("-n", space, "link", "set", "lo", "up")
    _ip("-n", f"{prefix}-registrar", "address", "add", f"{REGISTRAR}/32", "dev", "lo")
    for number, edge in enumerate(EDGES, 1):
        _link(prefix, ("clients", edge, f"10.77.{number}.1"), (edge, "cl", client_side(edge)))
        _link(prefix, ("registrar", edge, f"10.77.1{number}.1"), (edge, "core", f"10.77.1{number}.2"))
        _ip("-n", f"{prefix}-{edge}", "route", "add", REGISTRAR, "via", f"10.77.1{number}.1")
    for name in NAMES:
        address = admin_address(name)
        _link(prefix, ("clients", f"a-{name}", f"{address[:-1]}1"), (name, "admin", address))


def remove(prefix: str) -> None:
    """Remove the namespaces; a link goes with one of its ends."""
    for space in namespaces(prefix):
        subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True, timeout=20)


# -- the processes


@dataclass
class Life:
    """One process from its start to its end, and the events it told of: (seconds on our clock, event)."""

    name: str
    number: int
    process: subprocess.Popen[bytes]
    events: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    lost: int = 0
    killed: bool = False
    reader: asyncio.Task[None] | None = None


class Node:
    """A server that is killed and started again. Every start has a `Life`; `on_event` is told what the last one says."""

    def __init__(self, prefix: str, name: str, directory: Path) -> None:
        self.space = f"{prefix}-{name}"
        self.name = name
        self.directory = directory
        self.lives: list[Life] = []
        self.on_event: Callable[[float, dict[str, Any]], None] = lambda at, event: None
        self._dropped: set[str] = set()
        self._environment = dict(os.environ, PYTHONUNBUFFERED="1", PYTHONFAULTHANDLER="1")
        self._environment["PYTHONPATH"] = os.pathsep.join([PACKAGE_FOLDER, str(ROOT)])
        directory.mkdir(parents=True)
        (directory / "edge.toml").write_text(to_toml(self._settings()))

    def _settings(self) -> dict[str, Any]:
        number = self.name[-1]
        settings: dict[str, Any] = {
            "domains": ["example.com"],
            "role": "registrar" if self.name == "registrar" else "edge",
            "listen": [{"bind": f"0.0.0.0:{SIP_PORT}", "advertise": f"10.77.1{number}.2:{SIP_PORT}"}],
            "storage": {"url": f"sqlite:///{self.directory}/edge.db"},
            "sip": {"allow_targets": ["10.77.0.0/16"], "udp_flow_timeout": 20},
            "outbound": {"flow_timer": FLOW_TIMER_S, "force": "all"},
            "limits": {"trusted": ["10.77.0.0/16"], "idle_timeout": 32, "drain_timeout": 1},
            "admin": {"bind": f"{admin_address(self.name)}:9060", "token": TOKEN},
        }
        if self.name == "registrar":
            settings["listen"][0]["advertise"] = f"{REGISTRAR}:{SIP_PORT}"
            settings["sip"]["trusted_edges"] = ["10.77.0.0/16"]
        else:
            settings["sip"]["next_hop"] = f"sip:{REGISTRAR}:{SIP_PORT};transport=tcp"
            settings["sip"]["trusted_core"] = [f"10.77.1{number}.1/32"]  # the registrar's address on this link
        return settings

    @property
    def life(self) -> Life:
        return self.lives[-1]

    def import_users(self, users: dict[str, str]) -> None:
        path = self.directory / "users.txt"
        path.write_text("".join(f"{address}:{password}\n" for address, password in users.items()))
        command = [sys.executable, "-m", "edge.cli", "user", "import", str(path), "--config", "edge.toml"]
        subprocess.run(command, cwd=self.directory, env=self._environment, check=True, capture_output=True, timeout=60)

    async def start(self) -> None:
        """Start the process; clients reach it when somebody reads its events."""
        if self.name != "registrar":
            await self.drop("cl")
        command = [
            "ip",
            "netns",
            "exec",
            self.space,
            sys.executable,
            "-m",
            "edge.cli",
            "serve",
            "--config",
            "edge.toml",
        ]
        with (self.directory / "server.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        life = Life(self.name, len(self.lives), process)
        self.lives.append(life)
        await eventually(self._is_ready, 60, what=f"readiness of {self.name}")
        listening = asyncio.Event()
        life.reader = asyncio.create_task(self._read_events(life, listening))
        async with asyncio.timeout(20):
            await listening.wait()
        await self.restore("cl")

    async def _is_ready(self) -> bool:
        if self.life.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with {self.life.process.returncode} at its start")
        try:
            return (await self.get("/readyz"))[0] == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    async def kill(self) -> None:
        """SIGKILL, and wait until what it still told of is read."""
        self.life.killed = True
        self.life.process.kill()
        await self._ended()

    async def stop(self) -> None:
        """SIGTERM twice: at once."""
        self.life.process.terminate()
        await asyncio.sleep(0)
        self.life.process.terminate()
        await self._ended()

    async def _ended(self) -> None:
        await asyncio.to_thread(self.life.process.wait, 20)
        if self.life.reader is not None:
            async with asyncio.timeout(10):
                await self.life.reader

    # -- what it says

    async def get(self, path: str) -> tuple[int, bytes]:
        """GET from the admin interface: status and body."""
        timeout = aiohttp.ClientTimeout(total=10)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(self._url(path), headers=self._headers()) as response,
        ):
            return response.status, await response.read()

    async def rows(self, kind: str) -> list[dict[str, Any]]:
        """A list of the admin interface."""
        status, body = await self.get(f"/api/{kind}")
        assert status == 200, body
        answer = json.loads(body)
        assert not answer["more"]
        return list(answer["items"])

    def _url(self, path: str) -> str:
        return f"http://{admin_address(self.name)}:9060{path}"

    @staticmethod
    def _headers() -> dict[str, str]:
        return {"Authorization": f"Bearer {TOKEN}"}

    async def _read_events(self, life: Life, listening: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            try:
                async with session.get(self._url("/api/events"), headers=self._headers()) as response:
                    async for line in response.content:
                        listening.set()
                        if line.startswith(b"data: "):
                            self._take(life, loop.time(), json.loads(line[6:]))
            except (aiohttp.ClientError, OSError):
                return  # it was killed

    def _take(self, life: Life, at: float, event: dict[str, Any]) -> None:
        if "event" not in event:
            life.lost += event["lost"]
            return
        life.events.append((at, event))
        self.on_event(at, event)

    # -- links

    async def drop(self, device: str) -> None:
        """Let every packet of a link disappear without a word."""
        self._dropped.add(device)
        await self._apply()

    async def restore(self, device: str) -> None:
        """End what `drop` began."""
        self._dropped.discard(device)
        await self._apply()

    async def _apply(self) -> None:
        devices = sorted(self._dropped)
        inputs = "\n".join(f'iifname "{device}" drop' for device in devices)
        outputs = "\n".join(f'oifname "{device}" drop' for device in devices)
        rules = f"""
            table inet chaos
            delete table inet chaos
            table inet chaos {{
                chain input {{ type filter hook input priority 0; {inputs}
                }}
                chain output {{ type filter hook output priority 0; {outputs}
                }}
            }}
        """
        await run("ip", "netns", "exec", self.space, "nft", "-f", "-", stdin=rules)

    async def unplug(self, device: str) -> None:
        """Take a link down: both ends see it, and lose their routes."""
        await run("ip", "-n", self.space, "link", "set", device, "down")

    async def plug(self, device: str) -> None:
        """Take a link up again."""
        await run("ip", "-n", self.space, "link", "set", device, "up")
        if device == "core":
            gateway = f"10.77.1{self.name[-1]}.1"
            await run("ip", "-n", self.space, "route", "replace", REGISTRAR, "via", gateway)


async def run(*command: str, stdin: str = "") -> None:
    """Run a program. Raises RuntimeError with what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await process.communicate(stdin.encode())
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {output.decode()}")
