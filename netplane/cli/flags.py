"""Flannel's flags and `FLANNELD_*` environment: each is honoured, or refused with the reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from netplane.agent.errors import AgentError
from netplane.agent.settings import Registry, Settings
from netplane.subnet import family

DEFAULTS = Settings()
UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_GO_STYLE = re.compile(r"-[a-z][a-z0-9-]+(=.*)?", re.DOTALL)
"""-name, as Go's flags may be written; our short options have one letter."""

_OFF = {"", "0", "f", "false"}
"""How Go's programs are told that a flag is off."""

NOT_OFFERED: dict[str, str] = {
    "iface-can-reach": "name the interface with --iface",
    "subnet-lease-renew-margin": "leases are renewed long before they end",
    "net-config-path": "the configuration is kept in the registry: netplane ctl init",
    "kube-subnet-mgr": "subnets are kept in etcd or kvstore",
    "kube-api-url": "subnets are kept in etcd or kvstore",
    "kube-annotation-prefix": "subnets are kept in etcd or kvstore",
    "kubeconfig-file": "subnets are kept in etcd or kvstore",
    "set-node-network-unavailable": "subnets are kept in etcd or kvstore",
    "v": "use --log-level",
    "version": "ask `netplane --version`",
    "vmodule": "use --log-level",
}
"""Flannel's other flags. Refused, because ignoring them would lie."""


class Failed(click.ClickException):
    """Ends a command: what was wrong, and what helps on a line of its own."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem)
        self.remedy = remedy

    def show(self, file: Any = None) -> None:
        """Print both to standard error."""
        click.echo(f"Error: {self.message}", err=True)
        if self.remedy:
            click.echo(f"Hint: {self.remedy}", err=True)


def failed(error: AgentError) -> Failed:
    """Say an error of the agent as the command line does."""
    return Failed(error.problem, error.remedy)


def _is_off(arg: str) -> bool:
    """Tell whether an argument says that something is off which is not offered anyway."""
    flag, _, value = arg.partition("=")
    return "=" in arg and flag.lstrip("-") in NOT_OFFERED and value.lower() in _OFF


class Command(click.Command):
    """Takes flags as Go programs do, and explains those of Flannel that are missing."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, as `click.Command` does."""
        args = [f"-{arg}" if _GO_STYLE.fullmatch(arg) else arg for arg in args if not _is_off(arg)]
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            flag = error.option_name.lstrip("-")
            if flag not in NOT_OFFERED:
                raise
            raise click.UsageError(
                f"Flannel's flag --{flag} is not offered; leave it out: {NOT_OFFERED[flag]}", ctx
            ) from error


def check_environment(environment: Mapping[str, str], known: set[str]) -> list[str]:
    """Return a warning for each `FLANNELD_*` variable that means nothing here.

    Raises:
        click.UsageError: A variable sets a flag of Flannel's that is not offered.
    """
    warnings = []
    for name in sorted(environment):
        if not name.startswith("FLANNELD_") or name in known:
            continue
        flag = name.removeprefix("FLANNELD_").lower().replace("_", "-")
        if flag in NOT_OFFERED and environment[name].lower() not in _OFF:
            raise click.UsageError(
                f"{name} in the environment sets Flannel's flag --{flag}, which is not offered; "
                f"unset it: {NOT_OFFERED[flag]}"
            )
        if flag not in NOT_OFFERED:
            warnings.append(f"unknown environment variable {name}")
    return warnings


class Duration(click.ParamType[float]):
    """Seconds, written as 500ms, 10s, 10m or 1h30m."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Read the flag's text."""
        if isinstance(value, float):
            return value
        parts = _PART.findall(value)
        if not parts or "".join(number + unit for number, unit in parts) != value:
            self.fail(f"{value!r} is no duration; write 500ms, 10s, 10m or 1h", param, ctx)
        return sum(float(number) * UNITS_S[unit] for number, unit in parts)


class FolderOrFile(click.Path):
    """A path that is not empty: that would mean where the command happens to run."""

    def __init__(self, *, is_file: bool = False) -> None:
        super().__init__(dir_okay=not is_file, path_type=Path)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Read the flag's text."""
        if not str(value):
            self.fail("it is empty", param, ctx)
        return super().convert(value, param, ctx)


class Address(click.ParamType[family.Address]):
    """An address of either family, or of one of them."""

    name = "address"

    def __init__(self, version: int | None = None) -> None:
        self._version = version

    def convert(self, value: Any, param: Any, ctx: Any) -> family.Address:
        """Read the text."""
        wanted = f"IPv{self._version}" if self._version else "IP"
        try:
            found = family.parse_address(value)
        except ValueError:
            self.fail(f"{value!r} is no {wanted} address", param, ctx)
        if self._version not in (None, found.version):
            self.fail(f"{value!r} is no {wanted} address", param, ctx)
        return found


