"""Kill, cut and reconnect at random under calls, and account for every call, flow and event.

    python -m tests.chaos.run --seconds 600 --seed 5626

Needs root, `ip` and `nft`. It makes network namespaces of its own (see `world`) and removes them. The last line says
whether everything is accounted for; the exit status is 0 if it is, 1 if not. With `--brief` it does not wait for the
longest clocks: sockets that clients left open without a word are closed in the end, and transactions may be left, for
an INVITE that rang and whose way is gone is given up by timer C, after three minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.chaos import accounting, world
from tests.chaos.clients import CallRecord, Client, Diary, Phone, Trouble
from tests.chaos.world import EDGES, NAMES, Node
from tests.conftest import ROOT
from tests.ua.wait import eventually

CLIENTS = 10
SETTLE_S = 3.0  # until a process that came back has its links again
REST_S = 240.0  # above the longest clock of the servers, which is timer C
UNTOUCHED_S = 7.0  # longer than the longest call: some have nothing in their way in every run
QUIET_PAUSES = (0.5, 6.0)
AFTER_CANCEL_S = 5.0  # in a brief run


class Chaos:
    """One run."""

    def __init__(self, prefix: str, directory: Path, seed: int, seconds: float, *, brief: bool = False) -> None:
        self.dice = random.Random(seed)
        self.seconds = seconds
        self.brief = brief
        self.nodes = {name: Node(prefix, name, directory / name) for name in NAMES}
        self.registrar = self.nodes["registrar"]
        self.edges = [self.nodes[name] for name in EDGES]
        self.clients = [Client(f"user{number}", random.Random(self.dice.random())) for number in range(CLIENTS)]
        if brief:
            for client in self.clients:
                client.after_cancel_s = AFTER_CANCEL_S
        self.calls: list[CallRecord] = []
        self.diary = Diary()
        self.began = time.monotonic()
        self.wrong: list[str] = []
        self._busy: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:7.1f} {text}", flush=True)

    async def run(self) -> bool:
        """Run it all; True if everything is accounted for."""
        self.registrar.on_event = self._registrar_says
        users = {f"{client.user}@example.com": client.user for client in self.clients}
        await asyncio.to_thread(self.registrar.import_users, users)
        try:
            await asyncio.gather(*(node.start() for node in self.nodes.values()))
            for client in self.clients:
                client.start()
            await eventually(self._everybody_is_there, 60, what="first registration of everybody")
            self.say("everybody is registered over both edges")
            await self._disturb()
            await self._rest()
            await self._end()
        finally:
            await self._clean_up()
        return self._judge()

    async def _disturb(self) -> None:
        """Calls and losses all the time; trouble for processes and links after a while, when some calls are over."""
        calling, losing = asyncio.create_task(self._call_at_random()), asyncio.create_task(self._lose_at_random())
        end = time.monotonic() + self.seconds
        await asyncio.sleep(UNTOUCHED_S)
        while time.monotonic() < end:
            await asyncio.sleep(self.dice.uniform(*QUIET_PAUSES))
            if not self._busy or (len(self._busy) == 1 and self.dice.random() < 0.15):
                self._spawn(self._trouble())
        for task in (calling, losing):
            task.cancel()
        await asyncio.gather(calling, losing, return_exceptions=True)
        await asyncio.gather(*self._tasks)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.wrong.append(f"the script itself failed: {error!r}")

    # -- what is done

    async def _trouble(self) -> None:
        where = self.dice.choice([name for name in NAMES if name not in self._busy])
        node = self.nodes[where]
        device = self.dice.choice(("cl", "core")) if where != "registrar" else ""
        ways = ["kill"] if where == "registrar" else ["kill", "drop", "unplug"]
        what, how_long = self.dice.choice(ways), self._how_long()
        trouble = Trouble(f"{what} {device if what != 'kill' else ''}".strip(), where, self._now())
        self.diary.troubles.append(trouble)
        self._busy.add(where)
        self.say(f"{trouble.what} at {where} for {how_long:.1f} s")
        try:
            await self._do(node, what, device, how_long)
        finally:
            self._busy.discard(where)
        trouble.over = self._now() + max(SETTLE_S, how_long)  # TCP doubles its pauses: it tries again by then
        await asyncio.sleep(SETTLE_S)

    def _how_long(self) -> float:
        """Mostly short; sometimes long enough for every clock of the clients and servers to run out."""
        long = self.dice.random() < 0.2 and self.seconds >= 120
        return self.dice.uniform(12, 30) if long else self.dice.uniform(0.2, 4)

    async def _do(self, node: Node, what: str, device: str, how_long: float) -> None:
        if what == "kill":
            await node.kill()
            await asyncio.sleep(min(how_long, 5))
            await node.start()
        else:
            begin, end = (node.drop, node.restore) if what == "drop" else (node.unplug, node.plug)
            await begin(device)
            await asyncio.sleep(how_long)
            await end(device)

    async def _lose_at_random(self) -> None:
        while True:
            await asyncio.sleep(self.dice.uniform(0.3, 2.0))
            phone = self.dice.choice(self.dice.choice(self.clients).phones)
            phone.lose(self.dice.choice(("reset", "fin", "silence")))

    async def _call_at_random(self) -> None:
        while True:
            await asyncio.sleep(self.dice.uniform(0.1, 0.6))
            caller, callee = self.dice.sample(self.clients, 2)
            phones = [phone for phone in caller.phones if phone.alive_since is not None]
            if phones:
                self._spawn(self._call(caller, callee, self.dice.choice(phones)))

    async def _call(self, caller: Client, callee: Client, phone: Phone) -> None:
        record = CallRecord(f"{len(self.calls)}@chaos", caller, callee, phone.edge, self._now())
        self.calls.append(record)
        callee.calls[record.id] = record
        await caller.call(record, phone)
        record.steady, record.calm = self._judge_way(record, phone)

    def _judge_way(self, record: CallRecord, phone: Phone) -> tuple[bool, bool]:
        since, until = record.started, record.ended
        steady = self.diary.is_steady(phone, since, until) and self.diary.is_calm("registrar", since, until)
        reachable = [self.diary.is_steady(other, since, until) for other in record.callee.phones]
        answered = next((p for p in record.callee.phones if p.ua is record.answering), None)
        if record.answering is not None:  # from then on it has only that way, and no other if that was lost
            steady = steady and answered is not None and self.diary.is_steady(answered, since, until)
        return steady and any(reachable), steady and all(reachable)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _registrar_says(self, at: float, event: dict[str, Any]) -> None:
        if event["event"] == "registration.changed" and event["change"] == "flow_failed":
            self._struck_off(at, event["instance"].strip("<>").lower(), event["reg_id"])

    def _struck_off(self, at: float, instance: str, reg_id: int) -> None:
        self.diary.struck_off[instance, reg_id] = at
        for client in self.clients:
            for phone in client.phones:
                if (client.instance, phone.reg_id) == (instance, reg_id):
                    calm = self.diary.is_calm("registrar", at - 45, at)
                    if calm and self.diary.is_untouched(phone, at - 45, at):
                        self.wrong.append(f"{client.user}'s flow over {phone.edge} was struck off without a reason")

    # -- the end

    def _everybody_is_there(self) -> bool:
        return all(phone.alive_since is not None for client in self.clients for phone in client.phones)

    async def _rest(self) -> None:
        """Nothing is done any more: everybody comes back, and the tables come to what is really open."""
        self.say("nothing is disturbed any more")
        await eventually(self._everybody_is_there, 60, what="return of everybody")
        if self.brief:
            await asyncio.gather(*(client.close_abandoned() for client in self.clients))
        left: list[str] = []
        end = time.monotonic() + REST_S
        while time.monotonic() < end:
            left = await accounting.still_wrong_at_rest(self.clients, self.edges, self.registrar)
            left += [] if self.brief else await accounting.transactions_of((*self.edges, self.registrar))
            if not left:
                self.say("the tables hold what is really open")
                return
            await asyncio.sleep(0.5)
        self.wrong += left

    async def _end(self) -> None:
        """Everybody leaves: every flow fails, and nothing is left."""
        await asyncio.gather(*(client.stop() for client in self.clients))
        end = time.monotonic() + REST_S
        while time.monotonic() < end and any([await edge.rows("flows") for edge in self.edges]):
            await asyncio.sleep(0.5)
        for edge in self.edges:
            self.wrong += [f"{edge.name}: left at the end: {row}" for row in await edge.rows("flows")]
        self.say("everybody has left")

    async def _clean_up(self) -> None:
        await asyncio.gather(*(client.stop() for client in self.clients))
        for node in self.nodes.values():
            if node.lives and node.life.process.poll() is None:
                await node.stop()

    def _judge(self) -> bool:
        nodes = list(self.nodes.values())
        for node in nodes:
            log = (node.directory / "server.log").read_text(errors="replace")
            if "Traceback (most recent call last)" in log:
                self.wrong.append(f"the log of {node.name} holds a traceback:\n{log[-4000:]}")
        self.wrong += accounting.check_flows(nodes)
        self.wrong += accounting.check_calls(self.calls) + accounting.check_clients(self.clients)
        print(*accounting.report(nodes, self.calls, self.clients), sep="\n")
        troubles = [trouble.what for trouble in self.diary.troubles]
        print("done to processes and links:", {what: troubles.count(what) for what in sorted(set(troubles))})
        print(*self.wrong, "all accounted for" if not self.wrong else f"NOT accounted for: {len(self.wrong)}", sep="\n")
        return not self.wrong


def inside(arguments: argparse.Namespace) -> int:
    """Run among the clients."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        folder = Path(arguments.keep or directory)
        chaos = Chaos(arguments.inside, folder, arguments.seed, arguments.seconds, brief=arguments.brief)
        return 0 if asyncio.run(chaos.run()) else 1


