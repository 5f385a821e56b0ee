"""The torture messages of RFC 4475 and RFC 5118 through the port, over UDP and TCP.

The files are those of the RFCs' archives, repaired where the archives are broken (`vectors/README.md`). Several share branch,
sent-by and method; so each delivery gets a branch and a Call-ID of its own, and nothing else is touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import random
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import EdgeServer
from tests.server.stub_hop import StubHop
from tests.ua.hostile import HostileClient
from tests.ua.wait import deadline

VECTORS = Path(__file__).parent.parent / "vectors"
FOREIGN = ("services.example.com", "registrar.example.com", "example.net", "example.org", "host.example.net")
USERS = (b"user", b"UserB", b"user;par=u%40example.net")
RELAYED = frozenset((200, 486))  # what the stub says
NO_ROAD = frozenset((403, 404, 408, 480, 500, 503, 504))  # a decision about an address, not about the message
_serials = itertools.count(1)


@dataclass(frozen=True)
class Row:
    """What must become of a message. `statuses` are the final answers allowed, none means silence.

    `relayed`: the next hop must get it; `check` looks at what it got, `answered` at our answer. On TCP the end of the
    connection belongs to the outcome where `closes`; `tcp` are the statuses there, where they differ.
    """

    statuses: frozenset[int] = frozenset()
    relayed: bool = False
    check: Callable[[bytes, bytes], None] | None = None
    answered: Callable[[bytes], None] | None = None
    closes: bool = False
    tcp: frozenset[int] | None = None
    rewrite: tuple[bytes, bytes] = field(default=(b"", b""))


def only(*statuses: int, **more: object) -> Row:
    return Row(frozenset(statuses), **more)  # type: ignore[arg-type]


def relay(check: Callable[[bytes, bytes], None] | None = None, **more: object) -> Row:
    return Row(RELAYED, True, check, **more)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ what is looked at


def body(message: bytes) -> bytes:
    return message.partition(b"\r\n\r\n")[2]


def same_body(sent: bytes, got: bytes) -> None:
    length = re.search(rb"(?im)^(?:content-length|l)\s*:\s*(\d+)", sent)
    expected = body(sent)[: int(length[1])] if length else body(sent)
    assert hashlib.sha256(body(got)).digest() == hashlib.sha256(expected).digest()


def has(*parts: bytes) -> Callable[[bytes, bytes], None]:
    def check(sent: bytes, got: bytes) -> None:
        same_body(sent, got)
        for part in parts:
            assert part in got, part

    return check


def in_order(*parts: bytes) -> Callable[[bytes, bytes], None]:
    def check(sent: bytes, got: bytes) -> None:
        has(*parts)(sent, got)
        places = [got.index(part) for part in parts]
        assert places == sorted(places)

    return check


def wsinv(sent: bytes, got: bytes) -> None:
    in_order(b"192.0.2.2", b"spindle.example.com", b"192.168.255.111")(sent, got)
    has(
        b"\r\nMax-Forwards: 67\r\n",
        b"\r\nUnknownHeaderWithUnusualValue: ;;,,;;,;\r\n",
        b"\r\nNewFangledHeader:   newfangled value\r\n continued newfangled value\r\n",
        b"\r\nRoute:\r\n <sip:services.example.com;lr;unknownwith=value;unknown-no-value>\r\n",
        b"\r\ns :\r\n",
    )(sent, got)
    assert got.startswith(b"INVITE sip:vivekg@chair-dnrc.example.com;unknownparam SIP/2.0\r\n")
    assert len(body(got)) == 150


def intmeth(answer: bytes) -> None:
    assert b'"BEL:\\\x07 NUL:\\\x00 DEL:\\\x7f"' in answer
    assert b";branch=z9hG4bK-.!%66*_+`'~" in answer


def longreq(sent: bytes, got: bytes) -> None:
    has()(sent, got)
    assert len(re.findall(rb"(?im)^(?:via|v)\s*:", got)) == 35
    assert max(map(len, got.split(b"\r\n"))) >= 593


def esc01(sent: bytes, got: bytes) -> None:
    has(b"<sip:cal%6Cer@host5.example.net;%6C%72;n%61me=v%61lue%25%34%31>", b"To: sip:%75se%72@example.com\r\n")(
        sent, got
    )
    assert got.startswith(b"INVITE sip:sips%3Auser%40example.com@example.net SIP/2.0\r\n")


def mpart01(sent: bytes, got: bytes) -> None:
    same_body(sent, got)
    assert len(body(got)) == 553
    assert got.startswith(b"MESSAGE sip:127.77.")  # the strict router's own name
    assert b"\r\nRoute: <sip:kumiko@example.org>\r\n" in got


def bindings(*contacts: bytes) -> Callable[[bytes], None]:
    def check(answer: bytes) -> None:
        rows = re.findall(rb"(?im)^contact: (<[^>]*>[^\r\n]*)", answer)
        for contact in contacts:
            assert any(row.startswith(contact) and row[len(contact) :].startswith(b";expires=") for row in rows), rows

    return check


def unsupported(answer: bytes) -> None:
    assert b"\r\nUnsupported: noProxiesSupportThis, norDoAnyProxiesSupportThis\r\n" in answer


OURS = (b"\r\nTo: ", b"\r\nRoute: <sip:example.com;lr>\r\nTo: ")  # what comes along our own Route is let out

RFC4475 = {
    "wsinv": relay(wsinv),
    "intmeth": only(404, answered=intmeth),
    "esc01": relay(esc01, rewrite=OURS),
    "escnull": only(200, answered=bindings(b"<sip:%00@host5.example.com>", b"<sip:%00%00@host5.example.com>")),
    "esc02": relay(has(b'To: "%Z%45" <sip:resource@example.com>', b"C%6Fntact: <sip:alias2@host2.example.com>")),
    "lwsdisp": relay(has(b"From: caller<sip:caller@example.com>;tag=323\r\n")),
    "longreq": relay(longreq),
    # its second body is five octets longer than it says, which a stream could not get over
    "dblreq": only(200, tcp=frozenset((200, 404)), rewrite=(b"Content-Length: 150", b"Content-Length: 155")),
    "semiuri": relay(),
    "transports": relay(in_order(b"/UDP t1.", b"/SCTP t2.", b"/TLS t3.", b"/UNKNOWN t4.", b"/TCP t5.")),
    "mpart01": relay(mpart01, rewrite=(b"<sip:127.0.0.1:5080>", b"<sip:STUB>")),
    "unreason": only(),
    "noreason": only(),
    "badinv01": only(400),
    "clerr": only(400, tcp=frozenset(), closes=True),
    "ncl": only(400, closes=True),
    "scalar02": only(400),
    "scalarlg": only(),
    "quotbal": only(400),
    "ltgtruri": only(400),
    "lwsruri": only(400),
    "lwsstart": only(400),
    "trws": only(400),
    "escruri": only(400),
    "baddate": relay(has(b"\r\nDate: Fri, 01 Jan 2010 16:00:00 EST\r\n")),
    "regbadct": only(400),
    "badaspec": only(400),
    "baddn": only(400),
    "badvers": only(505),
    "mismatch01": only(400),
    "mismatch02": only(501),
    "bigcode": only(),
    "badbranch": relay(),
    "insuf": only(400),
    "unkscm": only(416),
    "novelsc": only(416),
    "unksm2": only(400),
    "bext01": only(420, answered=unsupported),
    "invut": relay(has()),
    "regaut01": only(200),
    "multi01": only(400),
    "mcl01": only(400, closes=True),
    "bcast": only(),
    "zeromf": only(483),
    "cparam01": only(200, answered=bindings(b"<sip:+19725552222@gw1.example.net>;unknownparam")),
    "cparam02": only(200, answered=bindings(b"<sip:+19725552222@gw1.example.net;unknownparam>")),
    # as it is, it points at our own domain, which is refused (SIP-REG-11)
    "regescrt": only(
        200,
        answered=bindings(b"<sip:user@example.net?Route=%3Csip:sip.example.com%3E>"),
        rewrite=(b"<sip:user@example.com?", b"<sip:user@example.net?"),
    ),
    "sdp01": relay(has()),
    "inv2543": relay(has(b"\r\nMax-Forwards: 70\r\n", b"\r\nContent-Length: "), tcp=frozenset((400,)), closes=True),
    "test": only(closes=True),
}

VIA_STUB = (b"\r\nTo: ", b"\r\nRoute: <sip:STUB;lr>\r\nTo: ")
RFC5118 = {
    "ipv6-good": Row(NO_ROAD),
    "ipv6-bad": only(400),
    "port-ambiguous": Row(NO_ROAD),
    "port-unambiguous": Row(NO_ROAD),
    "via-received-param-with-delim": Row(NO_ROAD),
    "via-received-param-no-delim": Row(NO_ROAD),
    "ipv6-in-sdp": relay(has(b"c=IN IP6 2001:db8::20\r\n"), rewrite=VIA_STUB),
    "mult-ip-in-header": relay(
        in_order(
            b"Via: SIP/2.0/UDP [2001:db8::9:1]:6050;branch=", b"Via: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKjhja8781hjuaij65144",
            b"Via: SIP/2.0/TCP [2001:db8::9:255];branch=z9hG4bK451jj;received=192.0.2.200\r\n",
        )
    ),
    "mult-ip-in-sdp": relay(has(b"c=IN IP4 192.0.2.1\r\n", b"c=IN IP6 2001:db8::1\r\n"), rewrite=VIA_STUB),
    "ipv4-mapped-ipv6": relay(in_order(b"[::ffff:192.0.2.10]:19823", b"[::ffff:192.0.2.2]", b"<sip:ted@[::ffff:192.0.2.2]>")),
    "ipv6-bug-abnf-3-colons": Row(NO_ROAD),
    "ipv6-correct-abnf-2-colons": Row(NO_ROAD),
}  # fmt: skip

ALL = [("rfc4475", name, row) for name, row in RFC4475.items()] + [
    ("rfc5118", name, row) for name, row in RFC5118.items()
]
REGISTERS = frozenset(("escnull", "dblreq", "regbadct", "unksm2", "regaut01", "cparam01", "cparam02", "regescrt"))


def test_no_torture_message_is_left_out() -> None:
    for folder, table in (("rfc4475", RFC4475), ("rfc5118", RFC5118)):
        assert {path.stem for path in (VECTORS / folder).glob("*.dat")} == set(table)
    assert (len(RFC4475), len(RFC5118)) == (49 + 1, 12)


# ------------------------------------------------------------------------------------------ the stage


def fresh(data: bytes) -> bytes:
    """Give a message a branch and a Call-ID that were not used yet; an old branch (RFC 2543) is left alone."""
    mark = b"%d" % next(_serials)
    data = re.sub(rb"(?i)(branch=z9hG4bK[^;,\s]+)", rb"\1.f" + mark, data, count=1)
    return re.sub(rb"(?im)^((?:call-id|i)[ \t]*:[ \t]*\S+)", rb"\1.f" + mark, data)


def options(branch: bytes) -> bytes:
    return (
        b"OPTIONS sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP c.example;branch=z9hG4bK%b\r\nMax-Forwards: 70\r\n"
        b"From: <sip:a@example.com>;tag=1\r\nTo: <sip:example.com>\r\nCall-ID: %b\r\nCSeq: 7 OPTIONS\r\n"
        b"Content-Length: 0\r\n\r\n" % (branch, branch)
    )


class Datagrams:
    """A sender of datagrams who, as RFC 3261 §18.2.2 has it, gets his answers at the port his Via names."""

    def __init__(self, server: EdgeServer, *ports: int) -> None:
        self._server = ("127.0.0.1", server.port)
        host = f"127.78.{random.randrange(1, 255)}.{random.randrange(1, 255)}"
        self._sockets = []
        for port in (0, *dict.fromkeys((5060, *ports))):
            one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            one.setblocking(False)
            one.bind((host, port))
            self._sockets.append(one)
        self._came: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        for one in self._sockets:
            loop.add_reader(one, self._read, one)

    def _read(self, one: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._came.put_nowait((one.getsockname()[1], one.recv(65535)))

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendto(self._sockets[0], data, self._server)

    async def next(self) -> tuple[int, bytes]:
        """The next answer and the port it came to."""
        async with deadline():
            return await self._came.get()

    def close(self) -> None:
        for one in self._sockets:
            asyncio.get_running_loop().remove_reader(one)
            one.close()


@pytest.fixture(scope="module")
def stub() -> Iterator[StubHop]:
    with StubHop(*FOREIGN).running() as stub:
        yield stub


def torture_server(directory: Path, stub: StubHop) -> EdgeServer:
    server = EdgeServer(
        directory,
        {
            "auth": {"required": False},
            "sip": {"allow_targets": [f"{stub.address}/32"], "nameservers": [stub.nameserver]},
            "limits": {"trusted": ["127.0.0.0/8"], "message_timeout": 1},
        },
    )
    server.start()
    return server


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, stub: StubHop) -> Iterator[EdgeServer]:
    """A server that knows the users the messages ask for, at the stub."""
    server = torture_server(tmp_path_factory.mktemp("proxy"), stub)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:  # a stream would take its bindings with it
        line.settimeout(10)
        line.connect(("127.0.0.1", server.port))
        for number, user in enumerate(USERS):
            contact = b";rport\r\nContact: <sip:%d@%b:5060>\r\nMax" % (number, stub.address.encode())
            data = options(b"r%d" % number).replace(b"OPTIONS", b"REGISTER").replace(b"\r\nMax", contact)
            line.send(data.replace(b"To: <sip:example.com>", b"To: <sip:" + user + b"@example.com>"))
            assert line.recv(4096).startswith(b"SIP/2.0 200 ")
    yield server
    server.finish()


@pytest.fixture(scope="module")
def registrar(tmp_path_factory: pytest.TempPathFactory, stub: StubHop) -> Iterator[EdgeServer]:
    """A server of its own for what registers."""
    server = torture_server(tmp_path_factory.mktemp("registrar"), stub)
    yield server
    server.finish()


@pytest.fixture
async def chosen(request: pytest.FixtureRequest, name: str, proxy: EdgeServer, registrar: EdgeServer) -> EdgeServer:
    return registrar if name in REGISTERS else proxy


@pytest.fixture
def nothing_waits(stub: StubHop) -> None:
    while not stub.received.empty():
        stub.received.get_nowait()


def prepare(folder: str, name: str, row: Row, stub: StubHop) -> bytes:
    data = (VECTORS / folder / f"{name}.dat").read_bytes()
    old, new = row.rewrite
    if old:
        assert data.count(old) >= 1
        data = data.replace(old, new.replace(b"STUB", stub.address.encode()), 1)
    return fresh(data)


def final(answers: list[bytes]) -> list[int]:
    return [int(answer[8:11]) for answer in answers if not answer.startswith(b"SIP/2.0 1")]


async def judge(row: Row, statuses: frozenset[int], sent: bytes, answers: list[bytes], stub: StubHop) -> None:
    found = final(answers)
    assert set(found) <= statuses, answers
    assert bool(found) == bool(statuses), answers
    if row.relayed and statuses == row.statuses:
        transport, got = await stub.next()
        assert transport == "tcp" or len(got) <= 1300
        if row.check is not None:
            row.check(sent, got)
    if row.answered is not None:
        row.answered(answers[-1])
    while not stub.received.empty():  # the ACK for a refused INVITE may come, and nothing else
        assert stub.received.get_nowait()[1].startswith(b"ACK ")
    for answer in answers:
        assert answer.startswith(b"SIP/2.0 ")
        assert answer.isascii() or answer[0:1] == b"S"


# ------------------------------------------------------------------------------------------ UDP and TCP


def sent_by_port(data: bytes) -> int:
    found = re.search(rb"(?i)\nv(?:ia)?\s*:\s*SIP\s*/\s*[\d.]+\s*/\s*\w+\s+(?:\[[^\]]*\]|[^\s:;,]+)(?::(\d+))?", data)
    return int(found[1]) if found is not None and found[1] else 5060


@pytest.mark.requirement("SIP-DOS-01")
@pytest.mark.parametrize(("folder", "name", "row"), ALL, ids=[f"{folder}-{name}" for folder, name, _ in ALL])
async def test_over_udp(
    folder: str, name: str, row: Row, chosen: EdgeServer, stub: StubHop, nothing_waits: None
) -> None:
    data = prepare(folder, name, row, stub)
    client = Datagrams(chosen, sent_by_port(data))
    try:
        await client.send(data)
        answers: list[bytes] = []
        while row.statuses and not final(answers):
            port, answer = await client.next()
            assert port == (sent_by_port(data) if b";rport" not in data else port)
            answers.append(answer)
        mark = b"after%d" % next(_serials)
        await client.send(options(mark))
        while True:  # nothing but repeats of what was said comes before the answer to the next request
            _, answer = await client.next()
            if b"z9hG4bK" + mark in answer:
                break
            assert answer in answers
        assert answer.startswith(b"SIP/2.0 200 ")
        await judge(row, row.statuses, data, answers, stub)
    finally:
        client.close()


def split_messages(data: bytes) -> list[bytes]:
    """Cut answers without bodies."""
    return [part + b"\r\n\r\n" for part in data.split(b"\r\n\r\n") if part.strip()]


@pytest.mark.requirement("SIP-DOS-01")
@pytest.mark.parametrize(("folder", "name", "row"), ALL, ids=[f"{folder}-{name}" for folder, name, _ in ALL])
async def test_over_tcp(
    folder: str, name: str, row: Row, chosen: EdgeServer, stub: StubHop, nothing_waits: None
) -> None:
    data = prepare(folder, name, row, stub)
    statuses = row.statuses if row.tcp is None else row.tcp
    async with HostileClient(("127.0.0.1", chosen.port)) as client:
        await client.send(data)
        if row.closes:
            answers = split_messages(await client.read_until_close(10))
        else:
            collected, wanted = b"", len(statuses) if name == "dblreq" else bool(statuses)
            while len(final(split_messages(collected))) < wanted:
                collected += await client.read_until(b"\r\n\r\n")
            mark = b"after%d" % next(_serials)
            await client.send(options(mark))
            while b"z9hG4bK" + mark not in collected:
                collected += await client.read_until(b"\r\n\r\n")
            *answers, last = split_messages(collected)
            assert last.startswith(b"SIP/2.0 200 ")
        await judge(row, statuses, data, answers, stub)
    async with HostileClient(("127.0.0.1", chosen.port)) as client:  # and others are served in any case
        await client.send(options(b"other%d" % next(_serials)))
        assert (await client.read()).startswith(b"SIP/2.0 200 ")


# ------------------------------------------------------------------------------------------ what the tables say besides


async def test_regbadct_leaves_no_binding(registrar: EdgeServer, stub: StubHop) -> None:
    query = (VECTORS / "rfc4475" / "regbadct.dat").read_bytes().replace(b"To: sip:user@", b"To: sip:nobody@")
    bare = re.sub(rb"(?im)^contact:.*\r\n", b"", query)
    async with HostileClient(("127.0.0.1", registrar.port)) as client:
        await client.send(fresh(query))
        assert (await client.read_until(b"\r\n\r\n")).startswith(b"SIP/2.0 400 ")
        await client.send(fresh(bare))
        answer = await client.read_until(b"\r\n\r\n")
        assert answer.startswith(b"SIP/2.0 200 ")
        assert b"\r\nContact:" not in answer


async def test_regaut01_is_challenged_where_users_must_say_who_they_are(server: EdgeServer) -> None:
    async with HostileClient(("127.0.0.1", server.port)) as client:
        await client.send(fresh((VECTORS / "rfc4475" / "regaut01.dat").read_bytes()))
        answer = await client.read_until(b"\r\n\r\n")
        assert answer.startswith(b"SIP/2.0 401 ")
        assert b"\r\nWWW-Authenticate: Digest " in answer


async def test_mpart01_to_this_machine_is_refused(proxy: EdgeServer) -> None:
    async with HostileClient(("127.0.0.1", proxy.port)) as client:
        await client.send(fresh((VECTORS / "rfc4475" / "mpart01.dat").read_bytes()))
        assert (await client.read_until(b"\r\n\r\n")).startswith(b"SIP/2.0 403 ")


async def test_regescrt_as_it_is_would_lead_back_to_us(registrar: EdgeServer) -> None:
    async with HostileClient(("127.0.0.1", registrar.port)) as client:
        await client.send(fresh((VECTORS / "rfc4475" / "regescrt.dat").read_bytes()))
        assert (await client.read_until(b"\r\n\r\n")).startswith(b"SIP/2.0 400 ")


async def test_nothing_of_dblreq_behind_its_end_is_looked_at_in_a_datagram(registrar: EdgeServer) -> None:
    before = registrar.metrics().value("edge_sip_requests_total", method="INVITE")
    client = Datagrams(registrar)
    try:
        await client.send(fresh((VECTORS / "rfc4475" / "dblreq.dat").read_bytes()))
        assert (await client.next())[1].startswith(b"SIP/2.0 200 ")
    finally:
        client.close()
    assert registrar.metrics().value("edge_sip_requests_total", method="INVITE") == before
