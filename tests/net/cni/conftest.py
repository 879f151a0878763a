"""A runtime on each host of a module's `overlay`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.net.cni.runtime import Runtime
from tests.net.overlay import Overlay


@pytest.fixture
def runtimes(overlay: Overlay) -> Iterator[list[Runtime]]:
    """One on each host; nothing is left of them after a test."""
    with ExitStack() as stack:
        made = [stack.enter_context(Runtime(agent)) for agent in overlay.agents]
        yield made
        for runtime in made:
            assert runtime.collect().status == 0
            assert runtime.ports() == {}
