"""Puts the plugin and its configuration where container runtimes look for them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from netplane.cni import plugin

DEFAULT_INSTANCE = "default"
CAPABILITIES = {"portMappings": True, "ips": True, "mac": True}


def plugin_name(instance: str) -> str:
    """Return the name of an instance's plugin: each has one, as it knows its agent's socket."""
    suffix = "" if instance == DEFAULT_INSTANCE else f"-{instance}"
    return f"netplane-cni{suffix}"


def launcher(agent_socket: Path) -> str:
    """Return a plugin that starts as fast as Python can.

    `-I` and `-S` leave out what the environment and installed packages add. The module is
    imported, not copied, so that its compiled form is used and upgrades count. The interpreter is
    not that of a virtual environment: to find out that it is one takes time, and gives nothing.
    """
    interpreter = os.path.realpath(sys.executable)
    folder = str(Path(plugin.__file__).parent.resolve())
    gone = {"cniVersion": plugin.VERSIONS[-1], "code": plugin.IO}
    gone["msg"] = f"netplane is not in {folder} any more: run `netplane ctl install-cni` again"
    return (
        f"#!{interpreter} -IS\n"
        "# Written by `netplane ctl install-cni`.\n"
        "import sys\n"
        f"sys.path.append({folder!r})\n"
        "try:\n"
        "    from plugin import main\n"
        "except ImportError:\n"
        f"    print({json.dumps(gone)!r})\n"
        "    sys.exit(1)\n"
        f"main({str(agent_socket)!r})\n"
    )


def network_config(name: str, instance: str, version: str) -> dict[str, Any]:
    """Return the configuration of a network that has no other plugin."""
    only = {"type": plugin_name(instance), "capabilities": CAPABILITIES}
    return {"cniVersion": version, "name": name, "plugins": [only]}


def plugins_of(path: Path) -> list[str] | None:
    """Return the plugins that a network has, none if it is no network; None: there is no file."""
    try:
        found = json.loads(path.read_text())
        return [each["type"] for each in found["plugins"]]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
