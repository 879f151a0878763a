"""The world of an agent."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.netplane.agent.world import World, make_world


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A registry that is down, and a kernel without anything."""
    return make_world(tmp_path)
