"""AUTH at the relay (RFC 4976 §5.1, §6.3, §9.1)."""

from __future__ import annotations

import hashlib
import re

import pytest

from edge.auth.lockout import Lockout
from edge.connections import Transport
from edge.events import AuthenticationFailed, AuthenticationFlood, SessionClosed, SessionOpened, UserLocked
from edge.msrp.handler import MsrpHandler
from tests.msrp.parser import Parsed, parse_frames
from tests.msrp.recorder import GT, MINA, NORA, PABLO, TARIQ, XN, Bench, Recorder, send

EDGE = "msrps://edge.loom.example:2855;tcp"


class Client:
    """Answers challenges by RFC 7616, MD5 unless told otherwise."""

    def __init__(
        self, connection: Recorder, user: str = "nora", password: str = "teal-anchor-42", path: str = NORA
    ) -> None:
        self.connection = connection
        self.user = user
        self.password = password
        self.path = path
        self.count = 0
        self.nonce = ""
        self.opaque = ""
        self.serial = 0

    def ask(self, to_path: str = EDGE, extra: str = "") -> Parsed:
        self.connection.receive(self.build(to_path, extra))
        (answer,) = parse_frames(self.connection.take())
        if answer.method.startswith("401"):
            challenge = answer["WWW-Authenticate"]
            self.nonce = re.search(r'nonce="([^"]*)"', challenge)[1]  # type: ignore[index]
            self.opaque = re.search(r'opaque="([^"]*)"', challenge)[1]  # type: ignore[index]
            self.count = 0
        return answer

    def build(self, to_path: str = EDGE, extra: str = "") -> bytes:
        self.serial += 1
        return send(to_path, self.path, None, tid=f"auth{self.serial:04}", mid="", extra=extra, method="AUTH")

    def credentials(self, algorithm: str = "MD5", target: str = EDGE, **changes: str | None) -> str:
        self.count += 1
        values: dict[str, str | None] = {
            "username": f'"{self.user}"', "realm": '"loom.example"', "nonce": f'"{self.nonce}"', "qop": "auth",
            "cnonce": '"abcdefgh"', "nc": f"{self.count:08x}", "opaque": f'"{self.opaque}"', "algorithm": algorithm,
        }  # fmt: skip
        values["response"] = f'"{self._response(algorithm, target, values["nc"])}"'
        values.update(changes)
        return "Authorization: Digest " + ", ".join(
            f"{name}={value}" for name, value in values.items() if value is not None
        )

    def _response(self, algorithm: str, target: str, nc: str | None) -> str:
        """RFC 7616 §3.4.1."""

        def digest(text: str) -> str:
            return hashlib.new({"MD5": "md5", "SHA-256": "sha256"}[algorithm], text.encode()).hexdigest()

        secret = digest(f"{self.user}:loom.example:{self.password}")
        return digest(f"{secret}:{self.nonce}:{nc}:abcdefgh:auth:{digest(f'AUTH:{target}')}")

    def enrol(self, extra: str = "", to_path: str = EDGE) -> Parsed:
        if not self.nonce:
            self.ask(to_path)
        line = self.credentials(target=to_path)
        return self.ask(to_path, f"{line}\r\n{extra}" if extra else line)


@pytest.mark.requirement("MSRP-AUTH-01", "MSRP-CON-11", "MSRP-RESP-04")
def test_auth_in_clear_is_refused_unless_allowed() -> None:
    plain = Client(Bench().connect(Transport.TCP))
    refused = plain.ask()
    assert refused.method == "403 AUTH needs TLS (msrp.require_tls)"
    assert refused.get("WWW-Authenticate") is None
    assert Client(Bench(require_tls=False).connect(Transport.TCP)).enrol().method == "200 OK"


@pytest.mark.requirement("MSRP-AUTH-02")
@pytest.mark.parametrize("target", ["msrps://nora@edge.loom.example;tcp", EDGE, "msrps://edge.loom.example:443;ws"])
def test_our_names_in_an_auth(target: str) -> None:
    assert Client(Bench().connect()).ask(target).method.startswith("401")


