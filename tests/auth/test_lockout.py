"""Guessing is slowed down, owners are not locked out, memory is bounded."""

from __future__ import annotations

import pytest

from edge.auth.lockout import Lockout


def fail(lockout: Lockout, times: int, source: str = "192.0.2.1", user: bytes = b"", now: float = 0.0) -> list[bool]:
    return [any(lockout.record_failure(source, user, now)) for _ in range(times)]


def blocked(lockout: Lockout, source: str, user: bytes, now: float) -> bool:
    """What those who judge credentials ask before and after they read them."""
    return lockout.source_blocked(source, now) or lockout.user_blocked(source, user, now)


def test_too_many_failures_block_a_source_for_a_while() -> None:
    lockout = Lockout()
    assert not any(fail(lockout, 19))
    assert not blocked(lockout, "192.0.2.1", b"alice", 0.0)
    assert fail(lockout, 2) == [True, False]
    assert blocked(lockout, "192.0.2.1", b"alice", 59.9)
    assert blocked(lockout, "192.0.2.1", b"", 59.9)
    assert not blocked(lockout, "192.0.2.2", b"alice", 0.0)
    assert not blocked(lockout, "192.0.2.1", b"alice", 60.0)
    assert not any(fail(lockout, 19, now=60.0))


def test_slow_failures_never_block() -> None:
    lockout = Lockout(source_failures=20)
    for second in range(0, 3600, 4):
        assert lockout.record_failure("192.0.2.1", b"", float(second)) == (False, False)


def test_the_window_slides_over_its_borders() -> None:
    lockout = Lockout(source_failures=20)
    fail(lockout, 15, now=0.0)
    fail(lockout, 1, now=59.0)
    assert any(fail(lockout, 5, now=61.0))
    fail(lockout, 15, source="192.0.2.9", now=0.0)
    assert not any(fail(lockout, 15, source="192.0.2.9", now=180.0))


def test_one_user_guessed_from_many_addresses_is_blocked_but_not_for_who_knows_the_password() -> None:
    lockout = Lockout(user_failures=50)
    lockout.record_success("198.51.100.7", b"alice")
    for number in range(50):
        lockout.record_failure(f"203.0.113.{number}", b"alice", 0.0)
    assert blocked(lockout, "203.0.113.99", b"alice", 1.0)
    assert not blocked(lockout, "203.0.113.99", b"bob", 1.0)
    assert not blocked(lockout, "198.51.100.7", b"alice", 1.0)


def test_an_own_account_buys_no_more_guesses() -> None:
    lockout = Lockout(source_failures=20)
    for _ in range(20):
        lockout.record_success("192.0.2.1", b"mallory")
        lockout.record_failure("192.0.2.1", b"alice", 0.0)
    assert blocked(lockout, "192.0.2.1", b"alice", 1.0)
    assert blocked(lockout, "192.0.2.1", b"mallory", 1.0)


def test_a_64_is_one_source() -> None:
    lockout = Lockout(source_failures=20)
    for number in range(20):
        lockout.record_failure(f"2001:db8:0:1::{number:x}", b"", 0.0)
    assert blocked(lockout, "2001:db8:0:1:ffff::1", b"", 1.0)
    assert not blocked(lockout, "2001:db8:0:2::1", b"", 1.0)


def test_a_mapped_address_is_the_address_it_maps() -> None:
    lockout = Lockout(source_failures=2)
    fail(lockout, 1, source="::ffff:192.0.2.1")
    fail(lockout, 1, source="192.0.2.1")
    assert blocked(lockout, "::ffff:192.0.2.1", b"", 1.0)
    assert blocked(lockout, "192.0.2.1", b"", 1.0)


def test_a_zone_is_no_part_of_an_address() -> None:
    lockout = Lockout(source_failures=1)
    fail(lockout, 1, source="fe80::1%eth0")
    assert blocked(lockout, "fe80::2", b"", 1.0)


@pytest.mark.parametrize("source", ["10.1.2.3", "::ffff:10.1.2.3", "2001:db8::5"])
def test_exempt_networks_are_no_sources_but_their_guesses_count_for_the_user(source: str) -> None:
    lockout = Lockout(source_failures=5, user_failures=10, exempt=["10.0.0.0/8", "2001:db8::/32"])
    fail(lockout, 9, source=source, user=b"alice")
    assert not blocked(lockout, source, b"alice", 1.0)
    fail(lockout, 1, source=source, user=b"alice")
    assert blocked(lockout, source, b"alice", 1.0)
    assert not blocked(lockout, source, b"bob", 1.0)


def test_memory_is_bounded_and_keeps_who_failed_last() -> None:
    lockout = Lockout(source_failures=2, user_failures=2, entries=100)
    for number in range(1000):
        lockout.record_failure(f"10.0.{number // 256}.{number % 256}", b"u%d" % number + b"x" * 8000, 0.0)
        lockout.record_success(f"10.0.{number // 256}.{number % 256}", b"u%d" % number)
    assert (len(lockout._sources), len(lockout._users), len(lockout._good)) == (100, 100, 100)
    assert max(len(name) for name in lockout._users._tallies) <= 64
    assert lockout.record_failure("10.0.3.231", b"", 0.0) == (True, False)
