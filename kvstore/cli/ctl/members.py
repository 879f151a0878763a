"""member list, add, remove, update and promote; move-leader."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from kvstore.cli.ctl import go
from kvstore.cli.ctl.context import (
    BAD_ARGUMENTS,
    Command,
    CtlError,
    accept_no_arguments,
    arguments,
    failed,
    printer,
    settings,
    write_line,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvstore.client import AsyncClient

_ID_HINT = "`kvctl member list` shows the ids"

peer_urls_option = click.option(
    "--peer-urls", default="", help="Where the other members reach it, with commas between."
)


@click.group()
def member() -> None:
    """Show and change the members of the cluster."""


@member.command("list", cls=Command)
@arguments
def member_list(args: tuple[str, ...]) -> None:
    """List all members: id, status, name, peer addresses, client addresses, learner."""
    from kvstore.client.methods import MEMBER_LIST

    accept_no_arguments(args, "member list")
    printer().members(_call(MEMBER_LIST, MEMBER_LIST.request(linearizable=True), write=False))


@member.command("add", cls=Command)
@arguments
@peer_urls_option
@click.option("--learner", is_flag=True, help="Without a vote until it is promoted.")
def member_add(args: tuple[str, ...], *, peer_urls: str, learner: bool) -> None:
    """Add a member, and print the environment that it starts with."""
    from kvstore.client.methods import MEMBER_ADD

    if not args:
        raise CtlError("member name not provided", BAD_ARGUMENTS)
    if len(args) > 1:
        meant = "".join(
            f", did you mean --peer-urls={each}" for each in args if each.lower()[:4] == "http"
        )
        raise CtlError(f"too many arguments{meant}", BAD_ARGUMENTS)
    urls = _urls(peer_urls)
    for url in urls:
        _check_url(url)
    answer = _call(MEMBER_ADD, MEMBER_ADD.request(peerURLs=urls, isLearner=learner), write=True)
    printer().member_changed(answer, answer.member.ID, "added to")
    if settings().output == "simple":
        _print_environment(args[0], peer_urls, answer)


def _print_environment(name: str, peer_urls: str, answer: Any) -> None:
    initial = ",".join(
        f"{name if each.ID == answer.member.ID else each.name}={url}"
        for each in answer.members
        for url in each.peerURLs
    )
    write_line("")
    write_line(f"ETCD_NAME={go.quote(name.encode())}")
    write_line(f"ETCD_INITIAL_CLUSTER={go.quote(initial.encode())}")
    write_line(f"ETCD_INITIAL_ADVERTISE_PEER_URLS={go.quote(peer_urls.encode())}")
    write_line('ETCD_INITIAL_CLUSTER_STATE="existing"')


@member.command("remove", cls=Command)
@arguments
def member_remove(args: tuple[str, ...]) -> None:
    """Remove a member: it stops, and its id never comes back."""
    from kvstore.client.methods import MEMBER_REMOVE

    number = _member_id(args)
    answer = _call(MEMBER_REMOVE, MEMBER_REMOVE.request(ID=number), write=True)
    printer().member_changed(answer, number, "removed from")


@member.command("update", cls=Command)
@arguments
@peer_urls_option
def member_update(args: tuple[str, ...], *, peer_urls: str) -> None:
    """Change where the other members reach a member."""
    from kvstore.client.methods import MEMBER_UPDATE

    number = _member_id(args)
    urls = _urls(peer_urls)
    answer = _call(MEMBER_UPDATE, MEMBER_UPDATE.request(ID=number, peerURLs=urls), write=True)
    printer().member_changed(answer, number, "updated in")


@member.command("promote", cls=Command)
@arguments
def member_promote(args: tuple[str, ...]) -> None:
    """Give a learner its vote."""
    from kvstore.client.methods import MEMBER_PROMOTE

    number = _member_id(args)
    answer = _call(MEMBER_PROMOTE, MEMBER_PROMOTE.request(ID=number), write=True)
    printer().member_changed(answer, number, "promoted in")


@click.command("move-leader", cls=Command)
@arguments
def move_leader(args: tuple[str, ...]) -> None:
    """Hand the leadership to another member; an endpoint of the leader must be given."""
    from kvstore.client import KvError
    from kvstore.client.methods import MOVE_LEADER, STATUS

    if len(args) != 1:
        raise CtlError("move-leader command needs 1 argument", BAD_ARGUMENTS, _ID_HINT)
    try:
        target = go.parse_uint(args[0], 16)
    except ValueError as error:
        raise CtlError(str(error), BAD_ARGUMENTS, _ID_HINT) from error
    flags = settings()

    async def move(client: AsyncClient) -> tuple[int, Any]:
        for name in flags.endpoints:
            status = await client.call(STATUS, STATUS.request(), write=False, endpoint=name)
            if status.header.member_id == status.leader:
                request = MOVE_LEADER.request(targetID=target)
                answer = await client.call(MOVE_LEADER, request, write=True, endpoint=name)
                return status.leader, answer
        raise CtlError(
            f"no leader endpoint given at [{' '.join(flags.endpoints)}]",
            BAD_ARGUMENTS,
            "`kvctl endpoint status --cluster` shows who leads; name it with --endpoints",
        )

    try:
        leader, answer = flags.run(move)
    except KvError as error:
        failed(error)
    printer().leader_moved(answer, leader, target)


def _call(method: Any, request: Any, *, write: bool) -> Any:
    from kvstore.client import KvError

    try:
        return settings().run(lambda client: client.call(method, request, write=write))
    except KvError as error:
        failed(error)


def _member_id(args: Sequence[str]) -> int:
    if len(args) != 1:
        raise CtlError("member ID is not provided", BAD_ARGUMENTS, _ID_HINT)
    try:
        return go.parse_uint(args[0], 16)
    except ValueError as error:
        raise CtlError(
            f"bad member ID arg ({error}), expecting ID in Hex", BAD_ARGUMENTS, _ID_HINT
        ) from error


def _urls(text: str) -> list[str]:
    if not text:
        raise CtlError(
            "member peer urls not provided", BAD_ARGUMENTS, "give --peer-urls=http://HOST:PORT"
        )
    return text.split(",")


def _check_url(text: str) -> None:
    """Refuse what etcd's own client does not send, in its words."""
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError as error:
        raise CtlError(str(error)) from error
    if parts.scheme not in {"http", "https", "unix", "unixs"}:
        raise CtlError(f"URL scheme must be http, https, unix, or unixs: {text}")
    if port is None:
        raise CtlError(f'URL address does not have the form "host:port": {text}')
    if parts.path:
        raise CtlError(f"URL must not contain a path: {text}")