@pytest.mark.requirement("MSRP-AUTH-02")
def test_somebody_elses_name_closes() -> None:
    connection = Bench().connect()
    connection.receive(Client(connection).build("msrps://other.example;tcp"))
    assert connection.closed
    assert connection.end == "foreign"
    assert connection.take() == b""


@pytest.mark.requirement("MSRP-AUTH-04", "MSRP-AUTH-05", "MSRP-AUTH-06")
def test_challenges() -> None:
    answer = Client(Bench().connect()).ask()
    strong, weak = (value for name, value in answer.headers if name == "WWW-Authenticate")
    form = r'Digest realm="loom.example", nonce="[^"]+", opaque="[^"]+", algorithm={}, qop="auth"'
    assert re.fullmatch(form.format("SHA-256"), strong)
    assert re.fullmatch(form.format("MD5"), weak)


@pytest.mark.requirement("MSRP-AUTH-07")
@pytest.mark.parametrize("target", ["msrps://a@edge.loom.example;tcp", "msrps://edge.loom.example:2855;tcp"])
def test_the_realm_is_never_taken_from_the_request(target: str) -> None:
    client = Client(Bench().connect())
    assert 'realm="loom.example"' in client.ask(target)["WWW-Authenticate"]
    other = client.credentials(target=target, realm='"edge.loom.example"')
    assert 'realm="loom.example"' in client.ask(target, other)["WWW-Authenticate"]


@pytest.mark.requirement("MSRP-AUTH-04")
def test_basic_gets_a_digest_challenge() -> None:
    answer = Client(Bench().connect()).ask(extra="Authorization: Basic bm9yYTp4")
    assert answer.method.startswith("401")
    assert answer["WWW-Authenticate"].startswith("Digest ")


@pytest.mark.requirement("MSRP-AUTH-09", "MSRP-RESP-02")
@pytest.mark.parametrize(
    "changes",
    [{name: None} for name in ("username", "realm", "nonce", "response", "qop", "cnonce", "nc")]
    + [{"qop": "auth-int"}, {"nc": "1"}],
)
def test_incomplete_credentials(changes: dict[str, str | None]) -> None:
    client = Client(Bench().connect())
    client.ask()
    assert client.ask(extra=client.credentials(**changes)).method.startswith("400")


@pytest.mark.requirement("MSRP-AUTH-11")
def test_uri_of_the_credentials() -> None:
    client = Client(Bench().connect())
    client.ask()
    upper = EDGE.replace("edge.loom", "EDGE.loom")
    assert client.ask(extra=client.credentials(target=upper, uri=f'"{upper}"')).method == "200 OK"
    other = EDGE.replace("edge.loom", "other")
    assert client.ask(extra=client.credentials(target=other, uri=f'"{other}"')).method.startswith("400")


@pytest.mark.requirement("MSRP-AUTH-13")
def test_unknown_users_look_like_wrong_passwords() -> None:
    answers = []
    for user, password in (("nora", "wrong"), ("nobody", "wrong")):
        client = Client(Bench().connect(), user, password)
        client.ask()
        answer = client.ask(extra=client.credentials())
        nonce = re.compile(r'nonce="[^"]*"')
        answers.append((answer.method, [nonce.sub("", value) for _, value in answer.headers]))
    assert answers[0] == answers[1]
    assert answers[0][0].startswith("401")
    assert "stale" not in str(answers)


@pytest.mark.requirement("MSRP-AUTH-14")
def test_an_old_nonce_is_stale_and_the_retry_succeeds() -> None:
    bench = Bench()
    client = Client(bench.connect())
    client.ask()
    client.connection.handler.succeed()  # type: ignore[attr-defined]
    bench.advance(301)
    answer = client.ask(extra=client.credentials())
    assert answer.method.startswith("401")
    assert "stale=true" in answer["WWW-Authenticate"]
    assert client.enrol().method == "200 OK"


@pytest.mark.requirement("MSRP-AUTH-15")
def test_counts_must_rise() -> None:
    bench = Bench()
    client = Client(bench.connect())
    client.ask()
    client.count = 1
    assert client.ask(extra=client.credentials()).method == "200 OK"
    client.count = 0
    answer = client.ask(extra=client.credentials())
    assert "stale=true" in answer["WWW-Authenticate"]
    assert len(bench.relay.table) == 1


