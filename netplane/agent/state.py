"""What the agent remembers across restarts and reboots: one JSON file, whole or absent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Network
from pathlib import Path
from typing import Any

from netplane.agent.files import write_whole
from netplane.backend.vxlan import second_mac
from netplane.subnet.family import (
    VERSION6,
    Pair,
    ipv6_address,
    ipv6_network,
    parse_address,
    parse_subnet,
)
from netplane.subnet.jsontext import loads
from netplane.subnet.lease import Lease

log = logging.getLogger("netplane.state")

_MACHINE_ID = re.compile(rb"[0-9a-f]{32}")
FORMAT = 1
_SECOND = ("subnet6", "public_ip6", "backend_data6")
"""Only where there are both families: an older agent reads what it can know."""
RETRY_S = 5.0
PAUSE_S = 1.0
"""Between two writes. In a network of a thousand hosts leases change all the time, and what came
last counts only after SIGKILL or a power cut, and there only until the registry answers."""


@dataclass(frozen=True, slots=True)
class State:
    """The memory of one instance. Everything may be missing: a first start has none of it."""

    host_id: str = ""
    session: str = ""
    """Of the last agent that had a lease: its sign of life in the registry may still be there."""
    vtep_mac: str = ""
    """Peers have it in their kernels: it outlives the device."""
    cluster_id: int = 0
    revision: int = 0
    config: str = ""
    """The network's configuration, as the registry had it."""
    own: Lease | None = None
    peers: tuple[Lease, ...] = ()
    sysctls: dict[str, str] = field(default_factory=dict)
    """Settings of the kernel that we changed in this boot, as they were before."""
    firewall: bool = False
    """Our table, and rules of ours in chains of others, may be there."""
    doubt: str = ""
    """Why `peers` are held against what the registry says; "" when they are not."""
    vtep_mac6: str = ""
    """Of the second device, where that was Flannel's; "": it follows from the first."""

    left: str = ""
    """Our subnet of the family that the network has lost: containers still have addresses of it."""

    @property
    def pair(self) -> Pair | None:
        """The subnets that we would like to have; None: there were none."""
        if self.own is None or not self.left:
            return None if self.own is None else self.own.pair
        other = parse_subnet(self.left)
        if isinstance(other, IPv6Network):
            return Pair(self.own.subnet, other)
        return Pair(other, ipv6_network(str(self.own.subnet)))

    @property
    def macs(self) -> tuple[str, str]:
        """Of our devices, by family."""
        second = second_mac(self.vtep_mac) if self.vtep_mac else ""
        return self.vtep_mac, self.vtep_mac6 or second


class Encoder:
    """Writes states as text. A peer that is the same as in the last one is not written again."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Lease, str]] = {}
        """By the ids of the leases, which are kept, so that no other gets the id of one."""

    def encode(self, state: State) -> str:
        """Return the file's text: a line for each field and each peer."""
        known, self._known = self._known, {}
        for lease in state.peers:
            self._known[id(lease)] = known.get(id(lease)) or (lease, _lease_text(lease))
        fields = {name: getattr(state, name) for name in State.__slots__}
        del fields["own"], fields["peers"]
        if not state.left:
            del fields["left"]  # an older agent reads what it can know
        own = "null" if state.own is None else _lease_text(state.own)
        peers = ",\n  ".join(text for _, text in self._known.values())
        about = {"format": FORMAT, "boot_id": read_boot_id()}
        head = json.dumps(about | fields, indent=1).removesuffix("\n}")
        return f'{head},\n "own": {own},\n "peers": [\n  {peers}\n ]\n}}\n'


def encode(state: State) -> str:
    """Return the file's text."""
    return Encoder().encode(state)


def decode(text: str) -> State:
    """Read the file's text. Raises ValueError for whatever is not exactly a state.

    But for fields that are not known here: a later version has written them, and what it is known
    by to others is what we are. And without settings of another boot: the kernel began anew, and
    whoever has set one in this boot would lose it.
    """
    content = loads(text)
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise ValueError(f"not a state file of format {FORMAT}")
    if content.pop("boot_id", "") != read_boot_id() and isinstance(content.get("sysctls"), dict):
        content["sysctls"] = {}
    unknown = _take_unknown(content, State)
    own, peers = content.pop("own", None), content.pop("peers", [])
    empty = State()
    for name, value in content.items():
        if type(value) is not type(getattr(empty, name)):
            raise ValueError(f"{name} is {value!r}")
    for name, value in content.get("sysctls", {}).items():
        if not isinstance(value, str):
            raise ValueError(f"the setting {name} is {value!r}")  # noqa: TRY004
    if not isinstance(peers, list):
        raise ValueError(f"peers is {peers!r}")  # noqa: TRY004 (one class for every wrong file)
    for lease in (own, *peers):
        unknown |= _take_unknown(lease, Lease)
    if unknown:
        log.warning("the state file has fields of a later version, left out: %s", sorted(unknown))
    state = State(
        **content,
        own=None if own is None else _to_lease(own),
        peers=tuple(_to_lease(each) for each in peers),
    )
    if state.left and (
        state.own is None
        or state.own.subnet6 is not None
        or parse_subnet(state.left).version == state.own.subnet.version
    ):
        raise ValueError(f"left is {state.left!r}, beside {state.own}")
    return state


def _take_unknown(fields: object, kind: type[State | Lease]) -> set[str]:
    """Take out of what is read what a kind has not; return the names."""
    if not isinstance(fields, dict):
        return set()  # told when it is made one
    unknown = fields.keys() - set(kind.__slots__)
    for name in unknown:
        del fields[name]
    return unknown


