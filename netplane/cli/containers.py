"""`netplane ctl install-cni`: puts plugin and configuration where container runtimes look."""

from __future__ import annotations

import json
from pathlib import Path

import click

from netplane.agent.errors import AgentError
from netplane.agent.files import write_whole
from netplane.agent.settings import check_instance, cni_socket_path
from netplane.cli.flags import Command, Failed, failed, instance_options
from netplane.cni.install import launcher, network_config, plugin_name, plugins_of
from netplane.cni.plugin import VERSIONS, is_name


@click.command("install-cni", cls=Command)
@click.option(
    "--bin-dir",
    type=click.Path(path_type=Path),
    default=Path("/opt/cni/bin"),
    show_default=True,
    help="Folder of the runtime's plugins.",
)
@click.option(
    "--conf-dir",
    type=click.Path(path_type=Path),
    default=Path("/etc/cni/net.d"),
    show_default=True,
    help="Folder of the runtime's networks.",
)
@click.option(
    "--name", default="", help="Of the network.  [default: netplane, and the instance behind it]"
)
@click.option(
    "--cni-version",
    type=click.Choice(VERSIONS),
    default="1.0.0",
    show_default=True,
    help="Of the configuration; GC and STATUS need 1.1.0.",
)
@instance_options
def install_cni(
    bin_dir: Path, conf_dir: Path, name: str, cni_version: str, run_dir: Path, instance: str
) -> None:
    """Install the CNI plugin of this host's agent, and a network that uses it.

    Both are written again by the next call. A network of another plugin is left alone, and so is
    one where you have put other plugins behind this one.
    """
    try:
        check_instance(instance)
    except AgentError as error:
        raise failed(error) from error
    name = name or ("netplane" if instance == "default" else f"netplane-{instance}")
    if not is_name(name):
        raise Failed(
            f"{name!r} is no name of a network", "letters, digits, '_', '.' and '-' are meant"
        )
    program = bin_dir.absolute() / plugin_name(instance)
    config = conf_dir.absolute() / f"10-{name}.conflist"
    text = json.dumps(network_config(name, instance, cni_version), indent=2) + "\n"
    try:
        there = plugins_of(config)
        if there is not None and program.name not in there:
            raise Failed(f"{config} is of another plugin", "remove it, or choose another --name")
        socket = cni_socket_path(run_dir.absolute(), instance)
        # The plugin first: a network without one fails for every container.
        write_whole(program, launcher(socket), mode=0o755)
        is_kept = there is not None and there != [program.name]
        if not is_kept:
            write_whole(config, text)
    except OSError as error:
        raise Failed(
            f"cannot write {error.filename or program}: {error.strerror}",
            "run this as root, or choose other folders",
        ) from error
    kept = f", left as it is: it has {', '.join(there)}" if there and is_kept else ""
    click.echo(f"plugin  {program}\nnetwork {config}{kept}")
