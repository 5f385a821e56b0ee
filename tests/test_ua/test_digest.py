"""Digest vectors computed independently of every implementation here (RFC 7616 §3.4)."""

import pytest

from tests.ua import digest

NONCE = "dcd98b7102dd2f0e8b11d0f600bfb0c093"


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        ("MD5", "b72b4f10cd6850e9648aa1f4d56623e3"),
        ("SHA-256", "f9b3acbe065b40fd5cf6b20b82665263bc8ecd82bd076d24b87c6f29bb0f3133"),
        ("SHA-512-256", "f97ace777cfa00135e8d1fe65f2f52a8727e4db5907889c28b8d5edef9439ab9"),
    ],
)
def test_register_vector(algorithm: str, expected: str) -> None:
    challenge = digest.Challenge.parse(
        f'Digest realm="example.com", nonce="{NONCE}", qop="auth", algorithm={algorithm}'
    )
    answer = digest.answer(challenge, "bob", "zanzibar", "REGISTER", "sip:example.com", cnonce="0a4f113b")
    found = digest.parse_parameters(answer.header.removeprefix("Digest "))
    assert found["response"] == expected
    assert (found["nc"], found["qop"], found["uri"]) == ("00000001", "auth", "sip:example.com")


def test_msrp_worked_example_with_rspauth() -> None:
    """msrp.md, E1.2 to E1.4."""
    challenge = digest.Challenge.parse(
        'Digest realm="loom.example", nonce="MTc2MzY1-8c41e9d2b7f0", opaque="5f1d0c7ae2b94836", '
        'algorithm=MD5, qop="auth"'
    )
    answer = digest.answer(
        challenge, "nora", "teal-anchor-42", "AUTH", "msrps://edge.loom.example;tcp", cnonce="Zt81kqPw"
    )
    found = digest.parse_parameters(answer.header.removeprefix("Digest "))
    assert found["response"] == "ab824abc51672992ebfe623c5c877c18"
    assert found["opaque"] == "5f1d0c7ae2b94836"
    assert answer.expected_rspauth() == "655f491b2799d785238bd9d18ae6d92d"


def test_msrp_worked_example_sha256_without_uri() -> None:
    """msrp.md, E2.2 to E2.4."""
    offers = [
        f'Digest realm="loom.example", nonce="MTc2MzY3-b02c5517de84", opaque="9e3077c1aa504bd2", algorithm={name}, '
        'qop="auth"'
        for name in ("SHA-256", "MD5")
    ]
    challenge = digest.choose(offers)
    answer = digest.answer(
        challenge, "nora", _E2_PASSWORD, "AUTH", "msrps://edge.loom.example:2855;tcp", cnonce="h4PqX92s", with_uri=False
    )
    assert "acda21dcec33406460c12516302b79d898283a8d2659a728ceb73f52b67a2bc9" in answer.header
    assert "uri=" not in answer.header
    assert answer.expected_rspauth() == "87e9a256e18b477dfd388b257befd815337d7e571bb98cbcf10266679eec3f63"


_E2_PASSWORD = "teal-anchor-42"


def test_without_qop_the_old_form_is_used() -> None:
    """RFC 2617 §3.2.2.1: MD5 of HA1:nonce:HA2."""
    challenge = digest.Challenge.parse(f'Digest realm="example.com", nonce="{NONCE}"')
    answer = digest.answer(challenge, "bob", "zanzibar", "REGISTER", "sip:example.com")
    assert 'response="a2e0e4da75d2bd427e51bd11907bb9fc"' in answer.header
    assert "cnonce" not in answer.header


def test_escapes_survive_both_ways() -> None:
    challenge = digest.Challenge.parse(r'Digest realm="a\"b, c\\d", nonce="n=="')
    assert challenge.realm == r'a"b, c\d'
    header = digest.answer(challenge, "u", "p", "M", "x").header
    assert digest.parse_parameters(header.removeprefix("Digest "))["realm"] == challenge.realm
    assert digest.parse_parameters(header.removeprefix("Digest "))["nonce"] == "n=="


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ('Basic realm="x"', "not a Digest"),
        ('Digest realm="x"', "without realm or nonce"),
        ('Digest realm="x", realm="y", nonce="n"', "twice"),
    ],
)
def test_unusable_challenges_are_refused(value: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        digest.Challenge.parse(value)
