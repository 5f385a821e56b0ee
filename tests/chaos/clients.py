"""User agents with two flows each, over both edges, and the calls between them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from websockets.exceptions import WebSocketException

from tests.chaos.world import EDGES, FLOW_TIMER_S, SIP_PORT, client_side
from tests.ua.sip import Call, Dialog, Request, Response, SipUA
from tests.ua.sip_dialog import CSeqCounter
from tests.ua.sip_transaction import build_cancel

TRANSPORTS = ("tcp", "tcp", "ws", "ws", "udp", "udp", "tls")
PONG_S = 4.0
ANSWER_S = 40.0  # above Timer B; then the caller gives up
TROUBLES = (OSError, TimeoutError, WebSocketException, EOFError)
SDP = b"v=0\r\no=- 1 1 IN IP4 10.77.1.1\r\ns=-\r\nc=IN IP4 10.77.1.1\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0\r\n"


@dataclass
class CallRecord:
    """One call, from both ends. `outcome` is "ok" or says where it ended; times are of the loop's clock."""

    id: str
    caller: Client
    callee: Client
    edge: str  # the caller's
    started: float
    ended: float = 0.0
    outcome: str = ""
    invites: int = 0
    answered: int = 0
    acked: bool = False
    answering: SipUA | None = None  # what the called side answered over
    steady: bool = False  # nothing was done to what it needs
    calm: bool = False  # nothing was done to anything it could have used


class Phone:
    """One flow of a client: a connection to one edge with a registration, made again whenever it is lost."""

    def __init__(self, client: Client, edge: str, reg_id: int, transport: str, dice: random.Random) -> None:
        self.client = client
        self.edge = edge
        self.reg_id = reg_id
        self.transport = transport
        self.ua: SipUA | None = None
        self.alive_since: float | None = None  # registered without interruption
        self.connects = 0
        self.abandoned: list[SipUA] = []
        self._abandon = False
        self._kick = asyncio.Event()
        self._dice = dice
        self._call_id = f"{uuid.UUID(int=dice.getrandbits(128))}@chaos"
        self._cseq = CSeqCounter()

    def _make(self) -> SipUA:
        ua = SipUA(
            self.client.user,
            self.client.user,
            server=(client_side(self.edge), SIP_PORT),
            local_host=client_side(self.edge)[:-1] + "1",
            transport=self.transport,
            instance=self.client.instance,
            reg_id=self.reg_id,
            retransmit=True,
            timeout=10.0,
        )
        ua.register_call_id, ua.register_cseq = self._call_id, self._cseq
        ua.on_request = self.client.handle_request
        return ua

    async def live(self) -> None:
        """Connect, register, ping; and again, until cancelled."""
        while True:
            ua = self._make()
            try:
                await self._connected(ua)
            except TROUBLES:
                pass
            finally:
                self.alive_since = None
                await self._leave(ua)
            await asyncio.sleep(self._dice.uniform(0.2, 1.0))

    async def _connected(self, ua: SipUA) -> None:
        await ua.start()
        self.ua, self.connects = ua, self.connects + 1
        self._kick.clear()
        rounds = 0
        while True:
            if rounds % 3 == 0 or self.alive_since is None:
                await self._register(ua)
            rounds += 1
            registered = self.alive_since is not None
            pause = FLOW_TIMER_S * self._dice.uniform(0.8, 1.0) if registered else self._dice.uniform(0.3, 1.0)
            if await self._disturbed(ua, pause):
                return
            await ua.ping(PONG_S)

    async def _register(self, ua: SipUA) -> None:
        response = await ua.register(60)
        self.client.results[f"REGISTER {response.status}"] += 1
        if response.status != 200:
            self.alive_since = None
        elif self.alive_since is None:
            self.alive_since = asyncio.get_running_loop().time()

    async def _disturbed(self, ua: SipUA, seconds: float) -> bool:
        assert ua.link is not None
        waits = [asyncio.create_task(ua.link._closed.wait()), asyncio.create_task(self._kick.wait())]
        try:
            done, _ = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
        return bool(done)

    async def _leave(self, ua: SipUA) -> None:
        self.client.errors += ua.errors
        if self._abandon and ua.link is not None and not ua.link.closed:
            self._abandon = False
            ua.link.pause_reading()
            self.abandoned.append(ua)
            return
        await close(ua)

    def lose(self, how: str) -> None:
        """End the connection: "reset", "fin", or "silence" where it stays open and nothing is said or heard any more."""
        ua = self.ua
        if ua is None or ua.link is None or self.alive_since is None:
            return
        self.alive_since = None
        if how == "reset" and self.transport != "udp" and not ua.link.closed:
            ua.link.reset()
        elif how == "silence":
            self._abandon = True
        self._kick.set()


