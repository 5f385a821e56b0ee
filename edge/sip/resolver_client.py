"""Asking name servers one question (RFC 1035 §4.2, RFC 7766), and the names that are known without asking.

Every attempt has a socket of its own: a random port, connected, so that only the server asked can answer and an ICMP
error is seen. What comes back is believed when its id and question are ours; anything else is ignored.
Names are absolute: the search list of resolv.conf is not used.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.resolver
from dns.rdtypes.IN.A import A
from dns.rdtypes.IN.AAAA import AAAA
from dns.rdtypes.IN.NAPTR import NAPTR
from dns.rdtypes.IN.SRV import SRV

from edge.connections import Address
from edge.sip.locating import ABSENT, FAILED, Answer, Kind, Naptr, Question, Srv

HOSTS_FILE = Path("/etc/hosts")

_PAYLOAD = 1232  # EDNS: what passes every path without fragments
_MAX_RECORDS = 64  # of one answer; far more than are ever tried
_MAX_TTL_S = 3600
_MAX_NEGATIVE_TTL_S = 30
_FAILURE_TTL_S = 1  # RFC 9520 §3.2: at least a second
_BROKEN = (dns.exception.DNSException, ValueError)  # what reading a malformed message raises
_FIRST_ATTEMPT = 0.4  # of the time limit; the next round over the servers waits twice as long


class Reply(NamedTuple):
    """An answer and for how many seconds it holds."""

    answer: Answer
    ttl_s: int


FAILURE = Reply(FAILED, _FAILURE_TTL_S)


def parse_nameserver(text: str) -> Address:
    """Read `192.0.2.1`, `192.0.2.1:5353`, `2001:db8::1` or `[2001:db8::1]:5353`; the port is 53 where absent.

    Raises:
        ValueError: not a numeric address, or not a port.
    """
    host, port = text, 53
    if text.startswith("[") or text.count(":") == 1:
        host, _, digits = text.rpartition(":") if not text.endswith("]") else (text, "", "53")
        host, port = host.strip("[]"), int(digits)
    if not 0 < port < 65536:
        raise ValueError(f"not a port: {port}")
    ipaddress.ip_address(host)
    return host, port


def system_nameservers() -> list[Address]:
    """Return the name servers this machine is set up with; its own address where there are none (resolv.conf(5))."""
    try:
        configured = dns.resolver.Resolver(configure=True).nameservers
    except dns.resolver.NoResolverConfiguration:
        configured = []
    return [(str(server), 53) for server in configured] or [("127.0.0.1", 53)]


class DnsClient:
    """Asks the first name server that answers; one that did is asked first the next time."""

    def __init__(self, nameservers: Sequence[Address]) -> None:
        self._nameservers = tuple(nameservers)
        self._first = 0

    async def ask(self, question: Question, limit_s: float) -> Reply:
        """Ask one question, within `limit_s` seconds over all attempts. Raises nothing but CancelledError."""
        try:
            name = dns.name.from_text(question.name)
        except dns.exception.DNSException:  # a label or the whole is too long to exist
            return Reply(ABSENT, _MAX_NEGATIVE_TTL_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                return await self._ask_in_turn(name, question.kind, limit_s * _FIRST_ATTEMPT)
        return FAILURE

    async def _ask_in_turn(self, name: dns.name.Name, kind: Kind, attempt_s: float) -> Reply:
        """Go round the servers that stay silent, waiting longer each time; one that refuses is not asked again."""
        servers = [*self._nameservers[self._first :], *self._nameservers[: self._first]]
        while servers:
            for server in servers.copy():
                try:
                    async with asyncio.timeout(attempt_s):
                        reply = await _ask_server(server, name, kind)
                except TimeoutError:
                    continue
                except (OSError, EOFError, *_BROKEN):
                    reply = None
                if reply is not None:
                    self._first = self._nameservers.index(server)
                    return reply
                servers.remove(server)
            attempt_s *= 2
        return FAILURE


async def _ask_server(server: Address, name: dns.name.Name, kind: Kind) -> Reply | None:
    """Ask one server; None when it has no answer for us (SERVFAIL, REFUSED and the like)."""
    query = dns.message.make_query(name, kind, use_edns=0, payload=_PAYLOAD)
    response = await _exchange(server, query)
    if response.rcode() in (dns.rcode.FORMERR, dns.rcode.NOTIMP):  # a server from before EDNS (RFC 6891 §7)
        query = dns.message.make_query(name, kind)
        response = await _exchange(server, query)
    if response.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return None
    return read_reply(response)


async def _exchange(server: Address, query: dns.message.QueryMessage) -> dns.message.Message:
    response = await _ask_udp(server, query)
    return await _ask_tcp(server, query) if response.flags & dns.flags.TC else response


class _DatagramExchange(asyncio.DatagramProtocol):
    """Waits for the datagram that answers `query`."""

    def __init__(self, query: dns.message.Message, response: asyncio.Future[dns.message.Message]) -> None:
        self._query = query
        self._response = response

    def datagram_received(self, data: bytes, addr: Address) -> None:
        truncated = len(data) > 2 and bool(data[2] & 0x02)  # the TC bit; what follows the question may be cut anywhere
        try:
            message = dns.message.from_wire(data, question_only=truncated)
        except _BROKEN:
            return
        if self._query.is_response(message) and not self._response.done():
            self._response.set_result(message)

    def error_received(self, exc: Exception) -> None:
        if not self._response.done():
            self._response.set_exception(exc)


async def _ask_udp(server: Address, query: dns.message.Message) -> dns.message.Message:
    loop = asyncio.get_running_loop()
    response: asyncio.Future[dns.message.Message] = loop.create_future()
    transport, _ = await loop.create_datagram_endpoint(lambda: _DatagramExchange(query, response), remote_addr=server)
    try:
        transport.sendto(query.to_wire())
        return await response
    finally:
        transport.close()


async def _ask_tcp(server: Address, query: dns.message.Message) -> dns.message.Message:
    """Ask over TCP, each message behind its length (RFC 7766 §8).

    Raises:
        EOFError: the server closed.
        dns.exception.DNSException: what it sent is no answer to `query`.
    """
    reader, writer = await asyncio.open_connection(*server)
    try:
        writer.write(query.to_wire(prepend_length=True))
        length = int.from_bytes(await reader.readexactly(2), "big")
        message = dns.message.from_wire(await reader.readexactly(length))
    finally:
        writer.close()
    if not query.is_response(message):
        raise dns.exception.FormError
    return message


def read_reply(message: dns.message.Message) -> Reply:
    """Take the records out of an answer, behind its CNAMEs. It holds for 1 to 3600 s, without records up to 30 s.

    Raises:
        dns.exception.DNSException: a chain of CNAMEs without end, or an answer that contradicts itself.
    """
    if not isinstance(message, dns.message.QueryMessage):
        raise dns.exception.FormError
    chain = message.resolve_chaining()
    answer = _read_records(chain.answer or ())
    limit_s = _MAX_NEGATIVE_TTL_S if answer == ABSENT else _MAX_TTL_S
    return Reply(answer, max(1, min(chain.minimum_ttl, limit_s)))


def _read_records(records: Iterable[dns.rdata.Rdata]) -> Answer:
    addresses, srvs, naptrs = [], [], []
    for record in records:
        if isinstance(record, A | AAAA):
            addresses.append(str(record.address))
        elif isinstance(record, SRV):
            srvs.append(Srv(record.priority, record.weight, record.port, _name_text(record.target)))
        elif isinstance(record, NAPTR) and not record.regexp:
            flags, service = (text.decode("latin-1").lower() for text in (record.flags, record.service))
            naptrs.append(Naptr(record.order, record.preference, flags, service, _name_text(record.replacement)))
    srvs.sort(key=lambda srv: srv.priority)
    naptrs.sort(key=lambda naptr: (naptr.order, naptr.preference))
    return Answer(tuple(addresses[:_MAX_RECORDS]), tuple(srvs[:_MAX_RECORDS]), tuple(naptrs[:_MAX_RECORDS]))


def _name_text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()


class KnownNames:
    """Names that are answered without asking: the hosts file, `localhost` and `.invalid` (RFC 6761 §6.3, §6.4).

    Such a name has addresses and nothing else; SRV and NAPTR records of it are not asked for either.
    """

    def __init__(self, hosts_file: Path) -> None:
        self._addresses: dict[str, list[str]] = {}
        with contextlib.suppress(OSError):
            self._read(hosts_file.read_text("utf-8", errors="replace"))

    def _read(self, text: str) -> None:
        for line in text.splitlines():
            address, *names = line.partition("#")[0].split() or [""]
            try:
                address = str(ipaddress.ip_address(address))
            except ValueError:
                continue
            for name in names:
                self._addresses.setdefault(name.lower().removesuffix("."), []).append(address)

    def answer(self, question: Question) -> Answer | None:
        """Return the answer to a question about such a name, None for all others."""
        name = question.name
        while name.startswith("_") and "." in name:
            name = name.partition(".")[2]
        last_label = name.rpartition(".")[2]
        addresses = self._addresses.get(name)
        if addresses is None and last_label == "localhost":
            addresses = ["127.0.0.1", "::1"]
        if addresses is None:
            return ABSENT if last_label == "invalid" else None
        if question.kind not in ("A", "AAAA"):
            return ABSENT
        return Answer(tuple(a for a in addresses if (":" in a) == (question.kind == "AAAA")))
