"""Errors of the subnet manager, each with what to do about it.

SubnetError
├── ConfigError          the network's configuration is missing or wrong: `netplane ctl init`
├── ExhaustedError       every subnet is taken
├── IdentityError        another live host uses our address or our id: nothing was written
├── SubnetTakenError     the subnet of our containers belongs to another host: never stolen
├── SubnetMisfitError    the subnet of our containers is outside the network's configuration
└── ContentionError      every try met somebody else's change: nothing was written, try again
"""

from __future__ import annotations

from netplane.subnet.family import Pair, Subnet


class SubnetError(Exception):
    """Base of all errors here."""


class ConfigError(SubnetError):
    """The value of `<prefix>/config` is missing or cannot be used."""


class ExhaustedError(SubnetError):
    """No subnet is free. `capacity` is how many there are."""

    def __init__(self, text: str, *, capacity: int) -> None:
        super().__init__(text)
        self.capacity = capacity


class IdentityError(SubnetError):
    """Another host says that it is us. `other` is its id."""

    def __init__(self, text: str, *, other: str) -> None:
        super().__init__(text)
        self.other = other


class SubnetTakenError(SubnetError):
    """`subnet`, of what our containers use, belongs to `owner` now."""

    def __init__(self, pair: Pair, owner: str) -> None:
        super().__init__(
            f"our subnet {pair} belongs to {owner} now; containers keep their addresses, new "
            "ones are refused: remove the containers of this host and start the agent anew, or "
            "drain the other host"
        )
        self.subnet: Subnet = pair.first
        self.owner = owner


class SubnetMisfitError(SubnetError):
    """`subnet`, of what our containers use, does not fit the configuration any more."""

    def __init__(self, pair: Pair, reason: str) -> None:
        super().__init__(
            f"our subnet {pair} cannot be kept: {reason}; remove the containers of this host and "
            "start the agent anew, or set the network's configuration back with `netplane ctl init "
            "--force`"
        )
        self.subnet: Subnet = pair.first


class ContentionError(SubnetError):
    """Others changed what we were about to write, each time."""
