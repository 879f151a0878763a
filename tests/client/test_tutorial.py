"""The examples of docs/client.md, run as they stand against a real member."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import re
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kvstore.client import AsyncClient

if TYPE_CHECKING:
    from tests.servers import Cluster

TUTORIAL = Path(__file__).parents[2] / "docs" / "client.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXPECTED = re.compile(r"# -> (.*)$", re.MULTILINE)


async def run(block: str, line: int, names: dict[str, Any]) -> str:
    """Run one example the way `python -m asyncio` does, and return what it printed."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    # Blank lines first, so that a failure names the line of the page.
    code = compile("\n" * line + block, str(TUTORIAL), "exec", flags=flags)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        result = types.FunctionType(code, names)()
        if inspect.iscoroutine(result):
            await result
    return printed.getvalue()


async def test_the_examples_print_what_they_say(
    fresh_server: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = TUTORIAL.read_text()
    blocks = list(BLOCK.finditer(page))
    names: dict[str, Any] = {"__name__": "tutorial"}
    assert len(blocks) >= 15
    async with asyncio.timeout(100):
        for block in blocks:
            text = block[1].replace("127.0.0.1:2379", fresh_server.endpoints[0])
            printed = await run(text, page[: block.start(1)].count("\n"), names)
            assert printed.splitlines() == [each.strip() for each in EXPECTED.findall(text)]
    client = names["client"]
    assert isinstance(client, AsyncClient)
    assert client.is_closed