def outside(arguments: argparse.Namespace) -> int:
    """Make the namespaces, run inside of one of them, and remove them whatever happens."""
    prefix = f"chaos{os.getpid()}"
    words = ["--inside", prefix, "--seconds", str(arguments.seconds), "--seed", str(arguments.seed)]
    words += ["--keep", arguments.keep] if arguments.keep else []
    words += ["--brief"] if arguments.brief else []
    print(f"seed {arguments.seed}, {arguments.seconds:g} s", flush=True)
    try:
        world.build(prefix)
        command = ["ip", "netns", "exec", f"{prefix}-clients", sys.executable, "-m", "tests.chaos.run", *words]
        process = subprocess.Popen(command, cwd=ROOT)
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        return process.wait()
    finally:
        for space in world.namespaces(prefix):
            _end_what_runs_in(space)
        world.remove(prefix)


def _end_what_runs_in(space: str) -> None:
    """Whatever of ours is left in one of our own namespaces, after an end in the middle."""
    found = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=False)
    for pid in found.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill, cut and reconnect at random, and account for everything.")
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("EDGE_CHAOS_SECONDS", "600")))
    seed = int(os.environ.get("EDGE_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
    parser.add_argument("--seed", type=int, default=seed)
    parser.add_argument("--keep", default="", help="a new folder for configurations and logs, which stays")
    parser.add_argument("--brief", action="store_true", help="do not wait for the longest clocks")
    parser.add_argument("--inside", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    return inside(arguments) if arguments.inside else outside(arguments)


if __name__ == "__main__":
    sys.exit(main())
