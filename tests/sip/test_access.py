"""Who may register and send: challenges, credentials, identity, third parties, clients that know MD5 alone."""

from __future__ import annotations

import re
from typing import Any

import pytest

from edge.auth.fallback import Fallback
from edge.connections import Transport
from edge.storage.base import StorageError
from tests.sip.registering import BOB, Counter, flow_contact, register, with_credentials
from tests.sip.rig import Wire, request
from tests.ua.digest import Challenge, parse_parameters
from tests.ua.sip_message import Response

USERS = {"alice@example.com": "sesame", "bob@example.com": "secret", "admin@example.com": "root"}


def log_in(counter: Counter, wire: Wire, data: bytes, user: str = "bob", password: str = "secret") -> Response:
    challenge = counter.ask(wire, data)
    assert challenge.status in (401, 407)
    return counter.ask(wire, with_credentials(data, challenge, user, password))


def offered(answer: Response, name: str = "WWW-Authenticate") -> list[str]:
    return [Challenge.parse(value).algorithm for value in answer.all(name)]


# ------------------------------------------------------------------------------------------ challenges


@pytest.mark.requirement("SIP-AUT-01")
def test_the_registrar_asks_by_401_and_the_proxy_by_407() -> None:
    counter = Counter(users=USERS)
    wire = counter.wire()
    asked = counter.register(wire, BOB)
    assert (asked.status, len(asked.all("WWW-Authenticate")), asked.get("Proxy-Authenticate")) == (401, 2, None)
    for method in ("INVITE", "MESSAGE", "OPTIONS", "SUBSCRIBE"):
        asked = counter.ask(wire, request(method, "sip:bob@example.com", user="alice"))
        assert (asked.status, len(asked.all("Proxy-Authenticate")), asked.get("WWW-Authenticate")) == (407, 2, None)


@pytest.mark.requirement("SIP-AUT-03")
def test_a_challenge_leaves_nothing_behind() -> None:
    counter = Counter(users=USERS)
    wire = counter.wire(Transport.UDP)
    invite = request("INVITE", "sip:bob@example.com", user="alice", via="SIP/2.0/UDP h.example;branch=z9hG4bKi;rport")
    first = counter.ask(wire, invite)
    layer = counter.core.transactions
    assert (len(layer.servers), len(layer.clients), len(layer.finals)) == (0, 0, 0)
    counter.advance(40)
    assert counter.answers(wire) == []
    again = counter.ask(wire, invite)
    assert again["To"] == first["To"]
    ack = re.sub(rb"To: [^\r]*", f"To: {first['To']}".encode(), invite.replace(b"INVITE", b"ACK"))
    assert counter.give(wire, ack) == []
    assert counter.core.stats.rejected == {"ack_absorbed": 1}
    assert counter.asked == []


@pytest.mark.requirement("SIP-AUT-04")
@pytest.mark.parametrize("value", ["Basic Ym9iOnNlY3JldA==", "NoOneKnowsThisScheme opaque-data=here", "Bearer abc"])
def test_other_schemes_are_answered_with_our_challenge(value: str) -> None:
    counter = Counter(users=USERS)
    answer = counter.register(None, BOB, extra=[("Authorization", value)])
    assert answer.status == 401
    assert all(row.startswith("Digest ") for row in answer.all("WWW-Authenticate"))
    assert counter.location.count == 0
    # It does not stand in the way of credentials that are ours, either.
    wire, data = counter.wire(), register(BOB, extra=[("Authorization", value)])
    assert log_in(counter, wire, data).status == 200


@pytest.mark.requirement("SIP-AUT-04")
def test_a_right_digest_under_another_scheme_is_none() -> None:
    counter, data = Counter(users=USERS), register(BOB)
    wire = counter.wire()
    right = with_credentials(data, counter.ask(wire, data), "bob", "secret")
    for scheme in (b"Basic", b"Digest2", b"Bearer"):
        other = right.replace(b"Authorization: Digest ", b"Authorization: %b " % scheme)
        assert counter.ask(wire, other.replace(b";branch=", b";branch=z9hG4bK" + scheme)).status == 401
    assert counter.ask(wire, right).status == 200


