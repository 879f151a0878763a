"""Two agents on one host, each with folders of its own: no lock file stands between them."""

from __future__ import annotations

import pytest

from tests.net.namespaces import missing
from tests.net.overlay import Overlay

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


def test_the_second_ends_before_it_takes_anything_from_the_first() -> None:
    with Overlay(1) as overlay:
        [first] = overlay.agents
        before = overlay.ctl("hosts", "-w", "json")
        said = overlay.second_agent()
        assert "Error: another agent of this host keeps the device np.1" in said
        # Its session would stand there, and the first would fight for the record.
        assert overlay.ctl("hosts", "-w", "json") == before
        assert first.is_running