@pytest.mark.requirement("MSRP-AUTH-17", "MSRP-RESP-04")
def test_order_of_checks() -> None:
    bench = Bench(permits=lambda username: username != b"nora")
    client = Client(bench.connect())
    assert client.ask(extra="Expires: 5").method.startswith("401")
    assert client.ask(extra=client.credentials() + "\r\nExpires: 5").method == "403 Forbidden"
    assert len(bench.relay.table) == 0


@pytest.mark.requirement("MSRP-AUTH-18", "MSRP-AUTH-19")
def test_a_grant() -> None:
    answer = Client(Bench().connect()).enrol()
    info = answer["Authentication-Info"]
    assert re.fullmatch(r'rspauth="[0-9a-f]{32}", cnonce="abcdefgh", nc=00000001, qop=auth', info)


@pytest.mark.requirement("MSRP-AUTH-20")
def test_next_nonce_may_be_used_at_once() -> None:
    client = Client(Bench(next_nonce=True).connect())
    info = client.enrol()["Authentication-Info"]
    client.nonce, client.count = re.search(r'nextnonce="([^"]*)"', info)[1], 0  # type: ignore[index]
    assert client.ask(extra=client.credentials()).method == "200 OK"


@pytest.mark.requirement("MSRP-AUTH-21", "MSRP-AUTH-22")
@pytest.mark.parametrize(
    ("asked", "status", "line"),
    [
        ("", "200 OK", ("Expires", "600")), ("900", "200 OK", ("Expires", "900")), ("60", "200 OK", ("Expires", "60")),
        ("3600", "200 OK", ("Expires", "3600")), ("59", "423", ("Min-Expires", "60")), ("0", "423", ("Min-Expires", "60")),
        ("3601", "423", ("Max-Expires", "3600")), ("9" * 40, "423", ("Max-Expires", "3600")), ("abc", "400", None),
        ("-1", "400", None), ("60.5", "400", None),
    ],
)  # fmt: skip
def test_expires(asked: str, status: str, line: tuple[str, str] | None) -> None:
    bench = Bench()
    answer = Client(bench.connect()).enrol(f"Expires: {asked}" if asked else "")
    assert answer.method.startswith(status)
    assert [header for header in answer.headers if "Expires" in header[0]] == ([line] if line else [])
    assert len(bench.relay.table) == (status == "200 OK")


@pytest.mark.requirement("MSRP-AUTH-23", "MSRP-AUTH-24", "MSRP-FRM-04")
def test_uris_are_unguessable_and_complete() -> None:
    bench = Bench(sessions_per_connection=1000)
    client = Client(bench.connect())
    uris = {client.enrol()["Use-Path"] for _ in range(200)}
    assert len(uris) == 200
    assert all(re.fullmatch(r"msrps://edge\.loom\.example:2855/[A-Za-z0-9+-]{22};tcp", uri) for uri in uris)
    assert len(bench.relay.table) == 200


@pytest.mark.requirement("MSRP-AUTH-24")
def test_the_quota_of_a_connection() -> None:
    client = Client(Bench(sessions_per_connection=2).connect())
    assert [client.enrol().method[:3] for _ in range(3)] == ["200", "200", "403"]


@pytest.mark.requirement("MSRP-SEND-13", "MSRP-SEC-08")
def test_the_quota_of_a_link_is_one_for_each_user_behind_the_other_relay() -> None:
    bench = Bench(sessions_per_connection=2, passwords={f"user{number}": "teal-anchor-42" for number in range(50)})
    link = bench.connect(identities=("gate.fjord.example",))
    for number in range(50):
        path = f"msrps://gate.fjord.example:2855/g{number};tcp {NORA[:-4]}{number};tcp"
        client = Client(link, f"user{number}", path=path)
        assert [client.enrol().method for _ in range(3)] == ["200 OK", "200 OK", "403 Too many sessions"]
    assert bench.relay.stats.refused == {"session_quota": 50}
    assert len(bench.relay.table) == 100
    assert not link.closed


@pytest.mark.requirement("MSRP-SEC-08")
def test_the_quota_of_a_user_over_all_connections() -> None:
    bench = Bench(sessions_per_user=2)
    first, second = Client(bench.connect()), Client(bench.connect())
    assert [first.enrol().method[:3], second.enrol().method[:3], second.enrol().method[:3]] == ["200", "200", "403"]
    first.connection.close("eof")
    assert second.enrol().method[:3] == "200"


