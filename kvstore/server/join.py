"""Which member this process is: from its data directory, its flags, or the cluster it joins."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from kvstore.peer.describe import Described, Description, ask
from kvstore.peer.link import Endpoint, HelloError
from kvstore.server.cluster import Cluster
from kvstore.server.config import ServerConfig, parse_urls
from kvstore.server.identity import Member, initial_urls
from kvstore.server.startup import StartError
from kvstore.wal import Identity, check_identity

log = logging.getLogger("kvstore.join")

ASK_S = 30.0
"""How long to look for a member that can describe the cluster."""

ASK_ONCE_S = 2.0
"""How long a member of a new cluster waits for one that does not say whether it runs."""

PAUSE_S = 0.5
ASK_AGAIN_S = 1.0
"""How often a member without its first data asks who the members are by now."""


@dataclass(frozen=True, slots=True)
class Start:
    """How a member without a log begins."""

    identity: Identity
    cluster: Cluster


async def found(config: ServerConfig) -> Start:
    """Return the beginning of a member of a new cluster.

    Raises:
        StartError: The cluster runs already, and knows this member.
    """
    await _refuse_if_known(config)
    members = {member.id: member for member in config.members}
    cluster = Cluster(config.cluster_id, members, ())
    return Start(Identity(config.cluster_id, config.member.id), cluster)


async def join(config: ServerConfig) -> Start:
    """Return the beginning of a member that was added to a running cluster.

    Raises:
        StartError: No member could be asked, or the flags do not fit what it said.
    """
    others = _others(config)
    if not others:
        raise StartError(
            "--initial-cluster-state existing needs the members of the running cluster in "
            "--initial-cluster; `kvctl member add` prints it"
        )
    description = await _ask_all(others)
    me = match(config, description)
    cluster = Cluster(
        description.cluster_id,
        members_of(description),
        description.removed,
        is_joining=True,
    )
    return Start(Identity(description.cluster_id, me.id), cluster)


async def _refuse_if_known(config: ServerConfig) -> None:
    answers = await asyncio.gather(*map(_ask_once, _others(config)))
    told = _newest(answers, config.cluster_id)
    for each in () if told is None else told.members:
        if each.id == config.member.id:
            _refuse_if_started(config, each)


async def _ask_once(other: Endpoint) -> Description | None:
    """Ask a member that may not run yet, as when all of a new cluster start."""
    try:
        async with asyncio.timeout(ASK_ONCE_S):
            return await ask(other)
    except (OSError, HelloError, TimeoutError):
        return None


def _others(config: ServerConfig) -> list[Endpoint]:
    own = set(config.member.peer_urls)
    return [
        Endpoint(url.host, url.port)
        for text in (url for urls in initial_urls(config.initial_cluster).values() for url in urls)
        if text not in own
        for url in parse_urls("--initial-cluster", text)
    ]


def _refuse_if_started(config: ServerConfig, me: Described) -> None:
    if me.is_started:
        raise StartError(
            f"member {me.id:x} has run before and --data-dir {config.data_dir} is empty: a member "
            "that forgot what it promised could lose writes. Restore its data directory, or "
            f"remove it and add it anew: kvctl member remove {me.id:x}, kvctl member add "
            f"{config.name} --peer-urls={','.join(config.member.peer_urls)}"
        )


async def _ask_all(others: list[Endpoint]) -> Description:
    loop = asyncio.get_running_loop()
    ends_at_s = loop.time() + ASK_S
    while True:
        answers = await asyncio.gather(*map(ask, others), return_exceptions=True)
        told = [answer for answer in answers if isinstance(answer, Description)]
        if told:
            return max(told, key=lambda description: description.applied)
        complaints = []
        for endpoint, error in zip(others, answers, strict=True):
            if not isinstance(error, (OSError, HelloError, TimeoutError)):
                assert isinstance(error, BaseException)
                raise error
            complaints.append(f"{endpoint.host}:{endpoint.port}: {error or type(error).__name__}")
        if loop.time() > ends_at_s:
            raise StartError(
                "--initial-cluster-state existing: no member of --initial-cluster could tell who "
                "is a member (" + "; ".join(complaints) + "); start them, or correct the URLs"
            )
        log.info("waiting for a member that describes the cluster: %s", "; ".join(complaints))
        await asyncio.sleep(PAUSE_S)


async def ask_again(cluster: Cluster, own_id: int) -> Description | None:
    """Return what the members that a joining one knows say now, None when nobody answers."""
    others = [
        Endpoint(url.host, url.port)
        for member in cluster.list_plain()
        if member.id != own_id
        for url in parse_urls("peer URL", member.peer_urls[0])[:1]
    ]
    answers = await asyncio.gather(*map(ask, others), return_exceptions=True)
    return _newest(answers, cluster.cluster_id)


def _newest(answers: Iterable[object], cluster_id: int) -> Description | None:
    """Return what is told of a cluster as of the last moment."""
    told = [
        answer
        for answer in answers
        if isinstance(answer, Description) and answer.cluster_id == cluster_id
    ]
    return max(told, key=lambda description: description.applied, default=None)


def members_of(description: Description) -> dict[int, Member]:
    """Return the members by id, without what they published."""
    return {
        each.id: Member(each.id, "", each.peer_urls, (), each.is_learner)
        for each in description.members
    }


def match(config: ServerConfig, description: Description) -> Described:
    """Return our own entry of a running cluster, after `--initial-cluster` was checked against it.

    Raises:
        StartError: They differ, or our entry has been used before.
    """
    wanted = {frozenset(urls): name for name, urls in initial_urls(config.initial_cluster).items()}
    actual = {frozenset(each.peer_urls): each for each in description.members}
    me = actual.get(frozenset(config.member.peer_urls))
    urls = ",".join(config.member.peer_urls)
    if me is None:
        raise StartError(
            f"no member of cluster {description.cluster_id:x} has the peer URLs {urls}; add this "
            f"member first: kvctl member add {config.name} --peer-urls={urls}"
        )
    missing = [",".join(sorted(each)) for each in actual.keys() - wanted.keys()]
    unknown = [f"{wanted[each]}={','.join(sorted(each))}" for each in wanted.keys() - actual.keys()]
    if missing or unknown:
        problems = [f"--initial-cluster lacks {each}" for each in sorted(missing)]
        problems += [f"{each} is no member" for each in sorted(unknown)]
        raise StartError(
            "--initial-cluster differs from the running cluster "
            f"{description.cluster_id:x}: {'; '.join(problems)}"
        )
    _refuse_if_started(config, me)
    return me


def check_restart(config: ServerConfig, identity: Identity, cluster: Cluster) -> None:
    """Refuse the data directory of another member.

    The log knows who we are. The flags of a member that was added later, or whose URLs were
    changed, do not lead to its id; they say `existing`, and then its name or its URLs must be
    those that the store knows. (Killed early, it may not know the name yet.)

    Raises:
        IdentityError: Neither fits.
    """
    if config.initial_cluster_state == "existing":
        known = {each.id: each for each in cluster.list()}.get(identity.member)
        if known is not None and (
            known.name in {"", config.name} or set(known.peer_urls) == set(config.member.peer_urls)
        ):
            return
    check_identity(
        f"{config.data_dir}/wal", identity, Identity(config.cluster_id, config.member.id)
    )
