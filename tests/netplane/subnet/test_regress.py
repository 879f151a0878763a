"""A registry that forgets does not make an agent remove anything in a hurry."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Address, IPv6Network
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


def view(
    numbers: range | list[int],
    *,
    revision: int = 100,
    cluster: int = 1,
    own: int = 0,
    revision_of: int = 10,
) -> View:
    """Return a view; `own` is the revision that created our own lease, 0: there is none."""
    peers = {one.subnet: one for one in (lease(number, revision=revision_of) for number in numbers)}
    mine = replace(lease(200), create_revision=own) if own else None
    return View(cluster, revision, mine, MappingProxyType(peers), {}, CONFIG)


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


@pytest.mark.parametrize("own", [0, 105])
def test_a_store_without_our_lease_is_another_however_far_it_has_counted(own: int) -> None:
    # Wiped, and filled again past what we knew, by us too before we looked.
    watch = guard(own=20)

    verdict = watch.judge(view(range(1, 10), revision=110, own=own), 1.0)

    assert numbers(verdict) == list(range(1, 11))
    assert verdict.regressed.startswith("the registry has lost our own lease")
    # A restart does not settle it, though what is registered now is known by then.
    again = Guard(watch.saved).judge(view(range(1, 10), revision=111, own=105), 2.0)
    assert (numbers(again), again.regressed) == (numbers(verdict), verdict.regressed)


def test_a_value_that_was_another_when_it_is_said_to_be_written_betrays_an_older_copy() -> None:
    watch = guard(own=20, revision_of=90)
    seen = view(range(1, 10), revision=120, own=20, revision_of=90)
    older = replace(lease(1), mod_revision=30)
    peers = {**seen.peers, older.subnet: older}

    verdict = watch.judge(replace(seen, peers=peers), 1.0)

    assert numbers(verdict) == list(range(1, 11))
    assert "10.5.1.0/24 was last written at revision 30, and was known up to 100 with 90" in (
        verdict.regressed
    )


def test_who_was_away_until_its_lease_ended_believes_a_store_that_knows_the_others() -> None:
    known = guard(own=20).saved
    seen = view(range(3, 11), revision=500, own=490)

    verdict = Guard(known).judge(seen, 1.0)
    assert (numbers(verdict), verdict.regressed) == (list(range(3, 11)), "")
    # Not so when nobody is as he was.
    verdict = Guard(known).judge(view(range(3, 11), revision=500, own=490, revision_of=480), 1.0)
    assert numbers(verdict) == list(range(1, 11))


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


def test_new_peers_are_added_but_where_one_is_held_in_the_other_family() -> None:
    config = parse_config(
        b'{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48"}'
    )

    def both(number: int, second: int) -> Lease:
        return replace(
            lease(number),
            subnet6=IPv6Network(f"fd00:5:0:{second:x}::/64"),
            public_ip6=IPv6Address(number),
        )

    def seen(*leases: Lease, cluster: int) -> View:
        return View(cluster, 50, None, {one.subnet: one for one in leases}, {}, config)

    watch = Guard(None)
    watch.judge(seen(*(both(number, number) for number in range(1, 6)), cluster=1), 0.0)

    verdict = watch.judge(seen(both(20, 3), both(21, 21), cluster=2), 1.0)

    # 10.5.20.0/24 is nobody else's, but with it comes the IPv6 subnet of 10.5.3.0/24.
    assert numbers(verdict) == [1, 2, 3, 4, 5, 21]
    # What returns with another address of IPv6 is not what is held.
    moved = replace(both(3, 3), public_ip6=IPv6Address(77))
    again = watch.judge(seen(moved, both(2, 2), both(21, 21), cluster=2), 2.0)
    assert again.held == {IPv4Network(f"10.5.{number}.0/24") for number in (1, 3, 4, 5)}
