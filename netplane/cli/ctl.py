"""`netplane ctl`: commands that ask the agent of this host; the others are beside it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from netplane.agent.ask import ask
from netplane.agent.errors import AgentError, NotRunningError
from netplane.agent.settings import Settings, check_instance, socket_path
from netplane.cli.flags import (
    Command,
    Failed,
    checked,
    failed,
    instance_options,
    interface_options,
    state_option,
)
from netplane.cli.tables import write_json, write_status

COMMANDS = {
    "init": ("registry", "Write the network's configuration into the registry."),
    "hosts": ("registry", "Show the hosts, and which of them live."),
    "leases": ("registry", "Show who has which subnet."),
    "reserve": ("registry", "Keep a subnet for a host, for ever."),
    "release": ("registry", "Give the subnet of a host that is gone to others."),
    "trace": ("inspection", "Show the way of a packet from this host, object by object."),
    "check": ("inspection", "Compare this host's kernel with what its agent means to have."),
    "install-cni": ("containers", "Install the CNI plugin for container runtimes."),
}
"""In which module beside this one a command is, and what it does."""

output_option = click.option(
    "-w",
    "--write-out",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Output format.",
)


class _Commands(click.Group):
    """What a command needs, such as the registry's client, is imported when it is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the help page."""
        return [*COMMANDS, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, _ = COMMANDS[cmd_name]
        found = importlib.import_module(f"netplane.cli.{module}")
        command = getattr(found, cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table without importing anything."""
        ours = [(name, command.get_short_help_str(80)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            theirs = [(name, text) for name, (_, text) in COMMANDS.items()]
            formatter.write_dl([*theirs, *ours])


@click.group(cls=_Commands)
def ctl() -> None:
    """Look at the network and change it."""


@ctl.command(cls=Command)
@instance_options
@output_option
def status(run_dir: Path, instance: str, write_out: str) -> None:
    """Show what the agent of this host does and what it misses."""
    found = ask_agent("GET", "/v1/status", run_dir, instance)
    if write_out == "json":
        write_json(found)
    else:
        write_status(found)


@ctl.command("accept-view", cls=Command)
@instance_options
def accept_view(run_dir: Path, instance: str) -> None:
    """Believe a registry that lost its memory: remove the peers that it does not know."""
    ask_agent("POST", "/v1/accept-view", run_dir, instance)
    click.echo("the agent follows the registry as it is now")


@ctl.command(cls=Command)
@instance_options
def drain(run_dir: Path, instance: str) -> None:
    """Give this host's subnet back, take its routes away and end the agent.

    Containers that still run lose the network.
    """
    ask_agent("POST", "/v1/drain", run_dir, instance)
    click.echo("the subnet is given back, the agent has ended")


@ctl.command(cls=Command)
@interface_options
@instance_options
@state_option
def cleanup(**flags: Any) -> None:
    """Take away what an agent that does not run has left in the kernel.

    The lease stays in the registry until it ends; `netplane ctl release` gives it back.
    """
    import asyncio

    from netplane.agent.cleanup import clean
    from netplane.agent.wiring import RealParts

    settings = Settings(**flags)
    checked(settings)
    try:
        said = asyncio.run(clean(settings, RealParts()))
    except AgentError as error:
        raise failed(error) from error
    click.echo(said)


def ask_agent(method: str, path: str, run_dir: Path, instance: str) -> dict[str, Any]:
    """Ask the agent of this host; end the command when there is none or it refuses."""
    socket = socket_path(run_dir.absolute(), instance)
    try:
        check_instance(instance)
        page = ask(socket, method, quote(path))
    except AgentError as error:
        raise failed(error) from error
    except PermissionError as error:
        raise Failed(f"the agent's socket {socket} is root's", "run this as root") from error
    except TimeoutError as error:
        raise Failed(f"the agent at {socket} does not answer", "its log tells more") from error
    except OSError as error:
        others = sorted(other.stem for other in socket.parent.glob("*.sock") if other != socket)
        known = f" (there are sockets of: {', '.join(others)})" if others else ""
        raise failed(
            NotRunningError(
                f"no agent answers at {socket} ({error.strerror or error})",
                "start it with `netplane agent`, or name it with --instance and --run-dir" + known,
            )
        ) from error
    content: dict[str, Any] = json.loads(page.body) if page.body.startswith(b"{") else {}
    if page.status != 200:
        problem = content.get("error") or page.body.decode(errors="replace").strip()
        raise Failed(problem, content.get("remedy", ""))
    return content
