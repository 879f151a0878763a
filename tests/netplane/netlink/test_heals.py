"""Fights over an object: when they begin, how long each side waits, when they end."""

from __future__ import annotations

from netplane.netlink.heals import Heals
from netplane.netlink.objects import Identity


def test_ten_heals_a_minute_are_let_pass_and_the_eleventh_makes_a_fight() -> None:
    heals, key, other = Heals(), Identity("route", "np.1"), Identity("route", "np.2")
    assert [heals.note(key, float(second)) for second in range(10)] == [False] * 10
    assert heals.is_near_fight(key)
    assert heals.note(key, 10.0)
    assert heals.held(key, 10.0)
    assert heals.held(key, 19.9)
    assert not heals.held(key, 20.0)
    assert not heals.held(other, 10.0)
    assert not heals.is_near_fight(other)
    assert heals.due_s(12.0) == 8.0
    assert heals.due_s(20.0) is None


def test_ten_heals_in_more_than_a_minute_are_no_fight() -> None:
    heals, key = Heals(), Identity("route", "np.1")
    assert not any(heals.note(key, second * 6.1) for second in range(100))


def test_a_fight_lasts_until_a_quiet_minute() -> None:
    # Once every 10 s is less than ten a minute; it must not lead back to ten at once.
    heals, key = Heals(), Identity("route", "np.1")
    for second in range(11):
        heals.note(key, float(second))
    heals.writers[key] = "process 7 (ip)"
    now = 10.0
    for _ in range(12):
        now += 10.0
        assert not heals.held(key, now)
        assert not heals.note(key, now)
        heals.forget(now)
        assert heals.held(key, now + 9.9)
    assert heals.count(key) == 6
    assert heals.is_near_fight(key)
    assert heals.writers == {key: "process 7 (ip)"}
    heals.forget(now + 60.0)
    assert not heals.held(key, now + 60.0)
    assert (heals.count(key), heals.writers) == (0, {})
