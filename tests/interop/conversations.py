"""Conversations with an MSRP relay, played by simulated endpoints and written down frame by frame.

What differs from run to run is replaced: session URIs and addresses by names, transaction ids by where they come from,
nonces by a word. Two relays that answer alike leave the same record.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from tests.ua.msrp import AuthFailed, MsrpEndpoint, MsrpListener
from tests.ua.msrp_frame import Frame, build

PASSWORD = "xyz123"  # of everybody in the documented examples
NAMES = ("alice", "bob", "carol", "dave", "frank", "mallory")

Record = dict[tuple[str, str], list[list[str]]]  # (step, who) → frames received, each as its lines


@dataclass
class Stage:
    """Alice, Bob, Dave and Frank, who enrol; Carol, who needs no relay of her own; Mallory, whom this one does not know.

    `beyond` stands for another relay, to which this one connects.
    """

    port: int
    people: dict[str, MsrpEndpoint]
    beyond: MsrpListener
    record: Record = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)

    def __getattr__(self, name: str) -> MsrpEndpoint:
        return self.people[name]

    def relay_uri(self, session: str) -> str:
        """A URI of the relay."""
        return f"msrp://127.0.0.1:{self.port}/{session};tcp"

    async def play(self, step: str, what: Callable[[Stage], Awaitable[object]]) -> None:
        """Play one step, wait until the relay has dealt with what everybody sent, and write down what came back."""
        await what(self)
        for who in self.people.values():
            fence = len(who.frames)
            answer = await who.request("AUTH", [who.relay_uri])
            who.frames[fence:] = [entry for entry in who.frames[fence:] if not _is_fence(entry[1], answer)]
        for name, who in self.people.items():
            for number, frame in enumerate(frame for frame in who.sent() if frame.method):
                self.ids[frame.transaction_id] = f"{name}-{number}"
        for name, heard in {**self.people, "beyond": self.beyond}.items():
            self.record[step, name] = [self._lines(frame) for frame in heard.received()]
            heard.frames.clear()

    def _lines(self, frame: Frame) -> list[str]:
        text = frame.raw.decode()
        text = text.replace(frame.transaction_id, self.ids.get(frame.transaction_id, "new"))
        for name, who in self.people.items():
            for uri, mark in ((who.uri, name), *((uri, f"relay/{name}") for uri in who.use_path)):
                text = text.replace(uri, f"<{mark}>")
        text = text.replace(self.beyond.uri, "<beyond>")
        text = text.replace(f"msrp://127.0.0.1:{self.port};tcp", "<relay>").replace(f"127.0.0.1:{self.port}", "relay")
        text = re.sub(r'(nonce|opaque|rspauth)="[^"]*"', r'\1="*"', text)
        text = re.sub(r"(Use-Path: msrp://relay)/\S+;tcp", r"\1/*;tcp", text)
        return text.replace("\r\n", "\n").splitlines()


def _is_fence(frame: Frame, answer: Frame) -> bool:
    return frame.transaction_id == answer.transaction_id


async def play(port: int, steps: dict[str, Callable[[Stage], Awaitable[object]]]) -> Record:
    """Play the steps in turn at the relay on a port and return what everybody received."""
    people = {
        name: MsrpEndpoint(name, PASSWORD, relay=("127.0.0.1", port), algorithms=("MD5",)) for name in NAMES
    }  # fmt: skip
    async with AsyncExitStack() as stack:
        stage = Stage(port, people, await stack.enter_async_context(MsrpListener("beyond")))
        for who in people.values():
            await stack.enter_async_context(who)
        for step, what in steps.items():
            await stage.play(step, what)
        return stage.record


# ------------------------------------------------------------------------------------------ the steps


async def challenge(stage: Stage) -> None:
    await stage.alice.request("AUTH", [stage.alice.relay_uri])


async def enrol(stage: Stage) -> None:
    await stage.alice.auth()
    await stage.bob.auth()
    await stage.dave.auth()


async def wrong_password(stage: Stage) -> None:
    stage.carol.password = "guessed"
    await refused(stage.carol)


async def unknown_user(stage: Stage) -> None:
    await refused(stage.mallory)


async def refused(who: MsrpEndpoint, expires: int | None = None) -> None:
    """AUTH that may be refused."""
    try:
        await who.auth(expires)
    except AuthFailed:
        pass


async def to_another_relay(stage: Stage) -> None:
    await stage.frank.auth()
    path = [*stage.frank.use_path, stage.beyond.uri]
    answer = asyncio.create_task(stage.frank.request("AUTH", path, [("X-Of", "Frank")]))
    request = await stage.beyond.next_request()
    stage.beyond.respond(
        request, 401, "Unauthorized", headers=[("WWW-Authenticate", 'Digest realm="beyond", nonce="n", qop="auth"')]
    )
    await answer


async def message(stage: Stage) -> None:
    alice, bob = stage.alice, stage.bob
    await alice.send([*alice.use_path, *bob.path], b"hello", message_id="m1", success_report="yes")
    await bob.next_message()
    await alice.next_report()


async def answer(stage: Stage) -> None:
    alice, bob = stage.alice, stage.bob
    await bob.send([*bob.use_path, *alice.path], b"hello yourself", message_id="m2")
    await alice.next_message()


async def from_outside(stage: Stage) -> None:
    if (await stage.carol.send(stage.dave.path, b"hello from outside", message_id="m3")).ok:
        await stage.dave.next_message()


async def to_outside(stage: Stage) -> None:
    await stage.dave.send([*stage.dave.use_path, stage.carol.uri], b"hello outside", message_id="m4")


async def no_failure_report(stage: Stage) -> None:
    await stage.carol.send(stage.dave.path, b"quietly", message_id="m5", failure_report="no")
    await stage.dave.next_message()


async def third_party(stage: Stage) -> None:
    if (await stage.mallory.send(stage.dave.path, b"hello as well", message_id="m10")).ok:
        await stage.dave.next_message()


async def unknown_session(stage: Stage) -> None:
    await stage.alice.send([stage.relay_uri("nobody"), stage.bob.uri], b"lost", message_id="m6")


async def unknown_session_report(stage: Stage) -> None:
    headers = [("Message-ID", "m7"), ("Byte-Range", "1-5/5"), ("Status", "000 200 OK")]
    path = [stage.relay_uri("nobody"), stage.bob.uri]
    frame = build("REPORT", path, [stage.alice.uri], headers, flag="$")
    stage.alice.send_frame(frame, stage.alice.active_link)


async def unknown_method(stage: Stage) -> None:
    await stage.alice.request("NICKNAME", [*stage.alice.use_path, stage.bob.uri], [("Use-Nickname", '"Ally"')])


async def stray_response(stage: Stage) -> None:
    frame = build("200 OK", stage.alice.use_path, [stage.alice.uri], flag="$")
    stage.alice.send_frame(frame, stage.alice.active_link)


async def large(stage: Stage) -> None:
    await stage.carol.send(stage.dave.path, b"large" * 2400, message_id="m8")


async def path_ends_here(stage: Stage) -> None:
    await stage.carol.send(stage.dave.use_path, b"to the relay", message_id="m9")


async def too_short(stage: Stage) -> None:
    await refused(stage.alice, 600)


async def within_bounds(stage: Stage) -> None:
    await refused(stage.alice, 2400)


async def too_long(stage: Stage) -> None:
    await refused(stage.alice, 7200)


COMMON: dict[str, Callable[[Stage], Awaitable[object]]] = {
    "AUTH without credentials": challenge,
    "AUTH with credentials": enrol,
    "AUTH with a wrong password": wrong_password,
    "AUTH of an unknown user": unknown_user,
    "AUTH to another relay": to_another_relay,
    "SEND": message,
    "SEND back": answer,
    "SEND from outside": from_outside,
    "SEND to the outside": to_outside,
    "SEND without Failure-Report": no_failure_report,
    "SEND of a third party": third_party,
    "SEND to an unknown session": unknown_session,
    "REPORT to an unknown session": unknown_session_report,
    "unknown method": unknown_method,
    "response nobody waits for": stray_response,
    "SEND of 12,000 octets": large,
    "SEND whose path ends at the relay": path_ends_here,
}
EXPIRES = {
    "AUTH with Expires too short": too_short,
    "AUTH with Expires within bounds": within_bounds,
    "AUTH with Expires too long": too_long,
}
