"""A registry that forgets does not make an agent remove anything in a hurry."""

from __future__ import annotations

from ipaddress import IPv4Network
from types import MappingProxyType

import pytest

from netplane.subnet.config import parse_config
from netplane.subnet.lease import Lease, View, decode_value
from netplane.subnet.regress import Guard, Verdict

CONFIG = parse_config(b'{"Network":"10.5.0.0/16"}')


def lease(number: int, *, ip: int = 0, revision: int = 10) -> Lease:
    subnet = IPv4Network(f"10.5.{number}.0/24")
    value = f'{{"PublicIP":"192.0.2.{ip or number}"}}'.encode()
    return decode_value(value, subnet, mod_revision=revision)


def view(numbers: range | list[int], *, revision: int = 100, cluster: int = 1, **of: int) -> View:
    peers = {one.subnet: one for one in (lease(number, **of) for number in numbers)}
    return View(cluster, revision, None, MappingProxyType(peers), {}, CONFIG)


def guard(numbers: range = range(1, 11), **of: int) -> Guard:
    """Return a guard that knows these peers."""
    known = Guard(None)
    assert known.judge(view(numbers, **of), 0.0).regressed == ""
    return known


def numbers(verdict: Verdict) -> list[int]:
    return sorted(subnet.network_address.packed[2] for subnet in verdict.peers)


def test_the_first_view_is_believed() -> None:
    verdict = Guard(None).judge(view(range(1, 4)), 0.0)

    assert (numbers(verdict), verdict.regressed, verdict.held) == ([1, 2, 3], "", frozenset())


@pytest.mark.parametrize(("known", "gone"), [(10, 3), (4, 3), (100, 20)])
def test_few_peers_may_leave_at_once(known: int, gone: int) -> None:
    verdict = guard(range(1, known + 1)).judge(view(range(1 + gone, known + 1)), 1.0)

    assert numbers(verdict) == list(range(1 + gone, known + 1))
    assert verdict.regressed == ""


@pytest.mark.parametrize(("known", "gone"), [(10, 4), (4, 4), (100, 21)])
def test_many_that_are_missing_at_once_are_held(known: int, gone: int) -> None:
    verdict = guard(range(1, known + 1)).judge(view(range(1 + gone, known + 1)), 1.0)

    assert numbers(verdict) == list(range(1, known + 1))
    assert len(verdict.held) == gone
    assert verdict.regressed == f"{gone} of {known} peers are missing at once"
    assert verdict.until_s == 601.0


def test_an_older_revision_holds_even_one() -> None:
    verdict = guard().judge(view(range(1, 10), revision=99), 1.0)

    assert numbers(verdict) == list(range(1, 11))
    assert "went back from revision 100 to 99" in verdict.regressed


def test_another_cluster_holds_even_one() -> None:
    verdict = guard().judge(view(range(1, 10), revision=200, cluster=2), 1.0)

    assert numbers(verdict) == list(range(1, 11))
    assert "another cluster: 2, it was 1" in verdict.regressed


def test_a_step_back_to_the_same_peers_is_nothing_to_report() -> None:
    assert guard().judge(view(range(1, 11), revision=99), 1.0).regressed == ""


def test_values_of_an_older_copy_do_not_replace_newer_ones() -> None:
    # The peer has moved since the copy was made, and writes where it is as soon as it sees it.
    watch = guard()

    old = lease(1, ip=99, revision=40)

    restored = watch.judge(View(1, 50, None, {old.subnet: old}, {}, CONFIG), 1.0)
    assert str(restored.peers[lease(1).subnet].public_ip) == "192.0.2.1"

    written = lease(1, ip=7, revision=51)
    told = watch.judge(View(1, 51, None, {written.subnet: written}, {}, CONFIG), 2.0)
    assert str(told.peers[written.subnet].public_ip) == "192.0.2.7"
    assert written.subnet not in told.held


def test_it_is_over_when_all_are_back() -> None:
    watch = guard()
    assert watch.judge(view([], revision=1, cluster=2), 1.0).regressed
    assert watch.judge(view(range(1, 6), revision=6, cluster=2), 2.0).regressed

    verdict = watch.judge(view(range(1, 11), revision=11, cluster=2), 3.0)

    assert (numbers(verdict), verdict.regressed) == (list(range(1, 11)), "")


def test_the_time_runs_from_the_step_back_and_ends_in_removal() -> None:
    watch = guard()
    empty = view([], revision=1, cluster=2)
    first = watch.judge(empty, 5.0)
    later = watch.judge(empty, 604.9)
    assert (first.until_s, later.until_s) == (605.0, 605.0)
    assert numbers(later) == list(range(1, 11))

    ended = watch.judge(empty, 605.0)

    assert (numbers(ended), ended.regressed, ended.held) == ([], "", frozenset())


def test_an_operator_may_end_it_before() -> None:
    watch = guard()
    empty = view([2], revision=1, cluster=2)
    watch.judge(empty, 1.0)

    watch.accept()

    verdict = watch.judge(empty, 2.0)
    assert (numbers(verdict), verdict.regressed) == ([2], "")


def test_while_one_is_held_nobody_is_let_go() -> None:
    watch = guard()
    watch.judge(view(range(5, 11)), 1.0)

    verdict = watch.judge(view(range(6, 11), revision=101), 2.0)

    assert numbers(verdict) == list(range(1, 11))
    assert watch.judge(view(range(6, 11), revision=102), 601.0).regressed == ""


def test_new_peers_are_added_at_once_but_where_one_is_held() -> None:
    watch = guard(range(1, 6))
    inside = decode_value(b'{"PublicIP":"192.0.2.77"}', IPv4Network("10.5.3.128/25"))
    peers = {one.subnet: one for one in (inside, lease(20))}

    verdict = watch.judge(View(2, 1, None, peers, {}, CONFIG), 1.0)

    assert numbers(verdict) == [1, 2, 3, 4, 5, 20]
    assert inside.subnet not in verdict.peers


def test_a_restarted_agent_goes_by_what_it_has_saved() -> None:
    watch = guard()
    held = watch.judge(view(range(2, 11), revision=5, cluster=2), 1.0)
    assert numbers(held) == list(range(1, 11))

    # One peer would be few enough to let go, had the step back not been saved as well.
    for _ in range(2):
        watch = Guard(watch.saved)
        again = watch.judge(view(range(2, 11), revision=6, cluster=2), 1.0)
        assert numbers(again) == list(range(1, 11))
        assert "another cluster" in again.regressed

    watch.accept()
    watch.judge(view(range(2, 11), revision=7, cluster=2), 2.0)
    restarted = Guard(watch.saved).judge(view(range(2, 11), revision=7, cluster=2), 3.0)
    assert (numbers(restarted), restarted.regressed) == (list(range(2, 11)), "")
