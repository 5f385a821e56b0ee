"""Digest as bytes: the hashes, what is written, and what is read of what strangers wrote."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.auth import digest, parameters
from edge.auth.digest import (
    ALGORITHMS,
    MD5,
    SHA_256,
    SHA_512_256,
    Algorithm,
    Credentials,
    build_authentication_info,
    build_challenge,
    compute_response,
    compute_rspauth,
    ha1,
    parse_credentials,
    select_algorithms,
)
from edge.errors import LocalError, RemoteError
from tests.ua import digest as ua

FIELDS = ("username", "realm", "nonce", "uri", "response", "algorithm", "opaque", "qop", "cnonce", "nc")

# Worked example E1.3 of the MSRP requirements.
NORA = {
    "username": b"nora",
    "realm": b"loom.example",
    "nonce": b"MTc2MzY1-8c41e9d2b7f0",
    "uri": b"msrps://edge.loom.example;tcp",
    "response": b"ab824abc51672992ebfe623c5c877c18",
    "opaque": b"5f1d0c7ae2b94836",
    "algorithm": b"MD5",
    "qop": b"auth",
    "cnonce": b"Zt81kqPw",
    "nc": b"00000001",
}


def read(value: bytes) -> dict[str, bytes]:
    """The fields that are there."""
    credentials = parse_credentials(value)
    assert credentials is not None
    return {name: text for name in FIELDS if (text := getattr(credentials, name)) is not None}


# ------------------------------------------------------------------------------------------ hashes


@pytest.mark.requirement("SIP-AUT-06")
@pytest.mark.parametrize(
    ("algorithm", "response"),
    [
        (MD5, b"b72b4f10cd6850e9648aa1f4d56623e3"),
        (SHA_256, b"f9b3acbe065b40fd5cf6b20b82665263bc8ecd82bd076d24b87c6f29bb0f3133"),
        (SHA_512_256, b"f97ace777cfa00135e8d1fe65f2f52a8727e4db5907889c28b8d5edef9439ab9"),
    ],
)
def test_rfc7616_3_4_1_response_of_the_three_algorithms(algorithm: Algorithm, response: bytes) -> None:
    key = ha1(b"bob", b"example.com", b"zanzibar", algorithm)
    found = compute_response(
        algorithm,
        key,
        b"REGISTER",
        b"sip:example.com",
        b"dcd98b7102dd2f0e8b11d0f600bfb0c093",
        nc=b"00000001",
        cnonce=b"0a4f113b",
        qop=b"auth",
    )
    assert found == response
    assert len(key) == len(found) == algorithm.hex_length


def test_rfc3261_22_4_item_8_response_without_qop() -> None:
    key = ha1(b"bob", b"example.com", b"zanzibar", MD5)
    found = compute_response(MD5, key, b"REGISTER", b"sip:example.com", b"dcd98b7102dd2f0e8b11d0f600bfb0c093")
    assert found == b"a2e0e4da75d2bd427e51bd11907bb9fc"


@pytest.mark.parametrize(
    ("uri", "nonce", "cnonce", "nc", "password", "response"),
    [
        pytest.param(
            b"msrps://edge.loom.example;tcp", b"MTc2MzY1-8c41e9d2b7f0", b"Zt81kqPw", 1, b"teal-anchor-42",
            b"ab824abc51672992ebfe623c5c877c18", id="E1.3",
        ),
        pytest.param(
            b"msrps://edge.loom.example:2855;tcp", b"MTc2MzY3-b02c5517de84", b"h4PqX92s", 1, b"teal-anchor-42",
            b"acda21dcec33406460c12516302b79d898283a8d2659a728ceb73f52b67a2bc9", id="E2.3",
        ),
        pytest.param(
            b"msrps://edge.loom.example;tcp", b"MTc2MzY5-e6127cb830fd", b"b1Xn7sUz", 1, b"teal-anchor-42",
            b"4426ed6e74f05a893976a8951c7bfd86", id="E4.1",
        ),
        pytest.param(
            b"msrps://edge.loom.example;tcp", b"MTc2MzY5-e6127cb830fd", b"c2Yo8tVa", 2, b"teal-anchor-42",
            b"2eba71ed13dc5467eb22a5362b8b131e", id="E4.3",
        ),
        pytest.param(
            b"msrps://edge.loom.example:443;ws", b"d3MtMDE-5511aa", b"e4Aq0vXc", 1, b"kelp-9",
            b"79b65ea16e38c6d60a3f77bb304aa754", id="E18.3",
        ),
    ],
)  # fmt: skip
def test_rfc4976_9_1_response_of_the_worked_examples(
    uri: bytes, nonce: bytes, cnonce: bytes, nc: int, password: bytes, response: bytes
) -> None:
    algorithm = MD5 if len(response) == 32 else SHA_256
    user = b"mina" if password == b"kelp-9" else b"nora"
    key = ha1(user, b"loom.example", password, algorithm)
    found = compute_response(algorithm, key, b"AUTH", uri, nonce, nc=b"%08x" % nc, cnonce=cnonce, qop=b"auth")
    assert found == response


def test_rfc7616_3_4_2_quotes_and_escapes_are_not_hashed() -> None:
    fields = read(rb'Digest username="a\"b\\c", realm="loom.example"')
    assert fields["username"] == rb'a"b\c'
    expected = ua.digest("MD5", 'a"b\\c', "loom.example", "pw").encode()
    assert ha1(fields["username"], fields["realm"], b"pw", MD5) == expected


def test_rfc8760_2_3_algorithms_are_offered_strongest_first() -> None:
    assert select_algorithms(["MD5", "SHA-256"]) == (SHA_256, MD5)
    assert select_algorithms(["md5", "sha-512-256", "sha-256"]) == (SHA_256, SHA_512_256, MD5)
    assert tuple(ALGORITHMS.values()) == (SHA_256, SHA_512_256, MD5)


@pytest.mark.parametrize("names", [[], ["MD5-sess"], ["SHA-1", "MD5"]])
def test_unknown_or_no_algorithms_are_a_local_error(names: list[str]) -> None:
    with pytest.raises(LocalError):
        select_algorithms(names)


# ------------------------------------------------------------------------------------------ what we write


@pytest.mark.requirement("MSRP-AUTH-04", "MSRP-AUTH-05")
def test_rfc7616_3_3_challenge_as_deployed_clients_split_it() -> None:
    assert build_challenge(b"loom.example", b"MTc2MzY1-8c41e9d2b7f0", b"5f1d0c7ae2b94836", MD5) == (
        b'Digest realm="loom.example", nonce="MTc2MzY1-8c41e9d2b7f0", opaque="5f1d0c7ae2b94836", algorithm=MD5, qop="auth"'
    )
    assert build_challenge(b"loom.example", b"MTc2MzY3-b02c5517de84", b"9e3077c1aa504bd2", SHA_256) == (
        b'Digest realm="loom.example", nonce="MTc2MzY3-b02c5517de84", opaque="9e3077c1aa504bd2", '
        b'algorithm=SHA-256, qop="auth"'
    )
    assert build_challenge(b"loom.example", b"MTc2MzY4-3d9f0ab64c21", b"c07b51e8d2f34a96", MD5, stale=True) == (
        b'Digest realm="loom.example", nonce="MTc2MzY4-3d9f0ab64c21", opaque="c07b51e8d2f34a96", stale=true, '
        b'algorithm=MD5, qop="auth"'
    )


def test_sip_challenge_has_qop_before_the_algorithm() -> None:
    challenge = build_challenge(b"example.com", b"n", b"o", SHA_256, stale=True, qop_first=True)
    assert challenge == b'Digest realm="example.com", nonce="n", opaque="o", stale=true, qop="auth", algorithm=SHA-256'


def test_realm_is_escaped_and_never_breaks_the_line() -> None:
    assert build_challenge(rb'a "b" \c', b"n", b"o", MD5).startswith(rb'Digest realm="a \"b\" \\c", nonce=')
    with pytest.raises(LocalError):
        build_challenge(b"a\r\nX: y", b"n", b"o", MD5)


@pytest.mark.requirement("MSRP-AUTH-19")
@pytest.mark.parametrize(
    ("algorithm", "user", "password", "uri", "nonce", "cnonce", "nextnonce", "info"),
    [
        pytest.param(
            MD5, b"nora", b"teal-anchor-42", b"msrps://edge.loom.example;tcp", b"MTc2MzY1-8c41e9d2b7f0", b"Zt81kqPw",
            b"MTc2MzY2-17aa60f4c93e",
            b'nextnonce="MTc2MzY2-17aa60f4c93e", rspauth="655f491b2799d785238bd9d18ae6d92d", cnonce="Zt81kqPw", '
            b"nc=00000001, qop=auth",
            id="E1.4",
        ),
        pytest.param(
            SHA_256, b"nora", b"teal-anchor-42", b"msrps://edge.loom.example:2855;tcp", b"MTc2MzY3-b02c5517de84",
            b"h4PqX92s", None,
            b'rspauth="87e9a256e18b477dfd388b257befd815337d7e571bb98cbcf10266679eec3f63", cnonce="h4PqX92s", '
            b"nc=00000001, qop=auth",
            id="E2.4",
        ),
        pytest.param(
            MD5, b"mina", b"kelp-9", b"msrps://edge.loom.example:443;ws", b"d3MtMDE-5511aa", b"e4Aq0vXc", None,
            b'rspauth="fe10b38d4aeb804435e8344e2cbab55a", cnonce="e4Aq0vXc", nc=00000001, qop=auth',
            id="E18.4",
        ),
    ],
)  # fmt: skip
def test_rfc7616_3_5_authentication_info_of_the_worked_examples(
    algorithm: Algorithm, user: bytes, password: bytes, uri: bytes, nonce: bytes, cnonce: bytes,
    nextnonce: bytes | None, info: bytes,
) -> None:  # fmt: skip
    key = ha1(user, b"loom.example", password, algorithm)
    rspauth = compute_rspauth(algorithm, key, uri, nonce, nc=b"00000001", cnonce=cnonce, qop=b"auth")
    assert build_authentication_info(rspauth, cnonce, b"00000001", nextnonce) == info


def test_cnonce_of_the_peer_is_escaped_when_it_goes_back() -> None:
    assert (
        build_authentication_info(b"aa", rb'x"\y', b"00000001")
        == rb'rspauth="aa", cnonce="x\"\\y", nc=00000001, qop=auth'
    )


# ------------------------------------------------------------------------------------------ what we read


def test_e1_3_is_read_whole() -> None:
    value = (
        b'Digest username="nora", realm="loom.example", nonce="MTc2MzY1-8c41e9d2b7f0", '
        b'uri="msrps://edge.loom.example;tcp", response="ab824abc51672992ebfe623c5c877c18", opaque="5f1d0c7ae2b94836", '
        b'algorithm=MD5, qop=auth, cnonce="Zt81kqPw", nc=00000001'
    )
    assert read(value) == NORA
    credentials = parse_credentials(value)
    assert credentials is not None
    assert credentials.uri_quoted


def spell(
    fields: dict[str, bytes], comma: bytes = b", ", equals: bytes = b"=", bare: str = "algorithm qop nc"
) -> bytes:
    parts = (
        name.encode() + equals + (text if name in bare.split() else b'"' + text + b'"') for name, text in fields.items()
    )
    return b"Digest " + comma.join(parts)


SPELLINGS = {
    "reversed": spell(dict(reversed(NORA.items()))),
    "no blanks": spell(NORA, comma=b","),
    "blanks and TABs everywhere": spell(NORA, comma=b" \t, \t", equals=b"\t = "),
    "folded lines": spell(NORA, comma=b",\r\n "),
    "everything quoted": spell(NORA, bare=""),
    "everything bare": spell(NORA, bare=" ".join(NORA)),
    "nc and qop quoted": spell(NORA, bare="algorithm"),
    "unknown parameters": spell({"x": b"1", **NORA, "charset": b"UTF-8", "auth-param": b"a=b, c"}),
    "names in capitals": spell({name.upper(): text for name, text in NORA.items()}, bare="ALGORITHM QOP NC"),
    "scheme in small letters, TAB after it": b"digest\t" + spell(NORA)[7:],
    "escapes where none are needed": spell(NORA).replace(b'"nora"', rb'"n\o\ra"').replace(b"Zt81", rb"\Zt81"),
    "empty list elements": b"Digest , ," + spell(NORA, comma=b",, ,")[7:] + b" , ",
    "blanks around": b" \t" + spell(NORA) + b" \t",
}


@pytest.mark.requirement("MSRP-AUTH-08")
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_rfc7616_3_4_many_spellings_of_the_same_credentials(spelling: str) -> None:
    assert read(SPELLINGS[spelling]) == NORA


@pytest.mark.requirement("MSRP-AUTH-08")
def test_escapes_in_a_name_are_undone() -> None:
    assert read(rb'Digest username="a\"b", realm="r"')["username"] == b'a"b'
    assert read(rb'Digest username="\\\"", realm="\,\=\a"') == {"username": b'\\"', "realm": b",=a"}


@pytest.mark.requirement("SIP-AUT-13")
def test_rfc7616_3_4_commas_and_equals_signs_in_quotes_are_data() -> None:
    assert read(b'Digest realm="a, b=c", nonce="n,m=1"') == {"realm": b"a, b=c", "nonce": b"n,m=1"}
    value = b'Digest username="alice", opaque="x,username=victim,y=z", realm="r", qop="auth"'
    assert read(value) == {"username": b"alice", "opaque": b"x,username=victim,y=z", "realm": b"r", "qop": b"auth"}
    escaped = rb'Digest username="alice", opaque="x\",username=\"victim\",y=z", realm="r"'
    assert read(escaped) == {"username": b"alice", "opaque": b'x",username="victim",y=z', "realm": b"r"}


@pytest.mark.requirement("SIP-AUT-13")
@pytest.mark.parametrize("name", [*FIELDS, "userhash", "username*"])
@pytest.mark.parametrize("again", ["{}=b", '{}="b"', '{}="\\b"'])
def test_rfc7616_3_4_a_digest_parameter_twice_is_400(name: str, again: str) -> None:
    value = f'Digest {name}="a", x=1, {again.format(name.title())}'.encode()
    with pytest.raises(RemoteError) as caught:
        parse_credentials(value)
    assert (caught.value.status, caught.value.label) == (400, "credentials")


def test_an_unknown_parameter_twice_is_skipped_twice() -> None:
    assert read(b'Digest x=1, realm="r", x=2') == {"realm": b"r"}


@pytest.mark.requirement("SIP-AUT-13")
@pytest.mark.parametrize("order", [0, 1])
def test_rfc7616_3_4_username_beside_its_extended_form_is_400(order: int) -> None:
    both = [b'username="alice"', b"username*=UTF-8''alice"]
    with pytest.raises(RemoteError) as caught:
        parse_credentials(b"Digest " + b", ".join(both[::-1] if order else both))
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (b"UTF-8''J%C3%A4s%C3%B8n%20Doe", "Jäsøn Doe".encode()),
        (b"utf-8'de'alice", b"alice"),
        (b"UTF-8''a'b", b"a'b"),
    ],
)
def test_rfc7616_3_4_extended_username_is_decoded(value: bytes, name: bytes) -> None:
    assert read(b"Digest username*=" + value + b', realm="r"') == {"username": name, "realm": b"r"}


@pytest.mark.parametrize(
    "value", [b"alice", b"UTF-8'alice", b"ISO-8859-1''alice", b"UTF-8''a%2", b"UTF-8''%zz", b"UTF-8''%00"]
)
def test_rfc5987_3_2_extended_username_that_is_none_is_400(value: bytes) -> None:
    with pytest.raises(RemoteError) as caught:
        parse_credentials(b"Digest username*=" + value)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "value", [b"Basic YWxpY2U6cHc=", b"Bearer a.b.c", b"NTLM", b'AKAv1 realm="r"', b"basic !!\x00"]
)
def test_another_scheme_is_no_error_and_no_digest(value: bytes) -> None:
    assert parse_credentials(value) is None


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"   ",
        b'"Digest" realm="r"',
        b"Digest, realm=r",
        b'Digestrealm="r"',
        b"Digest realm",
        b"Digest realm=",
        b"Digest realm=,",
        b'Digest ="r"',
        b'Digest realm="r',
        b'Digest realm="r\\',
        b'Digest realm="r\\"',
        b'Digest realm="r" nonce="n"',
        b'Digest realm="r"; nonce="n"',
        b'Digest realm="r"x',
        b'Digest realm=r"x"',
        b"Digest realm=r x",
        b"Digest re alm=r",
        b'Digest realm="a\r\nb"',
        b'Digest realm="a\x00b"',
        b'Digest realm="a\\\nb"',
        b"Digest realm=a\x7fb",
    ],
)
def test_what_is_no_parameter_list_is_400(value: bytes) -> None:
    with pytest.raises(RemoteError) as caught:
        parse_credentials(value)
    assert (caught.value.status, caught.value.label) == (400, "credentials")


def test_digest_without_any_parameter_has_no_fields() -> None:
    assert read(b"Digest") == {}
    assert read(b"Digest , ,, ") == {}


def test_where_the_uri_stood_bare_is_known() -> None:
    for value, quoted in ((b'Digest uri="sip:a"', True), (b"Digest uri=sip:a", False), (b"Digest qop=auth", True)):
        credentials = parse_credentials(value)
        assert credentials is not None
        assert credentials.uri_quoted is quoted


# ------------------------------------------------------------------------------------------ limits and time (SIP-MSG-34)

HOSTILE = {
    "26 quoted items and an error": b"Digest " + b", ".join(b'a%d="x"' % n for n in range(26)) + b" !",
    "as many as fit, and an error": b"Digest " + b", ".join(b'a="x"' for _ in range(900)) + b" !",
    "an open quote": b'Digest a="' + b"x" * 8000,
    "quotes": b"Digest " + b'"' * 8000,
    "escapes": b'Digest a="' + b"\\a" * 3990,
    "escaped quotes": b'Digest a="' + b'\\"' * 3990,
    "a name without end": b"Digest " + b"a" * 8000,
    "blanks between": b"Digest a" + b" " * 8000 + b"!",
    "blanks after": b"Digest a=b" + b" \t" * 4000 + b"!",
    "commas": b"Digest a=b" + b"," * 8000 + b"!",
    "signs": b"Digest " + b"=" * 8000,
    "percent": b"Digest username*=UTF-8''" + b"%" * 8000,
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("octets", [0, 65536])
def test_inputs_that_other_parsers_hang_on_are_refused(name: str, octets: int) -> None:
    value = HOSTILE[name]
    with pytest.raises(RemoteError) as caught:
        parse_credentials(value if not octets else (value * (octets // len(value) + 1))[:octets])
    assert caught.value.status == 400


def test_size_and_count_are_limited() -> None:
    assert parse_credentials(b'Digest realm="' + b"x" * (parameters.MAX_OCTETS - 15) + b'"')
    with pytest.raises(RemoteError):
        parse_credentials(b'Digest realm="' + b"x" * (parameters.MAX_OCTETS - 14) + b'"')
    assert parse_credentials(b"Digest " + b",".join(b"x%d=1" % n for n in range(parameters.MAX_PARAMETERS)))
    for quote in (b"", b'"', b'"\\'):
        value = b"Digest " + b",".join(
            b"x%d=%b1%b" % (n, quote, quote[:1]) for n in range(parameters.MAX_PARAMETERS + 1)
        )
        with pytest.raises(RemoteError):
            parse_credentials(value)


def test_rfc3261_26_3_2_4_no_expression_over_network_bytes_can_go_back() -> None:
    """Every repeat is possessive and none holds another, so each attempt to match looks at an octet at most twice."""
    patterns = [value for value in vars(parameters).values() if isinstance(value, re.Pattern)]
    assert len(patterns) == 6
    for pattern in patterns:
        text = re.sub(rb"\[(?:\\.|[^\]\\])*\]", b"C", pattern.pattern)
        text = re.sub(rb"\\.", b"E", text)
        assert not re.search(rb"[*+](?!\+)(?<![*+]\+)", text), pattern.pattern
        assert not re.search(rb"\)[*+{]", text), pattern.pattern


# ------------------------------------------------------------------------------------------ properties

NAMES = st.sampled_from([*FIELDS, "username*", "userhash", "x", "Realm"])
FRAGMENTS = st.sampled_from(
    rb"""Digest |digest	|"|\|,|, |=| |realm|username|username*|nc|a|00000001|UTF-8''|%41|="x"|="\""|;""".split(b"|")
) | st.sampled_from([b"\r\n ", b"\x00", b"\xff"])


@given(st.one_of(st.binary(max_size=400), st.lists(FRAGMENTS, max_size=40).map(b"".join)))
def test_any_octets_are_read_or_refused_with_400(octets: bytes) -> None:
    for value in (octets, b"Digest " + octets):
        try:
            credentials = parse_credentials(value)
        except RemoteError as error:
            refusal = error.status, error.label
        else:
            assert credentials is None or isinstance(credentials, Credentials)
            continue
        assert refusal == (400, "credentials")


@given(st.lists(FRAGMENTS, max_size=40).map(b"".join))
def test_the_quick_and_the_careful_reader_agree(octets: bytes) -> None:
    value = octets.rstrip(b" \t\r\n,")
    quick = parameters._usual.findall(value)
    if not quick or not quick[-1][3]:
        assert parameters._read_by_hand(value, 0) == quick


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)


@given(
    st.dictionaries(st.sampled_from(FIELDS), TEXT, min_size=1),
    st.randoms(use_true_random=False),
    st.sampled_from([",", ", ", " ,\t", ",\r\n\t"]),
)
def test_what_is_written_by_the_grammar_is_read_back(fields: dict[str, str], random: object, comma: str) -> None:
    names = list(fields)
    random.shuffle(names)  # type: ignore[attr-defined]
    value = "Digest " + comma.join(f"{name}={ua._quote(fields[name])}" for name in names)
    assert read(value.encode()) == {name: text.encode() for name, text in fields.items()}


@given(TEXT, TEXT, TEXT, st.integers(1, 0xFFFFFFFF), st.sampled_from(sorted(ALGORITHMS)))
def test_an_independent_client_computes_the_same(
    user: str, realm: str, password: str, count: int, token: bytes
) -> None:
    algorithm = ALGORITHMS[token]
    challenge = ua.Challenge.parse(build_challenge(realm.encode(), b"nonce", b"opaque", algorithm).decode())
    answer = ua.answer(challenge, user, password, "REGISTER", "sip:example.com", count=count)
    credentials = parse_credentials(answer.header.encode())
    assert credentials is not None
    assert (credentials.username, credentials.realm) == (user.encode(), realm.encode())
    key = ha1(user.encode(), realm.encode(), password.encode(), algorithm)
    cnonce = credentials.cnonce
    nc = credentials.nc
    found = compute_response(
        algorithm, key, b"REGISTER", b"sip:example.com", b"nonce", nc=nc, cnonce=cnonce, qop=b"auth"
    )
    assert found == credentials.response
    assert nc is not None
    assert cnonce is not None
    rspauth = compute_rspauth(algorithm, key, b"sip:example.com", b"nonce", nc=nc, cnonce=cnonce, qop=b"auth")
    assert rspauth == answer.expected_rspauth().encode()
    assert digest.build_authentication_info(rspauth, cnonce, nc).startswith(b'rspauth="')
