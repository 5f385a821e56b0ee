"""URIs: reading, comparing, the key of an address of record, and what becomes of a Contact as Request-URI."""

from __future__ import annotations

import itertools

import pytest
import sipmessage
from hypothesis import assume, given
from hypothesis import strategies as st

from edge.connections import Transport
from edge.errors import RemoteError
from edge.sip.forward import default_port
from edge.sip.headers import parse_via
from edge.sip.uri import SipUri, UriCache, parse_uri, scheme_of, uri_equal
from tests.sip.desk import MESSAGE, Desk, register, rows, sip


def equal(left: bytes, right: bytes) -> bool:
    one, two = parse_uri(left), parse_uri(right)
    assert uri_equal(one, two) is uri_equal(two, one)
    return uri_equal(one, two)


def test_rfc3261_19_1_1_the_parts_of_a_uri() -> None:
    uri = parse_uri(b"SIPS:al%69ce;day=tue:se%25@Atlanta.EXAMPLE:5070;transport=TCP;LR;x=1?subject=a%20b&to=c")
    assert (uri.secure, uri.user, uri.password) == (True, b"al%69ce;day=tue", b"se%25")
    assert (uri.host, uri.port, uri.transport, uri.loose) == (b"atlanta.example", 5070, b"tcp", True)
    assert uri.parameters == {b"transport": b"TCP", b"lr": b"", b"x": b"1"}
    assert uri.headers == b"subject=a%20b&to=c"
    bare = parse_uri(b"sip:edge1")
    assert (bare.user, bare.password, bare.port, bare.parameters, bare.headers) == (None, None, None, {}, b"")


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"tel:+1", 416), (b"im:a@b", 416), (b"urn:service:sos", 416), (b"http://a", 416), (b"sipss:a@b", 416),
        (b"a@b", 400), (b"", 400), (b":", 400), (b"sip:", 400), (b"sip:@b", 400), (b"sip:a@", 400), (b"sip:a@b@c", 400),
        (b"sip:a@b:", 400), (b"sip:a@b:0", 400), (b"sip:a@b:70000", 400), (b"sip:a@b;;lr", 400), (b"sip:a@b;", 400),
        (b"sip:a b@c", 400), (b"sip:a@b\t", 400), (b"sip:a@b\r\n c", 400), (b"<sip:a@b>", 400), (b'sip:"a"@b', 400),
        (b"sip:a@ex%61mple", 400), (b"sip:a@b;lr;LR", 400), (b"sip:a@b;transport=tcp;%74ransport=udp", 400),
        (b"sip:2001:db8::10", 400), (b"\xe9:a", 400), (b"sip:a@b?", 400),
    ],
)  # fmt: skip
def test_what_is_no_uri_of_ours(text: bytes, status: int) -> None:
    with pytest.raises(RemoteError) as refused:
        parse_uri(text)
    assert refused.value.status == status


@pytest.mark.requirement("SIP-URI-01")
def test_rfc3261_19_1_4_user_and_port_count_and_the_case_of_the_host_does_not() -> None:
    assert not equal(b"sip:Bob@h", b"sip:bob@h")
    assert equal(b"sip:bob@H.COM", b"sip:bob@h.com")
    assert equal(b"SIP:bob@h", b"sip:bob@h")
    assert not equal(b"sip:bob@h", b"sip:bob@h:5060")
    assert equal(b"sip:bob@h:05060", b"sip:bob@h:5060")
    assert not equal(b"sip:bob@h", b"sips:bob@h")
    assert not equal(b"sip:bob@h", b"sip:h")
    assert not equal(b"sip:bob:x@h", b"sip:bob@h")
    assert not equal(b"sip:bob:x@h", b"sip:bob:X@h")


