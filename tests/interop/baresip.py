"""baresip as a phone, driven over its ctrl_tcp module (JSON in netstrings)."""

from __future__ import annotations

import asyncio
import json
import uuid
import wave
from pathlib import Path
from typing import Any, Self

from tests.conftest import free_port
from tests.interop.programs import Program, find_program
from tests.ua.wait import deadline

_MODULES = ("/usr/lib/baresip/modules", "/usr/lib64/baresip/modules", "/usr/local/lib/baresip/modules")

_CONFIG = """\
module_path             {modules}
module                  g711.so
module                  aufile.so
module_tmp              uuid.so
module_tmp              account.so
module_app              contact.so
module_app              menu.so
module_app              debug_cmd.so
module_app              ctrl_tcp.so
ctrl_tcp_listen         127.0.0.1:{control}
sip_listen              127.0.0.1:0
sip_cafile              {trust}
net_interface           127.0.0.1
rtp_ports               {rtp}-{rtp_end}
audio_source            aufile,{tone}
call_local_timeout      60
"""

# What a browser insists on: DTLS-SRTP, ICE, and RTCP on the port of RTP.
_BROWSER_MODULES = "module ice.so\nmodule dtls_srtp.so\nrtcp_mux yes\n"
BROWSER_MEDIA = "mediaenc=dtls_srtp;medianat=ice"  # parameters of an account whose calls are with browsers


def modules_folder() -> Path | None:
    """Where the modules are installed, None if nowhere known."""
    return next((Path(name) for name in _MODULES if Path(name).is_dir()), None)


def write_configuration(directory: Path, account: str, trust: Path) -> int:
    """Write the folder that `baresip -f` takes, and return the port of ctrl_tcp."""
    directory.mkdir(parents=True, exist_ok=True)
    control = free_port()
    rtp = free_port(range(10240, 32000, 2))
    config = _CONFIG.format(
        modules=modules_folder(), control=control, trust=trust, rtp=rtp, rtp_end=rtp + 10, tone=write_tone(directory)
    )
    (directory / "config").write_text(config + _BROWSER_MODULES * (BROWSER_MEDIA in account))
    (directory / "accounts").write_text(account + "\n")
    (directory / "contacts").write_text("")
    (directory / "uuid").write_text(str(uuid.uuid4()))
    return control


def write_tone(directory: Path) -> Path:
    """Write a second of quiet as PCMU wants it; a phone without a microphone refuses the call's audio."""
    path = directory / "tone.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16000))
    return path


class Baresip:
    """The control connection of one running baresip. `events`: what it announced, oldest first; clear it at will."""

    def __init__(self, program: Program, control: int) -> None:
        self.program = program
        self.control = control
        self.events: list[dict[str, Any]] = []
        self._news = asyncio.Condition()
        self._answers: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._tokens = 0

    async def __aenter__(self) -> Self:
        self.program.wait_ready(self.control)
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.control)
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._writer.close()
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)

    async def command(self, name: str, parameters: str = "") -> str:
        """Run a command of the menu and return what it printed; raises AssertionError if baresip refused it."""
        self._tokens += 1
        token = f"t{self._tokens}"
        answer = self._answers[token] = asyncio.get_running_loop().create_future()
        data = json.dumps({"command": name, "params": parameters, "token": token}).encode()
        self._writer.write(b"%d:%b," % (len(data), data))
        async with deadline(10):
            result = await answer
        assert result["ok"], f"{name} {parameters}: {result}"
        return str(result["data"])

    async def event(self, kind: str, seconds: float = 15.0) -> dict[str, Any]:
        """Wait until `events` has one of that type, and return the first."""

        def found() -> dict[str, Any] | None:
            return next((event for event in self.events if event["type"] == kind), None)

        try:
            async with deadline(seconds), self._news:
                return await self._news.wait_for(found)
        except TimeoutError:
            seen = [event["type"] for event in self.events]
            raise TimeoutError(f"{self.program.name}: no {kind}; events so far: {seen}") from None

    async def _read(self) -> None:
        while True:
            length = await self._reader.readuntil(b":")
            message = json.loads(await self._reader.readexactly(int(length[:-1])))
            await self._reader.readexactly(1)
            if message.get("event"):
                async with self._news:
                    self.events.append(message)
                    self._news.notify_all()
            elif (answer := self._answers.pop(message.get("token", ""), None)) is not None and not answer.done():
                answer.set_result(message)


def installed() -> bool:
    """Whether baresip and its modules are there."""
    return find_program("baresip") is not None and modules_folder() is not None