@pytest.mark.requirement("SIP-AUT-05")
def test_a_row_for_each_algorithm_strongest_first() -> None:
    answer = Counter(users=USERS).register(None, BOB)
    form = r'Digest realm="example\.com", nonce="[^"]+", opaque="[^"]+", qop="auth", algorithm={}'
    strong, weak = answer.all("WWW-Authenticate")
    assert re.fullmatch(form.format("SHA-256"), strong)
    assert re.fullmatch(form.format("MD5"), weak)
    assert offered(Counter(users=USERS, auth={"algorithms": ("SHA-256",)}).register(None, BOB)) == ["SHA-256"]


@pytest.mark.requirement("SIP-AUT-05", "SIP-AUT-08")
def test_an_old_nonce_with_the_right_password_is_stale() -> None:
    counter, wire, data = Counter(users=USERS), None, register(BOB)
    wire = counter.wire()
    challenge = counter.ask(wire, data)
    counter.clock.advance(301)
    wrong = counter.ask(wire, with_credentials(data, challenge, "bob", "wrong"))
    assert (wrong.status, "stale" in wrong["WWW-Authenticate"]) == (401, False)
    right = counter.ask(wire, with_credentials(data, challenge, "bob", "secret"))
    assert right.status == 401
    assert all(re.search(r"[ ,]stale=true", row) for row in right.all("WWW-Authenticate"))
    restarted = Counter(users=USERS, seed=6)
    assert re.search(
        r"stale=true",
        restarted.ask(restarted.wire(), with_credentials(data, challenge, "bob", "secret"))["WWW-Authenticate"],
    )


@pytest.mark.requirement("SIP-AUT-07")
def test_credentials_without_qop_are_challenged() -> None:
    counter, data = Counter(users=USERS), register(BOB)
    wire = counter.wire()
    answered = with_credentials(data, counter.ask(wire, data), "bob", "secret", algorithms=("MD5",))
    bare = re.sub(rb', qop=auth, cnonce="[^"]*", nc=[0-9a-f]*', b"", answered)
    assert bare != answered
    assert counter.ask(wire, bare).status == 401
    assert counter.location.count == 0


@pytest.mark.requirement("SIP-AUT-09")
def test_a_count_is_used_once_and_may_come_late_by_a_little() -> None:
    counter = Counter(users=USERS)
    wire = counter.wire(Transport.UDP)
    data = [register(f"<sip:b@192.0.2.{n}>", transport="UDP") for n in range(4)]
    challenge = counter.ask(wire, data[0])
    two = with_credentials(data[1], challenge, "bob", "secret", count=2)
    one = with_credentials(data[2], challenge, "bob", "secret", count=1)
    assert [counter.ask(wire, message).status for message in (two, one)] == [200, 200]
    # A repeat by the transaction layer is answered from memory, and counts nothing.
    assert counter.ask(wire, two).status == 200
    row = re.search(rb"Authorization: [^\r]*\r\n", two)
    assert row is not None
    replay = counter.ask(wire, data[3].replace(b"Content-Length:", row[0] + b"Content-Length:"))
    assert replay.status == 401
    assert Challenge.parse(replay["WWW-Authenticate"]).nonce != Challenge.parse(challenge["WWW-Authenticate"]).nonce


@pytest.mark.requirement("SIP-AUT-10")
def test_an_algorithm_that_was_not_offered_is_refused() -> None:
    counter, data = Counter(users=USERS, auth={"algorithms": ("SHA-256",)}), register(BOB)
    wire = counter.wire()
    challenge = counter.ask(wire, data)
    faked = Response(**{name: getattr(challenge, name) for name in challenge.__dataclass_fields__})
    faked.headers = challenge.headers.override(
        {"WWW-Authenticate": challenge["WWW-Authenticate"].replace("SHA-256", "MD5")}
    )
    assert counter.ask(wire, with_credentials(data, faked, "bob", "secret")).status == 401
    assert counter.location.count == 0


