"""Member and cluster ids, and the initial cluster's text."""

from __future__ import annotations

import pytest

from kvstore.server.identity import (
    InitialClusterError,
    cluster_id,
    member_id,
    own_member,
    parse_initial_cluster,
)

THREE = "a=http://127.0.0.1:2380,b=http://127.0.0.1:22380,c=http://127.0.0.1:32380"


def test_ids_are_those_of_etcds_default_member() -> None:
    # Operators compare these numbers in tools and logs; seen on a real etcd.
    member = member_id(("http://localhost:2380",), "etcd-cluster")
    assert f"{member:x}" == "8e9e05c52164694d"
    assert f"{cluster_id([member]):x}" == "cdf818194e3a8c32"


def test_ids_depend_on_the_set_of_urls_and_not_on_their_order() -> None:
    urls = ("http://b:1", "http://a:1")
    assert member_id(urls, "t") == member_id(urls[::-1], "t")
    assert member_id(urls, "t") != member_id(urls, "other")
    assert member_id(urls, "t") != member_id(urls, "t", added_at_s=1)


def test_every_member_derives_the_same_cluster() -> None:
    # Each member computes the ids alone; a difference would split the cluster at its first start.
    members = parse_initial_cluster(THREE, "t")
    again = parse_initial_cluster(",".join(reversed(THREE.split(","))), "t")
    assert [member.id for member in members] == [member.id for member in again]
    assert own_member(THREE, "t", "b", ("http://127.0.0.1:22380",), members) in members


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a", "NAME=URL"),
        ("a=127.0.0.1:1", "NAME=URL"),
        ("a=http://x:1,b=http://x:1", "stands twice"),
    ],
)
def test_a_wrong_initial_cluster_says_what_is_wrong(text: str, part: str) -> None:
    with pytest.raises(InitialClusterError, match=part):
        parse_initial_cluster(text, "t")


def test_a_member_that_is_not_listed_is_told_what_to_add() -> None:
    members = parse_initial_cluster(THREE, "t")
    with pytest.raises(InitialClusterError, match="add d=http://h:1"):
        own_member(THREE, "t", "d", ("http://h:1",), members)
    with pytest.raises(InitialClusterError, match="must be the same"):
        own_member(THREE, "t", "a", ("http://h:1",), members)
