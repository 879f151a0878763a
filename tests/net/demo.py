"""`make net-demo`: an overlay across three simulated hosts, broken in several ways, healing itself.

The launcher starts the demo in namespaces of its own for network, mounts and processes: whatever
happens, even to the launcher, nothing is left. With `--keep` it stays up until `--down`.
"""

# ruff: noqa: T201 (a command line prints)

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.net.namespaces import CommandError, missing
from tests.net.nft.ear import Ear as NftEar
from tests.net.overlay import ROOT, Overlay, until
from tests.net.packets import Flow, Place, ping_all, throughput
from tests.net.rig import Container, Host
from tests.net.witnesses import LINK, PROTOCOL, Ear, kernel_of, objects_of

REPORT = ROOT / "build" / "net-demo.json"
KEPT = ROOT / "build" / "net-demo-kept.json"
HEAL_MAX_S = 2.0
KEEP, END = b"k", b"e"
"""The first that the launcher says to who is inside counts."""
REPORTED = "report: "


class Steps:
    """What was tried and what came of it; printed as it happens."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.report: dict[str, Any] = {"loss": {}, "heal_ms": {}}

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[list[str]]:
        """Run one step; what it appends to the list is printed behind its title."""
        said: list[str] = []
        try:
            yield said
        except (AssertionError, CommandError, OSError) as error:
            self.failed.append(title)
            print(f"FAILED  {title}: {error}", flush=True)
        else:
            print(f"ok      {title}{': ' if said else ''}{', '.join(said)}", flush=True)


def show(overlay: Overlay) -> dict[str, Any]:
    """Go through the demo and return its report; nothing that fails ends it."""
    steps = Steps()
    agents, hosts, containers = overlay.agents, overlay.rig.hosts, overlay.rig.containers
    here, there = hosts[0].containers[0], hosts[1].containers[1]
    pairs = [(one, other.address) for one in containers for other in containers if one is not other]
    for agent in agents:
        names = ", ".join(container.address for container in agent.host.containers)
        print(f"        {agent.host.name} {agent.host.address}: {agent.subnet}, containers {names}")

    with steps.step(f"every container pings every other ({len(pairs)} pairs)") as said:
        reached = sum(found is not None for found in ping_all(pairs))
        steps.report |= {"pairs": len(pairs), "reached": reached}
        assert reached == len(pairs), f"{reached} of {len(pairs)} answered"
        said.append(f"{reached} answered")

    steps.report["gbit_s"] = None
    if shutil.which("iperf3"):
        with steps.step("one TCP stream across the overlay") as said:
            rate = throughput(here, there)
            steps.report["gbit_s"] = round(rate, 2)
            said.append(f"{rate:.1f} Gbit/s")
    else:
        print("        iperf3 is not installed: no throughput figure")

    with steps.step("an agent is killed and started again, packets both ways") as said:
        with both_ways(here, there) as flows:
            until(lambda: flows[0].received > 500, 10, "packets arrive")
            agents[0].kill()
            mark = flows[0].sent
            until(lambda: flows[0].sent > mark + 500, 10, "packets are sent")
            agents[0].start()
            agents[0].wait_ready()
            mark = flows[0].sent
            until(lambda: flows[0].sent > mark + 500, 10, "packets are sent")
        for name, flow in zip(("there", "back"), flows, strict=True):
            loss = flow.stop()
            steps.report["loss"][f"agent killed, {name}"] = [len(loss.missing), loss.sent]
            said.append(f"{name} {loss}")
            assert not loss.missing, str(loss)

    objects = objects_of(kernel_of(hosts[0]))
    drifts: dict[str, tuple[set[str], tuple[str, ...]]] = {
        "the vxlan device is deleted": (set(objects), ("link", "del", LINK)),
        "the vxlan device goes down": ({"link", "route"}, ("link", "set", LINK, "down")),
        "all routes of ours are flushed": ({"route"}, ("route", "flush", "proto", str(PROTOCOL))),
        "all neighbours are flushed": (
            {"neighbour"}, ("neigh", "flush", "dev", LINK, "nud", "permanent"),
        ),
    }  # fmt: skip
    for title, (kinds, command) in drifts.items():
        with steps.step(title) as said, Ear(hosts[0]) as ear:
            flow = Flow(here, there, 2000)
            try:
                until(lambda flow=flow: flow.received > 200, 10, "packets arrive")  # type: ignore[misc]
                hosts[0].namespace.run("ip", *command)
                # A heal can be quicker than the next packet, so the kernel is the witness.
                wanted = set().union(*(objects[kind] for kind in kinds))
                heal_ms = 1000 * ear.healing_s(wanted, HEAL_MAX_S)
                mark = flow.received
                until(lambda flow=flow, mark=mark: flow.received > mark + 200, 10, "packets arrive")  # type: ignore[misc]
            finally:
                loss = flow.stop()
            steps.report["heal_ms"][title] = round(heal_ms, 1)
            steps.report["loss"][title] = [len(loss.missing), loss.sent]
            said.append(f"gone and back in {heal_ms:.1f} ms, {loss}")

    if shutil.which("nft"):
        with steps.step("all of nftables is flushed") as said:
            heal_ms = flush_nftables(hosts[0])
            steps.report["heal_ms"]["nftables flushed"] = round(heal_ms, 1)
            said.append(f"gone and back in {heal_ms:.1f} ms")
    else:
        print("        nft is not installed: its tables are not flushed")

    with steps.step("a host is cut off, the others go on") as said:
        alone: Container = hosts[2].containers[0]
        rest: list[tuple[Place, str]] = [(here, there.address), (there, here.address)]
        hosts[2].cut()
        try:
            assert ping_all([(here, alone.address)], timeout_s=0.3) == [None], "it still answers"
            assert None not in ping_all(rest), "the others do not reach each other"
        finally:
            hosts[2].heal()
        back_s = until(
            lambda: None not in ping_all(pairs, timeout_s=0.2), 10, "all pairs answer again"
        )
        steps.report["heal_ms"]["host plugged in again"] = round(1000 * back_s, 1)
        said.append(f"back {1000 * back_s:.0f} ms after it was plugged in")

    with steps.step("the registry dies, the network stays") as said:
        for index in range(overlay.members.nodes):
            overlay.members.kill(index)
        with both_ways(here, there) as flows:
            until(lambda: flows[1].received > 500, 10, "packets arrive")
        for flow in flows:
            loss = flow.stop()
            assert not loss.missing, str(loss)
            said.append(str(loss))
        for index in range(overlay.members.nodes):
            overlay.members.spawn(index)
        for index in range(overlay.members.nodes):
            overlay.members.wait(index)

    return steps.report | {"failed": steps.failed, "ok": not steps.failed}


def flush_nftables(host: Host) -> float:
    """Return how many milliseconds our table was away, as an ear of nftables has it."""

    def ruleset() -> str:
        return host.namespace.run("nft", "--stateless", "list", "ruleset")

    before = ruleset()
    assert "table ip netplane {" in before, "there is no table of ours"
    with NftEar(host.namespace.path) as ear:
        host.namespace.run("nft", "flush", "ruleset")
        try:
            gone = ear.until("del table", HEAL_MAX_S)
            heal_ms = 1000 * (ear.until("new table", HEAL_MAX_S).at - gone.at)
        except queue.Empty as error:
            raise AssertionError(f"the table is not back after {HEAL_MAX_S} s") from error
    until(lambda: ruleset() == before, HEAL_MAX_S, "all is as before")
    return heal_ms


@contextlib.contextmanager
def both_ways(one: Container, other: Container) -> Iterator[tuple[Flow, Flow]]:
    """Send packets both ways; they are stopped when the block fails, else by the caller."""
    flows = Flow(one, other), Flow(other, one)
    try:
        yield flows
    except BaseException:
        for flow in flows:
            flow.stop()
        raise


def inside(life: int, *, keep: bool) -> int:
    """Run the demo in the namespaces that the launcher made for it."""
    _end_with(life)
    begun = time.monotonic()
    print("        three hosts, a registry member and an agent on each ...", flush=True)
    with Overlay(3, members=3) as overlay:
        overlay.add_containers(2)
        ready_s = time.monotonic() - begun
        print(f"        up after {ready_s:.1f} s", flush=True)
        report = show(overlay)
        report["seconds"] = {
            "set_up": round(ready_s, 1),
            "demo": round(time.monotonic() - begun - ready_s, 1),
        }
        names = [overlay.rig.underlay, *(host.namespace for host in overlay.rig.hosts)]
        names += [container.namespace for container in overlay.rig.containers]
        report["namespaces"] = {each.name: each.pid for each in names}
        report["folder"] = str(overlay.members.folder)
        print(REPORTED + json.dumps(report), flush=True)
        if keep:
            threading.Event().wait()
    return 0


def _end_with(life: int) -> None:
    """End this process, and with it all namespaces, when the launcher says so or is gone."""

    def watch() -> None:
        if os.read(life, 1) != KEEP:
            # Not `tempfile.gettempdir()`: that is /tmp when the folder is gone already.
            shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def launch(*, keep: bool) -> int:
    """Start the demo, print and write its report, and see that nothing is left."""
    reason = missing()
    if reason is not None:
        print(f"net-demo: {reason}", file=sys.stderr)
        return 2
    REPORT.parent.mkdir(exist_ok=True)
    if keep and not _is_first_to_keep():
        print("net-demo: another is about to stay up", file=sys.stderr)
        return 2
    if _kept() is not None:
        print("net-demo: it is up already; `make net-demo-down` first", file=sys.stderr)
        return 2
    life_in, life_out = os.pipe()
    signals: list[int] = []

    def end(number: int, _: object) -> None:
        # No exception: that of a second signal would break off the removal that the first has led
        # to. `make` passes on what a whole group gets. The pipe has us at its other end, too, so
        # that it is never a broken one.
        signals.append(number)
        os.write(life_out, END)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    folder = tempfile.mkdtemp(prefix="net-demo-")
    command = [
        *("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"),
        *(sys.executable, "-m", "tests.net.demo", "--inside", str(life_in)),
        *(["--keep"] if keep else []),
    ]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": folder},
        pass_fds=(life_in,),
        # Not ours: who is kept would hold it, and whoever reads what we print would wait for ever.
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Ctrl-C is for the launcher; who is inside ends with it.
        start_new_session=True,
    )
    stays = False
    try:
        text = _relay(process)
        report = json.loads(text) if text else {"ok": False, "failed": ["the set-up"]}
        if keep and text and not signals:
            names = _outer_pids(process.pid, report["namespaces"])
            kept = {"pid": process.pid, "started": _started(process.pid), "folder": folder}
            KEPT.write_text(json.dumps(kept | {"namespaces": names}))
            os.write(life_out, KEEP)
            stays = not signals
            print("It stays up until `make net-demo-down`. To look around:")
            for name, pid in names.items():
                print(f"  {name:<12} nsenter --net --target {pid}")
            print("and in the namespace of a host, here of the first:")
            print(f"  .venv/bin/netplane ctl status --run-dir {report['folder']}/host-0")
    finally:
        if not stays:
            _end(process.pid)
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)
    if signals and not stays:
        print("interrupted", file=sys.stderr)
        return 128 + signals[0]
    for name in ("namespaces", "folder"):
        report.pop(name, None)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{REPORT.relative_to(ROOT)}: {'all seen' if report['ok'] else 'FAILED'}")
    return 0 if report["ok"] else 1


def down() -> int:
    """End a demo that was kept."""
    kept = _kept()
    if kept is None:
        print("net-demo: nothing is up")
    else:
        _end(kept["pid"])
        shutil.rmtree(kept["folder"], ignore_errors=True)
        print("net-demo: ended")
    KEPT.unlink(missing_ok=True)
    return 0


def _is_first_to_keep() -> bool:
    """Tell whether nobody else is about to keep one; that holds until this process ends."""
    try:
        fcntl.flock(os.open(REPORT.parent, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _kept() -> dict[str, Any] | None:
    """Return what is known of a demo that runs; a number may belong to another process now."""
    try:
        found: dict[str, Any] = json.loads(KEPT.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found if _started(found["pid"]) == found["started"] else None


def _relay(process: subprocess.Popen[str]) -> str:
    """Print what comes from inside up to the report, and return that; empty if none came."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(REPORTED):
            return line.removeprefix(REPORTED)
        print(line, end="", flush=True)
    return ""


