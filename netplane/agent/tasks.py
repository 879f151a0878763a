"""The end of tasks that run beside each other."""

from __future__ import annotations

import asyncio

from netplane.agent.errors import AgentError


async def end(*tasks: asyncio.Task[object]) -> None:
    """Cancel tasks, wait for them, and raise what one of them failed with."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled():
            error = task.exception()
            # What the operator must change is told alone; a task and who awaits it fail as one.
            while isinstance(error, BaseExceptionGroup) and error.split(AgentError)[1] is None:
                error = error.exceptions[0]
            if error is not None:
                raise error