@pytest.mark.requirement("MSRP-AUTH-26", "MSRP-RESP-04")
def test_auth_for_another_relay_is_only_passed_on_for_the_owner() -> None:
    bench = Bench()
    nora, stranger = bench.connect(), bench.connect()
    bench.open(nora, XN, NORA)
    answer = Client(stranger).ask(f"{XN} msrps://gate.fjord.example:2855;tcp")
    assert answer.method == "403 Forbidden"
    assert not bench.dialled


@pytest.mark.requirement("MSRP-AUTH-28")
@pytest.mark.parametrize("cause", ["refused", "silence"])
def test_the_next_relay_does_not_answer(cause: str) -> None:
    bench = Bench()
    nora = bench.connect()
    bench.open(nora, XN, NORA)
    nora.receive(Client(nora).build(f"{XN} msrps://gate.fjord.example:2855;tcp"))
    gate = bench.dialled[0].connection
    if cause == "refused":
        gate.close("refused")
    else:
        bench.advance(32)
    (answer,) = parse_frames(nora.take())
    assert answer.method.startswith("408 ")
    assert (answer["To-Path"], answer["From-Path"], answer.identifier) == (NORA, XN, "auth0001")
    bench.advance(60)
    assert nora.take() == b""


@pytest.mark.requirement("MSRP-AUTH-29")
def test_auths_are_handled_in_turn() -> None:
    bench = Bench()
    client = Client(bench.connect())
    client.ask()
    bench.users.later = True
    one, two = client.credentials(), client.credentials()
    client.connection.receive(client.build(extra=one) + client.build(extra=two))
    assert client.connection.take() == b""
    bench.users.answer()
    answers = parse_frames(client.connection.take())
    assert [(answer.identifier, answer.method) for answer in answers] == [
        ("auth0002", "200 OK"),
        ("auth0003", "200 OK"),
    ]
    assert client.connection.uses == 0


@pytest.mark.requirement("MSRP-AUTH-29")
def test_at_most_four_auths_wait() -> None:
    bench = Bench()
    client = Client(bench.connect())
    client.ask()
    bench.users.later = True
    client.connection.receive(b"".join(client.build(extra=client.credentials()) for _ in range(7)))
    early = parse_frames(client.connection.take())
    assert [(answer.identifier, answer.method[:3]) for answer in early] == [("auth0007", "400"), ("auth0008", "400")]
    bench.users.answer()
    assert [answer.method for answer in parse_frames(client.connection.take())] == ["200 OK"] * 5


@pytest.mark.requirement("MSRP-AUTH-30")
def test_five_failures_close_a_client() -> None:
    bench = Bench()
    client = Client(bench.connect(), password="wrong")
    client.ask()
    for _ in range(4):
        assert client.ask(extra=client.credentials()).method.startswith("401")
        assert not client.connection.closed
    client.ask(extra=client.credentials())
    assert client.connection.end == "auth_failures"
    failed = [event for event in bench.events if isinstance(event, AuthenticationFailed)]
    assert [(event.protocol, event.source, event.user) for event in failed] == [("msrp", "192.0.2.17", "nora")] * 5


def guess(bench: Bench, times: int, identities: tuple[str, ...] = (), user: str = "nora") -> list[str]:
    """Wrong passwords, each over a connection and from an address of its own unless they come through one relay."""
    statuses = []
    relay = bench.connect(identities=identities) if identities else None
    for number in range(times):
        eve = Client(relay or bench.connect(), user, "wrong")
        eve.connection.source = f"203.0.113.{number if relay is None else 250}"
        statuses.append(eve.enrol().method[:3])
    return statuses


