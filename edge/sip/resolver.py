"""Look-ups of SIP URIs in the DNS: cache, questions under way, addresses to avoid; the rules are `edge.sip.locating`.

    resolve(uri, done) ─► locate() ─► questions ─► known name, or in the cache ─► go on at once
                                          └─► under way, or asked now ─► go on when the last of them is answered
    done([Destination, …], 0)   in the order to try them
    done([], 480)               no such name, no usable record, or a transport nobody can dial (WebSocket, unknown)
    done([], 504)               the DNS gave no answer: silent over the time limit, SERVFAIL, too much asked at once
    done([], 500)               every target is to be avoided now: what a proxy makes of a lone 503 (RFC 3261 §16.7)

`done` is called exactly once: before `resolve` returns when nothing has to be asked, else later on the loop; for what
is under way at `close` it is not called.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from edge.connections import Transport
from edge.sip.locating import FAILED, Answer, Destination, Located, Question, Search, locate
from edge.sip.resolver_client import (
    FAILURE,
    HOSTS_FILE,
    DnsClient,
    KnownNames,
    Reply,
    parse_nameserver,
    system_nameservers,
)
from edge.sip.uri import SipUri

__all__ = ["ALL_AVOIDED", "Destination", "Done", "Resolver"]

Done = Callable[[list[Destination], int], None]

ALL_AVOIDED = 500

_MAX_ASKING = 512  # questions under way; each has a socket
_MAX_AVOID_S = 300.0


class Resolver:
    """Finds destinations for URIs; never blocks and never raises for what a name or a server does.

    `nameservers`: `address` or `address:port`, none for the system's. `transports`: those we can dial. `families`: 4, 6
    or both, the preferred first. `timeout_s` limits one look-up with all its questions, half of it one question.
    `random` takes a number of octets and returns that many. `clock` is monotonic, default the loop's.

    Raises:
        ValueError: a name server that is no numeric address.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        transports: frozenset[Transport],
        random: Callable[[int], bytes],
        nameservers: Sequence[str] = (),
        families: Sequence[int] = (4, 6),
        max_addresses: int = 8,
        timeout_s: float = 5.0,
        cache_size: int = 10_000,
        hosts_file: Path = HOSTS_FILE,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.loop = loop
        self.timeout_s = timeout_s
        self.asked = 0  # questions, for metrics
        self.failed = 0  # of them without an answer
        self._transports = transports
        self._random = random
        self._families = tuple(families)
        self._max_addresses = max_addresses
        self._clock = clock or loop.time
        self._hosts_file = hosts_file
        self._cache: Expiring[Question, Answer] = Expiring(cache_size)
        self._avoided: Expiring[tuple[Transport, str, int], bool] = Expiring(cache_size)
        self._lookups: set[Lookup] = set()
        self._asking: dict[Question, list[Lookup]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.reload(nameservers)

    def reload(self, nameservers: Sequence[str]) -> None:
        """Use other name servers from now on, read the hosts file again, forget the cache; look-ups under way go on.

        Raises:
            ValueError: a name server that is no numeric address; nothing is changed.
        """
        servers = [parse_nameserver(text) for text in nameservers] or system_nameservers()
        self._client = DnsClient(servers)
        self._known = KnownNames(self._hosts_file)
        self._cache.clear()
        self._asking = {}

    def resolve(self, uri: SipUri, done: Done) -> None:
        """Find where `uri` leads (RFC 3263 §4) and tell `done`; see the module for what it is told and when."""
        search = locate(uri, self._transports, self._families, self._random, self._max_addresses)
        lookup = Lookup(self, search, done)
        self._lookups.add(lookup)
        lookup.run()

    def avoid(self, address: str, port: int, transport: Transport, seconds: float) -> None:
        """Leave a destination out for a while: it answered 503 with Retry-After (RFC 3261 §21.5.4); at most 300 s."""
        until = self._clock() + min(seconds, _MAX_AVOID_S)
        self._avoided.put((transport, address, port), True, until)

    async def close(self) -> None:
        """Give up on everything under way without calling its `done`; a later look-up that must ask fails at once."""
        self._closed = True
        for lookup in self._lookups:
            lookup.drop()
        self._lookups.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- what look-ups ask for

    def answer(self, question: Question) -> Answer | None:
        """Return what is known without asking."""
        known = self._known.answer(question)
        return known if known is not None else self._cache.get(question, self._clock())

    def ask(self, question: Question, lookup: Lookup) -> bool:
        """Have `lookup` told the answer later, by the question under way if there is one; False: none can be asked."""
        waiting = self._asking.get(question)
        if waiting is not None:
            waiting.append(lookup)
            return True
        if self._closed or len(self._tasks) >= _MAX_ASKING:
            return False
        self._asking[question] = [lookup]
        self.asked += 1
        task = self.loop.create_task(self._ask(question, self._asking))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _ask(self, question: Question, asking: dict[Question, list[Lookup]]) -> None:
        reply = FAILURE
        try:
            reply = await self._client.ask(question, self.timeout_s / 2)
        finally:
            self._settle(question, reply, asking)

    def _settle(self, question: Question, reply: Reply, asking: dict[Question, list[Lookup]]) -> None:
        self.failed += reply.answer.failed
        if asking is self._asking:  # else the servers were changed meanwhile
            self._cache.put(question, reply.answer, self._clock() + reply.ttl_s)
        for lookup in asking.pop(question):
            self.loop.call_soon(lookup.receive, question, reply.answer)

    def finish(self, lookup: Lookup, located: Located) -> None:
        """Tell the caller of a look-up its end, without the destinations to avoid."""
        self._lookups.discard(lookup)
        if not located.destinations:
            lookup.done([], located.status)
            return
        now = self._clock()
        good = [d for d in located.destinations if not self._avoided.get((d.transport, d.address, d.port), now)]
        lookup.done(good[: self._max_addresses], 0 if good else ALL_AVOIDED)


class Lookup:
    """One `locate` on its way: holds the questions of its present step and the answers that are in."""

    __slots__ = ("_answers", "_done", "_expired", "_missing", "_questions", "_resolver", "_search", "_timer")

    def __init__(self, resolver: Resolver, search: Search[Located], done: Done) -> None:
        self._resolver = resolver
        self._search = search
        self._done: Done | None = done
        self._questions: Sequence[Question] | None = None
        self._answers: dict[Question, Answer] = {}
        self._missing: set[Question] = set()
        self._expired = False
        self._timer: asyncio.TimerHandle | None = None

    def run(self) -> None:
        """Go on until something has to be waited for, or to the end."""
        try:
            while not self._missing:
                if self._questions is None:
                    self._questions = next(self._search)
                else:
                    self._questions = self._search.send([self._answers[question] for question in self._questions])
                self._gather(self._questions)
        except StopIteration as end:
            located: Located = end.value
        else:
            self._wait()
            return
        self._resolver.finish(self, located)

    def _gather(self, questions: Sequence[Question]) -> None:
        """Put the answers together that are known; ask for the others, or take them as failed when it is too late."""
        resolver = self._resolver
        self._answers = {}
        for question in questions:
            answer = resolver.answer(question)
            if answer is not None:
                self._answers[question] = answer
            elif self._expired or not resolver.ask(question, self):
                self._answers[question] = FAILED
            else:
                self._missing.add(question)

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = self._resolver.loop.call_later(self._resolver.timeout_s, self._expire)

    def receive(self, question: Question, answer: Answer) -> None:
        """An answer came; one to a step that is over is of no use any more."""
        if question not in self._missing:
            return
        self._missing.discard(question)
        self._answers[question] = answer
        self.run()

    def _expire(self) -> None:
        """The time is over: what is missing has failed, and what is known may still do."""
        self._expired = True
        self._answers.update(dict.fromkeys(self._missing, FAILED))
        self._missing.clear()
        self.run()

    def done(self, destinations: list[Destination], status: int) -> None:
        """Tell the caller, once."""
        tell = self._done
        self.drop()
        if tell is not None:
            tell(destinations, status)

    def drop(self) -> None:
        """Wait for nothing any more."""
        self._done = None
        self._missing.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Expiring(Generic[K, V]):
    """A bounded map whose entries end by themselves; when it is full the oldest entry goes."""

    __slots__ = ("_entries", "_limit")

    def __init__(self, limit: int) -> None:
        self._entries: dict[K, tuple[V, float]] = {}
        self._limit = limit

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K, now: float) -> V | None:
        """Return the value of `key`, None when there is none or it has ended."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry[1] <= now:
            del self._entries[key]
            return None
        return entry[0]

    def put(self, key: K, value: V, until: float) -> None:
        """Keep `value` until the time `until`."""
        self._entries.pop(key, None)
        if len(self._entries) >= self._limit:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = (value, until)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
