"""A table that is kept, without a kernel; what becomes of one is in `tests.net.nft`."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os

import pytest

from netplane.nft import table as module
from netplane.nft.table import KeptTable


async def test_that_nothing_can_be_heard_is_said_once_until_it_is_another_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reasons = iter([errno.EPERM] * 3 + [errno.EMFILE] * 2)
    tried = asyncio.Event()

    def refuse(*_: object, **__: object) -> None:
        reason = next(reasons, None)
        if reason is None:
            tried.set()
        raise OSError(reason or errno.EMFILE, os.strerror(reason or errno.EMFILE))

    monkeypatch.setattr(module, "NftMonitor", refuse)
    with contextlib.closing(KeptTable("netplane", interval_s=0.001)) as table:
        listening = asyncio.create_task(table._listen())
        async with asyncio.timeout(10):
            await tried.wait()
        listening.cancel()
    assert [record.getMessage() for record in caplog.records] == [
        "changes of nftables cannot be heard: Operation not permitted",
        "changes of nftables cannot be heard: Too many open files",
    ]
