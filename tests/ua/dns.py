"""A small authoritative DNS server on 127.0.0.1, UDP and TCP on one port, that can also misbehave.

async with DnsServer("example.com. 300 IN A 192.0.2.1") as dns:
    Resolver(…, nameservers=[dns.address])
    assert dns.questions == [("example.com", "A")]
"""

import asyncio
from types import TracebackType
from typing import Any, Self

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import dns.zonefile

Address = tuple[str, int]

_EDNS_NONE_OCTETS = 512


class DnsServer:
    """Answers from records written as in a zone file, names absolute; what is not there is NXDOMAIN or no data.

    `questions` lists (name without last dot, type) in the order they came, `over_tcp` those of them that came by TCP.
    Set at any time: `silent` (nothing is answered), `failing` (SERVFAIL for all names, or for the names in a set),
    `delay_s`, `lying` (a UDP answer is preceded by junk and by a forged one), `edns` (False: FORMERR for any option),
    `negative_ttl_s` (of the SOA). `hold` keeps answers back until `release`.
    """

    def __init__(self, *records: str) -> None:
        self.questions: list[tuple[str, str]] = []
        self.over_tcp: list[tuple[str, str]] = []
        self.silent: bool | set[str] = False
        self.failing: bool | set[str] = False
        self.delay_s = 0.0
        self.lying = False
        self.edns = True
        self.negative_ttl_s = 300
        self._released = asyncio.Event()
        self._released.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._zone: dict[tuple[dns.name.Name, dns.rdatatype.RdataType], dns.rrset.RRset] = {}
        self.set(*records)

    def set(self, *records: str) -> None:
        """Replace all records."""
        rrsets = dns.zonefile.read_rrsets("\n".join(records), rdclass=None)
        self._zone = {(rrset.name, rrset.rdtype): rrset for rrset in rrsets}

    def count(self, name: str, kind: str) -> int:
        """Return how often a question came."""
        return self.questions.count((name, kind))

    def hold(self) -> None:
        """Keep every answer back from now on."""
        self._released.clear()

    def release(self) -> None:
        """Send the answers kept back, and the later ones at once."""
        self._released.set()

    async def start(self) -> None:
        """Listen; `address` is then host:port."""
        loop = asyncio.get_running_loop()
        while True:
            self._tcp = await asyncio.start_server(self._serve_stream, "127.0.0.1", 0)
            host, port = self._tcp.sockets[0].getsockname()
            try:
                self._udp, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), local_addr=(host, port))
            except OSError:  # the port is taken for UDP
                self._tcp.close()
                continue
            self.address = f"{host}:{port}"
            return

    async def close(self) -> None:
        """Stop listening and drop the answers kept back."""
        self._udp.close()
        self._tcp.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def receive_datagram(self, data: bytes, peer: Address) -> None:
        """Answer a datagram later, or never."""
        task = asyncio.get_running_loop().create_task(self._answer_datagram(data, peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer_datagram(self, data: bytes, peer: Address) -> None:
        query = dns.message.from_wire(data)
        answer = await self._answer(query)
        if answer is None:
            return
        if self.lying:
            self._udp.sendto(b"junk", peer)
            forged = dns.message.make_response(query)
            forged.id ^= 1
            self._udp.sendto(forged.to_wire(), peer)
        size = query.payload if query.edns >= 0 else _EDNS_NONE_OCTETS
        self._udp.sendto(answer.to_wire(max_size=size, prefer_truncation=True), peer)

    async def _serve_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: Any = asyncio.current_task()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            while length := int.from_bytes(await reader.read(2), "big"):
                query = dns.message.from_wire(await reader.readexactly(length))
                self.over_tcp += [_texts(question) for question in query.question]
                answer = await self._answer(query)
                if answer is not None:
                    writer.write(answer.to_wire(max_size=65535, prepend_length=True))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return
        finally:
            writer.close()

    async def _answer(self, query: dns.message.Message) -> dns.message.Message | None:
        [question] = query.question
        name, kind = _texts(question)
        self.questions.append((name, kind))
        await asyncio.sleep(self.delay_s)
        await self._released.wait()
        if self.silent is True or (isinstance(self.silent, set) and name in self.silent):
            return None
        answer = dns.message.make_response(query, recursion_available=True)
        if query.edns >= 0 and not self.edns:
            answer.set_rcode(dns.rcode.FORMERR)
            answer.use_edns(-1)
        elif self.failing is True or (isinstance(self.failing, set) and name in self.failing):
            answer.set_rcode(dns.rcode.SERVFAIL)
        else:
            self._fill(answer, question.name, question.rdtype)
        return answer

    def _fill(self, answer: dns.message.Message, name: dns.name.Name, kind: dns.rdatatype.RdataType) -> None:
        """Put in the records of a name, following CNAMEs, or the SOA that says for how long there are none."""
        while (alias := self._zone.get((name, dns.rdatatype.CNAME))) is not None:
            answer.answer.append(alias)
            if len(answer.answer) > 20:
                return
            name = alias[0].target
        found = self._zone.get((name, kind))
        if found is not None:
            answer.answer.append(found)
            return
        if not any(owner.is_subdomain(name) for owner, _ in self._zone):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        soa = f"ns. admin. 1 3600 600 86400 {self.negative_ttl_s}"
        answer.authority.append(dns.rrset.from_text(dns.name.root, 86400, "IN", "SOA", soa))


def _texts(question: dns.rrset.RRset) -> tuple[str, str]:
    return question.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(question.rdtype)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self._server.receive_datagram(data, addr)
