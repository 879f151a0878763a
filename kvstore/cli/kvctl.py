"""kvctl: etcdctl's commands, flags and outputs; here are the global flags and nothing of a command.

The command modules, and gRPC with them, are imported only when a command needs them: `kvctl --help`
and a misspelt command cost no more than Python and click.
"""

from __future__ import annotations

import importlib
import signal
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from kvstore import __version__
from kvstore.cli.ctl import context
from kvstore.cli.ctl.context import (
    BAD_ARGUMENTS,
    BAD_FEATURE,
    OUTPUTS,
    CtlError,
    CtlExit,
    Duration,
    Settings,
    write_error,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Entry(NamedTuple):
    module: str
    attribute: str
    help: str


COMMANDS: dict[str, _Entry] = {
    "put": _Entry("kv", "put", "Put the given key into the store."),
    "get": _Entry("kv", "get", "Get the key, or a range of keys."),
    "del": _Entry("kv", "delete", "Delete the key, or a range of keys."),
    "txn": _Entry("txn", "txn", "Run the operations from standard input as one transaction."),
    "compaction": _Entry("kv", "compaction", "Give up the history before a revision."),
    "watch": _Entry("watch", "watch", "Watch keys."),
    "lease": _Entry("leases", "lease", "Grant, renew and revoke leases."),
    "member": _Entry("members", "member", "Show and change the members of the cluster."),
    "move-leader": _Entry("members", "move_leader", "Hand the leadership to another member."),
    "endpoint": _Entry("cluster", "endpoint", "Ask single endpoints."),
    "alarm": _Entry("cluster", "alarm", "Show and clear alarms."),
    "bench": _Entry("bench", "bench", "Measure the speed of a cluster."),
}
_SWITCHES = ("--hex", "--insecure-transport")
_VALUED = (
    *("--endpoints", "--dial-timeout", "--command-timeout", "--write-out", "-w", "--user"),
    *("--password", "--cacert", "--cert", "--key"),
)
_REFUSED = {
    "--insecure-skip-tls-verify": "name the authority with --cacert instead",
    "--discovery-srv": "give --endpoints",
    "-d": "give --endpoints",
    "--discovery-srv-name": "give --endpoints",
    "--insecure-discovery": "give --endpoints",
    "--keepalive-time": "connections are checked every 10 s",
    "--keepalive-timeout": "connections are given up after 5 s without an answer",
    "--debug": "there is no debug log",
}
"""etcdctl's global flags that are not honoured here. Refused, because ignoring them would lie."""


class _Commands(click.Group):
    """The command table; a command's module is imported when the command is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the help page."""
        return [*COMMANDS, "version"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"kvstore.cli.ctl.{entry.module}")
        command = getattr(module, entry.attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table without importing anything."""
        rows = [(name, entry.help) for name, entry in COMMANDS.items()]
        with formatter.section("Commands"):
            formatter.write_dl([*rows, ("version", "Print the version of kvctl.")])


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every global flag can be set as ETCDCTL_FLAG_NAME in the environment.",
)
@click.option(
    "--endpoints",
    default="127.0.0.1:2379",
    envvar="ETCDCTL_ENDPOINTS",
    show_default=True,
    help="Addresses of members, with commas between.",
)
@click.option(
    "--dial-timeout",
    default=2.0,
    type=Duration(),
    envvar="ETCDCTL_DIAL_TIMEOUT",
    help="Time for one endpoint to connect.  [default: 2s]",
)
@click.option(
    "--command-timeout",
    default=5.0,
    type=Duration(),
    envvar="ETCDCTL_COMMAND_TIMEOUT",
    help="Time for a short command.  [default: 5s]",
)
@click.option(
    "-w",
    "--write-out",
    default="simple",
    envvar="ETCDCTL_WRITE_OUT",
    show_default=True,
    help="Output format: " + ", ".join(OUTPUTS) + ".",
)
@click.option("--hex", "is_hex", is_flag=True, envvar="ETCDCTL_HEX", help="Print bytes as \\x..")
@click.option("--user", envvar="ETCDCTL_USER", help="NAME or NAME:PASSWORD to log in with.")
@click.option("--password", envvar="ETCDCTL_PASSWORD", help="Password, when --user has none.")
@click.option("--cacert", envvar="ETCDCTL_CACERT", help="Authority of the servers (PEM).")
@click.option("--cert", envvar="ETCDCTL_CERT", help="This client's certificate (PEM).")
@click.option("--key", envvar="ETCDCTL_KEY", help="This client's key (PEM).")
@click.option(
    "--insecure-transport/--no-insecure-transport",
    default=True,
    envvar="ETCDCTL_INSECURE_TRANSPORT",
    help="Without TLS, unless a certificate or an https endpoint is given.",
)
@click.pass_context
def kvctl(
    ctx: click.Context,
    *,
    endpoints: str,
    dial_timeout: float,
    command_timeout: float,
    write_out: str,
    is_hex: bool,
    user: str | None,
    password: str | None,
    cacert: str | None,
    cert: str | None,
    key: str | None,
    insecure_transport: bool,
) -> None:
    """Talk to a kvstore or etcd cluster, with etcdctl's commands and outputs."""
    if write_out not in OUTPUTS:
        raise CtlError("unsupported output format", BAD_FEATURE, "formats: " + ", ".join(OUTPUTS))
    if (cert is None) != (key is None):
        raise CtlError("--cert and --key go together", BAD_ARGUMENTS)
    if user is not None and password is None:
        user, colon, rest = user.partition(":")
        password = rest if colon else click.prompt("Password", hide_input=True, err=True)
    ctx.obj = Settings(
        endpoints=tuple(name.strip() for name in endpoints.split(",")),
        dial_timeout_s=dial_timeout,
        command_timeout_s=command_timeout,
        output=write_out,
        is_hex=is_hex,
        user=user,
        password=password,
        ca_file=cacert,
        cert_file=cert,
        key_file=key,
        is_tls=bool(cacert or cert) or not insecure_transport,
    )


@kvctl.command()
def version() -> None:
    """Print the version of kvctl."""
    context.write_line(f"kvctl version: {__version__}\nAPI version: 3.4")


def global_flags_first(args: Sequence[str]) -> list[str]:
    """Move global flags in front of the command: etcdctl takes them anywhere before a `--`."""
    found: list[str] = []
    rest: list[str] = []
    position = 0
    while position < len(args):
        argument = args[position]
        if argument == "--":
            return found + rest + list(args[position:])
        name, equals, value = argument.partition("=")
        if name in _REFUSED:
            raise CtlError(f"{name} is not supported by kvctl", BAD_FEATURE, _REFUSED[name])
        if name in _SWITCHES and equals:
            if value.lower() in {"true", "t", "1"}:
                found.append(name)
            elif name == "--insecure-transport":
                found.append("--no-insecure-transport")
        elif name in _SWITCHES:
            found.append(name)
        elif name in _VALUED and equals:
            found += [name, value]
        elif name in _VALUED:
            found += args[position : position + 2]
            position += 1
        elif argument.startswith("-w") and len(argument) > 2:
            found += ["-w", argument[2:]]
        else:
            rest.append(argument)
        position += 1
    return found + rest


def run(args: Sequence[str]) -> int:
    """Run one command line and return the exit code."""
    try:
        kvctl.main(args=global_flags_first(args), prog_name="kvctl", standalone_mode=False)
        context.flush()
    except CtlExit as end:
        return end.code
    except CtlError as error:
        return _say(error)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 0
    except click.UsageError as error:
        return _say(_as_etcdctl(error))
    except click.Abort:
        return _say(CtlError("interrupted", context.INTERRUPTED))
    except OSError as error:  # a file of a flag, or standard output itself
        return _say(CtlError(str(error), 1, "check the path and its permissions"))
    return 0


def _as_etcdctl(error: click.UsageError) -> CtlError:
    """Say a refusal of the parser in etcdctl's words."""
    path = error.ctx.command_path if error.ctx is not None else "kvctl"
    hint = f"see {path} --help"
    if isinstance(error, click.NoSuchOption):
        if error.possibilities:
            hint = f"did you mean {min(error.possibilities)}? Or {hint}"
        return CtlError(f"unknown flag: {error.option_name}", 1, hint)
    if isinstance(error, click.exceptions.NoSuchCommand):
        return CtlError(f'unknown command "{error.command_name}" for "{path}"', 1, hint)
    return CtlError(error.format_message(), 1, hint)


def _say(error: CtlError) -> int:
    write_error(f"Error: {error.text}")
    if error.hint:
        write_error(f"Hint: {error.hint}")
    return error.code


def main() -> Any:
    """Run the command line of this process."""
    # As a program in C: Ctrl-C and a closed pipe end it at once, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
