"""Hosts with agents, for tests that change what they get."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.net.overlay import Overlay, until


@pytest.fixture
def overlay() -> Iterator[Overlay]:
    """Three hosts, one member, an agent on each, a container behind each; all reach each other.

    The timer is at an hour: what heals does so because something was heard.
    """
    with Overlay(3, flags=("--heal-interval", "1h")) as made:
        made.add_containers(1)
        until(made.everybody_answers, 20, "every container answers every other")
        yield made
