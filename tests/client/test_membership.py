"""Membership calls of the client, on etcd and on our own server: one member is enough."""

from __future__ import annotations

import pytest

from kvstore.client import AsyncClient, Client, MemberNotFoundError, PreconditionError, RequestError
from tests.servers import Cluster

PEER = ["http://127.0.0.1:1"]


async def test_members_are_added_changed_and_removed(fresh_server: Cluster) -> None:
    async with AsyncClient(fresh_server.endpoints, timeout_s=10) as client:
        [first] = await client.member_list()

        learner = await client.member_add(PEER, is_learner=True)

        assert learner.peer_urls == tuple(PEER)
        assert (learner.name, learner.client_urls, learner.is_learner) == ("", (), True)
        assert set(await client.member_list()) == {first, learner}
        with pytest.raises(PreconditionError, match="in sync with leader"):
            await client.member_promote(learner.member_id)
        with pytest.raises(PreconditionError, match="bad leader transferee"):
            await client.move_leader(learner.member_id)
        await client.move_leader(first.member_id)  # it leads already
        with pytest.raises(PreconditionError, match="Peer URLs already exists"):
            await client.member_update(learner.member_id, first.peer_urls)
        with pytest.raises(RequestError, match="given member URLs are invalid"):
            await client.member_add(["nonsense"])
        updated = await client.member_update(learner.member_id, ["http://127.0.0.1:2"])
        urls = {member.member_id: member.peer_urls for member in updated}
        assert urls[learner.member_id] == ("http://127.0.0.1:2",)

        assert await client.member_remove(learner.member_id) == (first,)

        for change in (client.member_remove(learner.member_id), client.member_remove(1234)):
            with pytest.raises(MemberNotFoundError):
                await change
        assert await client.member_list() == (first,)


def test_the_facade_changes_members(fresh_server: Cluster) -> None:
    with Client(fresh_server.endpoints, timeout_s=10) as client:
        [first] = client.member_list()
        learner = client.member_add(PEER, is_learner=True)
        client.move_leader(first.member_id)
        client.member_remove(learner.member_id)
        assert client.member_list() == (first,)
