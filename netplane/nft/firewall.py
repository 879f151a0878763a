"""The firewall of one network: its rules, and the hosts whose packets it takes."""

from __future__ import annotations

from ipaddress import IPv4Address

from netplane.nft.rules import UNKNOWN_VTEPS, VTEPS, NftError, Rules, text
from netplane.nft.table import FirewallReport, KeptTable, Members

__all__ = ["Firewall", "FirewallReport"]


class Firewall(KeptTable):
    """Keeps one table of nftables as told; see `KeptTable`."""

    async def apply(self, rules: Rules, vteps: frozenset[IPv4Address]) -> FirewallReport:
        """Make the table say this, and keep it so from now on. One transaction.

        Only hosts that came or went are written when nothing else changed. What others have
        changed meanwhile is then left to `run`.
        """
        assert rules.table == self.table
        members: Members = {VTEPS: vteps} if rules.vxlan_port else {}
        return await self.keep(text(rules), members)

    async def dropped(self) -> int | None:
        """Return how many packets from no host were dropped since the table was last written.

        None: there is no such counter, as nothing is dropped.
        """
        try:
            counters = await self._ask(f"list counter ip {self.table} {UNKNOWN_VTEPS}", "counter")
        except NftError:
            return None
        return int(counters[0]["packets"]) if counters else None
