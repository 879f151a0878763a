"""The firewall of one network: its rules, and the hosts whose packets it takes."""

from __future__ import annotations

from typing import Any, cast

from netplane.nft.members import MEMBERS_MAX, MemberSocket
from netplane.nft.rules import UNKNOWN_VTEPS, VTEPS, NftError, Rules, text
from netplane.nft.table import FirewallReport, KeptTable, Members
from netplane.subnet.family import Address

__all__ = ["Firewall", "FirewallReport"]


class Firewall(KeptTable):
    """Keeps one table of nftables as told; see `KeptTable`."""

    def __init__(
        self, table: str, *, family: str = "ip", namespace: str | None = None, **options: Any
    ) -> None:
        super().__init__(table, family=family, namespace=namespace, **options)
        self._socket = MemberSocket(namespace, table, VTEPS, family)
        self._rules: Rules | None = None
        """Those of the last `apply`."""

    async def apply(self, rules: Rules, vteps: frozenset[Address]) -> FirewallReport:
        """Make the table say this, and keep it so from now on. One transaction.

        Only hosts that came or went are written when nothing else changed. What others have
        changed meanwhile is then left to `run`.
        """
        assert rules.table == self.table
        members: Members = {VTEPS: vteps} if rules.vxlan_port else {}
        self._rules = rules
        return await self.keep(text(rules), members)

    def step(self, rules: Rules, vteps: frozenset[Address]) -> int | None:
        """Do at once what `apply` would, if only a few hosts came or went.

        It waits for the kernel alone: as long as a transaction takes that somebody else is in the
        middle of.

        Returns:
            How many members were written. None: it takes `apply`.
        """
        before = self._written_members
        if (
            rules is not self._rules
            or not rules.vxlan_port
            or before is None
            or self._written != self._text
            or self._lock.locked()
        ):
            return None
        there = cast("frozenset[Address]", before[VTEPS])
        came, gone = vteps - there, there - vteps
        number = len(came) + len(gone)
        if number > MEMBERS_MAX:
            return None
        if number:
            self._written_members = None  # until it is known what became of it
            try:
                self._socket.change(
                    [address.packed for address in came],
                    [address.packed for address in gone],
                )
            except NftError:
                return None  # the table is not as we left it, or nothing works; `apply` says why
            self._members = self._written_members = {VTEPS: vteps}
        return number

    async def dropped(self) -> int | None:
        """Return how many packets from no host were dropped since the table was last written.

        None: there is no such counter, as nothing is dropped.
        """
        try:
            counters = await self._ask(f"list counter {self._name} {UNKNOWN_VTEPS}", "counter")
        except NftError:
            return None
        return int(counters[0]["packets"]) if counters else None

    def close(self) -> None:
        """Give thread and sockets back. The kernel stays as it is."""
        super().close()
        self._socket.close()

    def _quiet_port(self) -> int | None:
        return self._socket.port
