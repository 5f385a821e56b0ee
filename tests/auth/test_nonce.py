"""Nonces: recognised without a table, short-lived, and no count of theirs accepted twice."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.auth.nonce import POOL_OCTETS, WINDOW, Nonces, NonceState, RandomPool
from edge.errors import LocalError

SECRET = bytes(range(32))


def make(
    realm: bytes = b"example.com",
    algorithms: Sequence[str] = ("SHA-256", "MD5"),
    secret: bytes = SECRET,
    remembered: int = 100_000,
) -> Nonces:
    return Nonces(realm, algorithms, secret, os.urandom, remembered=remembered)


# ------------------------------------------------------------------------------------------ the nonce


def test_nonces_hold_nothing_a_client_could_choke_on_and_are_all_different() -> None:
    nonces = make()
    issued = [nonces.issue(7.0) for _ in range(10_000)]
    assert len(set(issued)) == len(issued)
    assert all(re.fullmatch(rb"[A-Za-z0-9_-]{32}", nonce) for nonce in issued)
    assert re.fullmatch(rb"[0-9a-f]{16}", nonces.opaque)


@pytest.mark.requirement("SIP-AUT-08")
def test_rfc7616_3_3_a_nonce_lives_300_seconds() -> None:
    nonces = make()
    nonce = nonces.issue(1000.0)
    assert nonces.check(nonce, 1000.0) is NonceState.VALID
    assert nonces.check(nonce, 1300.0) is NonceState.VALID
    assert nonces.check(nonce, 1301.0) is NonceState.EXPIRED


def test_the_lifetime_is_a_setting() -> None:
    nonces = Nonces(b"r", ["MD5"], SECRET, os.urandom, lifetime_s=5)
    nonce = nonces.issue(0.0)
    assert nonces.check(nonce, 5.0) is NonceState.VALID
    assert nonces.check(nonce, 5.1) is NonceState.EXPIRED


@pytest.mark.requirement("SIP-AUT-10")
@pytest.mark.parametrize(
    "other",
    [
        pytest.param(make(realm=b"other.example"), id="realm"),
        pytest.param(make(algorithms=["SHA-256"]), id="fewer algorithms"),
        pytest.param(make(algorithms=["SHA-256", "SHA-512-256", "MD5"]), id="more algorithms"),
        pytest.param(make(secret=bytes(32)), id="another start"),
    ],
)
def test_rfc7616_3_3_a_nonce_is_bound_to_realm_offer_and_start(other: Nonces) -> None:
    assert make().check(other.issue(10.0), 10.0) is NonceState.FOREIGN
    assert other.opaque != make().opaque


def test_the_order_of_the_offer_is_no_other_offer() -> None:
    nonce = make(algorithms=["md5", "SHA-256"]).issue(1.0)
    assert make(algorithms=["SHA-256", "MD5"]).check(nonce, 1.0) is NonceState.VALID


def test_every_changed_character_makes_it_foreign() -> None:
    nonces = make()
    nonce = nonces.issue(1.0)
    for position in range(len(nonce)):
        for octet in (nonce[position] ^ 1, nonce[position] ^ 0x20, 0, 0xFF):
            changed = nonce[:position] + bytes([octet]) + nonce[position + 1 :]
            assert nonces.check(changed, 1.0) is NonceState.FOREIGN


@given(st.one_of(st.binary(max_size=80), st.binary(min_size=32, max_size=32)))
def test_any_other_octets_are_foreign(octets: bytes) -> None:
    assert make().check(octets, 1.0) is NonceState.FOREIGN


@pytest.mark.parametrize("octets", [0, 15, 33])
def test_a_secret_has_16_to_32_octets(octets: int) -> None:
    with pytest.raises(LocalError):
        make(secret=bytes(octets))


# ------------------------------------------------------------------------------------------ counts


@pytest.mark.requirement("SIP-AUT-09")
@pytest.mark.parametrize(
    ("rising", "counts", "accepted"),
    [
        (False, [1, 2, 3], [True, True, True]),
        (True, [1, 2, 3], [True, True, True]),
        (False, [1, 1, 2, 2, 1], [True, False, True, False, False]),
        (True, [1, 1, 2], [True, False, True]),
        (False, [2, 1, 1, 2], [True, True, False, False]),
        (True, [2, 1, 3], [True, False, True]),
        (False, [40, 9, 8, 40], [True, True, False, False]),
        (False, [1, 33, 1, 2, 2], [True, True, False, True, False]),
        (False, [5, 500, 5, 469, 468], [True, True, False, True, False]),
        (False, [0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFE], [True, False, True]),
        (True, [0xFFFFFFFF, 0xFFFFFFFF, 1], [True, False, False]),
    ],
)
def test_rfc7616_3_4_counts(rising: bool, counts: list[int], accepted: list[bool]) -> None:
    nonces = make()
    nonce = nonces.issue(1.0)
    assert [nonces.accept(nonce, count, 1.0, rising=rising) for count in counts] == accepted


def test_counts_of_different_nonces_do_not_meet() -> None:
    nonces = make()
    assert all(nonces.accept(nonces.issue(1.0), 1, 1.0, rising=True) for _ in range(100))


@pytest.mark.requirement("SIP-AUT-09")
@given(st.lists(st.integers(1, 90), max_size=120))
def test_the_window_accepts_what_is_new_and_near(counts: list[int]) -> None:
    nonces = make()
    nonce = nonces.issue(1.0)
    used: set[int] = set()
    for count in counts:
        expected = count not in used and count > max(used, default=0) - WINDOW
        assert nonces.accept(nonce, count, 1.0, rising=False) is expected
        used |= {count} if expected else set()


# ------------------------------------------------------------------------------------------ bounded memory


def test_expired_entries_leave_and_memory_stays_bounded() -> None:
    nonces = make(remembered=50)
    for second in range(0, 20_000, 10):
        assert nonces.accept(nonces.issue(second), 1, second, rising=True)
        assert nonces.in_memory <= 32  # what 300 seconds bring
    for second in range(20_000, 20_400):
        assert nonces.accept(nonces.issue(second), 1, second, rising=True)
        assert nonces.in_memory <= 50


@pytest.mark.requirement("SIP-AUT-09")
def test_nonces_as_old_as_a_forgotten_one_are_expired() -> None:
    nonces = make(remembered=2)
    used = [nonces.issue(float(second)) for second in (1, 2, 3)]
    unused_old, unused_new = nonces.issue(1.0), nonces.issue(2.0)
    for nonce in used[:2]:
        assert nonces.accept(nonce, 1, 3.0, rising=True)
    assert nonces.check(used[0], 3.0) is NonceState.VALID
    assert nonces.accept(used[2], 1, 3.0, rising=True)
    assert nonces.in_memory == 2
    assert nonces.check(used[0], 3.0) is NonceState.EXPIRED
    assert nonces.check(unused_old, 3.0) is NonceState.EXPIRED
    assert nonces.check(unused_new, 3.0) is NonceState.VALID
    assert not nonces.accept(used[1], 1, 3.0, rising=True)


@pytest.mark.requirement("SIP-AUT-09")
@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6), st.sampled_from([0.0, 0.0, 1.0, 50.0])), max_size=150),
    st.booleans(),
)
def test_nothing_is_ever_accepted_twice_however_small_the_memory(
    remembered: int, uses: list[tuple[int, int, float]], rising: bool
) -> None:
    nonces = make(remembered=remembered)
    now = 0.0
    issued: list[bytes] = []
    accepted: set[tuple[bytes, int]] = set()
    for which, count, later in uses:
        now += later
        if which >= len(issued):
            issued.append(nonces.issue(now))
        nonce = issued[min(which, len(issued) - 1)]
        if nonces.check(nonce, now) is NonceState.VALID and nonces.accept(nonce, count, now, rising=rising):
            assert (nonce, count) not in accepted
            accepted.add((nonce, count))
        assert nonces.in_memory <= remembered


# ------------------------------------------------------------------------------------------ the pool


def test_the_pool_never_hands_out_an_octet_twice() -> None:
    asked: list[int] = []

    def source(count: int) -> bytes:
        start = sum(asked)
        asked.append(count)
        return b"".join((start + i).to_bytes(4, "big") for i in range(0, count, 4))

    pool = RandomPool(source)
    pieces = [pool(12) for _ in range(1000)]
    words = [piece[i : i + 4] for piece in pieces for i in (0, 4, 8)]
    assert all(len(piece) == 12 for piece in pieces)
    assert len(set(words)) == len(words)
    assert asked == [POOL_OCTETS] * 3