@pytest.mark.requirement("SIP-AUT-11")
@pytest.mark.parametrize(
    ("uri", "status"),
    [("sip:example.com", 200), ("sip:edge.example:5060", 200), ("sip:other.example", 400), ("nonsense", 400)],
)
def test_the_digest_uri_names_something_of_ours(uri: str, status: int) -> None:
    counter, wire = Counter(users=USERS), None
    wire = counter.wire()
    data = register(BOB)
    challenge = counter.ask(wire, data)
    other = data.replace(b"REGISTER sip:example.com ", f"REGISTER {uri} ".encode())
    answered = with_credentials(other, challenge, "bob", "secret")
    back = answered.replace(f"REGISTER {uri} ".encode(), b"REGISTER sip:example.com ")
    assert counter.ask(wire, back).status == status
    unquoted = re.sub(rb'uri="([^"]*)"', rb"uri=\1", with_credentials(data, challenge, "bob", "secret", count=2))
    assert counter.ask(wire, unquoted).status == 400


@pytest.mark.requirement("SIP-AUT-12")
def test_of_several_rows_ours_counts_and_the_others_pass() -> None:
    counter = Counter(users=USERS)
    callee = counter.wire(remote=("198.51.100.9", 5070))
    assert log_in(counter, callee, register("<sip:bob@198.51.100.9:5070;transport=tcp>")).status == 200
    caller = counter.wire()
    foreign = [
        f'Digest username="x", realm="other{n}.example", nonce="n", uri="sip:x", response="00", qop=auth, cnonce="c", nc=00000001'
        for n in range(5)
    ]
    extra = tuple(("Proxy-Authorization", row) for row in foreign)
    data = request("MESSAGE", "sip:bob@example.com", extra=extra)
    challenge = counter.ask(caller, data)
    assert counter.give(caller, with_credentials(data, challenge, "alice", "sesame")) == []
    (forwarded,) = callee.requests("MESSAGE")
    assert forwarded.all("Proxy-Authorization")[:5] == foreign
    assert len(forwarded.all("Proxy-Authorization")) == 6


@pytest.mark.requirement("SIP-AUT-13")
@pytest.mark.parametrize(
    "change",
    [
        (rb'username="bob"', rb"username=\"bob\", username*=UTF-8''alice"),
        (rb'username="bob"', rb'username="bob", username="bob"'),
        (rb"nc=00000001", rb"nc=00000001, nc=00000001"),
    ],
)
def test_doubled_parameters_are_400(change: tuple[bytes, bytes]) -> None:
    counter, data = Counter(users=USERS), register(BOB)
    wire = counter.wire()
    answered = with_credentials(data, counter.ask(wire, data), "bob", "secret")
    assert re.sub(*change, answered) != answered
    assert counter.ask(wire, re.sub(*change, answered)).status == 400


@pytest.mark.requirement("SIP-AUT-13")
def test_what_stands_in_quotes_is_no_parameter() -> None:
    counter = Counter(users={**USERS, "b,username=alice,y@example.com": "odd"}, auth={"realm": "a, b=c"})
    assert log_in(counter, counter.wire(), register(BOB)).status == 200
    odd = register(BOB, to="<sip:b%2Cusername=alice%2Cy@example.com>")
    assert log_in(counter, counter.wire(), odd, "b,username=alice,y", "odd").status == 200
    assert counter.location.aors() == [b"bob@example.com", b"b,username=alice,y@example.com"]


@pytest.mark.requirement("SIP-AUT-14")
def test_unknown_users_and_wrong_passwords_get_the_same_answer() -> None:
    answers = []
    for user in ("bob", "nobody"):
        counter, data = Counter(users=USERS), register(BOB, user=user, cseq=1, call_id="c", branch="z9hG4bKsame")
        answer = log_in(counter, counter.wire(), data, user, "guess")
        answers.append(re.sub(r'nonce="[^"]*"|tag=[^\r]*', "", answer.raw.decode().replace(user, "USER")))
    assert answers[0] == answers[1]
    assert answers[0].startswith("SIP/2.0 401")


@pytest.mark.requirement("SIP-AUT-15")
def test_from_must_be_the_user_who_proved_it() -> None:
    counter = Counter(users=USERS)
    wire = counter.wire()
    data = request("INVITE", "sip:nobody@example.com", user="bob")
    assert log_in(counter, wire, data, "alice", "sesame").status == 403
    assert [event.reason for event in counter.events if event.name == "auth.failed"] == ["identity"]


