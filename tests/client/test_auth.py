"""Logging in, refusals, and tokens that the server has forgotten."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING

import pytest

from kvstore.client import AsyncClient, AuthenticationError, PermissionDeniedError
from tests.client.conftest import class_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Cluster

# Our own server joins when it has the Auth service.
KINDS = [pytest.param("etcd", marks=pytest.mark.etcd)]


def post(endpoint: str, path: str, **body: object) -> None:
    host, _, port = endpoint.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    try:
        connection.request("POST", f"/v3/auth/{path}", json.dumps(body))
        response = connection.getresponse()
        assert response.status == 200, response.read()
    finally:
        connection.close()


@pytest.fixture(params=KINDS)
def guarded(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A member with root, and with a user who may touch the keys from `a/` to `a0` only."""
    with class_of(request.param)(1) as cluster:
        [endpoint] = cluster.endpoints
        post(endpoint, "user/add", name="root", password="r")
        post(endpoint, "user/grant", user="root", role="root")
        post(endpoint, "role/add", name="reader")
        permission = {"permType": "READWRITE", "key": "YS8=", "range_end": "YTA="}
        post(endpoint, "role/grant", name="reader", perm=permission)
        post(endpoint, "user/add", name="ann", password="secret")
        post(endpoint, "user/grant", user="ann", role="reader")
        post(endpoint, "enable")
        yield cluster


async def test_a_user_may_do_what_the_role_says(guarded: Cluster) -> None:
    async with AsyncClient(guarded.endpoints, user="ann", password="secret") as client:
        async with client.watch(b"a/", prefix=True) as watcher, client.lease(10) as lease:
            put = await client.put(b"a/k", b"v", lease=lease.lease_id)
            assert (await anext(watcher)).revision == put.revision
        with pytest.raises(PermissionDeniedError):
            await client.put(b"b", b"v")
        with pytest.raises(PermissionDeniedError):
            async with client.watch(b"b"):
                pass
        with pytest.raises(PermissionDeniedError):
            await client.range(b"", prefix=True)


async def test_wrong_and_absent_logins_are_refused(guarded: Cluster) -> None:
    for user, password in (("ann", "wrong"), ("nobody", "x"), (None, None)):
        async with AsyncClient(guarded.endpoints, user=user, password=password) as client:
            with pytest.raises(AuthenticationError):
                await client.put(b"a/k", b"v")
            with pytest.raises(AuthenticationError):
                async with client.watch(b"a/k"):
                    pass


async def test_a_forgotten_token_is_replaced_unnoticed(guarded: Cluster) -> None:
    # Simple tokens live in the member's memory: a restart forgets them all.
    async with AsyncClient(
        guarded.endpoints, user="ann", password="secret", timeout_s=20
    ) as client:
        first = await client.put(b"a/k", b"1")
        async with client.watch(b"a/", prefix=True) as watcher:
            guarded.kill(0)
            guarded.restart(0)
            await client.get(b"a/k")
            put = await client.put(b"a/k", b"2")
            batch = await anext(watcher)
            assert batch.revision == put.revision == first.revision + 1
        grant = await client.lease_grant(10)
        guarded.kill(0)
        guarded.restart(0)
        assert await client.lease_keep_alive_once(grant.lease_id) == grant


@pytest.mark.parametrize("server", KINDS, indirect=True)
async def test_a_name_given_to_a_cluster_that_asks_for_none_is_no_error(server: Cluster) -> None:
    async with AsyncClient(server.endpoints, user="root", password="r") as client:
        await client.put(b"auth/off", b"v")
