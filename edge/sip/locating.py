"""Which transport, address and port a SIP URI leads to (RFC 3263 §4, RFC 2782, RFC 7984), sans-IO.

    numeric host, or a port ─► transport parameter, else UDP (sips: TLS); A, AAAA if it is a name
    transport parameter ─► SRV of that transport ─► none: A, AAAA at its default port
    nothing ─► NAPTR ─► SRV it names ─► none: A, AAAA with the transport of the best NAPTR
                 └─ none ─► SRV of what we can send ─► none: A, AAAA with UDP (sips: TLS)

`locate` is a generator: it yields lists of questions that may be asked at once, is sent their answers in the same
order, and returns what it found. Whoever drives it owns sockets, cache and time limit; a question nobody answered in
time is sent in as failed. A failed NAPTR question counts as no NAPTR; after a failed SRV question the address of the
bare name is not taken for that service, since it may well be another machine.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest
from typing import Literal, NamedTuple, TypeVar

from edge.connections import Transport
from edge.errors import RemoteError
from edge.sip.grammar import normalize_host
from edge.sip.uri import SipUri

NO_TARGET = 480  # the name has no record we can use, or the URI asks for what we cannot dial
NO_ANSWER = 504  # nobody told us: time-out, SERVFAIL, refused; another attempt may go better

Kind = Literal["A", "AAAA", "SRV", "NAPTR"]
T = TypeVar("T")

_TRANSPORTS = {b"udp": Transport.UDP, b"tcp": Transport.TCP, b"tls": Transport.TLS}
_NAPTR_SERVICES = {"sip+d2u": Transport.UDP, "sip+d2t": Transport.TCP, "sips+d2t": Transport.TLS}
_SRV_PREFIX = {Transport.UDP: "_sip._udp.", Transport.TCP: "_sip._tcp.", Transport.TLS: "_sips._tcp."}
_DEFAULT_PORT = {Transport.UDP: 5060, Transport.TCP: 5060, Transport.TLS: 5061}
_ADDRESS_KIND: dict[int, Kind] = {4: "A", 6: "AAAA"}
_WEIGHT_SCALE = 100


class Question(NamedTuple):
    """What to ask the DNS: a name in lower case without its last dot, and the kind of record."""

    name: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Srv:
    """An SRV record (RFC 2782); `target` is lower case without its last dot, "." for "not available here"."""

    priority: int
    weight: int
    port: int
    target: str


@dataclass(frozen=True, slots=True)
class Naptr:
    """A NAPTR record (RFC 3403 §4.1), texts in lower case; `replacement` without its last dot."""

    order: int
    preference: int
    flags: str
    service: str
    replacement: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The records a question was answered with. `failed`: there was no answer, which is not the same as no record."""

    addresses: tuple[str, ...] = ()
    srvs: tuple[Srv, ...] = ()
    naptrs: tuple[Naptr, ...] = ()
    failed: bool = False


