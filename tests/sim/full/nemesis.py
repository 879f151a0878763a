"""Faults of the full stack: those of the core's simulator, and what disks and clocks do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from tests.sim.full.loop import Died
from tests.sim.nemesis import Nemesis
from tests.sim.world import SECOND

if TYPE_CHECKING:
    from tests.sim.full.machine import Host, Process


class FullNemesis(Nemesis):
    """One run's faults."""

    _cluster: Any
    _profile: Any

    def die(self, process: Any) -> NoReturn:
        process.host.crash()
        raise Died

    def disk_failed(self, process: Process) -> None:
        """A process is about to end because its disk failed; start it again later."""
        host = process.host
        if self.active:
            self.restart_later(host)  # type: ignore[arg-type]
        else:
            # The fault struck before faults ended, the process noticed it only now.
            self._world.after(self._profile.restart_ns, lambda _: host.process or host.start())

    def _power_cut_everywhere(self) -> None:
        for host in self._cluster.hosts:
            if host.process is not None:
                host.crash(power=True)
                self.restart_later(host)

    def _fsync_error(self) -> None:
        host = self._host()
        host.disk.fail_sync = True

    def _full_disk(self) -> None:
        disk = self._host().disk
        disk.full = True

        def empty(_: object) -> None:
            disk.full = False

        self._world.after(self._length_ns(), empty)

    def _bit_rot(self) -> None:
        """Flip a bit in the log of a machine whose loss the others survive, and restart it."""
        cluster, world = self._cluster, self._world
        broken = sum(host.disk.rotten for host in cluster.hosts)
        if broken + 1 > (cluster.size - 1) // 2:
            return
        host = self._host()
        files = [path for path in host.disk.paths if path.endswith(".wal")]
        if host.disk.rotten or not files:
            return
        if host.process is not None:
            host.crash(power=True)
            files = [path for path in host.disk.paths if path.endswith(".wal")]
        if files:
            path = world.random.choice(sorted(files))
            used = len(host.disk.paths[path].data.rstrip(b"\0"))
            if used:
                host.disk.flip_bit(path, world.between(0, used * 8 - 1))
                host.disk.rotten = True
                world.mark("log rotted")
        self.restart_later(host)

    def _clock_jump(self) -> None:
        process = self._host().process
        if process is not None:
            process.loop.clock.wall_jump_ns += self._world.between(-3600, 3600) * SECOND

    def _host(self) -> Host:
        host: Host = self._cluster.hosts[self._any() - 1]
        return host

    _FAULTS = {  # noqa: RUF012 (a table, never changed)
        **Nemesis._FAULTS,
        "power cut everywhere": _power_cut_everywhere,
        "fsync error": _fsync_error,
        "full disk": _full_disk,
        "bit rot": _bit_rot,
        "clock jump": _clock_jump,
    }