@pytest.mark.requirement("SIP-URI-02", "SIP-MSG-31")
def test_rfc3261_19_1_4_an_escape_equals_its_character_unless_that_is_reserved() -> None:
    assert equal(b"sip:%61lice@h", b"sip:alice@h")
    assert equal(b"sip:%3b@h", b"sip:%3B@h")
    assert not equal(b"sip:us%3Ber@h", b"sip:us;er@h")
    assert not equal(b"sip:%00@h", b"sip:%00%00@h")
    assert equal(b"sip:u@h;n=v%61lue%25%34%31", b"sip:u@h;n=value%2541")
    assert not equal(b"sip:u@h;n=v%61lue%25%34%31", b"sip:u@h;n=valueA")
    assert equal(b"sip:u@h;n%61me=1", b"sip:u@h;name=1")
    assert not equal(b"sip:u@h;a%00b=1", b"sip:u@h;a=1;a%00b=2")
    assert parse_uri(b"sip:u@h;%6C%72").loose
    desk = Desk()
    desk.send(register(b"Contact: <sip:us%3Ber@h.example>"))
    road = desk.rig.roads["h.example"] = [desk.rig.wire()]
    desk.send(sip(b"MESSAGE sip:carol@example.com SIP/2.0"))
    assert rows(road[0].take()[0])[0] == b"MESSAGE sip:us%3Ber@h.example SIP/2.0"


@pytest.mark.requirement("SIP-URI-03")
def test_rfc3261_19_1_4_parameters_agree_where_both_have_them_and_five_must_be_in_both() -> None:
    assert equal(b"sip:c@h;x=1", b"sip:c@h")
    assert not equal(b"sip:c@h;x=1", b"sip:c@h;x=2")
    assert equal(b"sip:c@h;x=a", b"sip:c@h;X=A")
    for name in (b"user=phone", b"ttl=1", b"method=BYE", b"maddr=h", b"transport=udp"):
        assert not equal(b"sip:c@h;" + name, b"sip:c@h")
        assert equal(b"sip:c@h;" + name, b"sip:c@h;other;" + name.upper())
    assert equal(b"sip:c@h?subject=x&priority=y", b"sip:c@h?priority=y&subject=x")
    assert not equal(b"sip:c@h?subject=x", b"sip:c@h")
    assert not equal(b"sip:c@h?subject=x", b"sip:c@h?subject=y")
    assert not equal(b"sip:c@h?subject=x", b"sip:c@h?subject=x&subject=x")


@pytest.mark.requirement("SIP-URI-04")
def test_rfc5954_4_2_addresses_compare_by_their_bits() -> None:
    assert equal(b"sip:[2001:db8::9:1]", b"sip:[2001:DB8::9:01]")
    assert equal(b"sip:[::ffff:192.0.2.128]", b"sip:[::ffff:c000:280]")
    assert not equal(b"sip:[2001:db8::9:1]", b"sip:[2001:db8::9:10]")
    secure, plain, insecure = (b"sip:u@h;security=on", b"sip:u@h", b"sip:u@h;security=off")
    assert equal(secure, plain)
    assert equal(plain, insecure)
    assert not equal(secure, insecure)


@pytest.mark.requirement("SIP-URI-04")
@pytest.mark.parametrize("order", list(itertools.permutations(["on", "off", ""])))
def test_rfc3261_19_1_4_bindings_that_equal_pairwise_only_break_nothing(order: tuple[str, ...]) -> None:
    desk = Desk()
    for number, value in enumerate(order):
        contact = f"Contact: <sip:u@h.example{f';security={value}' if value else ''}>".encode()
        cseq = b"CSeq: %d REGISTER" % (number + 1)
        (answer,) = desk.send(register(contact, call_id=b"Call-ID: same", cseq=cseq))
        assert answer.startswith(b"SIP/2.0 200 ")
    kept = [row for row in rows(answer) if row.startswith(b"Contact: ")]
    # on and off stay apart; the plain one equals both: it takes the place of the first, and the next takes its place
    assert len(kept) == (1 if order[1] == "" else 2)


@pytest.mark.requirement("SIP-URI-05")
@pytest.mark.parametrize("headers", [b"?Route=%3Csip:e.example%3E", b"?", b";x?a=b"])
def test_rfc3261_19_1_1_headers_in_a_request_uri_are_refused(headers: bytes) -> None:
    desk = Desk()
    assert desk.status(sip(b"MESSAGE sip:bob@example.com" + headers + b" SIP/2.0")) == 400
    assert desk.rig.asked == []
    assert desk.relayed() == []


