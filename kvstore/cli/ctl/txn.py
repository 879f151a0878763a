"""txn: a transaction in etcdctl's text form, from standard input."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import click

from kvstore.cli.ctl import go, kv
from kvstore.cli.ctl.context import (
    BAD_ARGUMENTS,
    INVALID_INPUT,
    Command,
    CtlError,
    flush,
    settings,
    write_line,
)
from kvstore.cli.ctl.printers import make_printer

if TYPE_CHECKING:
    from collections.abc import Iterator

TARGETS = {
    "ver": "version",
    "c": "create_revision",
    "create": "create_revision",
    "m": "mod_revision",
    "mod": "mod_revision",
    "val": "value",
    "version": "version",
    "value": "value",
    "lease": "lease",
}
_FORM_HINT = 'write a condition as value("key") = "text", with version, create, mod or lease too'


def parse_compare(line: str) -> Any:
    """Read a condition such as `mod("key") > "0"`."""
    from kvstore.client import compare

    target, parenthesis, rest = line.partition("(")
    if not parenthesis:
        raise CtlError(f"malformed comparison: {line}", INVALID_INPUT, _FORM_HINT)
    key, relation, operand = _parts(line, target, rest)
    if target not in TARGETS:
        raise CtlError(
            f"malformed comparison: {line} (unknown target {target})", INVALID_INPUT, _FORM_HINT
        )
    value: int | bytes = operand
    if TARGETS[target] != "value":
        try:
            value = go.parse_int(operand.decode(), 16 if target == "lease" else 10)
        except ValueError as error:
            raise CtlError(
                f"invalid txn compare request: {line}", INVALID_INPUT, str(error)
            ) from error
    subject = getattr(compare(key), TARGETS[target])
    if relation == "=":
        return subject == value
    if relation == "!=":
        return subject != value
    if relation == "<":
        return subject < value
    if relation == ">":
        return subject > value
    raise CtlError(f"malformed comparison: {line}", INVALID_INPUT, "the relations are = != < and >")


def _parts(line: str, target: str, rest: str) -> tuple[bytes, str, bytes]:
    """Read `"key") op "value"`, and say how far it could be read."""
    texts = ["", "", ""]
    try:
        if first := go.split_quoted(rest):
            texts[0], rest = first
            if found := re.match(r"\)\s+(\S+)\s+", rest):
                texts[1] = found[1]
                if last := go.split_quoted(rest[found.end() :]):
                    texts[2] = last[0]
                    key, value = (text.encode("utf-8", "surrogateescape") for text in texts[::2])
                    return key, texts[1], value
    except ValueError as error:
        raise CtlError(f"malformed comparison: {line}", INVALID_INPUT, str(error)) from error
    shown = [go.quote(text.encode("utf-8", "surrogateescape")) for text in texts]
    raise CtlError(
        f"malformed comparison: {line}; got {target}({shown[0]}) {texts[1]} {shown[2]}",
        INVALID_INPUT,
        _FORM_HINT,
    )


def add_operation(branch: Any, line: str) -> None:
    """Read an operation, in the form of the command of that name, and add it to a branch."""
    try:
        words = go.split_words(line)
    except ValueError as error:
        raise CtlError(f"invalid txn request: {line}", INVALID_INPUT, str(error)) from error
    if len(words) < 2:
        raise CtlError(f"invalid txn compare request: {line}", INVALID_INPUT)
    commands: dict[str, click.Command] = {"put": kv.put, "get": kv.get, "del": kv.delete}
    name = words[0]
    if name not in commands:
        raise CtlError(f"invalid txn request: {line}", INVALID_INPUT, "operations: put, get, del")
    try:
        options = commands[name].make_context(name, words[1:]).params
    except click.UsageError as error:
        raise CtlError(
            f"invalid txn request: {line}", INVALID_INPUT, error.format_message()
        ) from error
    if name == "put":
        if len(options["args"]) == 1 and not options["ignore_value"]:
            # Standard input is the transaction itself.
            raise CtlError(kv.PUT_USAGE, BAD_ARGUMENTS, "inside txn give the value on the line")
        branch.add().request_put.CopyFrom(kv.put_request(**options))
    elif name == "get":
        del options["print_value_only"]
        branch.add().request_range.CopyFrom(kv.range_request(**options))
    else:
        branch.add().request_delete_range.CopyFrom(kv.delete_request(**options))


def _section() -> Iterator[str]:
    """Yield the lines up to an empty one."""
    while True:
        raw = sys.stdin.buffer.readline()
        if not raw.endswith(b"\n"):
            raise CtlError("EOF", INVALID_INPUT, "each of the three parts ends with an empty line")
        line = raw.decode("utf-8", "surrogateescape").strip()
        if not line:
            return
        yield line


@click.command(cls=Command)
@click.argument("args", nargs=-1)
@click.option("-i", "--interactive", is_flag=True, help="Say what to enter next.")
def txn(args: tuple[str, ...], *, interactive: bool) -> None:
    r"""Run the operations from standard input as one transaction.

    Three parts, each ended by an empty line: conditions, operations for when all hold, operations
    for when not.

    \b
        mod("key1") > "0"

        put key1 "overwrote-key1"

        put key1 "created-key1"
        put key2 "some extra key"
    """
    from kvstore.client.methods import TXN

    if args:
        raise CtlError("txn command does not accept argument", BAD_ARGUMENTS)

    def prompt(text: str) -> None:
        if interactive:
            write_line(text)
            flush()

    request = TXN.request()
    prompt("compares:")
    request.compare.extend(parse_compare(line).message for line in _section())
    prompt("success requests (get, put, del):")
    for line in _section():
        add_operation(request.success, line)
    prompt("failure requests (get, put, del):")
    for line in _section():
        add_operation(request.failure, line)

    is_write = any(
        operation.WhichOneof("request") != "request_range"
        for operation in (*request.success, *request.failure)
    )
    answer = kv.call(TXN, request, write=is_write)
    make_printer(settings().output, is_hex=settings().is_hex).txn(answer)