@pytest.mark.requirement("SIP-DOS-03")
def test_too_many_wrong_passwords_of_a_source_are_refused_unread_for_a_minute() -> None:
    counter, data = Counter(users=USERS), register(BOB)
    wire, statuses = counter.wire(remote=("203.0.113.9", 5060)), []
    for _ in range(25):
        challenge = counter.ask(wire, data)
        statuses.append(counter.ask(wire, with_credentials(data, challenge, "bob", "guess")).status)
    assert statuses == [401] * 20 + [403] * 5
    assert log_in(counter, wire, register(BOB)).status == 403  # knows it now, and must not find out so soon
    assert log_in(counter, counter.wire(), register(BOB)).status == 200
    counter.advance(61)
    assert log_in(counter, wire, register(BOB)).status == 200


@pytest.mark.requirement("SIP-DOS-03")
def test_who_is_guessed_from_everywhere_can_be_guessed_no_longer_and_calls_on() -> None:
    """From where the owner was before he goes on; others hear the same whether they guess right or not."""
    counter, data = Counter(users=USERS), register(BOB)
    home = counter.wire(remote=("203.0.113.200", 5060))
    assert log_in(counter, home, register(BOB)).status == 200
    statuses = []
    for number in range(105):
        wire = counter.wire(remote=(f"203.0.113.{number}", 5060))
        challenge = counter.ask(wire, data)
        statuses.append(counter.ask(wire, with_credentials(data, challenge, "bob", "guess")).status)
    assert statuses == [401] * 100 + [403] * 5
    assert log_in(counter, counter.wire(remote=("203.0.113.201", 5060)), register(BOB)).status == 403
    assert log_in(counter, home, register(BOB)).status == 200
    assert (
        log_in(counter, counter.wire(), register("<sip:alice@192.0.2.4>", user="alice"), "alice", "sesame").status
        == 200
    )
    counter.advance(61)
    assert log_in(counter, counter.wire(remote=("203.0.113.201", 5060)), register(BOB)).status == 200


def test_a_realm_of_several_domains_keeps_their_users_apart() -> None:
    users = {"bob@example.com": "one", "bob@example.net": "two"}
    counter = Counter(users=users, auth={"realm": "all"}, domains=("example.com", "example.net"))
    for _ in range(2):
        for domain, right, wrong in (("example.com", "one", "two"), ("example.net", "two", "one")):
            data = register(BOB, to=f"<sip:bob@{domain}>", uri=f"sip:{domain}")
            assert log_in(counter, counter.wire(), data, "bob", wrong).status == 401
            assert log_in(counter, counter.wire(), data, "bob", right).status == 200


# ------------------------------------------------------------------------------------------ registering others


@pytest.mark.requirement("SIP-REG-02", "OB-REG-03", "OB-3P-01")
def test_nobody_registers_somebody_else() -> None:
    counter, wire = Counter(users=USERS), None
    wire = counter.wire()
    assert log_in(counter, wire, register(BOB)).status == 200
    for sender in ("<sip:alice@example.com>", "<sip:bob@example.com>"):  # whatever From claims
        data = register("<sip:evil@192.0.2.66>", user="bob", sender=sender)
        assert log_in(counter, counter.wire(), data, "alice", "sesame").status == 403
        assert [binding.contact for binding in counter.bindings()] == [b"sip:bob@198.51.100.7:5070;transport=tcp"]
    assert log_in(counter, counter.wire(), register("*", expires=0), "alice", "sesame").status == 403
    assert len(counter.bindings()) == 1


@pytest.mark.requirement("OB-3P-01", "OB-3P-02")
def test_a_permitted_user_registers_others_but_not_over_his_own_flow() -> None:
    counter = Counter(users=USERS, sip={"third_party": ("admin@Example.com",)})
    wire = counter.wire()
    data = register(flow_contact(uri="sip:bob@192.0.2.5"), sender="<sip:admin@example.com>", supported="path, outbound")
    answer = log_in(counter, wire, data, "admin", "root")
    assert (answer.status, answer.get("Require"), answer.get("Flow-Timer"), answer.get("Path")) == (
        200,
        None,
        None,
        None,
    )
    assert "reg-id" not in answer["Contact"]
    (binding,) = counter.bindings()
    assert (binding.connection, binding.flow, binding.reg_id, wire.registered) == (None, b"", 0, 0)
    caller = counter.wire()
    message = request("MESSAGE", "sip:bob@example.com", user="alice")
    counter.give(caller, with_credentials(message, counter.ask(caller, message), "alice", "sesame"))
    assert counter.asked == ["sip:bob@192.0.2.5"]
    assert wire.requests() == []
    wire.fail("reset")
    assert len(counter.bindings()) == 1
    own = log_in(counter, counter.wire(), register("<sip:admin@192.0.2.6>", user="admin"), "admin", "root")
    assert own.status == 200
    assert counter.bindings(b"admin@example.com")[0].connection is not None
    # Who may register others may not speak for them.
    assert log_in(counter, caller, message, "admin", "root").status == 403