@pytest.mark.requirement("SIP-URI-06")
@pytest.mark.parametrize(
    ("contact", "uri"),
    [
        (b"sip:u@h.example;x=1?Route=%3Csip:s%3E", b"sip:u@h.example;x=1"),
        (b"sip:us?er@h.example?a=b", b"sip:us?er@h.example"),
        (b"sip:h.example?a=b", b"sip:h.example"),
        (b"sip:u@h.example;method=INVITE;x=1;ME%54HOD2=y", b"sip:u@h.example;x=1;ME%54HOD2=y"),
        (b"sip:a;method=b@h.example;x;m%65thod=BYE?a=b", b"sip:a;method=b@h.example;x"),
    ],
)
def test_rfc3261_16_6_a_contact_as_request_uri_loses_method_and_headers(contact: bytes, uri: bytes) -> None:
    desk = Desk()
    road = desk.rig.roads["h.example"] = [desk.rig.wire()]
    (answer,) = desk.send(register(b"Contact: <" + contact + b">"))
    assert any(row.startswith(b"Contact: <" + contact + b">") for row in rows(answer))  # and is given back whole
    desk.send(sip(b"INVITE sip:carol@example.com SIP/2.0"))
    (sent,) = road[0].take()
    assert rows(sent)[0] == b"INVITE " + uri + b" SIP/2.0"
    assert b"Route: <sip:s" not in sent


@pytest.mark.requirement("SIP-URI-07")
def test_rfc3261_16_3_other_schemes_are_416_in_the_request_uri_and_fine_in_from_and_to() -> None:
    desk = Desk()
    for scheme in (b"im:a@example.com", b"urn:service:sos", b"tel:+1", b"isbn:1", b"nobodyKnowsThisScheme:x"):
        status = desk.status(sip(b"MESSAGE " + scheme + b" SIP/2.0", to=b"To: <sip:bob@example.com>"))
        assert status == 416
        assert desk.relayed() == []  # To does not steer
        arrived = desk.relay(sip(to=b"To: <" + scheme + b">", sender=b"From: <" + scheme + b">;tag=1"))
        assert {b"To: <" + scheme + b">", b"From: <" + scheme + b">;tag=1"} < set(rows(arrived))
    assert scheme_of(b"TEL:+1") == b"tel"


@pytest.mark.requirement("SIP-URI-08")
@pytest.mark.parametrize("parameter", [b"lr", b"LR", b"lr=on", b"lr=true", b"Lr=", b"x=y;lr", b"%6C%72"])
def test_rfc3261_19_1_1_lr_in_any_spelling_is_a_loose_router(parameter: bytes) -> None:
    desk = Desk()
    road = desk.rig.roads["p.example"] = [desk.rig.wire()]
    route = b"Route: <sip:p.example;" + parameter + b">"
    desk.send(sip(MESSAGE, route))
    (sent,) = road[0].take()
    assert rows(sent)[0] == MESSAGE  # a strict one would find its own name here
    assert route in rows(sent)


@pytest.mark.requirement("SIP-URI-09")
@pytest.mark.parametrize(
    ("uri", "port"),
    [
        (b"sip:h", 5060), (b"sip:h;transport=udp", 5060), (b"sip:h;transport=TCP", 5060), (b"sips:h", 5061),
        (b"sips:h;transport=tcp", 5061), (b"sip:h;transport=tls", 5061), (b"sip:h;transport=ws", 80),
        (b"sips:h;transport=ws", 443), (b"sip:h;transport=wss", 443),
    ],
)  # fmt: skip
def test_rfc3261_19_1_2_default_ports(uri: bytes, port: int) -> None:
    assert default_port(parse_uri(uri)) == port


@pytest.mark.requirement("SIP-URI-09")
def test_rfc3261_18_2_2_default_ports_of_a_via() -> None:
    ports = {transport.name: parse_via(b"SIP/2.0/%b h" % transport.name.encode()).sent_by[1] for transport in Transport}
    assert ports == {"UDP": 5060, "TCP": 5060, "TLS": 5061, "WS": 80, "WSS": 443}


@pytest.mark.requirement("SIP-URI-10")
def test_rfc3261_10_3_the_key_of_an_address_of_record() -> None:
    key = parse_uri(b"sip:bob@example.com").aor()
    for same in (
        b"sips:bob@example.com",
        b"sip:%62ob@EXAMPLE.com;user=phone",
        b"sip:bob@example.com:5060;x?a=b",
        b"sip:b%6Fb:pw@example.com",
    ):
        assert parse_uri(same).aor() == key
    for other in (b"sip:Bob@example.com", b"sip:bob%00@example.com", b"sip:bob@example.org", b"sip:example.com"):
        assert parse_uri(other).aor() != key
    desk = Desk()
    for uri in (b"sip:%62ob@EXAMPLE.com;user=phone", b"sips:bob@example.com"):
        desk.send(sip(b"MESSAGE " + uri + b" SIP/2.0"))
        assert len(desk.relayed()) == (1 if uri[:4] == b"sip:" else 0)  # known, but TCP is not for sips
    assert desk.status(sip(b"MESSAGE sip:Bob@example.com SIP/2.0")) == 404


