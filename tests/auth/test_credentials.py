"""The memory in front of the user store: bounded, short, and still there when the store is not."""

from __future__ import annotations

import hashlib

import pytest

from edge.auth.credentials import ABSENT, MISSING, Credential, CredentialCache, derive_credential
from edge.auth.digest import MD5, SHA_256, SHA_512_256

ALICE = Credential(b"a" * 32, b"b" * 64)
REALM = b"example.com"


def test_a_password_is_hashed_for_every_algorithm() -> None:
    found = derive_credential(b"bob", b"example.com", b"zanzibar")
    assert found.ha1 == hashlib.md5(b"bob:example.com:zanzibar").hexdigest().encode()
    assert [len(found.for_algorithm(algorithm) or b"") for algorithm in (MD5, SHA_256, SHA_512_256)] == [32, 64, 64]


def test_what_the_store_does_not_have_is_none() -> None:
    found = Credential(b"a" * 32, None)
    assert found.for_algorithm(MD5) == b"a" * 32
    assert found.for_algorithm(SHA_256) is None
    assert found.for_algorithm(SHA_512_256) is None


def test_users_and_absences_are_believed_for_their_time() -> None:
    cache = CredentialCache(ttl_s=300, absent_ttl_s=30)
    assert cache.get(b"alice", REALM, 0.0) is MISSING
    cache.put(b"alice", REALM, ALICE, 0.0)
    cache.put(b"mallory", REALM, None, 0.0)
    assert cache.get(b"alice", REALM, 299.9) == ALICE
    assert cache.get(b"alice", b"other.example", 0.0) is MISSING
    assert cache.get(b"mallory", REALM, 29.9) is ABSENT
    assert cache.get(b"alice", REALM, 300.0) is MISSING
    assert cache.get(b"mallory", REALM, 30.0) is MISSING


@pytest.mark.parametrize(("first", "second"), [(ALICE, None), (None, ALICE), (ALICE, Credential(b"c" * 32, None))])
def test_a_later_answer_replaces_the_earlier_one(first: Credential | None, second: Credential | None) -> None:
    cache = CredentialCache()
    cache.put(b"alice", REALM, first, 0.0)
    cache.put(b"alice", REALM, second, 1.0)
    assert cache.get(b"alice", REALM, 2.0) == (ABSENT if second is None else second)
    assert cache.in_memory == 1


def test_invalidating_asks_the_store_again() -> None:
    cache = CredentialCache()
    cache.put(b"alice", REALM, ALICE, 0.0)
    cache.put(b"mallory", REALM, None, 0.0)
    for name in (b"alice", b"mallory", b"nobody"):
        cache.invalidate(name, REALM)
        assert cache.get(name, REALM, 0.0) is MISSING
    cache.put(b"alice", REALM, ALICE, 0.0)
    cache.clear()
    assert cache.in_memory == 0


def test_a_flood_of_invented_names_pushes_no_user_out() -> None:
    cache = CredentialCache(entries=10)
    cache.put(b"alice", REALM, ALICE, 0.0)
    for number in range(1000):
        cache.put(b"u%d" % number, REALM, None, 0.0)
    assert cache.get(b"alice", REALM, 1.0) == ALICE
    assert cache.get(b"u999", REALM, 1.0) is ABSENT
    assert cache.get(b"u0", REALM, 1.0) is MISSING
    assert cache.in_memory == 11


def test_users_are_bounded_too_the_oldest_leaves() -> None:
    cache = CredentialCache(entries=10)
    for number in range(11):
        cache.put(b"u%d" % number, REALM, ALICE, 0.0)
    assert cache.get(b"u0", REALM, 0.0) is MISSING
    assert cache.get(b"u1", REALM, 0.0) == ALICE


def test_a_store_that_is_down_locks_nobody_out_who_was_here() -> None:
    cache = CredentialCache(ttl_s=300, degraded_s=3600)
    cache.put(b"alice", REALM, ALICE, 0.0)
    cache.put(b"mallory", REALM, None, 0.0)
    assert cache.get(b"alice", REALM, 1000.0) is MISSING
    cache.degraded = True
    assert cache.get(b"alice", REALM, 3899.0) == ALICE
    assert cache.get(b"alice", REALM, 3900.0) is MISSING
    assert cache.get(b"mallory", REALM, 1000.0) is MISSING
    cache.degraded = False
    assert cache.get(b"alice", REALM, 1000.0) is MISSING