@pytest.mark.parametrize("identities", [(), ("gate.fjord.example",)])
def test_a_user_who_is_guessed_is_locked_out_but_not_from_where_the_password_is_known(
    identities: tuple[str, ...],
) -> None:
    bench = Bench(lockout=Lockout())
    home, mina = Client(bench.connect()), Client(bench.connect(), "mina", "kelp-9", MINA)
    mina.connection.source = "203.0.113.201"

    def enrol_abroad() -> str:
        abroad = Client(bench.connect())
        abroad.connection.source = mina.connection.source
        return abroad.enrol().method

    assert home.enrol().method == "200 OK"
    assert guess(bench, 105, identities) == ["401"] * 100 + ["403"] * 5
    assert enrol_abroad() == "403 Too many failed logins"  # nobody is to find out that it was right
    assert (home.enrol().method, mina.enrol().method) == ("200 OK", "200 OK")
    bench.advance(61)
    assert enrol_abroad() == "200 OK"
    told = [(event.user, event.blocked_s) for event in bench.events if isinstance(event, UserLocked)]
    assert told == [("nora", 60.0)]
    assert not [event for event in bench.events if isinstance(event, AuthenticationFlood)]
    assert bench.relay.stats.refused["locked_out"] == 6


def test_a_relay_is_not_locked_out_for_the_guesses_that_come_through_it() -> None:
    bench = Bench(lockout=Lockout())
    assert guess(bench, 30, ("gate.fjord.example",)) == ["401"] * 30
    relay = bench.connect(identities=("gate.fjord.example",))
    assert Client(relay).enrol().method == "200 OK"
    for _ in range(20):
        eve = Client(bench.connect(), password="wrong")
        assert eve.enrol().method[:3] == "401"
    assert Client(bench.connect()).enrol().method == "403 Too many failed logins"  # of the address all have here
    assert Client(relay).enrol().method == "200 OK"
    assert [type(event) for event in bench.events if isinstance(event, AuthenticationFlood | UserLocked)] == [
        AuthenticationFlood
    ]


@pytest.mark.requirement("MSRP-AUTH-30")
def test_failures_at_a_further_relay_count_but_stale_ones_do_not() -> None:
    bench = Bench()
    nora = bench.connect()
    bench.open(nora, XN, NORA)
    client = Client(nora)
    target = f"{XN} msrps://gate.fjord.example:2855;tcp"
    for number in range(9):
        nora.receive(client.build(target, 'Authorization: Digest username="nora"'))
        (asked,) = parse_frames(bench.dialled[0].connection.take())
        stale = "" if number > 3 else ", stale=TRUE"
        bench.dialled[0].connection.receive(
            f"MSRP {asked.identifier} 401 Unauthorized\r\nTo-Path: {asked['From-Path']}\r\nFrom-Path: {asked['To-Path']}\r\n"
            f'WWW-Authenticate: Digest realm="x", nonce="y"{stale}\r\n-------{asked.identifier}$\r\n'.encode()
        )
        assert nora.closed == (number == 8)


@pytest.mark.requirement("MSRP-AUTH-30")
def test_a_relay_link_is_never_closed_for_failures() -> None:
    client = Client(Bench().connect(identities=("gate.fjord.example",)), password="wrong")
    client.ask()
    for _ in range(10):
        client.ask(extra=client.credentials())
    assert not client.connection.closed


@pytest.mark.requirement("MSRP-AUTH-31")
def test_a_relay_must_show_whose_it_is() -> None:
    path = f"msrps://gate.fjord.example:2855/x;tcp {NORA}"
    assert Client(Bench().connect(), path=path).ask().method == "403 Forbidden"
    assert Client(Bench().connect(identities=("gate.fjord.example",)), path=path).ask().method.startswith("401")


@pytest.mark.requirement("MSRP-AUTH-25")
def test_use_path_behind_two_relays() -> None:
    two = "msrps://r2.example:1/b;tcp"
    one = "msrps://r1.example:1/a;tcp"
    client = Client(Bench().connect(identities=("r2.example",)), path=f"{two} {one} {NORA}")
    assert client.enrol()["Use-Path"].startswith(f"{one} {two} msrps://edge.loom.example:2855/")


