"""Member and cluster ids, computed as etcd does, and the initial cluster of a configuration."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace


def member_id(peer_urls: tuple[str, ...], token: str, *, added_at_s: int | None = None) -> int:
    """Return the id of a member: the first 8 bytes of SHA-1 over sorted peer URLs and token.

    Args:
        peer_urls: At least one URL; order does not matter.
        token: `--initial-cluster-token`.
        added_at_s: Unix seconds of a runtime addition, so that an id is never reused.

    Source: etcd-semantics 2.14. The default member is 8e9e05c52164694d.
    """
    text = "".join(sorted(peer_urls)) + token
    if added_at_s is not None:
        text += str(added_at_s)
    return int.from_bytes(hashlib.sha1(text.encode()).digest()[:8])  # noqa: S324 (an identifier)


def cluster_id(member_ids: list[int]) -> int:
    """Return the id of a cluster: the first 8 bytes of a SHA-1 over the sorted member ids."""
    joined = b"".join(member.to_bytes(8) for member in sorted(member_ids))
    return int.from_bytes(hashlib.sha1(joined).digest()[:8])  # noqa: S324 (an identifier)


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of the cluster's configuration, as clients see it."""

    id: int
    name: str
    """Empty until the member has started and published itself."""

    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...] = ()
    is_learner: bool = False

    def published(self, name: str, client_urls: tuple[str, ...]) -> Member:
        """Return this member with the attributes that it announced itself."""
        return replace(self, name=name, client_urls=client_urls)


class InitialClusterError(ValueError):
    """`--initial-cluster` and the member's own flags do not fit together."""


def initial_urls(text: str) -> dict[str, list[str]]:
    """Return the peer URLs that `--initial-cluster` gives each name.

    A name that stands several times has several peer URLs.

    Raises:
        InitialClusterError: An item is not NAME=URL, or two members share a URL.
    """
    urls: dict[str, list[str]] = {}
    for item in text.split(","):
        name, separator, url = item.strip().partition("=")
        if not separator or not name or "://" not in url:
            raise InitialClusterError(
                f"--initial-cluster: {item.strip()!r} is not of the form NAME=URL, "
                "for example m1=http://127.0.0.1:2380"
            )
        urls.setdefault(name, []).append(url)
    every_url = [url for group in urls.values() for url in group]
    for url in every_url:
        if every_url.count(url) > 1:
            raise InitialClusterError(f"--initial-cluster: {url} stands twice; they must differ")
    return urls


def parse_initial_cluster(text: str, token: str) -> list[Member]:
    """Return the members that `--initial-cluster` names, sorted by id.

    Raises:
        InitialClusterError: An item is not NAME=URL, or two members share a URL.
    """
    members = [
        Member(member_id(tuple(group), token), "", tuple(sorted(group)))
        for group in initial_urls(text).values()
    ]
    return sorted(members, key=lambda member: member.id)


def own_member(
    text: str, token: str, name: str, advertised: tuple[str, ...], members: list[Member]
) -> Member:
    """Return the entry of `members` that is us.

    Raises:
        InitialClusterError: `name` is missing from `--initial-cluster`, or its URLs there differ
            from `--initial-advertise-peer-urls`.
    """
    listed = tuple(
        sorted(
            url.strip()
            for item in text.split(",")
            for key, _, url in [item.strip().partition("=")]
            if key == name
        )
    )
    if not listed:
        raise InitialClusterError(
            f"--initial-cluster does not name this member ({name!r}); "
            f"add {name}={','.join(advertised)} or set --name to one of its names"
        )
    if listed != tuple(sorted(advertised)):
        raise InitialClusterError(
            f"--initial-cluster has {name}={','.join(listed)} but "
            f"--initial-advertise-peer-urls is {','.join(advertised)}; they must be the same"
        )
    wanted = member_id(listed, token)
    return next(member for member in members if member.id == wanted)