@pytest.mark.requirement("OB-REG-04")
def test_a_permitted_user_cannot_register_whom_nobody_knows() -> None:
    counter = Counter(users=USERS, sip={"third_party": ("admin@example.com",)})
    assert log_in(counter, counter.wire(), register(BOB, user="nobody"), "admin", "root").status == 404
    counter.storage.users.error = StorageError("gone")
    assert log_in(counter, counter.wire(), register(BOB, user="bob"), "admin", "root").status == 500
    assert counter.location.count == 0


@pytest.mark.requirement("OB-3P-03")
def test_an_instance_counts_inside_its_aor_alone() -> None:
    counter = Counter(users=USERS)
    mine, theirs = counter.wire(), counter.wire(remote=("203.0.113.66", 5060))
    assert log_in(counter, mine, register(flow_contact(), supported="outbound")).status == 200
    stolen = register(flow_contact(uri="sip:x@203.0.113.66"), user="alice", supported="outbound")
    assert log_in(counter, theirs, stolen, "alice", "sesame").status == 200
    (binding,) = counter.bindings()
    assert (binding.connection, binding.contact) == (mine, b"sip:bob@198.51.100.7:5070;transport=tcp")
    assert mine.token is not None
    assert counter.flows.resolve(mine.token, counter.clock.now) is mine


# ------------------------------------------------------------------------------------------ clients that know MD5 alone


def ask_offer(counter: Counter, wire: Wire, cseq: int, **options: Any) -> list[str]:
    return offered(counter.register(wire, BOB, call_id="same", cseq=cseq, **options))


BOTH = ["SHA-256", "MD5"]


def test_who_comes_again_without_an_answer_is_offered_md5_alone() -> None:
    counter = Counter(users=USERS)
    wire = counter.wire(Transport.UDP)
    assert ask_offer(counter, wire, 1) == BOTH
    counter.clock.advance(45)
    data = register(BOB, call_id="same", cseq=2, transport="UDP")
    challenge = counter.ask(wire, data)
    assert offered(challenge) == ["MD5"]
    assert counter.ask(wire, with_credentials(data, challenge, "bob", "secret")).status == 200
    # It is known from now on: its refreshes need no second try.
    counter.clock.advance(3000)
    assert ask_offer(counter, wire, 4) == ["MD5"]
    assert ask_offer(counter, counter.wire(remote=("203.0.113.1", 1)), 5) == BOTH


def test_who_answers_is_asked_for_the_best_again() -> None:
    counter = Counter(users=USERS)
    wire = counter.wire()
    for password, status in (("wrong", 401), ("secret", 200), ("secret", 200)):
        data = register(BOB, call_id="same")
        challenge = counter.ask(wire, data)
        assert offered(challenge) == BOTH
        assert counter.ask(wire, with_credentials(data, challenge, "bob", password)).status == status


def test_repeats_strangers_and_latecomers_are_offered_everything() -> None:
    counter = Counter(users=USERS)
    wire = counter.wire(Transport.UDP)
    assert [ask_offer(counter, wire, 7, branch="z9hG4bKx") for _ in range(3)] == [BOTH] * 3
    assert offered(counter.register(wire, BOB, call_id="another", cseq=8)) == BOTH
    counter.clock.advance(301)
    assert ask_offer(counter, wire, 8) == BOTH


def test_the_proxy_falls_back_too() -> None:
    counter, offers = Counter(users=USERS), []
    wire = counter.wire()
    for cseq in (1, 2):
        asked = counter.ask(wire, request("MESSAGE", "sip:bob@example.com", call_id="same", cseq=cseq))
        offers.append(offered(asked, "Proxy-Authenticate"))
    assert offers == [BOTH, ["MD5"]]


