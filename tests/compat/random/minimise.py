"""Makes a program that shows a difference small: fewer steps first, then fewer fields in them."""

from __future__ import annotations

import base64
import copy
import dataclasses
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.compat.random.run import ProgramError
from tests.compat.random.steps import Call, Step, Watch, dump, load, walk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.compat.random.members import Members

TRIES_MAX = 400


@dataclass
class Found:
    """A program that shows a difference, made small."""

    program: list[Step]
    text: str
    """Where they differ, and in what."""

    flaky: bool = False
    """It did not show it again; then `program` is as it was drawn."""

    def replay(self) -> str:
        """Return the command line that runs it again."""
        packed = base64.urlsafe_b64encode(zlib.compress(dump(self.program).encode(), 9))
        return f"python -m tests.compat.random --program {packed.decode()}"


def unpacked(text: str) -> list[Step]:
    """Return the program of a replay line."""
    return load(zlib.decompress(base64.urlsafe_b64decode(text)).decode())


class Minimiser:
    """Tries what is smaller; keeps what still differs."""

    def __init__(self, members: Members, program: list[Step], error: ProgramError) -> None:
        self.program = program
        self.error = error
        self._members = members
        self._tries = 0

    def differs(self, program: list[Step]) -> bool:
        """Run a program and keep it if the members differ."""
        if self._tries == TRIES_MAX:
            return False
        self._tries += 1
        try:
            self._members.run(program)
        except ProgramError as error:
            self.program, self.error = program, error
            return True
        return False

    def take_steps(self) -> None:
        """Take steps away, from the end, in ever smaller parts."""
        size = len(self.program)
        while size:
            end = len(self.program)
            while end > 0:
                start = max(0, end - size)
                self.differs(self.program[:start] + self.program[end:])
                end = start
            size //= 2

    def take_fields(self) -> None:
        """Take fields and items out of each step's request."""
        for number in range(len(self.program)):
            while any(
                self.differs([*self.program[:number], simpler, *self.program[number + 1 :]])
                for simpler in simpler_steps(self.program[number])
            ):
                pass


def simpler_steps(step: Step) -> Iterator[Step]:
    """Yield the step without each of its request's fields and items, large parts first."""
    if not isinstance(step, (Call, Watch)):
        return
    if isinstance(step, Call) and step.pad:
        yield Call(step.request)
    for number, message in enumerate(walk(step.request)):
        for field, value in message.ListFields():
            for item in range(len(value)) if field.is_repeated else (None,):
                request = copy.deepcopy(step.request)
                inner = list(walk(request))[number]
                if item is None:
                    inner.ClearField(field.name)
                else:
                    del getattr(inner, field.name)[item]
                yield dataclasses.replace(step, request=request)


def smallest(members: Members, program: list[Step], error: ProgramError) -> Found:
    """Return a program that differs, too, and of which little can be left out."""
    minimiser = Minimiser(members, program, error)
    if not minimiser.differs(program):
        return Found(program, str(error), flaky=True)
    minimiser.take_steps()
    minimiser.take_fields()
    minimiser.take_steps()
    return Found(minimiser.program, str(minimiser.error))