async def close(ua: SipUA) -> None:
    """Stop an agent, whatever state its connection is in."""
    try:
        await ua.stop()
    except (*TROUBLES, AssertionError):
        if ua.link is not None and ua.transport != "udp":
            ua.link.reset()


class Client:
    """One instance, registered over both edges."""

    def __init__(self, user: str, dice: random.Random) -> None:
        self.user = user
        self.uri = f"sip:{user}@example.com"
        self.instance = f"urn:uuid:{uuid.UUID(int=dice.getrandbits(128))}"
        self.dice = dice
        self.calls: dict[str, CallRecord] = {}  # those to us
        self.dialogs: dict[str, Dialog] = {}
        self.results: Counter[str] = Counter()
        self.errors: list[Exception] = []
        self.phones = [Phone(self, edge, n, dice.choice(TRANSPORTS), dice) for n, edge in enumerate(EDGES, 1)]
        self.after_cancel_s = ANSWER_S
        self._ringing: dict[str, Request] = {}
        self._acked: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        for phone in self.phones:
            self._spawn(phone.live())

    async def stop(self) -> None:
        """Leave without a word, and close what was left open."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.close_abandoned()

    async def close_abandoned(self) -> None:
        """Close what was left open."""
        for phone in self.phones:
            while phone.abandoned:
                await close(phone.abandoned.pop())

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- called

    def handle_request(self, ua: SipUA, request: Request) -> int | None:
        """What `SipUA.on_request` asks for: a status, or None where the answer comes later or never."""
        call_id = request.call_id
        if request.method == "INVITE":
            return self._ring(ua, request)
        if request.method == "ACK" and call_id in self._acked:
            self._acked[call_id].set()
            self.calls[call_id].acked = True
            return None
        if request.method == "CANCEL":
            self._cancelled(ua, request)
            return 200
        if request.method == "BYE":
            return 200 if self.dialogs.pop(call_id, None) else 481
        return 200

    def _ring(self, ua: SipUA, request: Request) -> int | None:
        record = self.calls.get(request.call_id)
        if record is None:
            return 404
        record.invites += 1
        before = self._ringing.get(request.call_id)
        if record.answered or (before is not None and before.link is not None and not before.link.closed):
            return 482  # merged: it came over our other flow as well (RFC 3261 §8.2.2.2)
        self._ringing[request.call_id] = request
        self._spawn(self._answer(ua, request, record))
        return None

    async def _answer(self, ua: SipUA, request: Request, record: CallRecord) -> None:
        try:
            ua.respond(request, 180)
            await asyncio.sleep(self.dice.uniform(0.02, 0.5))
            ua = await self._way_back(ua, request)
            if self._ringing.get(request.call_id) is request:
                self._acked[record.id] = asyncio.Event()
                self.dialogs[record.id] = ua.accept(request, SDP)
                record.answered += 1
                record.answering = ua
        except TROUBLES:
            return

    async def _way_back(self, ua: SipUA, request: Request) -> SipUA:
        """Answer over a new connection where the one the request came over has ended (RFC 3261 §18.2.2)."""
        phone = next(phone for phone in self.phones if phone.reg_id == ua.reg_id)
        if phone.ua is not ua and await self._is_back(phone) and phone.ua is not None and phone.transport != "udp":
            request.link = phone.ua.link
            return phone.ua
        return ua

    def _cancelled(self, ua: SipUA, request: Request) -> None:
        ringing = self._ringing.pop(request.call_id, None)
        if ringing is not None and not self.calls[request.call_id].answered:
            with contextlib.suppress(OSError):
                ua.respond(ringing, 487)

    async def hang_up(self, call_id: str) -> str:
        """The called side says BYE, once it has the ACK."""
        try:
            async with asyncio.timeout(10):
                await self._acked[call_id].wait()
        except TimeoutError:
            return "no ACK"
        return await self.bye(self.dialogs.pop(call_id))

    # -- calling

    async def call(self, record: CallRecord, phone: Phone) -> None:
        """Call, talk, and hang up; the outcome goes into the record."""
        loop = asyncio.get_running_loop()
        try:
            record.outcome = await self._call(record, phone)
        finally:
            record.ended = loop.time()

    async def _call(self, record: CallRecord, phone: Phone) -> str:
        ua = phone.ua
        assert ua is not None
        response = await self._invite(ua, record)
        if isinstance(response, str) or response.status >= 300:
            return response if isinstance(response, str) else f"INVITE {response.status}"
        assert ua.link is not None
        assert response.request is not None
        dialog = Dialog.from_response(ua, response, ua.link, CSeqCounter(response.request.cseq.sequence))
        self.dialogs[record.id] = dialog
        try:
            await dialog.ack()
        except TROUBLES:
            return "flow lost before ACK"
        await asyncio.sleep(self.dice.uniform(0.3, 4.0))
        if self.dice.random() < 0.3:
            return await record.callee.hang_up(record.id)
        return await self.bye(dialog)

    async def _invite(self, ua: SipUA, record: CallRecord) -> Response | str:
        assert ua.link is not None
        cseq = CSeqCounter()
        lines = ua._out_of_dialog_lines("INVITE", record.callee.uri, None, ua.link, cseq)
        attempt = Call(ua, cseq)
        work = ua.transact(
            "INVITE",
            record.callee.uri,
            lines.override({"Call-ID": record.id}),
            SDP,
            content_type="application/sdp",
            link=ua.link,
            cseq=cseq,
            timeout=ANSWER_S,
            call=attempt,
        )
        try:
            return await work
        except TimeoutError:
            return await self._give_up(ua, attempt)
        except (OSError, WebSocketException):
            return "flow lost before an answer"

    async def _give_up(self, ua: SipUA, attempt: Call) -> Response | str:
        """CANCEL; whatever became of the call, its INVITE must have an answer then (RFC 3261 §9.1)."""
        invite = attempt.transaction
        if invite is None or not invite.provisionals:
            return "INVITE without any answer"
        try:
            ua.start_transaction(build_cancel(invite.request).raw, invite.link)
            return await invite.result(self.after_cancel_s)
        except TimeoutError:
            return "INVITE without answer after CANCEL"
        except (OSError, WebSocketException):
            return "flow lost before an answer"

    async def bye(self, dialog: Dialog) -> str:
        """Hang up, over the connection that took the place of the dialog's own where that is gone."""
        phone = next((p for p in self.phones if p.ua is not None and p.reg_id == dialog.ua.reg_id), None)
        if phone is None or not await self._is_back(phone):
            return "flow gone before BYE"
        ua = phone.ua
        assert ua is not None
        assert ua.link is not None
        moved = "" if ua is dialog.ua else " on the next flow"
        dialog.ua, dialog.link = ua, ua.link
        self.dialogs.pop(dialog.call_id, None)
        try:
            response = await dialog.bye()
        except TROUBLES as error:
            return f"BYE{moved}: {type(error).__name__}"
        if response.status == 200:
            return f"ok{moved}"
        return f"BYE{moved} {response.status}"

    @staticmethod
    async def _is_back(phone: Phone) -> bool:
        for _ in range(100):
            if phone.alive_since is not None:
                return True
            await asyncio.sleep(0.1)
        return False


@dataclass
class Trouble:
    """What was done to a process or its links; `over` is when nothing of it can be felt any more."""

    what: str
    where: str
    began: float
    over: float = float("inf")


@dataclass
class Diary:
    """Everything that was done, to tell calls that had to succeed from those that could fail."""

    troubles: list[Trouble] = field(default_factory=list)
    struck_off: dict[tuple[str, int], float] = field(default_factory=dict)  # by the registrar: instance, reg-id

    def is_calm(self, where: str, since: float, until: float) -> bool:
        """Whether nothing happened there meanwhile."""
        return not any(t.where == where and t.began <= until and t.over >= since for t in self.troubles)

    def is_steady(self, phone: Phone, since: float, until: float) -> bool:
        """Whether a flow was registered, and nothing happened to it or its edge meanwhile."""
        struck = self.struck_off.get((phone.client.instance, phone.reg_id), 0.0) > since - 30
        return not struck and self.is_untouched(phone, since, until)

    def is_untouched(self, phone: Phone, since: float, until: float) -> bool:
        """The same, whatever the registrar did with its binding."""
        alive = phone.alive_since is not None and phone.alive_since <= since
        return alive and self.is_calm(phone.edge, since, until)
