"""`netplane agent`: flags to settings, signals, exit codes."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from netplane.agent.errors import AgentError
from netplane.agent.settings import Settings
from netplane.cli.flags import (
    DEFAULTS,
    Address,
    Command,
    Duration,
    Failed,
    FolderOrFile,
    check_environment,
    checked,
    failed,
    firewall_options,
    instance_options,
    interface_options,
    option,
    registry_of,
    registry_options,
    state_option,
)
from netplane.cli.logs import LEVELS, set_up

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger("netplane")


@click.command(
    cls=Command, epilog="Every flag can be set as FLANNELD_FLAG_NAME in the environment."
)
@registry_options
@interface_options
@option(
    "--public-ip",
    type=Address(4),
    help="What other hosts reach us by, such as the outside of a NAT.  [default: the "
    "interface's address]",
)
@option("--public-ipv6", type=Address(6), help="The same of IPv6, in networks that have it.")
@option(
    "--subnet-file",
    type=FolderOrFile(is_file=True),
    default=DEFAULTS.subnet_file,
    show_default=True,
    help="Where CNI plugins and Docker read our subnet.",
)
@option(
    "--healthz-ip", default=DEFAULTS.healthz_ip, show_default=True, help="Where health is served."
)
@option(
    "--healthz-port",
    type=int,
    default=DEFAULTS.healthz_port,
    show_default=True,
    help="Of /healthz, /readyz and /metrics; 0 is off.",
)
@option(
    "--adopt-flannel",
    is_flag=True,
    help="Take over device, MAC and routes of a Flannel that ran here; stop flanneld first.",
)
@firewall_options
@option("--host-id", default="", help="Who we are in the registry.  [default: /etc/machine-id]")
@instance_options
@state_option
@option(
    "--removal-grace",
    type=Duration(),
    default=DEFAULTS.removal_grace_s,
    help="How long peers stay after a registry that lost its memory.  [default: 10m]",
)
@option(
    "--heal-interval",
    type=Duration(),
    default=DEFAULTS.heal_interval_s,
    help="How often the kernel is read though it told no change.  [default: 10s]",
)
@option("--log-level", type=click.Choice(list(LEVELS)), default="info", show_default=True)
@click.pass_context
def agent(ctx: click.Context, /, log_level: str, **flags: Any) -> None:
    """Run the agent of this host in the foreground, as root.

    It leases a subnet, programs the routes to the other hosts' and keeps them. Ended by whatever
    signal it leaves all of that in place; `netplane ctl drain` takes it back.
    """
    known = {str(parameter.envvar) for parameter in ctx.command.params if parameter.envvar}
    set_up(log_level)
    for warning in check_environment(os.environ, known):
        log.warning(warning)
    settings = settings_of(flags)
    ctx.exit(run(settings))


def settings_of(flags: dict[str, Any]) -> Settings:
    """Turn the flags into settings; refuse what cannot work."""
    settings = Settings(
        registry=registry_of(flags),
        removal_grace_s=flags.pop("removal_grace"),
        heal_interval_s=flags.pop("heal_interval"),
        **flags,
    )
    # Processes of one host may be started in different folders.
    settings = replace(
        settings,
        state_dir=settings.state_dir.absolute(),
        run_dir=settings.run_dir.absolute(),
        subnet_file=settings.subnet_file.absolute(),
    )
    checked(settings)
    if settings.instance != DEFAULTS.instance and settings.subnet_file == DEFAULTS.subnet_file:
        raise Failed(
            f"--instance {settings.instance} would write over another's {settings.subnet_file}",
            "give it a --subnet-file of its own",
        )
    return settings


def run(settings: Settings) -> int:
    """Run an agent until SIGINT or SIGTERM; return the exit code."""
    if os.geteuid() != 0:
        raise Failed(
            "the agent writes routes, so it needs root",
            "run it as root; `netplane ctl hosts` and `netplane ctl leases` look at the registry"
            " without",
        )
    from netplane.agent.memory import hold, settle

    hold()
    import asyncio

    from netplane.agent.agent import Agent
    from netplane.agent.containers.serving import serving_host
    from netplane.agent.wiring import RealParts

    async def serve() -> None:
        agent = Agent(settings, RealParts())
        settle()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, agent.stop)
        await agent.run(serving_host(agent))

    try:
        with asyncio.Runner(loop_factory=_fast_loop()) as runner:
            runner.run(serve())
    except AgentError as error:
        raise failed(error) from error
    return 0


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop where it is installed: a fifth less CPU for a lease that changes."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