def _lease_text(lease: Lease) -> str:
    fields = {name: getattr(lease, name) for name in Lease.__slots__ if name not in _SECOND} | {
        "subnet": str(lease.subnet),
        "public_ip": str(lease.public_ip),
        # Keys are bytes, and junk among them is quarantined, not refused.
        "key": lease.key.decode("utf-8", "surrogateescape"),
    }
    if lease.subnet6 is not None and lease.public_ip6 is not None:
        fields |= {
            "subnet6": str(lease.subnet6),
            "public_ip6": str(lease.public_ip6),
            "backend_data6": lease.backend_data6,
        }
    return json.dumps(fields)


def _to_lease(fields: object) -> Lease:
    if not isinstance(fields, dict):
        raise ValueError(f"a lease is {fields!r}")  # noqa: TRY004
    try:
        second = {}
        if not fields.keys().isdisjoint(_SECOND):
            second = {
                "subnet6": ipv6_network(fields["subnet6"]),
                "public_ip6": ipv6_address(fields["public_ip6"]),
            }
        lease = Lease(
            **fields
            | {
                "subnet": parse_subnet(fields["subnet"]),
                "public_ip": parse_address(fields["public_ip"]),
                "key": fields["key"].encode("utf-8", "surrogateescape"),
            }
            | second
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a lease is {fields!r}: {error}") from error
    if not (
        isinstance(lease.backend_type, str)
        and type(lease.create_revision) is int
        and type(lease.mod_revision) is int
        and type(lease.expires) is bool
        and lease.subnet.version == lease.public_ip.version
        and (lease.subnet6 is None or lease.subnet.version != VERSION6)
    ):
        raise ValueError(f"a lease is {fields!r}")
    return lease


def load(path: Path) -> tuple[State, str]:
    """Return the remembered state, and a complaint when a file was there and of no use.

    A bad file is set aside under another name: without it we start as a new host would, with it
    we would never start. Blocks.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return State(), ""
    except (OSError, UnicodeDecodeError) as error:
        return State(), _set_aside(path, error)
    try:
        return decode(text), ""
    except ValueError as error:
        return State(), _set_aside(path, error)


def _set_aside(path: Path, error: Exception) -> str:
    bad = path.with_name(path.name + ".bad")
    try:
        os.replace(path, bad)
        where = f"set aside as {bad}"
    except OSError as failure:
        where = f"and it cannot be set aside: {failure}"
    complaint = f"state file {path} is of no use ({error}), {where}"
    log.warning(complaint)
    return complaint


def save(path: Path, state: State) -> None:
    """Write the file. Blocks for the fsync; raises OSError."""
    _write(path, encode(state))


def _write(path: Path, text: str) -> None:
    write_whole(path, text, mode=0o600)


class StateKeeper:
    """Writes the newest state behind the agent's back: what comes during a write shares the next.

    A disk that fails must not take the network down, so a failure is told and tried again.

    Args:
        path: the file.
        state: as the file has it, or without one a first start's.
        write: what writes the text, in tests something else.
        on_problem: hears why a write failed, and an empty text when one succeeds again.
    """

    def __init__(
        self,
        path: Path,
        state: State,
        write: Callable[[Path, str], None] = _write,
        on_problem: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._path = path
        self._write = write
        self._on_problem = on_problem
        # One thread: what was handed over first is written first, also when nobody waits for it.
        self._writer = ThreadPoolExecutor(1, "netplane-state")
        self._encoder = Encoder()
        # A disk that is full keeps no agent from starting that has nothing new to remember.
        self._saved = state
        self._changed = asyncio.Event()
        self.state = state
        self.problem = ""
        """Why the last write failed; empty when it did not."""

    def change(self, **fields: Any) -> None:
        """Change fields of the state; it is written soon."""
        if all(getattr(self.state, name) == value for name, value in fields.items()):
            return
        self.state = replace(self.state, **fields)
        if self.state != self._saved:
            self._changed.set()

    async def run(self) -> None:
        """Write what changes until cancelled; then write what is left."""
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                if await self.save():
                    await asyncio.sleep(PAUSE_S)
                else:
                    await asyncio.sleep(RETRY_S)
                    self._changed.set()
        finally:
            await self.save()
            self._writer.shutdown(wait=False)

    async def save(self) -> bool:
        """Write the state unless the file has it; return whether the file has it now."""
        state = self.state
        if state == self._saved:
            return True
        try:
            await asyncio.get_running_loop().run_in_executor(
                self._writer, self._write, self._path, self._encoder.encode(state)
            )
        except OSError as error:
            self._tell(f"cannot write the state file {self._path}: {error.strerror}")
            return False
        self._saved = state
        self._tell("")
        return True

    def _tell(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            self._on_problem(problem)


def read_machine_id(path: Path = Path("/etc/machine-id")) -> str:
    """Return the machine's own name for itself; empty when it has none (machine-id(5))."""
    with contextlib.suppress(FileNotFoundError):
        # In an image that has not booted yet the file is empty, or says "uninitialized".
        text = path.read_bytes().strip()
        if _MACHINE_ID.fullmatch(text):
            return text.decode()
        log.warning("%s holds no id of a machine", path)
    return ""


def read_boot_id(path: Path = Path("/proc/sys/kernel/random/boot_id")) -> str:
    """Return the id of this boot: kernel state of another is gone."""
    return path.read_text().strip()
