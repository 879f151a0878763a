"""An event loop of one process on virtual time: what asyncio needs to run the product's own glue.

One loop for each process, so that a process can die, be paused, and have a clock of its own. It
runs callbacks in the order in which they became ready; threads of an executor are events of the
world that take virtual time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

from tests.sim.world import World


class Died(BaseException):
    """The process ends here. No handler of the product may catch it: it is no Exception."""


class LocalClock:
    """`kvstore.ports.Clock` of one machine: runs faster or slower, and began at another time."""

    def __init__(self, world: World, ppm: int, offset_ns: int) -> None:
        self._world = world
        self._rate = 1_000_000 + ppm
        self._offset_ns = offset_ns
        self.wall_jump_ns = 0

    def monotonic_ns(self) -> int:
        return self._world.now_ns * self._rate // 1_000_000 + self._offset_ns

    def wall_ns(self) -> int:
        return self.monotonic_ns() + self.wall_jump_ns

    def world_delay_ns(self, local_ns: int) -> int:
        """Return how long a local duration takes in the world; at least as long."""
        return -(-local_ns * 1_000_000 // self._rate)


class Handle:
    """A callback that may be cancelled (`asyncio.Handle` catches what must come through)."""

    __slots__ = ("args", "callback", "due_s", "loop")

    def __init__(
        self, loop: SimLoop, callback: Callable[..., object], args: Any, due_s: float = 0.0
    ) -> None:
        self.loop = loop
        self.callback: Callable[..., object] | None = callback
        self.args = args
        self.due_s = due_s

    def cancel(self) -> None:
        self.callback = None
        self.args = ()

    def cancelled(self) -> bool:
        return self.callback is None

    def when(self) -> float:
        return self.due_s


class SimLoop(asyncio.AbstractEventLoop):
    """The loop of one process."""

    def __init__(
        self,
        world: World,
        clock: LocalClock,
        *,
        turn_ns: int,
        job_ns: Callable[[], int],
    ) -> None:
        """Start empty.

        Args:
            world: Moves the time.
            clock: Of the machine.
            turn_ns: How long a turn of the loop takes.
            job_ns: Draws how long a job of an executor takes.
        """
        self.world = world
        self.clock = clock
        self.dead = False
        self.turns = 0
        self.jobs: list[tuple[Callable[..., Any], Any]] = []
        """Jobs of executors under way, oldest first."""
        self.tasks: list[asyncio.Task[Any]] = []
        """All of them, so that none is collected, with side effects, at an arbitrary moment."""
        self.connect: Callable[..., Coroutine[Any, Any, Any]] | None = None
        """Opens a connection to an address, for processes that have a network."""
        self.waited_for = frozenset(("ask",))
        """Coroutines whose exceptions those look at who wait for the tasks."""
        self._turn_ns = turn_ns
        self._job_ns = job_ns
        self._ready: list[Handle] = []
        self._scheduled = False
        self._paused = False
        self._held: list[tuple[Callable[[Any], None], Any]] = []
        self._busy: dict[int, list[tuple[asyncio.Future[Any], Callable[..., Any], Any]]] = {}

    # what the world calls

    def kill(self) -> None:
        """Nothing runs any more."""
        self.dead = True
        self._ready.clear()
        self._held.clear()

    def pause(self) -> None:
        """Stop the process, as SIGSTOP does."""
        self._paused = True

    def resume(self) -> None:
        """Let it go on with all that came meanwhile."""
        self._paused = False
        held, self._held = self._held, []
        if self.world.chance(0.5):
            # libuv looks at timers before sockets, asyncio's own loop after them.
            late = [argument for act, argument in held if act == self._timer]
            held = [(act, argument) for act, argument in held if act != self._timer]
            self._ready[:0] = [handle for handle in late if handle.callback is not None]
            self._schedule()
        for act, argument in held:
            self.world.after(0, act, argument)

    @property
    def paused(self) -> bool:
        return self._paused

    def enter(self, callback: Callable[..., Any], *args: Any) -> None:
        """Run a callback of the world inside this loop, now."""
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            callback(*args)
        except Died:
            pass
        finally:
            asyncio._set_running_loop(outer)

    def start(self, coro: Coroutine[Any, Any, Any]) -> None:
        """Start a task from outside."""

        def begin() -> None:
            self.create_task(coro)

        self.enter(begin)

    def _turn(self, _: object) -> None:
        if self.dead:
            return
        if self._paused:
            self._held.append((self._turn, None))
            return
        self._scheduled = False
        self.turns += 1
        ready, self._ready = self._ready, []
        asyncio._set_running_loop(self)
        try:
            for handle in ready:
                callback = handle.callback
                if callback is not None:
                    callback(*handle.args)
                if self.dead:
                    break
        except Died:
            pass
        finally:
            asyncio._set_running_loop(None)
        if self._ready:
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and not self.dead:
            self._scheduled = True
            self.world.after(self._turn_ns, self._turn)

    def _timer(self, handle: Handle) -> None:
        if self.dead or handle.callback is None:
            return
        if self._paused:
            self._held.append((self._timer, handle))
            return
        self._ready.append(handle)
        self._schedule()

    # what asyncio calls

    def time(self) -> float:
        return self.clock.monotonic_ns() / 1e9

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Any = None) -> Handle:  # type: ignore[override]
        handle = Handle(self, callback, args)
        if not self.dead:
            self._ready.append(handle)
            self._schedule()
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> Handle:
        handle = Handle(self, callback, args, self.time() + delay)
        if not self.dead:
            delay_ns = self.clock.world_delay_ns(max(0, round(delay * 1e9)))
            if delay > 0:
                # Who waits for the rest of a nanosecond would do so for ever at the same moment.
                delay_ns = max(1, delay_ns)
            self.world.after(delay_ns, self._timer, handle)
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> Handle:
        return self.call_later(when - self.time(), callback, *args)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: Any = None
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=self, name="")
        task.add_done_callback(_raise_failure)
        self.tasks.append(task)
        return task

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Run a job on a thread: its effect comes at its end, unless the process dies before.

        An executor of one's own runs one job at a time, the default one any number.
        """
        future = self.create_future()
        if executor is None:
            self._start_job(0, future, func, args)
        else:
            queue = self._busy.setdefault(id(executor), [])
            queue.append((future, func, args))
            if len(queue) == 1:
                self._start_job(id(executor), future, func, args)
        return future

    def _start_job(
        self, key: int, future: asyncio.Future[Any], func: Callable[..., Any], args: Any
    ) -> None:
        job = (func, args)
        self.jobs.append(job)
        self.world.after(self._job_ns(), self._end_job, (key, future, job))

    def _end_job(self, work: tuple[int, asyncio.Future[Any], Any]) -> None:
        if self.dead:
            return
        key, future, job = work
        if self._paused:
            self._held.append((self._end_job, work))
            return
        self.world.events += 1
        self.jobs.remove(job)
        func, args = job
        try:
            result = func(*args)
        except Died:
            return
        except StopIteration as error:
            self._settle(future, None, RuntimeError(str(error)))
        except Exception as error:  # noqa: BLE001 (the product's thread hands it to its waiter)
            self._settle(future, None, error)
        else:
            self._settle(future, result, None)
        queue = self._busy.get(key)
        if queue:
            queue.pop(0)
            if queue and not self.dead:
                self._start_job(key, *queue[0])

    def _settle(self, future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
        def settle() -> None:
            if not future.done():
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(result)

        self.call_soon(settle)

    async def create_connection(  # type: ignore[override]
        self, factory: Callable[[], Any], host: str, port: int, *, ssl: Any = None
    ) -> Any:
        assert self.connect is not None
        return await self.connect(factory, host)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Asyncio's last resort; tasks are looked at in `_raise_failure`."""
        if not self.dead:
            raise AssertionError(f"unhandled in a process: {context}")


def _raise_failure(task: asyncio.Task[Any]) -> None:
    """Let what a task failed of come out of the loop: in production it would only be a log line."""
    loop, coro = task.get_loop(), task.get_coro()
    assert isinstance(loop, SimLoop)
    if not task.cancelled() and coro.__name__ not in loop.waited_for:  # type: ignore[union-attr]
        error = task.exception()
        if error is not None and not isinstance(error, Died):
            raise error


def forget(loop: SimLoop) -> None:
    """At the end of a run: let what dead processes were about to do go without a word."""
    asyncio._set_running_loop(loop)
    try:
        for task in loop.tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            # Their clean-up finds that the process is dead.
            with contextlib.suppress(Died, Exception):
                task.get_coro().close()  # type: ignore[union-attr]
    finally:
        asyncio._set_running_loop(None)
