"""Joins the containers of a host to its agent: the socket, the keeping, the end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from netplane.agent.agent import Agent
from netplane.agent.containers.call import Call
from netplane.agent.containers.errors import CniError
from netplane.agent.containers.keeper import Keeper
from netplane.agent.containers.names import bridge_name
from netplane.agent.containers.published import Published
from netplane.agent.containers.records import Store
from netplane.agent.containers.server import Server
from netplane.agent.containers.service import Containers, Situation
from netplane.agent.errors import AgentError
from netplane.agent.pages import serving
from netplane.agent.settings import cni_socket_path, containers_path
from netplane.agent.state import read_boot_id
from netplane.agent.tasks import end
from netplane.cni import plugin
from netplane.netlink.monitor import WITHOUT_PEERS, Monitor


@contextlib.asynccontextmanager
async def serving_host(agent: Agent) -> AsyncIterator[None]:
    """Serve all that an agent of a real host has to. Raises AgentError."""
    async with serving(agent), serving_containers(agent):
        yield


@contextlib.asynccontextmanager
async def serving_containers(agent: Agent) -> AsyncIterator[None]:
    """Serve calls of the plugin while the block runs, and keep what they made.

    After a drain everything goes: the addresses are not ours any more. Raises AgentError.
    """
    settings = agent.settings
    socket = cni_socket_path(settings.run_dir, settings.instance)
    published = Published(
        settings.instance,
        bridge_name(settings.instance),
        settings.heal_interval_s,
        lambda problem: agent.board.note("published-ports", problem),
    )
    containers = Containers(
        settings.instance,
        Store(containers_path(settings.run_dir, settings.instance), read_boot_id()),
        lambda: situation(agent),
        published,
        Path(plugin.tombstones(str(socket))),
    )

    async def undo(call: Call) -> None:
        await containers.delete(call.key)

    server = Server(containers.perform, undo)
    # Before it is read what there is, or a change right behind that is not told.
    with (
        contextlib.closing(Monitor(groups=WITHOUT_PEERS)) as monitor,
        contextlib.closing(containers),
        contextlib.closing(published),
    ):
        try:
            agent.board.note("containers-file", await containers.start())
            agent.has_containers = lambda: bool(containers.store.records)
        except CniError as error:
            raise AgentError(str(error), "try again") from error
        try:
            server.listen(socket)
            keeper = Keeper(containers, agent.board, settings.heal_interval_s)
            agent.on_subnets = containers.on_less = keeper.wake
            tasks = [asyncio.create_task(keeper.run(monitor)), asyncio.create_task(published.run())]
            for task in tasks:
                # None ends by itself: then something is wrong with it, and the agent starts anew.
                task.add_done_callback(lambda _: agent.stop())
            try:
                yield
            finally:
                await end(*tasks)
        finally:
            await server.close()
        if agent.is_drained:
            await containers.clear()


def situation(agent: Agent) -> Situation:
    """Return what the network of the agent's host is now."""
    own = agent.own
    taken = "it was given back" if agent.is_drained else agent.board.missing.get("no-subnet", "")
    return Situation(() if own is None else own.pair.all(), agent.mtu, taken)