@pytest.mark.parametrize("algorithms", [("SHA-256",), ("MD5",)])
def test_nothing_is_offered_that_is_not_configured(algorithms: tuple[str, ...]) -> None:
    counter = Counter(users=USERS, auth={"algorithms": algorithms})
    wire = counter.wire()
    assert [ask_offer(counter, wire, cseq) for cseq in (1, 2, 3)] == [list(algorithms)] * 3


def test_a_stale_answer_by_md5_is_asked_for_md5() -> None:
    counter, data = Counter(users=USERS), register(BOB)
    wire = counter.wire()
    challenge = counter.ask(wire, data)
    counter.clock.advance(301)
    for algorithm, offers in (("MD5", ["MD5"]), ("SHA-256", BOTH)):
        stale = counter.ask(wire, with_credentials(data, challenge, "bob", "secret", algorithms=(algorithm,)))
        assert parse_parameters(stale["WWW-Authenticate"].partition(" ")[2])["stale"] == "true"
        assert offered(stale) == offers
    wrong = counter.ask(wire, with_credentials(data, challenge, "bob", "wrong", algorithms=("MD5",)))
    assert offered(wrong) == BOTH


def test_what_is_remembered_of_challenges_is_bounded() -> None:
    fallback = Fallback(300, entries=10)
    for number in range(1000):
        fallback.challenge("192.0.2.1", b"%d" % number, 1, 0.0)
        assert len(fallback) <= 10
    assert fallback.challenge("192.0.2.1", b"999", 2, 1.0)
    fallback.answered("192.0.2.1", b"998")
    assert not fallback.challenge("192.0.2.1", b"998", 2, 1.0)


# ------------------------------------------------------------------------------------------ a user store that fails or waits


def test_a_user_store_that_fails_is_500_and_lets_nobody_in() -> None:
    counter = Counter(users=USERS)
    counter.storage.users.error = StorageError("gone")
    assert log_in(counter, counter.wire(), register(BOB)).status == 500
    data = request("MESSAGE", "sip:bob@example.com", user="alice")
    assert log_in(counter, counter.wire(), data, "alice", "sesame").status == 500
    assert counter.core.access.failures == {"storage": 2}
    assert counter.location.count == 0


def test_who_is_cached_gets_in_while_the_user_store_is_down() -> None:
    counter = Counter(users=USERS)
    assert log_in(counter, counter.wire(), register(BOB)).status == 200
    counter.storage.users.error = StorageError("gone")
    counter.clock.advance(4000)
    assert log_in(counter, counter.wire(), register(BOB)).status == 200
    assert log_in(counter, counter.wire(), register(BOB), "bob", "wrong").status == 401
    assert log_in(counter, counter.wire(), register(BOB, user="alice"), "alice", "sesame").status == 500
    counter.storage.users.error = None
    counter.add_user("bob@example.com", "changed")
    assert log_in(counter, counter.wire(), register(BOB, user="alice"), "alice", "sesame").status == 200
    counter.clock.advance(301)
    assert log_in(counter, counter.wire(), register(BOB), "bob", "changed").status == 200


@pytest.mark.requirement("SIP-AUT-09", "OB-REG-11")
@pytest.mark.parametrize("method", ["REGISTER", "MESSAGE"])
def test_repeats_are_absorbed_while_the_user_is_looked_up(method: str) -> None:
    counter = Counter(users=USERS)
    wire = counter.wire(Transport.UDP)
    via = "SIP/2.0/UDP h.example;branch=z9hG4bKw;rport"
    data = (
        register(BOB, transport="UDP")
        if method == "REGISTER"
        else request(method, "sip:x@example.com", user="bob", via=via)
    )
    answered = with_credentials(data, counter.ask(wire, data), "bob", "secret")
    counter.storage.users.held = held = []
    for _ in range(4):
        assert counter.give(wire, answered) == []
    assert len(held) == 1
    counter.storage.users.held = None
    for finish in held:
        finish()
    final = [answer for answer in counter.answers(wire) if answer.status >= 200]
    assert [answer.status for answer in final] == [200 if method == "REGISTER" else 404]
    assert counter.core.transactions.retransmissions_absorbed == 3
    assert counter.core.access.waiting == set()
