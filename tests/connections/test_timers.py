"""The timer wheel: nothing fires early, nothing is forgotten, and stopping is stopping."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.timers import Timed, TimerWheel


class Alarm(Timed):
    __slots__ = ("again", "fired", "other", "wheel")

    def __init__(self, wheel: TimerWheel) -> None:
        self._slot = None
        self.wheel = wheel
        self.fired: list[float] = []
        self.again = 0.0
        self.other: Alarm | None = None

    def handle_timer(self, now: float) -> None:
        self.fired.append(now)
        if self.again:
            self.wheel.start(self, now + self.again)
        if self.other is not None:
            self.wheel.stop(self.other)


def test_it_fires_once_and_never_before_its_time() -> None:
    wheel = TimerWheel(100.0, tick_s=0.05)
    alarm = Alarm(wheel)
    wheel.start(alarm, 100.12)
    wheel.advance(100.11)
    assert alarm.fired == []
    wheel.advance(100.15)
    wheel.advance(100.5)
    assert alarm.fired == [100.15]
    assert wheel.count == 0


def test_moving_and_stopping() -> None:
    wheel = TimerWheel(0.0)
    alarm = Alarm(wheel)
    wheel.start(alarm, 0.1)
    wheel.start(alarm, 0.3)
    wheel.advance(0.2)
    assert alarm.fired == []
    wheel.stop(alarm)
    wheel.stop(alarm)
    wheel.advance(1.0)
    assert (alarm.fired, wheel.count) == ([], 0)


def test_a_deadline_more_than_a_round_away_is_met_in_its_own_round() -> None:
    wheel = TimerWheel(0.0, tick_s=1.0, slots=4)
    near, far = Alarm(wheel), Alarm(wheel)
    wheel.start(near, 2.0)
    wheel.start(far, 10.0)  # the same slot, two rounds later
    for now in range(1, 10):
        wheel.advance(float(now))
    assert (near.fired, far.fired) == ([2.0], [])
    wheel.advance(10.0)
    assert far.fired == [10.0]


def test_a_long_pause_meets_every_timer_once() -> None:
    wheel = TimerWheel(0.0, tick_s=1.0, slots=4)
    alarms = [Alarm(wheel) for _ in range(20)]
    for number, alarm in enumerate(alarms):
        wheel.start(alarm, number + 0.5)
    wheel.advance(1000.0)
    assert [alarm.fired for alarm in alarms] == [[1000.0]] * 20


def test_one_that_starts_itself_again_fires_again() -> None:
    wheel = TimerWheel(0.0)
    alarm = Alarm(wheel)
    alarm.again = 0.1
    wheel.start(alarm, 0.1)
    for tick in range(1, 11):
        wheel.advance(tick / 10)
    assert len(alarm.fired) >= 5
    assert wheel.count == 1


def test_a_timer_may_stop_another_of_the_same_moment() -> None:
    wheel = TimerWheel(0.0)
    one, other = Alarm(wheel), Alarm(wheel)
    one.other, other.other = other, one
    wheel.start(one, 0.1)
    wheel.start(other, 0.1)
    wheel.advance(0.2)
    assert len(one.fired) + len(other.fired) == 1
    assert wheel.count == 0


def test_a_deadline_in_the_past_fires_at_the_next_tick() -> None:
    wheel = TimerWheel(10.0)
    alarm = Alarm(wheel)
    wheel.start(alarm, 3.0)
    wheel.advance(10.06)
    assert alarm.fired == [10.06]


def test_the_first_timer_wakes_whoever_drives_the_wheel() -> None:
    woken: list[int] = []
    wheel = TimerWheel(0.0, wake=lambda: woken.append(wheel.count))
    one, other = Alarm(wheel), Alarm(wheel)
    wheel.start(one, 1.0)
    wheel.start(other, 1.0)
    wheel.advance(1.05)
    wheel.start(one, 2.0)
    assert woken == [1, 1]


def test_slots_are_a_power_of_two() -> None:
    with pytest.raises(ValueError, match="power of two"):
        TimerWheel(0.0, slots=100)


@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50), st.booleans()), max_size=30),
    st.lists(st.floats(0.001, 7), min_size=1, max_size=60),
)
def test_every_timer_fires_once_within_a_tick_after_its_deadline(
    plan: list[tuple[float, float, bool]], steps: list[float]
) -> None:
    wheel = TimerWheel(0.0, tick_s=0.5, slots=16)
    alarms = [Alarm(wheel) for _ in plan]
    for alarm, (first, second, stopped) in zip(alarms, plan, strict=True):
        wheel.start(alarm, first)
        wheel.start(alarm, second)
        if stopped:
            wheel.stop(alarm)
    now = 0.0
    for step in steps:
        _before, now = now, now + step
        wheel.advance(now)
        for alarm, (_, deadline, stopped) in zip(alarms, plan, strict=True):
            if stopped or now < deadline:
                assert alarm.fired == []
            elif now >= deadline + 0.5 and now >= 0.5:
                assert len(alarm.fired) == 1
                assert alarm.fired[0] >= deadline
    assert wheel.count == sum(
        not stopped and not alarm.fired for alarm, (_, _, stopped) in zip(alarms, plan, strict=True)
    )