def _end(pid: int) -> None:
    """Kill `unshare`, and return when all that it started is gone too."""
    inside = [(child, _started(child)) for child in _children(pid)]
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    # The first process of a namespace goes last: the kernel ends all the others before.
    for child, started in inside:
        until(lambda child=child, started=started: _started(child) != started, 10, "it ends")  # type: ignore[misc]


def _children(pid: int) -> list[int]:
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _started(pid: int) -> int:
    """Return when a process was started, in ticks since boot; 0 when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])


def _outer_pids(parent: int, inner: dict[str, int]) -> dict[str, int]:
    """Translate process ids of the demo's own process namespace into ours."""
    [first] = _children(parent)
    home = os.readlink(f"/proc/{first}/ns/pid")
    outer: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if os.readlink(path / "ns" / "pid") == home:
                [line] = [
                    line
                    for line in (path / "status").read_text().splitlines()
                    if line.startswith("NSpid:")
                ]
                outer[int(line.split()[-1])] = int(path.name)
    return {name: outer[pid] for name, pid in inner.items()}


def main(arguments: list[str]) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.net.demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave it up")
    parser.add_argument("--down", action="store_true", help="end one that was left up")
    parser.add_argument("--inside", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.inside is not None:
        return inside(options.inside, keep=options.keep)
    return down() if options.down else launch(keep=options.keep)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
