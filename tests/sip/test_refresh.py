"""A refresh that is recognised is treated exactly as one that is read; whatever differs is read.

Two elements get the same octets. One of them forgets what it remembered of the connection before each request, and so
takes the ordinary way every time: answers, bindings, flows, counters and kept answers must be the same in both.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.connections import Transport
from edge.sip.message import MessageLimits, frame_datagram
from tests.sip.registering import Counter, flow_contact, register, with_credentials
from tests.sip.rig import Wire
from tests.ua.sip_message import Response, parse

USERS = {"bob@example.com": "secret", "admin@example.com": "root"}
CHALLENGED = re.compile(rb'nonce="[^"]*"|(?<=\r\nTo: )([^\r]*);tag=[0-9a-f]{16}')


class Twins:
    """Two elements with one registration each, made by the same octets; the second forgets before each request."""

    def __init__(self, transport: Transport, *, digest: bool, **options: Any) -> None:
        self.digest = digest
        self.transport = transport
        users = USERS if digest else None
        self.sides = [Counter(users=users, sip={"third_party": ("admin@example.com",)}, **options) for _ in range(2)]
        self.wires = [side.wire(transport) for side in self.sides]
        self.challenges: list[Response] = []
        contact = flow_contact(uri="sip:bob@198.51.100.7:5070")
        self.base = register(
            contact, call_id="c", cseq=1, branch="z9hG4bKfirst", transport=transport.name, expires=600,
            supported="path, outbound", extra=[("User-Agent", "Phone 1.0")],
        )  # fmt: skip
        if digest:
            self.challenges = [side.ask(wire, self.base) for side, wire in zip(self.sides, self.wires, strict=True)]
        for cseq, branch in ((1, "z9hG4bKstart"), (2, "z9hG4bKsecond")):  # what was refreshed once is remembered
            answers = self.give(self.variants(cseq, branch, count=cseq))
            assert [[answer.status for answer in each] for each in answers] == [[200], [200]]

    def variants(
        self, cseq: int, branch: str, *, count: int = 1, user: str = "bob", password: str = "secret"
    ) -> list[bytes]:
        """The refresh for each side; they differ in nonce and response alone."""
        data = re.sub(rb"CSeq: \d+", b"CSeq: %d" % cseq, self.base).replace(b"z9hG4bKfirst", branch.encode())
        if not self.digest:
            return [data, data]
        return [self._answered(data, challenge, cseq, branch, count, user, password) for challenge in self.challenges]

    @staticmethod
    def _answered(
        data: bytes, challenge: Response, cseq: int, branch: str, count: int, user: str, password: str
    ) -> bytes:
        made = with_credentials(data, challenge, user, password, count=count, cnonce="abc")
        made = made.replace(f"{branch}a".encode(), branch.encode())
        return re.sub(rb"CSeq: \d+", b"CSeq: %d" % cseq, made)

    def give(self, variants: list[bytes]) -> list[list[Response]]:
        """Let a request arrive on both sides, and compare everything."""
        found = []
        for number, (side, wire, data) in enumerate(zip(self.sides, self.wires, variants, strict=True)):
            if number == 1:
                side.registration.refreshes.forget(wire)
            self._give(side, wire, data)
            found.append(wire.take())
        assert [mask(data) for data in found[0]] == [mask(data) for data in found[1]]
        assert state_of(self.sides[0], self.wires[0]) == state_of(self.sides[1], self.wires[1])
        return [[read(data) for data in answers if data.startswith(b"SIP/2.0 ")] for answers in found]

    @staticmethod
    def _give(side: Counter, wire: Wire, data: bytes) -> None:
        wire.last_received = side.clock.now
        if wire.transport is Transport.UDP:
            side.framing.receive_datagram(wire, data, side.clock.now)
        elif not wire.closed:
            wire.handler.receive_data(wire, data, side.clock.now)

    def advance(self, seconds: float) -> None:
        for side in self.sides:
            side.advance(seconds)

    def recognised(self, data: bytes) -> bool:
        """Whether the first side would take a request without reading it."""
        refresh = self.sides[0].registration.refreshes.find(self.wires[0])
        return refresh is not None and refresh.recognise(self.wires[0], data) is not None


def read(data: bytes) -> Response:
    answer = parse(data)
    assert isinstance(answer, Response)
    return answer


def mask(data: bytes) -> bytes:
    """Leave out what may differ: To tags of ours, nonces, what was made of the random octets of each."""
    return re.sub(rb"Date: [^\r]*", b"", CHALLENGED.sub(rb"\1", data))


def state_of(counter: Counter, wire: Wire) -> dict[str, object]:
    core, registrations = counter.core, [r for flow in counter.flows for r in flow.registrations]
    names = [
        "aor", "contact", "parameters", "call_id", "cseq", "expires_at", "q", "instance", "reg_id", "path", "refreshed_at",
        "user_agent",
    ]  # fmt: skip
    return {
        "bindings": [
            [
                [getattr(b, name) for name in names] + [b.connection is wire, b.flow == wire.token]
                for b in counter.bindings(aor)
            ]
            for aor in counter.location.aors()
        ],
        "flows": [(r.key, r.expires_at, r.flow.state, r.flow.flow_timer) for r in registrations],
        "registered": wire.registered,
        "closed": wire.closed,
        "answers": core.stats.answers,
        "requests": core.stats.requests,
        "rejected": core.stats.rejected,
        "failures": core.access.failures,
        "absorbed": core.transactions.retransmissions_absorbed,
        "finals": {key: mask(data) for key, data in core.transactions.finals.items()},
        "events": counter.names(),
    }


BOTH = pytest.mark.parametrize("transport", [Transport.TCP, Transport.UDP])
DIGEST = pytest.mark.parametrize("digest", [False, True], ids=["open", "digest"])


@BOTH
@DIGEST
def test_the_usual_refresh_is_recognised_and_treated_alike(transport: Transport, digest: bool) -> None:
    twins = Twins(transport, digest=digest)
    for turn in range(3, 9):
        twins.advance(40)
        variants = twins.variants(turn, f"z9hG4bK{turn}", count=turn)
        assert twins.recognised(variants[0])
        (answers, _) = twins.give(variants)
        assert [answer.status for answer in answers] == [200]
        assert answers[0]["Contact"].endswith(";expires=600")


@BOTH
@pytest.mark.parametrize(
    ("usual", "written"),
    [
        *((b"Via: ", name) for name in (b"v: ", b"Via:", b"VIA: ", b"Via : ", b"Via:  ", b"Via: \t", b"Via: \r\n ")),
        *((b";rport\r\n", b";rport%b\r\n" % end) for end in (b" ", b"\t", b"\r\n ")),
    ],
)
def test_how_a_via_was_written_is_not_remembered_for_the_next_request(
    transport: Transport, usual: bytes, written: bytes
) -> None:
    twins = Twins(transport, digest=False)
    for data in twins.give([data.replace(usual, written) for data in twins.variants(3, "z9hG4bKother")]):
        assert [answer.status for answer in data] == [200]
    twins.give(twins.variants(4, "z9hG4bKlast"))


@BOTH
def test_without_and_with_wrong_credentials_it_is_challenged_alike(transport: Transport) -> None:
    twins = Twins(transport, digest=True)
    bare = re.sub(rb"Authorization: [^\r]*\r\n", b"", twins.variants(3, "z9hG4bKb")[0])
    assert twins.recognised(bare)
    assert twins.give([bare, bare])[0][0].status == 401
    wrong = twins.variants(4, "z9hG4bKw", count=4, password="guess")
    assert twins.recognised(wrong[0])
    assert twins.give(wrong)[0][0].status == 401
    assert twins.give(twins.variants(5, "z9hG4bKr", count=3))[0][0].status == 200
    assert twins.give(twins.variants(6, "z9hG4bKs", count=3))[0][0].status == 401  # a count that was used


@BOTH
@DIGEST
@pytest.mark.parametrize(
    "change",
    [
        (rb"CSeq: 3", b"CSeq: 2"),
        (rb"CSeq: 3", b"CSeq: 1"),
        (rb"CSeq: 3", b"CSeq: 0000003"),
        (rb"CSeq: 3", b"CSeq: 9999999999"),
        (rb"CSeq: 3", b"CSeq:  3"),
        (rb"z9hG4bKthird", b"z9hG4bKsecond"),
        (rb"z9hG4bKthird", b"z9hG4bK"),
        (rb"z9hG4bKthird", b"1"),
        (rb"z9hG4bKthird", b"z9hG4bK" + b"x" * 200),
        (rb"z9hG4bKthird", b"z9hG4bKa;rport=1"),
        (rb"z9hG4bKthird", b"z9hG4bKa,b"),
        (rb"z9hG4bKthird", b'z9hG4bK"a"'),
        (rb"z9hG4bKthird;rport", b"z9hG4bKthird"),
        (rb"Expires: 600", b"Expires: 601"),
        (rb"Expires: 600", b"Expires: 0"),
        (rb"Max-Forwards: 70", b"Max-Forwards: 0"),
        (rb"Authorization: ", b"Authorization:   \t"),
        (rb"Authorization: ", b"authorization: "),
        (rb"Authorization: Digest", b"Authorization: Digest\r\n"),
        (rb"(Authorization: [^\r]*)", rb"\1   "),
        (rb"(Authorization: [^\r]*)", rb"\1\0"),
        (rb"(Authorization: [^\r]*)", rb"\1\r"),
        (rb"(Authorization: [^\r]*)", rb"\1, x=" + b"y" * 5000),
        (rb"(Authorization: [^\r]*)", rb"\1, x=" + b"y" * 9000),
        (rb"(Authorization: [^\r]*\r\n)", rb"\1\1"),
        (rb"(Authorization: [^\r]*\r\n)", rb"\1X: y\r\n"),
        (rb"Authorization: [^\r]*", b"Authorization: Basic x"),
        (rb"Authorization: [^\r]*", b"Authorization: Digest x"),
        (rb"Authorization: [^\r]*", b"Authorization: "),
        (rb"Content-Length: 0", b"Content-Length: 00"),
        (rb"Content-Length: 0\r\n", b""),
        (rb"\r\n\r\n", b"\r\n\r\nbody"),
        (rb"\r\n\r\n", b"\r\n"),
        (rb"\AREGISTER", b"\r\nREGISTER"),
        (rb"Phone 1.0", b"Phone 1.1"),
    ],
    ids=str,
)
def test_what_differs_anywhere_is_treated_as_if_it_was_read(
    transport: Transport, digest: bool, change: tuple[bytes, bytes]
) -> None:
    twins = Twins(transport, digest=digest)
    twins.advance(50)
    twins.give([re.sub(*change, data, count=1) for data in twins.variants(3, "z9hG4bKthird", count=3)])
    twins.give(twins.variants(4, "z9hG4bKfourth", count=4))


def test_a_second_binding_another_flow_or_a_lost_one_makes_it_be_read() -> None:
    twins = Twins(Transport.TCP, digest=False)
    second = register("<sip:bob@192.0.2.1>", call_id="d", cseq=1, branch="z9hG4bKo")
    assert twins.give([second, second])[0][0].status == 200
    (answers, _) = twins.give(twins.variants(3, "z9hG4bK3"))
    assert len(answers[0].all("Contact")) == 2
    twins = Twins(Transport.TCP, digest=False)
    for side in twins.sides:
        side.location.expire(side.bindings()[0])
    (answers, _) = twins.give(twins.variants(3, "z9hG4bK3"))
    assert len(answers[0].all("Contact")) == 1
    twins = Twins(Transport.TCP, digest=False)
    for side in twins.sides:
        side.register(
            side.wire(remote=("198.51.100.7", 6000)), flow_contact(), supported="outbound", call_id="c", cseq=9
        )
    assert twins.give(twins.variants(10, "z9hG4bK3"))[0][0].status == 200


def test_a_flow_that_was_suspect_recovers_alike() -> None:
    twins = Twins(Transport.TCP, digest=False)
    twins.advance(200)
    assert twins.sides[0].names()[-1] == "flow.suspect"
    twins.give(twins.variants(3, "z9hG4bK3"))
    assert twins.sides[0].names()[-1] == "flow.recovered"


def test_new_token_keys_make_it_be_read() -> None:
    twins = Twins(Transport.TCP, digest=False)
    for wire in twins.wires:
        wire.token = None  # as the flow table does when a key is retired
    twins.give(twins.variants(3, "z9hG4bK3"))


@BOTH
@pytest.mark.parametrize("user", ["admin", "ad\\min"])
def test_somebody_who_registers_others_is_never_taken_for_the_owner(transport: Transport, user: str) -> None:
    twins = Twins(transport, digest=True)
    variants = twins.variants(3, "z9hG4bK3", count=3, user="admin", password="root")
    escaped = [data.replace(b'username="admin"', f'username="{user}"'.encode()) for data in variants]
    assert twins.give(escaped)[0][0].status == 200
    assert [binding.connection for binding in twins.sides[0].bindings()] == [twins.wires[0], None]


def test_draining_refuses_it_like_any_other() -> None:
    twins = Twins(Transport.TCP, digest=False)
    for side in twins.sides:
        side.core.draining = True
    assert twins.recognised(twins.variants(3, "z9hG4bK3")[0])
    sides = zip(twins.sides, twins.wires, twins.variants(3, "z9hG4bK3"), strict=True)
    assert [side.ask(wire, data).status for side, wire, data in sides] == [503, 503]


def test_a_via_whose_branch_cannot_be_told_from_a_quoted_one_is_not_remembered() -> None:
    counter = Counter()
    wire = counter.wire()
    via = 'SIP/2.0/TCP 198.51.100.7:5070;x=";branch=z9hG4bKa";branch=z9hG4bKa;rport'
    data = re.sub(rb"Via: [^\r]*", f"Via: {via}".encode(), register("<sip:bob@192.0.2.7>"))
    assert counter.ask(wire, data).status == 200
    assert counter.registration.refreshes.find(wire) is None


# ------------------------------------------------------------------------------------------ any mutation

edits = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["insert", "delete", "replace", "double"]),
        st.one_of(
            st.binary(min_size=1, max_size=4),
            st.sampled_from([b"\r\n", b" ", b";", b",", b'"', b"\\", b"0", b"z9hG4bK", b"\t", b":", b"=", b"%41"]),
        ),
    ),
    min_size=0,
    max_size=3,
)


def mutate(data: bytes, changes: list[tuple[float, str, bytes]]) -> bytes:
    """Change octets at places given as a share of the whole, so that both variants are changed alike."""
    for place, kind, octets in changes:
        at = int(place * len(data))
        if kind == "insert":
            data = data[:at] + octets + data[at:]
        elif kind == "delete":
            data = data[:at] + data[at + len(octets) :]
        elif kind == "replace":
            data = data[:at] + octets + data[at + len(octets) :]
        else:
            data = data[:at] + data[at - len(octets) : at] + data[at:]
    return data


@settings(max_examples=400, deadline=None)
@given(
    transport=st.sampled_from([Transport.TCP, Transport.UDP]),
    digest=st.booleans(),
    cseq=st.integers(0, 5),
    branch=st.sampled_from(["z9hG4bKsecond", "z9hG4bKthird", "z9hG4bK", "old"]),
    changes=edits,
    password=st.sampled_from(["secret", "guess"]),
)
def test_any_change_of_a_refresh_is_treated_as_if_it_was_read(
    transport: Transport, digest: bool, cseq: int, branch: str, changes: list[tuple[float, str, bytes]], password: str
) -> None:
    twins = Twins(transport, digest=digest)
    twins.advance(30)
    variants = twins.variants(cseq, branch, count=3, password=password)
    if len(set(map(len, variants))) == 1:
        twins.give([mutate(data, changes) for data in variants])
    twins.advance(1)
    twins.give(twins.variants(6, "z9hG4bKlast", count=4))


@settings(max_examples=200, deadline=None)
@given(
    place=st.floats(0, 1, exclude_max=True),
    octet=st.integers(0, 255),
    transport=st.sampled_from([Transport.TCP, Transport.UDP]),
)
def test_one_octet_of_another_value_is_recognised_only_where_refreshes_vary(
    place: float, octet: int, transport: Transport
) -> None:
    twins = Twins(transport, digest=False)
    data = twins.variants(1234, "z9hG4bKthird")[0]
    at = int(place * len(data))
    changed = data[:at] + bytes([octet]) + data[at + 1 :]
    varies = (
        range(data.index(b"z9hG4bKthird") + 7, data.index(b";rport")),
        range(data.index(b"1234 REG"), data.index(b" REGISTER\r\n")),
    )
    if twins.recognised(changed) and changed != data:
        assert any(at in part for part in varies)
        read = frame_datagram(changed, MessageLimits())
        assert read.error is None
