"""netplane: the host agent and the commands around it.

What a command needs is imported when it is named: `netplane --help` and a hundred agents that
start together pay for nothing else.
"""

from __future__ import annotations

import importlib

import click

from kvstore import __version__

COMMANDS = {
    "agent": "Run the agent of this host in the foreground.",
    "ctl": "Look at the network and change it.",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the help page."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"netplane.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="netplane")
def main() -> None:
    """Container networks across hosts, by a registry that Flannel can share."""
    if not __debug__:
        raise click.ClickException("python -O removes checks; run netplane without -O")


if __name__ == "__main__":
    main()