ABSENT = Answer()
FAILED = Answer(failed=True)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where to send: `address` is numeric and without brackets.

    `server_name` is what a certificate must be valid for (RFC 5922 §7.3): the host of the URI, never an SRV target.
    """

    transport: Transport
    address: str
    port: int
    server_name: str


@dataclass(frozen=True, slots=True)
class Located:
    """Destinations in the order to try them; without any, `status` is 480 or 504 (else 0)."""

    destinations: list[Destination]
    status: int = 0


class _Place(NamedTuple):
    transport: Transport
    host: str
    port: int


Search = Generator[Sequence[Question], Sequence[Answer], T]
_Services = Sequence[tuple[Transport, str]]


def locate(
    uri: SipUri, transports: frozenset[Transport], families: Sequence[int], random: Callable[[int], bytes], limit: int
) -> Search[Located]:
    """Find out where `uri` leads.

    `transports` are those we can dial; WS and WSS never are, since only clients open WebSockets (RFC 7118 §5.2), so a
    URI that asks for them leads nowhere. `families`: 4, 6 or both, the preferred first. `random` takes a number of
    octets and returns that many. `limit`: NAPTR records followed and SRV targets looked up at most.
    """
    return _Locator(uri, transports, families, random, limit).run()


def open_transports(uri: SipUri, transports: frozenset[Transport]) -> tuple[Transport, ...]:
    """Return the transports a URI leaves open and we can dial, best first (RFC 3263 §4.1, RFC 3261 §26.2.2)."""
    if b"transport" not in uri.parameters:
        wanted: tuple[Transport, ...] = (Transport.TLS, Transport.TCP, Transport.UDP)
        return tuple(t for t in wanted if t in transports and (t.secure or not uri.secure))
    named = _TRANSPORTS.get(uri.transport)
    if uri.secure and named is not None:
        named = Transport.TLS if named.reliable else None
    return (named,) if named is not None and named in transports else ()


def order_srvs(records: Iterable[Srv], random: Callable[[int], bytes], limit: int) -> list[Srv]:
    """Return the first `limit` SRV records to try (RFC 2782): by priority, within one by weighted chance.

    The integers of RFC 2782 give small weights too much (1 against 3 would be 2 in 5), so the sum runs over weights
    times 100: shares then are right within one percent, and a record of weight 0 keeps its "very small chance".
    """
    ordered: list[Srv] = []
    ranked = sorted(records, key=lambda record: (record.priority, record.weight > 0))
    for _, group in groupby(ranked, key=lambda record: record.priority):
        waiting = list(group)
        while waiting and len(ordered) < limit:
            ordered.append(waiting.pop(_draw(waiting, random) if len(waiting) > 1 else 0))
    return ordered


def _draw(records: list[Srv], random: Callable[[int], bytes]) -> int:
    total = sum(record.weight for record in records) * _WEIGHT_SCALE
    mark = int.from_bytes(random(8), "big") % (total + 1)
    running = 0
    for index, record in enumerate(records):
        running += record.weight * _WEIGHT_SCALE
        if running >= mark:
            return index
    raise AssertionError("the mark is at most the total")


def usable_naptrs(records: Iterable[Naptr], transports: Sequence[Transport]) -> list[tuple[int, Transport, str]]:
    """Keep the NAPTR records that lead to an SRV of one of `transports`: (order, transport, SRV name), best first.

    The flag must be "s" and there must be a replacement (RFC 3263 §4.1); services we do not know are other people's.
    """
    found: list[tuple[int, Transport, str]] = []
    for record in sorted(records, key=lambda record: (record.order, record.preference)):
        transport = _NAPTR_SERVICES.get(record.service)
        if transport is None or transport not in transports:
            continue
        if record.flags == "s" and record.replacement not in ("", "."):
            found.append((record.order, transport, record.replacement))
    return found


def _target_host(uri: SipUri) -> bytes:
    """Return the host to look up: maddr overrides (RFC 3263 §4, RFC 3261 §16.5); b"" for an unreadable maddr."""
    if b"maddr" not in uri.parameters:
        return uri.host
    try:
        return normalize_host(uri.parameters[b"maddr"])
    except RemoteError:
        return b""


def _numeric_family(host: bytes) -> int:
    """Return 4 or 6 for a canonical numeric host, 0 for a name: the last label of a name never starts with a digit."""
    if host[:1] == b"[":
        return 6
    return 4 if host.rpartition(b".")[2][:1].isdigit() else 0


def _text(host: bytes) -> str:
    return host.decode("ascii").strip("[]").removesuffix(".")


class _Locator:
    """One run of the rules; keeps what the last step, the choice of a status or of the bare name, must know."""

    __slots__ = ("_closed", "_failed", "_families", "_limit", "_listed", "_open", "_random", "_server_name", "_uri")

    def __init__(
        self,
        uri: SipUri,
        transports: frozenset[Transport],
        families: Sequence[int],
        random: Callable[[int], bytes],
        limit: int,
    ) -> None:
        self._uri = uri
        self._families = families
        self._random = random
        self._limit = limit
        self._open = open_transports(uri, transports)
        self._server_name = _text(uri.host)
        self._failed = False  # some question was not answered
        self._listed = False  # some SRV record names a server
        self._closed: set[Transport] = set()  # not to be tried at the bare name: SRV says "." or was not answered

    def run(self) -> Search[Located]:
        host = _target_host(self._uri)
        destinations: list[Destination] = []
        if host and self._open:
            family = _numeric_family(host)
            if family or self._uri.port is not None:
                destinations = yield from self._without_services(_text(host), family)
            elif b"transport" in self._uri.parameters:
                destinations = yield from self._by_srv(_text(host))
            else:
                destinations = yield from self._by_naptr(_text(host))
        if destinations:
            return Located(destinations)
        return Located([], NO_ANSWER if self._failed else NO_TARGET)

    def _plain_transport(self) -> Transport | None:
        """Return the transport where no record tells one: UDP, or TCP where we have no UDP; TLS only if asked for."""
        if self._uri.secure or b"transport" in self._uri.parameters:
            return self._open[0]
        return next((t for t in (Transport.UDP, Transport.TCP) if t in self._open), None)

    def _without_services(self, host: str, family: int) -> Search[list[Destination]]:
        transport = self._plain_transport()
        if transport is None:
            return []
        port = self._uri.port or _DEFAULT_PORT[transport]
        if not family:
            return (yield from self._by_address([_Place(transport, host, port)]))
        if family not in self._families:
            return []
        return [Destination(transport, host, port, self._server_name)]

    def _by_naptr(self, host: str) -> Search[list[Destination]]:
        [answer] = yield [Question(host, "NAPTR")]
        self._failed |= answer.failed
        rules = usable_naptrs(answer.naptrs, self._open)[: self._limit]
        if not rules:
            return (yield from self._by_srv(host))
        # After a match no record of a higher order counts (RFC 3403 §4.1); one that leads nowhere is no match.
        for _, group in groupby(rules, key=lambda rule: rule[0]):
            found = yield from self._by_services([(transport, name) for _, transport, name in group])
            if found:
                return found
        return (yield from self._by_bare_name(host, rules[0][1]))

    def _by_srv(self, host: str) -> Search[list[Destination]]:
        found = yield from self._by_services([(t, _SRV_PREFIX[t] + host) for t in self._open])
        return found or (yield from self._by_bare_name(host, self._plain_transport()))

    def _by_bare_name(self, host: str, transport: Transport | None) -> Search[list[Destination]]:
        """Ask for the addresses of the name itself, which is right only where SRV records name no server."""
        if transport is None or self._listed or transport in self._closed:
            return []
        return (yield from self._by_address([_Place(transport, host, _DEFAULT_PORT[transport])]))

    def _by_services(self, services: _Services) -> Search[list[Destination]]:
        answers = yield [Question(name, "SRV") for _, name in services]
        places: list[_Place] = []
        for (transport, _), answer in zip(services, answers, strict=True):
            servers = [record for record in answer.srvs if record.target != "." and record.port]
            self._failed |= answer.failed
            self._listed |= bool(servers)
            if answer.failed or (answer.srvs and not servers):
                self._closed.add(transport)
            places += [_Place(transport, s.target, s.port) for s in order_srvs(servers, self._random, self._limit)]
        return (yield from self._by_address(places[: self._limit]))

    def _by_address(self, places: Sequence[_Place]) -> Search[list[Destination]]:
        """Ask for the addresses of all hosts at once; the families of one host take turns (RFC 7984 §3.1)."""
        kinds = [_ADDRESS_KIND[family] for family in self._families]
        questions = list(dict.fromkeys(Question(place.host, kind) for place in places for kind in kinds))
        if not questions:
            return []
        answers = dict(zip(questions, (yield questions), strict=True))
        self._failed |= any(answer.failed for answer in answers.values())
        found: dict[Destination, None] = {}
        for transport, host, port in places:
            columns = (answers[Question(host, kind)].addresses for kind in kinds)
            for row in zip_longest(*columns):
                for address in filter(None, row):
                    found[Destination(transport, address, port, self._server_name)] = None
        return list(found)
