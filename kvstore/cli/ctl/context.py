"""What every command of kvctl shares: global flags, exit codes, the client, error texts."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from kvstore.cli.ctl import go

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from kvstore.cli.ctl.printers import Printer
    from kvstore.client import AsyncClient, KvError
    from kvstore.client.transport import Mode

Result = TypeVar("Result")

# etcdctl's exit codes
ERROR = 1
BAD_CONNECTION = 2
INVALID_INPUT = 3
BAD_FEATURE = 4
INTERRUPTED = 5
BAD_ARGUMENTS = 128

OUTPUTS = ("simple", "json", "fields", "table", "protobuf")


class CtlError(Exception):
    """Ends kvctl: `Error: text` on standard error, what to do below it, and the exit code."""

    def __init__(self, text: str, code: int = ERROR, hint: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.code = code
        self.hint = hint


class CtlExit(Exception):  # noqa: N818  not an error: everything has been said already
    """Ends kvctl with an exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class Settings:
    """The global flags."""

    endpoints: tuple[str, ...]
    dial_timeout_s: float
    command_timeout_s: float
    output: str
    is_hex: bool
    user: str | None
    password: str | None
    ca_file: str | None
    cert_file: str | None
    key_file: str | None
    is_tls: bool

    def client(
        self, endpoints: Sequence[str] | None = None, *, transport: Mode = "auto"
    ) -> AsyncClient:
        """Make the client that the flags describe."""
        from kvstore.client import AsyncClient, Tls

        tls = Tls(self.ca_file, self.cert_file, self.key_file) if self.is_tls else None
        try:
            return AsyncClient(
                self.endpoints if endpoints is None else endpoints,
                user=self.user,
                password=self.password,
                tls=tls,
                timeout_s=self.command_timeout_s,
                connect_timeout_s=self.dial_timeout_s,
                transport=transport,
            )
        except ValueError as error:
            raise CtlError(str(error), BAD_ARGUMENTS) from error

    def run(self, work: Callable[[AsyncClient], Coroutine[Any, Any, Result]]) -> Result:
        """Run `work` with a client on an event loop."""
        import asyncio  # here, as it costs as much as click does and --help needs none

        async def main() -> Result:
            async with self.client() as client:
                return await work(client)

        return asyncio.run(main())


def settings() -> Settings:
    """Return the global flags of this run."""
    found = click.get_current_context().find_object(Settings)
    assert found is not None
    return found


def printer() -> Printer:
    """Return the printer of the output format."""
    from kvstore.cli.ctl.printers import make_printer  # which imports this module

    return make_printer(settings().output, is_hex=settings().is_hex)


def error_text(error: KvError) -> str:
    """Return what etcdctl says for the same failure."""
    if not error.grpc_code or error.grpc_code == "DEADLINE_EXCEEDED":
        return "context deadline exceeded"
    if error.text.startswith(("etcdserver: ", "mvcc: ", "auth: ")):
        return error.text
    code = "".join(word.capitalize() for word in error.grpc_code.split("_"))
    return f"rpc error: code = {code} desc = {error.text}"


def hint_for(error: KvError) -> str:
    """Return what to do, and what happened where etcd's text does not tell."""
    if not error.grpc_code:
        return str(error)
    return error.advice


def failed(error: KvError, code: int = ERROR, form: str = "{}") -> NoReturn:
    """End kvctl for an error of the client."""
    raise CtlError(form.format(error_text(error)), code, hint_for(error)) from error


def write(data: bytes) -> None:
    """Write to standard output, which `flush` sends: keys and values are bytes, not text."""
    sys.stdout.buffer.write(data)


def flush() -> None:
    """Send what was written: an answer as a whole, so that no reader sees half of one."""
    sys.stdout.buffer.flush()


def write_line(text: str) -> None:
    """Write a line to standard output; bytes of the command line come out as they came in."""
    write(text.encode("utf-8", "surrogateescape") + b"\n")


def write_error(text: str) -> None:
    """Write a line to standard error, behind what was written to standard output."""
    flush()
    sys.stderr.buffer.write(text.encode("utf-8", "surrogateescape") + b"\n")
    sys.stderr.buffer.flush()


def to_bytes(argument: str) -> bytes:
    """Return an argument as the bytes that the shell gave."""
    return argument.encode("utf-8", "surrogateescape")


def lease_id(text: str, form: str) -> int:
    """Read a lease id in hexadecimal; `form` is the refusal, with {} for the reason."""
    try:
        return go.parse_int(text, 16)
    except ValueError as error:
        raise CtlError(form.format(error), BAD_ARGUMENTS, _LEASE_HINT) from error


_LEASE_HINT = "`kvctl lease list` shows the ids"


class Int64(click.ParamType[int]):
    """An integer flag, refused in etcdctl's words."""

    name = "int64"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Read the flag's text."""
        if isinstance(value, int):
            return value
        try:
            return go.parse_int(value)
        except ValueError as error:
            raise CtlError(
                f'invalid argument {go.quote(value.encode())} for "{param.opts[0]}" flag: {error}'
            ) from error


class Duration(click.ParamType[float]):
    """A duration flag in seconds, written as 5s or 500ms."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Read the flag's text."""
        if isinstance(value, float):
            return value
        try:
            return go.parse_duration(value)
        except ValueError as error:
            raise CtlError(
                f'invalid argument {go.quote(value.encode())} for "{param.opts[0]}" flag: {error}',
                hint="write it as 5s or 500ms",
            ) from error


class Command(click.Command):
    """A command whose switches may also be written --switch=true and --switch=false."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Rewrite those, then parse as usual."""
        return super().parse_args(ctx, plain_switches(self, args))


def plain_switches(command: click.Command, args: Sequence[str]) -> list[str]:
    """Turn --switch=true into --switch and drop --switch=false, up to a `--`."""
    switches = {
        name
        for parameter in command.params
        if isinstance(parameter, click.Option) and parameter.is_flag
        for name in parameter.opts
    }
    result: list[str] = []
    for position, argument in enumerate(args):
        if argument == "--":
            return result + list(args[position:])
        name, equals, value = argument.partition("=")
        if not equals or name not in switches:
            result.append(argument)
        elif value.lower() in {"true", "t", "1"}:
            result.append(name)
        elif value.lower() not in {"false", "f", "0"}:
            quoted = go.quote(value.encode())
            raise CtlError(
                f'invalid argument {quoted} for "{name}" flag: strconv.ParseBool: parsing'
                f" {quoted}: invalid syntax"
            )
    return result


arguments = click.argument("args", nargs=-1, type=click.UNPROCESSED)
"""All arguments: the commands count them themselves, to refuse in etcdctl's words."""


def accept_no_arguments(args: Sequence[str], command: str) -> None:
    """Refuse arguments."""
    if args:
        raise CtlError(f"{command} command accepts no arguments", BAD_ARGUMENTS)
