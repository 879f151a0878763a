"""`netplane ctl`: commands that ask the registry, from wherever it can be reached."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from typing import Any, TypeVar

import click

from netplane.agent.errors import AgentError
from netplane.agent.settings import Registry
from netplane.agent.wiring import check_backend, make_client
from netplane.backend import choose
from netplane.cli.ctl import output_option
from netplane.cli.flags import (
    Address,
    Command,
    Failed,
    Subnet,
    failed,
    registry_of,
    registry_options,
)
from netplane.cli.tables import (
    both_families,
    unnamed_backend,
    write_json,
    write_some,
    write_table,
)
from netplane.subnet import family
from netplane.subnet.admin import init_network
from netplane.subnet.admin import release as release_subnet
from netplane.subnet.admin import reserve as reserve_subnet
from netplane.subnet.config import read_config, strange_fields
from netplane.subnet.errors import SubnetError
from netplane.subnet.etcd import EtcdRegistry
from netplane.subnet.family import by_address
from netplane.subnet.jsontext import FormatError, text_of
from netplane.subnet.lease import Lease
from netplane.subnet.records import HostRecord, Layout, Registered
from netplane.subnet.registry import RegistryError

Result = TypeVar("Result")


@click.command(cls=Command)
@registry_options
@click.argument("config", required=False, metavar="[JSON|@FILE]")
@click.option("--network", metavar="CIDR", help="Instead of JSON: a backend over this network.")
@click.option("--ipv6-network", metavar="CIDR", help="The same for IPv6; may be both.")
@click.option(
    "--backend",
    metavar=f"[{'|'.join(choose.OFFERED)}]",
    help="With these: how packets travel between hosts.  [default: vxlan]",
)
@click.option(
    "--force", is_flag=True, help="Also if running hosts would be cut off, or no agent can use it."
)
def init(
    config: str | None,
    network: str | None,
    ipv6_network: str | None,
    backend: str | None,
    force: bool,
    **flags: Any,
) -> None:
    """Write the network's configuration into the registry, where there is none.

    CONFIG is Flannel's, such as {"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}.
    """
    is_json = network is None and ipv6_network is None
    if (config is None) == is_json:
        raise click.UsageError("give the configuration as JSON, as @FILE, or --network CIDR")
    if backend is not None and is_json:
        raise click.UsageError("--backend goes with --network; in JSON it is Backend.Type")
    if not is_json:
        value = _configuration(network, ipv6_network, backend or "vxlan")
    elif config is not None and config.startswith("@"):
        try:
            value = Path(config[1:]).read_bytes().strip()
        except OSError as error:
            raise Failed(f"cannot read {config[1:]}: {error.strerror}") from error
    else:
        value = (config or "").encode()
    try:
        wanted = read_config(value)
        if not force:
            # Flannel may serve more than our agents do, and its hosts and ours can share a network.
            check_backend(wanted)
    except FormatError as error:
        raise Failed(f"no host can use this configuration: {error}") from error
    except AgentError as error:
        raise Failed(error.problem, "--force writes it for Flannel") from error
    written = _run(
        flags, lambda registry, layout: init_network(registry, layout, value, force=force)
    )
    click.echo(f"configuration {written.value}: {value.decode()}")
    for name in strange_fields(value):
        # Else a network has other subnets than were meant, and nobody is told.
        click.echo(f"Note: the field {name!r} means nothing to netplane; is it misspelt?", err=True)


def _configuration(network: str | None, ipv6_network: str | None, backend: str) -> bytes:
    fields: dict[str, object] = {}
    if network is None:
        fields["EnableIPv4"] = False
    else:
        fields["Network"] = network
    if ipv6_network is not None:
        fields |= {"EnableIPv6": True, "IPv6Network": ipv6_network}
    return text_of(fields | {"Backend": {"Type": backend}})


@click.command(cls=Command)
@registry_options
@output_option
def hosts(write_out: str, **flags: Any) -> None:
    """Show the hosts, and which of them live."""
    registered = _run(flags, _listed)
    rows = [
        {
            "host": host.host_id,
            **_both(host),
            "alive": host.host_id in registered.alive,
            "session": host.session,
            "boot": host.boot_id,
        }
        for host in sorted(registered.hosts.values(), key=lambda host: by_address(host.subnet))
    ]
    if write_out == "json":
        write_json(rows)
        return
    write_table(
        ("HOST", "SUBNET", "PUBLIC IP", "AGENT"),
        [
            (
                str(row["host"]),
                both_families(row, "subnet"),
                both_families(row, "public_ip"),
                "runs" if row["alive"] else "silent",
            )
            for row in rows
        ],
    )


@click.command(cls=Command)
@registry_options
@output_option
def leases(write_out: str, **flags: Any) -> None:
    """Show who has which subnet, and what is of no use."""
    registered = _run(flags, _listed)
    rows = []
    for lease in sorted(registered.leases.values(), key=lambda lease: by_address(lease.subnet)):
        host = registered.holder(lease.pair)
        rows.append(
            {
                **_both(lease),
                "backend": lease.backend_type,
                "data": lease.backend_data,
                **({} if lease.subnet6 is None else {"data6": lease.backend_data6}),
                "reserved": not lease.expires,
                "host": host.host_id if host is not None else "",
                "revision": lease.mod_revision,
            }
        )
    junk = {key.decode(errors="backslashreplace"): text for key, text in registered.junk.items()}
    if write_out == "json":
        write_json({"leases": rows, "junk": junk})
        return
    config = registered.kvs.get(registered.layout.config)
    unnamed = unnamed_backend(b"" if config is None else config.value)
    write_table(
        ("SUBNET", "PUBLIC IP", "BACKEND", "KIND", "HOST"),
        [
            (
                both_families(row, "subnet"),
                both_families(row, "public_ip"),
                str(row["backend"] or unnamed),
                "reservation" if row["reserved"] else "lease",
                str(row["host"] or "no record (Flannel's?)"),
            )
            for row in rows
        ],
    )
    write_some(f"of no use: {key}: {text}" for key, text in junk.items())


def _both(one: HostRecord | Lease) -> dict[str, object]:
    shown: dict[str, object] = {"subnet": str(one.subnet), "public_ip": str(one.public_ip)}
    if one.subnet6 is not None:
        shown |= {"subnet6": str(one.subnet6), "public_ip6": str(one.public_ip6)}
    return shown


@click.command(cls=Command)
@registry_options
@click.argument("subnet", type=Subnet())
@click.argument("public_ip", type=Address())
@click.option("--ipv6-subnet", type=Subnet(6), help="In a network of both families.")
@click.option("--public-ipv6", type=Address(6), help="In a network of both families.")
def reserve(
    subnet: family.Subnet,
    public_ip: family.Address,
    ipv6_subnet: IPv6Network | None,
    public_ipv6: IPv6Address | None,
    **flags: Any,
) -> None:
    """Keep SUBNET for the host with PUBLIC_IP, also while it does not run."""
    pair = family.Pair(subnet, ipv6_subnet)
    is_flannels = _run(
        flags,
        lambda registry, layout: reserve_subnet(registry, layout, pair, public_ip, public_ipv6),
    )
    click.echo(f"{pair} is kept for {public_ip}")
    if is_flannels:
        click.echo(
            f"Warning: {public_ip} has it by a lease of Flannel, and flanneld writes one of 24 h"
            " over the reservation of its host: it does not last while flanneld runs there\n"
            "Hint: start an agent there instead, with --adopt-flannel, and repeat this",
            err=True,
        )


@click.command(cls=Command)
@registry_options
@click.argument("subnet", type=Subnet())
def release(subnet: family.Subnet, **flags: Any) -> None:
    """Give SUBNET of a host that does not run to others, and what it has of the other family."""
    _run(flags, lambda registry, layout: release_subnet(registry, layout, subnet))
    click.echo(f"{subnet} is free")


async def _listed(registry: EtcdRegistry, layout: Layout) -> Registered:
    registered = Registered(layout)
    registered.load(await registry.list(layout.everything))
    return registered


def _run(
    flags: dict[str, Any], work: Callable[[EtcdRegistry, Layout], Awaitable[Result]]
) -> Result:
    settings = registry_of(flags)

    async def main(settings: Registry) -> Result:
        async with make_client(settings) as client:
            return await work(EtcdRegistry(client), Layout(settings.prefix))

    try:
        return asyncio.run(main(settings))
    except AgentError as error:
        raise failed(error) from error
    except SubnetError as error:
        raise Failed(str(error)) from error
    except RegistryError as error:
        raise Failed(str(error), f"endpoints: {', '.join(settings.endpoints)}") from error