@pytest.mark.requirement("SIP-MSG-28")
def test_rfc5118_4_10_three_colons_are_read_as_two_and_never_sent() -> None:
    uri = parse_uri(b"sip:user@[2001:db8:::192.0.2.1]:5070;x")
    assert uri_equal(uri, parse_uri(b"sip:user@[2001:db8::192.0.2.1]:5070"))
    assert uri.target() == b"sip:user@[2001:db8::192.0.2.1]:5070;x"


# ------------------------------------------------------------------------------------------ properties

_UNRESERVED = "abcXYZ019-_.!~*'()"
USERS = st.text(_UNRESERVED + "&=+$,;?/", min_size=1, max_size=8)
HOSTS = st.sampled_from(["example.com", "h.example", "192.0.2.1", "[2001:db8::1]", "a-b.c"])


@given(st.binary(max_size=60), st.sampled_from([b"", b"sip:", b"sips:u@h", b"sip:u@h;", b"sip:[", b"sip:u@h?"]))
def test_any_octets_are_a_uri_or_a_remote_error(tail: bytes, head: bytes) -> None:
    try:
        uri = parse_uri(head + tail)
    except RemoteError as error:
        status = error.status
    else:
        status = 416
        assert uri_equal(uri, uri)
        target = parse_uri(uri.target())
        assert not target.headers
        assert b"method" not in target.parameters
        assert (target.user, target.host, target.port) == (uri.user, uri.host, uri.port)
    assert status in (400, 416)


def _escape(user: str, every: int) -> str:
    return "".join(f"%{ord(c):02x}" if i % every == 0 and c in _UNRESERVED else c for i, c in enumerate(user))


@given(USERS, HOSTS, st.integers(1, 3))
def test_escaping_what_needs_no_escape_changes_no_identity(user: str, host: str, every: int) -> None:
    plain, escaped = f"sip:{user}@{host}".encode(), f"sip:{_escape(user, every)}@{host}".encode()
    assert equal(plain, escaped)
    assert parse_uri(plain).aor() == parse_uri(escaped).aor()


@given(
    st.sampled_from(["sip", "sips"]),
    st.none() | st.text(_UNRESERVED, min_size=1, max_size=8),
    HOSTS,
    st.none() | st.integers(1, 65535),
    st.lists(st.sampled_from(["lr", "transport=tcp", "user=phone", "ob", "ttl=5"]), unique=True, max_size=3),
)
def test_sipmessage_reads_the_same(
    scheme: str, user: str | None, host: str, port: int | None, parameters: list[str]
) -> None:
    text = f"{scheme}:{f'{user}@' if user else ''}{host}{f':{port}' if port else ''}" + "".join(
        f";{p}" for p in parameters
    )
    ours, theirs = parse_uri(text.encode()), sipmessage.URI.parse(text)
    assert (theirs.scheme == "sips") is ours.secure
    assert (theirs.user or "") == (ours.user or b"").decode()
    assert (theirs.host, theirs.port) == (ours.host.decode(), ours.port)
    assert set(theirs.parameters) == {name.decode() for name in ours.parameters}


@given(st.lists(st.sampled_from([b"sip:a@h", b"sip:b@h;lr", b"tel:1", b"sip:a@@h", b"<sip:a@h>", b"x"]), max_size=30))
def test_the_cache_answers_as_the_reader_does(texts: list[bytes]) -> None:
    cache = UriCache(limit=3)
    for text in texts:
        outcome: list[SipUri | int] = []
        for reader in (parse_uri, cache.parse):
            try:
                outcome.append(reader(text))
            except RemoteError as error:
                outcome.append(error.status)
        one, two = outcome
        if isinstance(one, SipUri):
            assume(isinstance(two, SipUri))
            assert isinstance(two, SipUri)
            assert uri_equal(one, two)
        elif text[:1] != b"<":
            assert one == two
