"""Starts the two members and carries programs out on them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from tests.compat.random import differences
from tests.compat.random.run import Run
from tests.compat.random.side import Side, Tamper, clusters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.compat.random.steps import Step


class Members:
    """The two members and the state of the program that runs on them; a context manager."""

    def __init__(self) -> None:
        self.met = differences.Met()
        self.compared = 0
        """Steps carried out on both and found equal."""

        self._tamper: Tamper | None = None
        self._runner = asyncio.Runner()
        self._clean = False

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._runner.close()

    def _start(self) -> None:
        etcd, ours = clusters()
        self.sides = (Side("etcd", etcd), Side("ours", ours, self._tamper))
        for side in self.sides:
            side.cluster.__enter__()
            self._runner.run(side.connect())
        self._clean = True

    def _stop(self) -> None:
        for side in self.sides:
            self._runner.run(side.close())
            side.cluster.stop()

    def plant(self, tamper: Tamper | None) -> None:
        """Let all that our member answers pass through `tamper`, also after a restart."""
        self._tamper = self.sides[1].tamper = tamper

    def run(self, program: Sequence[Step], *, reset: bool = True) -> None:
        """Carry a program out.

        Args:
            program: Its steps.
            reset: Begin with an empty store behind a compaction, as all drawn programs do, so that
                each is alike wherever it runs. False: as the members are, for one program on new
                ones.

        Raises:
            ProgramError: They differ.
        """
        if not self._clean and not self._runner.run(Run(self.sides, self.met).recovered()):
            self._stop()
            self._start()
        self._clean = False
        run = Run(self.sides, self.met)
        self._runner.run(run.all(program, reset=reset))
        self._clean = True
        self.compared += len(program)

    def restart(self) -> None:
        """Kill both members, start them again with their data, and compare all they have kept."""
        self._clean = False
        for side in self.sides:
            self._runner.run(side.close())
            side.cluster.kill(0)
        for side in self.sides:
            side.cluster.restart(0)
            self._runner.run(side.connect())
        run = Run(self.sides, self.met)
        self._runner.run(run.kept())
        self._clean = True
