"""Who is let in: credentials of an independent client against the whole of edge.auth, without a wire."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.auth.authenticator import MAX_USERNAME, MSRP, SIP, Authenticator, Dialect, Outcome, Verdict
from edge.auth.credentials import Credential, CredentialCache, derive_credential
from edge.auth.digest import ALGORITHMS, MD5, compute_response, ha1
from edge.auth.nonce import Nonces
from edge.errors import LocalError
from tests.ua import digest as ua

REALM = b"example.com"
URI = "sip:example.com"
EDGE = "msrps://edge.loom.example;tcp"


class Site:
    """One server's authentication, and a client that knows bob's password."""

    def __init__(
        self,
        dialect: Dialect = SIP,
        algorithms: Sequence[str] = ("SHA-256", "MD5"),
        realm: bytes = REALM,
        nonces: Nonces | None = None,
        remembered: int = 1000,
    ) -> None:
        self.cache = CredentialCache()
        self.cache.put(b"bob", realm, derive_credential(b"bob", realm, b"zanzibar"), 0.0)
        self.cache.put(b"mallory", realm, None, 0.0)
        self.nonces = nonces or Nonces(realm, algorithms, os.urandom(32), os.urandom, remembered=remembered)
        self.authenticator = Authenticator(realm, algorithms, self.nonces, self.cache, os.urandom, dialect=dialect)
        self.method = "AUTH" if dialect is MSRP else "REGISTER"
        self.uri = EDGE if dialect is MSRP else URI

    def challenge(self, now: float = 1.0, algorithm: str = "MD5", stale: bool = False) -> ua.Challenge:
        rows = [value.decode() for value in self.authenticator.challenges(now, stale)]
        chosen = ua.choose(rows, [algorithm])
        assert chosen is not None
        return chosen

    def answer(self, challenge: ua.Challenge, user: str = "bob", password: str = "zanzibar", count: int = 1) -> bytes:
        return ua.answer(challenge, user, password, self.method, self.uri, count=count).header.encode()

    def verify(self, value: bytes, now: float = 2.0, uri_ok: Callable[[bytes], bool] | None = None) -> Verdict:
        return self.authenticator.verify(value, self.method.encode(), uri_ok, now, uri=self.uri.encode())


DIALECTS = pytest.mark.parametrize("dialect", [pytest.param(SIP, id="sip"), pytest.param(MSRP, id="msrp")])


# ------------------------------------------------------------------------------------------ challenges


@pytest.mark.requirement("SIP-AUT-05")
def test_rfc8760_2_3_sip_challenges_strongest_first_with_the_same_realm() -> None:
    rows = Site(SIP, ["MD5", "SHA-512-256", "SHA-256"]).authenticator.challenges(1.0)
    nonce = ua.Challenge.parse(rows[0].decode()).nonce
    opaque = ua.Challenge.parse(rows[0].decode()).opaque
    assert rows == [
        f'Digest realm="example.com", nonce="{nonce}", opaque="{opaque}", qop="auth", algorithm={token}'.encode()
        for token in ("SHA-256", "SHA-512-256", "MD5")
    ]
    stale = Site(SIP, ["SHA-256"]).authenticator.challenges(1.0, stale=True)
    assert len(stale) == 1
    assert re.search(rb', stale=true, qop="auth", algorithm=SHA-256$', stale[0])


@pytest.mark.requirement("MSRP-AUTH-04", "MSRP-AUTH-05", "MSRP-AUTH-06")
def test_rfc4976_9_1_msrp_challenges_end_with_md5_and_are_always_whole() -> None:
    site = Site(MSRP, ["MD5", "SHA-256"])
    for stale, mark in ((False, b""), (True, b"stale=true, ")):
        rows = site.authenticator.challenges(1.0, stale)
        shapes = [
            re.fullmatch(
                rb'Digest realm="example.com", nonce="([^"]+)", opaque="([^"]+)", %balgorithm=%b, qop="auth"'
                % (mark, token),
                row,
            )
            for row, token in zip(rows, (b"SHA-256", b"MD5"), strict=True)
        ]
        assert all(shapes)
        assert len({shape.groups() for shape in shapes if shape}) == 1
    only = Site(MSRP, ["MD5"]).authenticator.challenges(1.0)
    assert [b"algorithm=MD5" in row for row in only] == [True]


@pytest.mark.requirement("MSRP-AUTH-06")
def test_a_client_that_skips_sha_256_succeeds_with_md5() -> None:
    site = Site(MSRP)
    rows = [value.decode() for value in site.authenticator.challenges(1.0)]
    old_client = ua.choose(rows, ["MD5"])
    new_client = ua.choose(rows, ["SHA-256", "MD5"])
    assert old_client is not None
    assert new_client is not None
    assert (old_client.algorithm, new_client.algorithm) == ("MD5", "SHA-256")
    assert site.verify(site.answer(old_client)).outcome is Outcome.GRANTED
    assert site.verify(site.answer(new_client, count=2)).outcome is Outcome.GRANTED


def test_each_challenge_has_a_nonce_of_its_own() -> None:
    site = Site()
    assert len({site.challenge().nonce for _ in range(100)}) == 100


# ------------------------------------------------------------------------------------------ the right password


@DIALECTS
@pytest.mark.parametrize("algorithm", ["SHA-256", "SHA-512-256", "MD5"])
def test_right_credentials_are_granted(dialect: Dialect, algorithm: str) -> None:
    site = Site(dialect, ["SHA-256", "SHA-512-256", "MD5"])
    verdict = site.verify(site.answer(site.challenge(algorithm=algorithm)))
    assert (verdict.outcome, verdict.username, verdict.realm) == (Outcome.GRANTED, b"bob", REALM)
    assert not verdict.stale
    assert verdict.credentials is not None
    assert (verdict.authentication_info is None) == (dialect is SIP)


@DIALECTS
def test_the_method_and_the_uri_are_part_of_the_answer(dialect: Dialect) -> None:
    site = Site(dialect)
    value = site.answer(site.challenge())
    assert site.authenticator.verify(value, b"INVITE", None, 2.0).outcome is Outcome.DENIED
    assert site.verify(value.replace(b'uri="', b'uri="x')).outcome is Outcome.DENIED
    assert site.verify(value).outcome is Outcome.GRANTED


@pytest.mark.requirement("SIP-AUT-13")
def test_rfc7616_3_4_a_realm_with_comma_and_equals_sign() -> None:
    site = Site(realm=b"a, b=c")
    assert site.verify(site.answer(site.challenge())).outcome is Outcome.GRANTED
    quoted = Site(realm=rb'say "hi" \o')
    assert quoted.verify(quoted.answer(quoted.challenge())).outcome is Outcome.GRANTED


@pytest.mark.requirement("SIP-AUT-13")
def test_rfc7616_3_4_a_quoted_parameter_cannot_change_the_user() -> None:
    site = Site()
    value = site.answer(site.challenge()) + b', x="y,username=mallory,z=w"'
    verdict = site.verify(value)
    assert (verdict.outcome, verdict.username) == (Outcome.GRANTED, b"bob")


@pytest.mark.requirement("SIP-AUT-13")
@pytest.mark.parametrize(
    "extra", [b', username="bob"', b", username*=UTF-8''bob", b', nonce="x"', b", qop=auth", b", nc=00000002"]
)
def test_rfc7616_3_4_duplicates_are_malformed_even_beside_a_right_answer(extra: bytes) -> None:
    site = Site()
    value = site.answer(site.challenge())
    assert site.verify(value + extra).outcome is Outcome.MALFORMED
    assert site.verify(value).outcome is Outcome.GRANTED


@pytest.mark.requirement("MSRP-AUTH-08")
def test_a_user_whose_name_has_a_quote_in_it() -> None:
    site = Site(MSRP)
    site.cache.put(b'a"b', REALM, derive_credential(b'a"b', REALM, b"pw"), 0.0)
    value = site.answer(site.challenge(), 'a"b', "pw")
    assert b'username="a\\"b"' in value
    verdict = site.verify(value)
    assert (verdict.outcome, verdict.username) == (Outcome.GRANTED, b'a"b')


def test_rfc7616_3_4_a_user_in_the_extended_form() -> None:
    site = Site()
    site.cache.put("jäs".encode(), REALM, derive_credential("jäs".encode(), REALM, b"pw"), 0.0)
    value = site.answer(site.challenge(), "jäs", "pw").replace('username="jäs"'.encode(), b"username*=UTF-8''j%C3%A4s")
    assert site.verify(value).outcome is Outcome.GRANTED


# ------------------------------------------------------------------------------------------ worked examples (MSRP section 16)

E1_3 = (
    b'Digest username="nora", realm="loom.example", nonce="MTc2MzY1-8c41e9d2b7f0", uri="msrps://edge.loom.example;tcp", '
    b'response="ab824abc51672992ebfe623c5c877c18", opaque="5f1d0c7ae2b94836", algorithm=MD5, qop=auth, '
    b'cnonce="Zt81kqPw", nc=00000001'
)
E2_3 = (
    b'Digest username="nora", realm="loom.example", nonce="MTc2MzY3-b02c5517de84", '
    b'response="acda21dcec33406460c12516302b79d898283a8d2659a728ceb73f52b67a2bc9", opaque="9e3077c1aa504bd2", '
    b'algorithm=SHA-256, qop=auth, cnonce="h4PqX92s", nc=00000001'
)
E3_3 = (
    b'Digest username="nora", realm="loom.example", nonce="MTc2MzY4-3d9f0ab64c21", uri="msrps://edge.loom.example;tcp", '
    b'response="01bc1e2a5c8b6ea8509561ebc79ca1d7", opaque="c07b51e8d2f34a96", algorithm=MD5, qop=auth, '
    b'cnonce="p0Wm6rTy", nc=00000001'
)
E4_1 = (
    b'Digest username="nora", realm="loom.example", nonce="MTc2MzY5-e6127cb830fd", uri="msrps://edge.loom.example;tcp", '
    b'response="4426ed6e74f05a893976a8951c7bfd86", opaque="18d4e6b09c7f2a35", algorithm=MD5, qop=auth, '
    b'cnonce="b1Xn7sUz", nc=00000001'
)
E4_3 = (
    b'Digest username="nora", realm="loom.example", nonce="MTc2MzY5-e6127cb830fd", uri="msrps://edge.loom.example;tcp", '
    b'response="2eba71ed13dc5467eb22a5362b8b131e", opaque="18d4e6b09c7f2a35", algorithm=MD5, qop=auth, '
    b'cnonce="c2Yo8tVa", nc=00000002'
)
E18_3 = (
    b'Digest username="mina", realm="loom.example", nonce="d3MtMDE-5511aa", uri="msrps://edge.loom.example:443;ws", '
    b'response="79b65ea16e38c6d60a3f77bb304aa754", opaque="0011223344556677", algorithm=MD5, qop=auth, '
    b'cnonce="e4Aq0vXc", nc=00000001'
)


def loom() -> Site:
    site = Site(MSRP, realm=b"loom.example")
    for name, password in ((b"nora", b"teal-anchor-42"), (b"mina", b"kelp-9")):
        site.cache.put(name, b"loom.example", derive_credential(name, b"loom.example", password), 0.0)
    return site


@pytest.mark.requirement("MSRP-AUTH-12")
@pytest.mark.parametrize(
    ("value", "uri"),
    [
        pytest.param(E1_3, EDGE, id="E1.3"),
        pytest.param(E2_3, "msrps://edge.loom.example:2855;tcp", id="E2.3"),
        pytest.param(E4_1, EDGE, id="E4.1"),
        pytest.param(E4_3, EDGE, id="E4.3"),
        pytest.param(E18_3, "msrps://edge.loom.example:443;ws", id="E18.3"),
    ],
)
def test_rfc7616_3_4_1_answers_of_the_worked_examples_are_right(value: bytes, uri: str) -> None:
    """Their nonces are not ours, so right is STALE, and a response with one digit changed is DENIED."""
    site = loom()
    site.uri = uri
    assert site.verify(value).outcome is Outcome.STALE
    digit = value.index(b'response="') + 10
    wrong = value[:digit] + (b"0" if value[digit : digit + 1] != b"0" else b"1") + value[digit + 1 :]
    assert site.verify(wrong).outcome is Outcome.DENIED


def test_the_wrong_password_of_e3_3_is_denied() -> None:
    assert loom().verify(E3_3).outcome is Outcome.DENIED


@pytest.mark.parametrize(
    "change", [str.upper, lambda response: response[:-1], lambda response: response + "0", lambda _: "ä" * 32]
)
def test_rfc7616_3_4_the_response_is_exactly_the_lower_case_digits(change: Callable[[str], str]) -> None:
    site = Site()
    value = site.answer(site.challenge()).decode()
    response = re.findall(r'response="([^"]*)"', value)[0]
    assert site.verify(value.replace(response, change(response)).encode()).outcome is Outcome.DENIED


# ------------------------------------------------------------------------------------------ what must be there

REQUIRED = ["username", "realm", "nonce", "response", "qop", "cnonce", "nc"]


def without(value: bytes, name: str) -> bytes:
    return re.sub(rb'%b=(?:"[^"]*"|[^,]*)(?:, |$)' % name.encode(), b"", value, count=1)


@pytest.mark.requirement("MSRP-AUTH-09")
@pytest.mark.parametrize("name", REQUIRED)
def test_rfc7616_3_4_msrp_credentials_without_a_required_parameter_are_malformed(name: str) -> None:
    site = Site(MSRP)
    value = site.answer(site.challenge()) + b", x=y"
    assert f"{name}=".encode() in value
    assert site.verify(without(value, name)).outcome is Outcome.MALFORMED
    assert site.verify(without(value, "x")).outcome is Outcome.GRANTED


@pytest.mark.requirement("MSRP-AUTH-09")
@pytest.mark.parametrize(
    "change", [b"nc=1", b"nc=000000001", b"nc=0000000g", b"nc=+0000001", b'nc="0x000001"', b"nc=0000_001"]
)
@DIALECTS
def test_rfc7616_3_4_nc_is_eight_hex_digits(dialect: Dialect, change: bytes) -> None:
    site = Site(dialect)
    value = site.answer(site.challenge()).replace(b"nc=00000001", change)
    assert site.verify(value).outcome is Outcome.MALFORMED


@pytest.mark.requirement("MSRP-AUTH-09")
@DIALECTS
def test_a_qop_that_was_never_offered_is_malformed(dialect: Dialect) -> None:
    site = Site(dialect)
    value = site.answer(site.challenge()).replace(b"qop=auth", b"qop=auth-int")
    assert site.verify(value).outcome is Outcome.MALFORMED


@pytest.mark.parametrize("name", ["username", "realm", "nonce", "response", "uri", "cnonce", "nc"])
def test_sip_credentials_without_a_required_parameter_are_malformed(name: str) -> None:
    site = Site(SIP)
    value = site.answer(site.challenge()) + b", x=y"
    assert site.verify(without(value, name)).outcome is Outcome.MALFORMED


@pytest.mark.requirement("SIP-AUT-07")
def test_rfc3261_22_4_item_8_no_qop_is_refused_unless_the_legacy_option_is_on() -> None:
    site = Site(SIP, ["MD5"])
    legacy = Site(replace(SIP, legacy_no_qop=True), ["MD5"], nonces=site.nonces)
    value = site.answer(replace(site.challenge(), qop=()))
    assert b"qop" not in value
    assert site.verify(value).outcome is Outcome.DENIED
    assert legacy.verify(value).outcome is Outcome.GRANTED
    assert legacy.verify(value).outcome is Outcome.GRANTED
    wrong = site.answer(replace(site.challenge(), qop=()), password="wrong")
    assert legacy.verify(wrong).outcome is Outcome.DENIED
    vector = (
        b'Digest username="bob", realm="example.com", nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093", uri="sip:example.com", '
        b'response="a2e0e4da75d2bd427e51bd11907bb9fc"'
    )
    assert legacy.verify(vector).outcome is Outcome.STALE


def test_the_legacy_option_does_not_drop_the_count_of_others() -> None:
    site = Site(replace(SIP, legacy_no_qop=True))
    value = site.answer(site.challenge())
    assert [site.verify(value).outcome for _ in range(2)] == [Outcome.GRANTED, Outcome.STALE]


# ------------------------------------------------------------------------------------------ uri


@pytest.mark.requirement("SIP-AUT-11")
def test_rfc8760_2_6_the_digest_uri_is_quoted_present_and_names_something_served() -> None:
    site = Site(SIP)
    served = {b"sip:example.com", b"sip:EXAMPLE.com"}
    value = site.answer(site.challenge())
    assert site.verify(without(value, "uri"), uri_ok=served.__contains__).outcome is Outcome.MALFORMED
    bare = value.replace(b'uri="sip:example.com"', b"uri=sip:example.com")
    assert site.verify(bare, uri_ok=served.__contains__).outcome is Outcome.MALFORMED
    site.uri = "sip:other.example"
    other = site.answer(site.challenge())
    assert site.verify(other, uri_ok=served.__contains__).outcome is Outcome.MALFORMED
    site.uri = "sip:EXAMPLE.com"
    spelled = site.answer(site.challenge())
    assert site.verify(spelled, uri_ok=served.__contains__).outcome is Outcome.GRANTED
    assert site.verify(value, uri_ok=served.__contains__).outcome is Outcome.GRANTED


def test_rfc4976_9_1_without_uri_the_given_one_is_hashed_and_with_it_the_clients_spelling() -> None:
    site = Site(MSRP)
    value = without(site.answer(site.challenge()), "uri")
    assert (
        site.authenticator.verify(value, b"AUTH", None, 2.0, uri=b"msrps://other.example;tcp").outcome is Outcome.DENIED
    )
    assert site.authenticator.verify(value, b"AUTH", None, 2.0).outcome is Outcome.MALFORMED
    assert site.verify(value, uri_ok=lambda _: False).outcome is Outcome.GRANTED
    site.uri = "MSRPS://EDGE.loom.example;TCP"
    spelled = site.answer(site.challenge())
    site.uri = EDGE
    assert site.verify(spelled, uri_ok=lambda uri: uri.lower() == EDGE.encode()).outcome is Outcome.GRANTED
    assert site.verify(spelled, uri_ok=lambda uri: False).outcome is Outcome.MALFORMED


def test_rfc4976_9_1_the_same_uri_counts_at_every_hop() -> None:
    """E5: the second relay hashes the rightmost To-Path URI; hashing the leftmost fails."""
    site = Site(MSRP, realm=b"fjord.example")
    site.cache.put(b"nora", b"fjord.example", derive_credential(b"nora", b"fjord.example", b"salt-river-7"), 0.0)
    value = (
        b'Digest username="nora", realm="fjord.example", nonce="Z2F0ZS0wMS4x-70be21f5", '
        b'response="d951998e1b2d34ca882e4e24226f12d0", algorithm=MD5, qop=auth, cnonce="d3Zp9uWb", nc=00000001'
    )
    site.uri = "msrps://gate.fjord.example;tcp"
    assert site.verify(value).outcome is Outcome.STALE
    site.uri = "msrps://edge.loom.example:2855/Ub3nWq8ZkT1xY5cRm7VdHg;tcp"
    assert site.verify(value).outcome is Outcome.DENIED


# ------------------------------------------------------------------------------------------ nonce and count


@pytest.mark.requirement("SIP-AUT-08", "MSRP-AUTH-14")
@DIALECTS
def test_rfc7616_3_3_an_expired_nonce_is_stale_only_for_who_knows_the_password(dialect: Dialect) -> None:
    site = Site(dialect)
    challenge = site.challenge(now=1.0)
    site.cache.put(b"bob", REALM, derive_credential(b"bob", REALM, b"zanzibar"), 300.0)
    site.cache.put(b"mallory", REALM, None, 300.0)
    assert site.verify(site.answer(challenge), now=301.0).outcome is Outcome.GRANTED
    late = site.verify(site.answer(challenge, count=2), now=302.0)
    assert (late.outcome, late.stale, late.authentication_info) == (Outcome.STALE, True, None)
    for wrong in (site.answer(challenge, password="wrong"), site.answer(challenge, user="mallory")):
        verdict = site.verify(wrong, now=302.0)
        assert (verdict.outcome, verdict.stale) == (Outcome.DENIED, False)
    again = site.challenge(now=302.0, stale=late.stale)
    assert again.stale
    assert site.verify(site.answer(again), now=302.0).outcome is Outcome.GRANTED


@pytest.mark.requirement("SIP-AUT-08", "MSRP-AUTH-14")
@DIALECTS
def test_rfc7616_3_3_a_nonce_from_before_a_restart_is_stale(dialect: Dialect) -> None:
    before, after = Site(dialect), Site(dialect)
    challenge = before.challenge()
    assert after.verify(after.answer(challenge)).outcome is Outcome.STALE
    assert after.verify(after.answer(challenge, password="wrong")).outcome is Outcome.DENIED
    again = after.challenge(stale=True)
    assert after.verify(after.answer(again)).outcome is Outcome.GRANTED


@pytest.mark.requirement("SIP-AUT-09")
def test_rfc7616_3_4_sip_count_may_be_late_but_never_twice() -> None:
    site = Site(SIP)
    challenge = site.challenge()
    first, second, third = (site.answer(challenge, count=count) for count in (1, 2, 3))
    assert site.verify(second).outcome is Outcome.GRANTED
    assert site.verify(first).outcome is Outcome.GRANTED
    for replayed in (first, second):
        assert site.verify(replayed).outcome is Outcome.STALE
    assert site.verify(third).outcome is Outcome.GRANTED
    far = site.answer(challenge, count=1000)
    assert site.verify(far).outcome is Outcome.GRANTED
    assert site.verify(site.answer(challenge, count=900)).outcome is Outcome.STALE
    short = site.answer(challenge, count=2000).replace(b"nc=000007d0", b"nc=7d0")
    assert site.verify(short).outcome is Outcome.MALFORMED


@pytest.mark.requirement("MSRP-AUTH-15")
def test_rfc7616_3_4_msrp_count_must_rise() -> None:
    site = Site(MSRP)
    challenge = site.challenge()
    outcomes = [site.verify(site.answer(challenge, count=count)).outcome for count in (2, 1, 2, 3, 3)]
    assert outcomes == [Outcome.GRANTED, Outcome.STALE, Outcome.STALE, Outcome.GRANTED, Outcome.STALE]
    replayed = site.verify(site.answer(challenge, count=3))
    assert replayed.authentication_info is None
    assert b"stale=true" in site.authenticator.challenges(2.0, replayed.stale)[0]


def test_a_wrong_answer_uses_up_no_count() -> None:
    site = Site()
    challenge = site.challenge()
    for _ in range(3):
        assert site.verify(site.answer(challenge, password="wrong", count=7)).outcome is Outcome.DENIED
    assert site.verify(site.answer(challenge, count=7)).outcome is Outcome.GRANTED


def test_a_replay_may_be_denied_instead() -> None:
    site = Site(replace(SIP, stale_on_replay=False))
    value = site.answer(site.challenge())
    assert [site.verify(value).outcome for _ in range(2)] == [Outcome.GRANTED, Outcome.DENIED]


def test_overload_of_the_memory_asks_again_and_never_lets_a_replay_in() -> None:
    site = Site(remembered=2)
    values = [site.answer(site.challenge(now=float(second))) for second in range(5)]
    for value in values:
        assert site.verify(value, now=5.0).outcome is Outcome.GRANTED
    for value in values:
        assert site.verify(value, now=5.0).outcome is Outcome.STALE


def test_a_nonce_serves_both_protocols_but_no_count_twice() -> None:
    sip = Site(SIP)
    msrp = Site(MSRP, nonces=sip.nonces)
    challenge = sip.challenge()
    assert sip.verify(sip.answer(challenge, count=1)).outcome is Outcome.GRANTED
    assert msrp.verify(msrp.answer(challenge, count=1)).outcome is Outcome.STALE
    assert msrp.verify(msrp.answer(challenge, count=2)).outcome is Outcome.GRANTED


@pytest.mark.requirement("MSRP-AUTH-16")
def test_rfc7616_3_3_nonces_of_others_never_let_anybody_in() -> None:
    site = Site(MSRP)
    challenge = site.challenge()
    nonce = challenge.nonce.encode()
    value = site.answer(challenge)
    changed = nonce[:-1] + (b"A" if nonce[-1:] != b"A" else b"B")
    assert site.verify(value.replace(nonce, changed)).outcome is Outcome.DENIED
    invented = replace(challenge, nonce="MTc2MzY1-8c41e9d2b7f0")
    assert site.verify(site.answer(invented)).outcome is Outcome.STALE
    assert site.verify(site.answer(replace(challenge, opaque="0011223344556677"))).outcome is Outcome.DENIED
    assert site.verify(site.answer(replace(challenge, opaque=None))).outcome is Outcome.GRANTED
    assert site.verify(site.answer(replace(challenge, opaque=""), count=2)).outcome is Outcome.GRANTED


@pytest.mark.requirement("SIP-AUT-10")
def test_rfc7616_3_4_an_algorithm_that_was_not_offered_is_refused() -> None:
    strong = Site(SIP, ["SHA-256"])
    challenge = strong.challenge(algorithm="SHA-256")
    assert strong.verify(strong.answer(replace(challenge, algorithm="MD5"))).outcome is Outcome.DENIED
    both = Site(SIP, ["SHA-256", "MD5"])
    assert both.verify(both.answer(replace(challenge, algorithm="MD5"))).outcome is not Outcome.GRANTED
    other_realm = Site(SIP, ["SHA-256"], realm=b"other.example")
    moved = replace(challenge, realm="other.example")
    assert other_realm.verify(other_realm.answer(moved)).outcome is not Outcome.GRANTED
    assert strong.verify(strong.answer(challenge)).outcome is Outcome.GRANTED


@pytest.mark.parametrize("secret_shared", [True, False])
def test_a_nonce_offered_with_sha_256_alone_is_none_where_md5_is_offered_too(secret_shared: bool) -> None:
    secret = os.urandom(32)
    strong = Nonces(REALM, ["SHA-256"], secret, os.urandom)
    both = Nonces(REALM, ["SHA-256", "MD5"], secret if secret_shared else os.urandom(32), os.urandom)
    site = Site(SIP, ["SHA-256", "MD5"], nonces=both)
    challenge = ua.Challenge("example.com", strong.issue(1.0).decode(), "MD5", None, ("auth",))
    assert site.verify(site.answer(challenge)).outcome is Outcome.STALE


@pytest.mark.requirement("MSRP-AUTH-12")
def test_rfc7616_3_4_no_algorithm_means_md5() -> None:
    site = Site(MSRP)
    value = site.answer(site.challenge(algorithm="MD5"))
    assert site.verify(without(value, "algorithm")).outcome is Outcome.GRANTED
    value = site.answer(site.challenge(algorithm="SHA-256"))
    assert site.verify(without(value, "algorithm")).outcome is Outcome.DENIED
    strong = Site(MSRP, ["SHA-256"])
    value = strong.answer(replace(strong.challenge(algorithm="SHA-256"), algorithm="MD5"))
    assert strong.verify(without(value, "algorithm")).outcome is Outcome.DENIED
    for name in (b"MD5-sess", b"SHA-256-sess", b"SHA-1"):
        value = site.answer(site.challenge()).replace(b"algorithm=MD5", b"algorithm=" + name)
        assert site.verify(value).outcome is Outcome.DENIED


def test_algorithm_tokens_are_read_without_case() -> None:
    site = Site()
    value = site.answer(site.challenge(algorithm="SHA-256")).replace(b"algorithm=SHA-256", b'algorithm="sha-256"')
    assert site.verify(value).outcome is Outcome.GRANTED


# ------------------------------------------------------------------------------------------ Authentication-Info


@pytest.mark.requirement("MSRP-AUTH-19")
@pytest.mark.parametrize("algorithm", ["SHA-256", "MD5"])
def test_rfc7616_3_5_the_server_proves_that_it_knows_the_password(algorithm: str) -> None:
    site = Site(MSRP)
    answer = ua.answer(site.challenge(algorithm=algorithm), "bob", "zanzibar", "AUTH", EDGE, cnonce='q"\\z', count=26)
    info = site.verify(answer.header.encode()).authentication_info
    assert info is not None
    shape = re.fullmatch(
        rb'nextnonce="([^"]+)", rspauth="([0-9a-f]+)", cnonce="q\\"\\\\z", nc=0000001a, qop=auth', info
    )
    assert shape is not None
    assert shape[2] == answer.expected_rspauth().encode()


@pytest.mark.requirement("MSRP-AUTH-20")
def test_rfc7616_3_5_nextnonce_is_good_at_once_and_the_old_one_to_its_end() -> None:
    site = Site(MSRP)
    challenge = site.challenge()
    info = site.verify(site.answer(challenge)).authentication_info
    assert info is not None
    following = replace(challenge, nonce=ua.parse_parameters(info.decode())["nextnonce"])
    assert following.nonce != challenge.nonce
    assert site.verify(site.answer(following)).outcome is Outcome.GRANTED
    assert site.verify(site.answer(challenge, count=2)).outcome is Outcome.GRANTED


# ------------------------------------------------------------------------------------------ who


@DIALECTS
def test_a_user_nobody_asked_for_is_pending_and_then_decided(dialect: Dialect) -> None:
    site = Site(dialect)
    value = site.answer(site.challenge(), "alice", "secret")
    pending = site.verify(value)
    assert (pending.outcome, pending.username, pending.realm) == (Outcome.PENDING, b"alice", REALM)
    site.cache.put(pending.username, pending.realm, derive_credential(b"alice", REALM, b"secret"), 2.0)
    assert site.verify(value).outcome is Outcome.GRANTED
    assert site.verify(site.answer(site.challenge(), "carol", "x")).outcome is Outcome.PENDING
    site.cache.put(b"carol", REALM, None, 2.0)
    assert site.verify(site.answer(site.challenge(), "carol", "x")).outcome is Outcome.DENIED


@pytest.mark.parametrize("name", [b"\xff\xfe", b"x" * (MAX_USERNAME + 1)])
def test_a_name_no_store_can_have_is_never_asked_for(name: bytes) -> None:
    site = Site()
    value = site.answer(site.challenge(), "alice").replace(b'username="alice"', b'username="' + name + b'"')
    assert site.verify(value).outcome is Outcome.DENIED


def test_a_user_without_the_hash_of_the_algorithm_is_denied() -> None:
    site = Site()
    site.cache.put(b"old", REALM, Credential(ha1(b"old", REALM, b"pw", MD5), None), 0.0)
    assert site.verify(site.answer(site.challenge(algorithm="SHA-256"), "old", "pw")).outcome is Outcome.DENIED
    assert site.verify(site.answer(site.challenge(algorithm="MD5"), "old", "pw")).outcome is Outcome.GRANTED


def test_nobody_can_answer_for_the_stand_in() -> None:
    nonces = Nonces(REALM, ["MD5"], os.urandom(32), os.urandom)
    site = Site(SIP, ["MD5"], nonces=nonces)
    site.authenticator = Authenticator(REALM, ["MD5"], nonces, site.cache, bytes)
    challenge = site.challenge()
    response = compute_response(
        MD5, b"0" * 32, b"REGISTER", URI.encode(), challenge.nonce.encode(), nc=b"00000001", cnonce=b"c", qop=b"auth"
    )
    value = (
        f'Digest username="mallory", realm="example.com", nonce="{challenge.nonce}", uri="{URI}", '
        f'response="{response.decode()}", qop=auth, cnonce="c", nc=00000001'
    )
    assert site.verify(value.encode()).outcome is Outcome.DENIED


def calls_of(function: Callable[[], object]) -> list[str]:
    """The names of everything called while `function` runs, in order."""
    calls: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            calls.append(frame.f_code.co_qualname)
        elif event == "c_call":
            calls.append(getattr(argument, "__qualname__", str(argument)))

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.source
@pytest.mark.requirement("SIP-AUT-14")
@pytest.mark.parametrize("algorithm", ["SHA-256", "MD5"])
@DIALECTS
def test_unknown_users_cost_and_look_like_wrong_passwords(dialect: Dialect, algorithm: str) -> None:
    """The same calls in the same order, ending in a comparison whose time tells nothing, and the same answer."""
    site = Site(dialect)
    challenge = site.challenge(algorithm=algorithm)
    known = site.answer(challenge, "bob", "wrong")
    unknown = site.answer(challenge, "mallory", "wrong")
    look_up = {"OrderedDict.get", "Credential.for_algorithm"}
    work = [
        [call for call in calls_of(partial(site.verify, value)) if call not in look_up] for value in (known, unknown)
    ]
    assert work[0] == work[1]
    assert sum("openssl" in call for call in work[0]) == 2
    stand_in = site.authenticator._stand_ins[algorithm.encode()]
    assert len(stand_in) == ALGORITHMS[algorithm.encode()].hex_length  # as many octets to hash
    assert work[0][-3:-1] == ["compare_digest", "Verdict.__init__"]
    verdicts = [site.verify(value) for value in (known, unknown)]
    assert [(v.outcome, v.stale, v.authentication_info) for v in verdicts] == [(Outcome.DENIED, False, None)] * 2


# ------------------------------------------------------------------------------------------ rows that are not for us


@pytest.mark.parametrize("value", [b"Basic Ym9iOnphbnppYmFy", b"Bearer abc", b"NTLM"])
@DIALECTS
def test_rfc8760_2_6_basic_and_unknown_schemes_are_none_of_ours(dialect: Dialect, value: bytes) -> None:
    assert Site(dialect).verify(value).outcome is Outcome.OTHER


@pytest.mark.parametrize("value", [b"", b"Digest realm", b"Digest " + b"a" * 9000, b'Digest username="bob'])
@DIALECTS
def test_unreadable_values_are_malformed(dialect: Dialect, value: bytes) -> None:
    verdict = Site(dialect).verify(value)
    assert (verdict.outcome, verdict.credentials, verdict.username) == (Outcome.MALFORMED, None, b"")


@DIALECTS
def test_a_realm_of_others_is_denied_and_never_stale(dialect: Dialect) -> None:
    site = Site(dialect)
    foreign = replace(site.challenge(), realm="other.example")
    verdict = site.verify(site.answer(foreign))
    assert (verdict.outcome, verdict.reason) == (Outcome.DENIED, "realm")


def test_ts24229_5_1_1_2_an_introduction_without_an_answer_is_no_failure() -> None:
    value = b'Digest username="bob", realm="example.com", nonce="", uri="sip:example.com", response=""'
    assert Site(SIP).verify(value).outcome is Outcome.OTHER


def verify_rows(site: Site, *values: bytes) -> Verdict:
    return site.authenticator.verify_rows(values, b"REGISTER", None, 2.0)


def test_rfc3261_22_3_among_several_rows_ours_decides() -> None:
    site = Site()
    mine = site.answer(site.challenge())
    foreign = site.answer(replace(site.challenge(), realm="other.example"))
    assert verify_rows(site, foreign, b"Basic xx", b"Digest broken", mine).outcome is Outcome.GRANTED
    assert verify_rows(site, foreign, mine).outcome is Outcome.STALE
    assert verify_rows(site, foreign, b"Basic xx").outcome is Outcome.OTHER
    assert verify_rows(site).outcome is Outcome.OTHER
    assert verify_rows(site, foreign, b"Digest broken").outcome is Outcome.MALFORMED
    wrong = site.answer(site.challenge(), password="wrong")
    assert verify_rows(site, foreign, wrong, b"Digest broken").outcome is Outcome.DENIED


def test_a_client_may_answer_each_of_our_challenges_but_guess_no_more_than_that() -> None:
    site = Site()
    site.cache.put(b"old", REALM, Credential(ha1(b"old", REALM, b"pw", MD5), None), 0.0)
    strong = site.answer(site.challenge(algorithm="SHA-256"), "old", "pw")
    weak = site.answer(site.challenge(algorithm="MD5"), "old", "pw")
    assert verify_rows(site, strong, weak).outcome is Outcome.GRANTED
    guesses = [site.answer(site.challenge(), password=f"guess {number}") for number in range(2)]
    right = site.answer(site.challenge())
    assert verify_rows(site, *guesses, right).outcome is Outcome.DENIED
    assert verify_rows(site, guesses[0], right).outcome is Outcome.GRANTED


# ------------------------------------------------------------------------------------------ misuse and garbage


@pytest.mark.parametrize(("realm", "algorithms"), [(b"other.example", ["MD5"]), (REALM, ["SHA-256"]), (REALM, ["MD4"])])
def test_nonces_of_another_realm_or_offer_are_a_local_error(realm: bytes, algorithms: list[str]) -> None:
    nonces = Nonces(REALM, ["MD5"], os.urandom(32), os.urandom)
    with pytest.raises(LocalError):
        Authenticator(realm, algorithms, nonces, CredentialCache(), os.urandom)


PIECES = st.sampled_from(
    [b"Digest ", b'username="bob"', b'realm="example.com"', b'nonce="x"', b'uri="sip:a"', b'response="y"', b", ", b","]
) | st.sampled_from([b"qop=auth", b"nc=00000001", b'cnonce="z"', b"algorithm=SHA-256", b"algorithm=MD5", b'"', b"\\"])


@given(st.one_of(st.binary(max_size=300), st.lists(PIECES, max_size=20).map(b"".join)))
def test_any_octets_get_a_verdict_and_never_entry(octets: bytes) -> None:
    for site in (Site(SIP), Site(MSRP), Site(replace(SIP, legacy_no_qop=True))):
        for value in (octets, b"Digest " + octets):
            assert site.verify(value).outcome is not Outcome.GRANTED