@pytest.mark.requirement("MSRP-CON-04", "MSRP-BIND-10")
@pytest.mark.parametrize("port", ["", ":2855"])
def test_what_follows_an_auth_to_a_second_relay_takes_its_connection_both_ways(port: str) -> None:
    bench = Bench()
    nora = bench.connect()
    session = bench.open(nora, XN, NORA)
    nora.receive(send(f"{XN} msrps://gate.fjord.example{port};tcp", NORA, None, method="AUTH", mid=""))
    (dialled,) = bench.dialled
    gate = dialled.connection
    gate.take()
    nora.receive(send(f"{XN} {GT} {TARIQ}", NORA, tid="tid00002"))
    assert gate.take().startswith(b"MSRP ")
    nora.take()
    gate.receive(send(f"{XN} {NORA}", f"{GT} {TARIQ}", tid="back0001"))
    assert b"\r\nhi\r\n" in nora.take()
    gate.receive(send(f"{XN} {NORA}", f"{GT.replace('Zm8', 'Xm8')} {TARIQ}", tid="back0002"))
    assert b" 481 " in gate.take()
    assert (len(bench.dialled), len(session.far)) == (1, 1)


@pytest.mark.requirement("MSRP-AUTH-32")
def test_refresh_by_the_owner() -> None:
    bench = Bench()
    client = Client(bench.connect())
    use_path = client.enrol("Expires: 60")["Use-Path"]
    bench.advance(50)
    assert client.ask(use_path).method.startswith("401")
    answer = client.enrol("Expires: 60", to_path=use_path)
    assert (answer.method, answer["Use-Path"]) == ("200 OK", use_path)
    bench.advance(50)
    assert len(bench.relay.table) == 1
    other = Client(bench.connect())
    assert other.ask(use_path).method == "403 Forbidden"
    bench.advance(20)
    assert len(bench.relay.table) == 0


@pytest.mark.requirement("MSRP-WS-08", "MSRP-AUTH-23")
def test_a_websocket_client_gets_a_tcp_uri() -> None:
    answer = Client(Bench().connect(Transport.WSS), path=MINA).enrol(to_path="msrps://edge.loom.example:443;ws")
    assert answer["Use-Path"].startswith("msrps://edge.loom.example:2855/")
    assert answer["Use-Path"].endswith(";tcp")


def test_sessions_are_seen_by_operators_and_end_with_their_connection() -> None:
    bench = Bench()
    client = Client(bench.connect())
    use_path = client.enrol()["Use-Path"]
    (row,) = bench.relay.sessions()
    assert (row["user"], row["expires_s"], row["connection"]) == ("nora", 600, client.connection.name)
    assert use_path.split("/")[3][:22] not in str(row)
    client.connection.close("eof")
    assert bench.relay.sessions() == []
    opened, closed = (event for event in bench.events if isinstance(event, SessionOpened | SessionClosed))
    assert isinstance(closed, SessionClosed)
    assert (opened.session, closed.reason) == (closed.session, "eof")


def test_an_operator_closes_a_session() -> None:
    bench = Bench()
    client = Client(bench.connect())
    client.enrol()
    name = str(bench.relay.sessions()[0]["id"])
    assert not bench.relay.close_session("nothing")
    assert bench.relay.close_session(name)
    assert len(bench.relay.table) == 0
    assert client.connection.registered == 0


def test_no_sessions_while_draining() -> None:
    bench = Bench()
    assert bench.relay.drain() == 0
    assert Client(bench.connect()).enrol().method == "403 Relay is shutting down"


@pytest.mark.requirement("MSRP-CON-03")
def test_a_first_challenge_is_no_success() -> None:
    bench = Bench()
    client = Client(bench.connect())
    client.ask()
    handler = client.connection.handler
    assert isinstance(handler, MsrpHandler)
    bench.advance(29)
    assert not client.connection.closed
    bench.advance(2)
    assert client.connection.end == "no_success"


@pytest.mark.requirement("MSRP-RESP-03")
def test_401_is_only_for_auth() -> None:
    bench = Bench()
    nora, stranger = bench.connect(), bench.connect()
    bench.open(nora, XN, NORA)
    token = "Authorization: Digest bad"
    stranger.receive(send(f"{XN} {NORA}", PABLO, extra=token))
    assert parse_frames(stranger.take())[0].method == "200 OK"
    for path, code in (
        (f"{XN.replace('Ub3n', 'AAAA')} {NORA}", "481"), (f"{XN} {MINA}", "403"), (XN, "481"),
    ):  # fmt: skip
        stranger.receive(send(path, PABLO, extra=token))
        assert parse_frames(stranger.take())[0].method[:3] == code