class Subnet(click.ParamType[family.Subnet]):
    """A subnet of either family, or of one of them: 10.5.72.0/24, fd00:0:0:48::/64."""

    name = "subnet"

    def __init__(self, version: int | None = None) -> None:
        self._version = version

    def convert(self, value: Any, param: Any, ctx: Any) -> family.Subnet:
        """Read the text."""
        example = "fd00:0:0:48::/64" if self._version == family.VERSION6 else "10.5.72.0/24"
        try:
            found = family.parse_subnet(value)
        except ValueError as error:
            self.fail(f"{value!r} is no subnet such as {example}: {error}", param, ctx)
        if self._version not in (None, found.version):
            self.fail(f"{value!r} is no subnet such as {example}", param, ctx)
        return found


def option(*names: str, **settings: Any) -> Callable[[Any], Any]:
    """Make an option with Flannel's environment variable."""
    flag = names[0].removeprefix("--")
    variable = f"FLANNELD_{flag.upper().replace('-', '_')}"
    return click.option(*names, envvar=variable, **settings)


def switch(name: str, *, default: bool, help: str) -> Callable[[Any], Any]:  # noqa: A002
    """Make an option that is written as Go has it: --name, --name=true, --name=false."""
    return option(
        name,
        type=bool,
        is_flag=False,
        flag_value=True,
        default=default,
        show_default=True,
        help=help,
    )


def options(*made: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make one decorator of several, in the order of the help page."""

    def decorate(command: Any) -> Any:
        for each in reversed(made):
            command = each(command)
        return command

    return decorate


registry_options = options(
    option(
        "--etcd-endpoints",
        default=",".join(DEFAULTS.registry.endpoints),
        show_default=True,
        help="Members of kvstore or etcd, with commas between.",
    ),
    option(
        "--etcd-prefix", default=DEFAULTS.registry.prefix, show_default=True, help="Of all keys."
    ),
    option("--etcd-cafile", metavar="FILE", help="Authority of the members (PEM)."),
    option("--etcd-certfile", metavar="FILE", help="Our certificate (PEM)."),
    option("--etcd-keyfile", metavar="FILE", help="Our key (PEM)."),
    option("--etcd-username", metavar="NAME", help="To log in with."),
    option("--etcd-password", metavar="TEXT", help="Its password."),
)

instance_options = options(
    option(
        "--instance",
        default=DEFAULTS.instance,
        show_default=True,
        help="Tells several agents of one host apart.",
    ),
    option(
        "--run-dir",
        type=FolderOrFile(),
        default=DEFAULTS.run_dir,
        show_default=True,
        help="Folder of the agent's socket.",
    ),
)

firewall_options = options(
    switch(
        "--ip-masq",
        default=DEFAULTS.ip_masq,
        help="Give packets that leave the overlay this host's address as their source.",
    ),
    switch(
        "--ip-masq-fully-random-disable",
        default=DEFAULTS.ip_masq_fully_random_disable,
        help="Let masqueraded packets keep their port where that is free.",
    ),
    switch(
        "--ip-blackhole-route",
        default=DEFAULTS.ip_blackhole_route,
        help="End packets to addresses of our subnet that no container has.",
    ),
    switch(
        "--iptables-forward-rules",
        default=DEFAULTS.iptables_forward_rules,
        help="Accept packets of the network in the chain FORWARD of iptables, where there is one.",
    ),
    option(
        "--iptables-resync",
        type=int,
        default=DEFAULTS.iptables_resync,
        metavar="SECONDS",
        help="How often the firewall is read though it told no change; 0: as --heal-interval.",
    ),
)

state_option = option(
    "--state-dir",
    type=FolderOrFile(),
    default=DEFAULTS.state_dir,
    show_default=True,
    help="Folder of what the agent remembers; must outlive reboots, must not be copied to others.",
)

interface_options = options(
    option(
        "--iface",
        multiple=True,
        # A unit's --iface=${IFACE} may be empty, as the variable FLANNELD_IFACE may.
        callback=lambda _ctx, _param, names: tuple(filter(None, names)),
        metavar="NAME|ADDRESS",
        help="Interface to the other hosts; repeated: the first that is there.  "
        "[default: that of the default route]",
    ),
    option("--iface-regex", multiple=True, metavar="PATTERN", help="Tried after --iface."),
)


def registry_of(flags: dict[str, Any]) -> Registry:
    """Take the registry's flags out of a command's; refuse what cannot work."""
    registry = Registry(
        tuple(name.strip() for name in flags.pop("etcd_endpoints").split(",") if name.strip()),
        flags.pop("etcd_prefix").rstrip("/") or "/",
        flags.pop("etcd_cafile") or None,
        flags.pop("etcd_certfile") or None,
        flags.pop("etcd_keyfile") or None,
        flags.pop("etcd_username") or None,
        flags.pop("etcd_password") or None,
    )
    checked(registry)
    return registry


def checked(settings: Registry | Settings) -> None:
    """Refuse settings that cannot work."""
    try:
        settings.check()
    except AgentError as error:
        raise failed(error) from error
