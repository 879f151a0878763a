"""The CNI plugin: a thin client of this host's agent, in one file, with the standard library only.

A runtime starts it for every container and verb. What it does not need to pass a call on is
imported late: the configuration goes to the agent as it came, unread.

A call is a line `netplane-cni 1 VARIABLES CONFIG` with the sizes of what follows: `NAME=VALUE`
pairs with zero bytes between, and the configuration. A descriptor of the container's namespace
comes with it. The answer is a line `EXIT SIZE`, and what is to be printed.
"""

from __future__ import annotations

# What `socket` is made of: that module, and what it imports, take as long as all the rest.
import _socket as socket
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
MAGIC = b"netplane-cni 1"
CONFIG_BYTES_MAX = 16 * 1024 * 1024
"""GC lists every attachment of a host."""
DEFAULT_SOCKET = "/run/netplane/default.cni"

# The specification's codes; from 100 on they are ours.
INCOMPATIBLE, UNSUPPORTED, UNKNOWN, ENVIRONMENT, IO, DECODING, CONFIG = range(1, 8)
TRY_LATER, NOT_AVAILABLE, LIMITED = 11, 50, 51
KERNEL, IN_USE, EXHAUSTED, DIFFERS = 100, 101, 102, 103

REQUIRED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"),
    "GC": ("CNI_PATH",),
    "STATUS": ("CNI_PATH",),
    "VERSION": (),
}
"""What each verb needs in the environment, as the specification's own skeleton has it."""

SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
"""The first version of the specification that has a verb."""

TIMEOUT_S = 30
ABOUT = "netplane-cni, a CNI plugin; protocol versions supported: " + ", ".join(VERSIONS) + "\n"

LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
NAME = LETTERS | frozenset("_.-")
IFNAME_MAX = 15


def main(agent_socket: str = DEFAULT_SOCKET) -> None:
    """Answer the call that the environment and standard input make, and end the process."""
    command = os.environ.get("CNI_COMMAND", "")
    if not command:
        sys.stderr.write(ABOUT)
        sys.exit(0)
    config = b"".join(iter(lambda: os.read(0, 65536), b""))
    status, text = answer(command, os.environ, config, agent_socket)
    sent = 0
    while sent < len(text):
        sent += os.write(1, text[sent:])
    sys.exit(status)


def answer(
    command: str, environment: Mapping[str, str], config: bytes, agent_socket: str
) -> tuple[int, bytes]:
    """Return the exit code of a call, and what is to be printed."""
    problem = environment_problem(command, environment)
    if problem:
        return failure(config, ENVIRONMENT, *problem)
    if command == "VERSION":
        return 0, _versions(config)
    if len(config) > CONFIG_BYTES_MAX:
        text = f"{len(config)} bytes; at most {CONFIG_BYTES_MAX} are passed on"
        return failure(config, DECODING, "the configuration is too large", text)
    namespace = -1
    try:
        if environment.get("CNI_NETNS"):
            try:
                namespace = os.open(environment["CNI_NETNS"], os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                # A container that is gone is to be deleted all the same.
                if command != "DEL":
                    details = error.strerror or ""
                    problem = (f"cannot open the namespace {environment['CNI_NETNS']}", details)
                    return failure(config, ENVIRONMENT, *problem)
        if namespace >= 0 and _is_own(namespace) and not environment.get("CNI_NETNS_OVERRIDE"):
            return failure(
                config, ENVIRONMENT, f"the namespace {environment['CNI_NETNS']} is the host's own"
            )
        try:
            return _ask(agent_socket, environment, config, namespace)
        except OSError as error:
            return _without_agent(command, environment, config, agent_socket, error)
    finally:
        if namespace >= 0:
            os.close(namespace)


def environment_problem(command: str, environment: Mapping[str, str]) -> tuple[str, str] | None:
    """Say what is wrong with the environment of a call, in short and in detail."""
    if command not in REQUIRED:
        return "unknown CNI_COMMAND", f"{command!r}; known are {', '.join(REQUIRED)}"
    required = REQUIRED[command]
    missing = [name for name in required if not environment.get(name)]
    if missing:
        return f"required variables are missing for {command}", ", ".join(missing)
    if "CNI_CONTAINERID" in required and not is_name(environment["CNI_CONTAINERID"]):
        text = f"{environment['CNI_CONTAINERID']!r}: letters, digits, '_', '.' and '-' are meant"
        return "CNI_CONTAINERID is no container's id", text
    if "CNI_IFNAME" in required:
        name = environment["CNI_IFNAME"]
        if (
            len(name.encode(errors="surrogateescape")) > IFNAME_MAX
            or name in {".", ".."}
            or any(letter in "/:" or letter.isspace() for letter in name)
        ):
            return "CNI_IFNAME is no interface's name", f"{name!r}: up to {IFNAME_MAX} characters"
    return None


def is_name(text: str) -> bool:
    """Tell whether a text may be the id of a container or the name of a network."""
    return bool(text) and text[0] in LETTERS and NAME.issuperset(text)


def failure(config: bytes, code: int, message: str, details: str = "") -> tuple[int, bytes]:
    """Return exit code and text of a call that failed."""
    import json  # noqa: PLC0415 (most calls succeed)

    found = _decoded(config).get("cniVersion")
    content = {
        "cniVersion": found if found in VERSIONS else VERSIONS[-1],
        "code": code,
        "msg": message,
    }
    if details:
        content["details"] = details
    return 1, json.dumps(content, indent=2).encode() + b"\n"


def _versions(config: bytes) -> bytes:
    import json  # noqa: PLC0415

    found = _decoded(config).get("cniVersion") or VERSIONS[-1]
    content = {"cniVersion": found, "supportedVersions": VERSIONS}
    return json.dumps(content).encode() + b"\n"


def _decoded(config: bytes) -> dict[str, object]:
    import json  # noqa: PLC0415

    try:
        found = json.loads(config)
    except (ValueError, RecursionError):  # the latter: nested too deep
        return {}  # who reads it for more than its version says what is wrong with it
    return found if isinstance(found, dict) else {}


def _is_own(namespace: int) -> bool:
    there, here = os.fstat(namespace), os.stat("/proc/self/ns/net")
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _ask(
    agent_socket: str, environment: Mapping[str, str], config: bytes, namespace: int
) -> tuple[int, bytes]:
    pairs = [f"{name}={text}" for name, text in environment.items() if name.startswith("CNI_")]
    variables = "\0".join(pairs).encode(errors="surrogateescape")
    call = b"%s %d %d\n%s%s" % (MAGIC, len(variables), len(config), variables, config)
    rights = []
    if namespace >= 0:
        number = namespace.to_bytes(4, sys.byteorder)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, number)]
    agent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Not `settimeout`: then an agent with many calls before this one would refuse it at once.
        limit = TIMEOUT_S.to_bytes(8, sys.byteorder) + bytes(8)
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            agent.setsockopt(socket.SOL_SOCKET, option, limit)
        agent.connect(agent_socket)
        sent = agent.sendmsg([call], rights)
        if sent < len(call):
            # Not of nothing: who was answered by now may be gone.
            agent.sendall(call[sent:])
        said = b"".join(iter(lambda: agent.recv(65536), b""))
    finally:
        agent.close()
    head, _, text = said.partition(b"\n")
    words = head.split()
    if len(words) != 2 or words[1] != b"%d" % len(text):
        raise ConnectionError("it went away before it had answered")
    return int(words[0]), text


def _without_agent(
    command: str,
    environment: Mapping[str, str],
    config: bytes,
    agent_socket: str,
    error: OSError,
) -> tuple[int, bytes]:
    if command == "DEL":
        return _bury(environment, config, agent_socket)
    code = NOT_AVAILABLE if command == "STATUS" else TRY_LATER
    late = f"no answer within {TIMEOUT_S} s" if isinstance(error, BlockingIOError) else ""
    details = f"{agent_socket}: {late or error.strerror or error}; start it with `netplane agent`"
    return failure(config, code, "the agent of this host does not answer", details)


def _bury(environment: Mapping[str, str], config: bytes, agent_socket: str) -> tuple[int, bytes]:
    """Leave word for the agent: a container that goes must not have to wait for it."""
    import hashlib  # noqa: PLC0415
    import json  # noqa: PLC0415

    name = _decoded(config).get("name")
    if not isinstance(name, str) or not is_name(name):
        return failure(config, CONFIG, "the configuration has no usable name", f"{name!r}")
    content = {
        "network": name,
        "container": environment["CNI_CONTAINERID"],
        "ifname": environment["CNI_IFNAME"],
    }
    text = json.dumps(content).encode()
    folder = tombstones(agent_socket)
    path = f"{folder}/{hashlib.sha256(text).hexdigest()}"
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        # No fsync: a power cut ends the container as well.
        with open(f"{path}.new", "wb") as file:
            file.write(text)
        os.replace(f"{path}.new", path)
    except OSError as error:
        return failure(
            config, IO, "the agent does not answer, and no word can be left for it", str(error)
        )
    return 0, b""


def tombstones(agent_socket: str) -> str:
    """Return the folder where calls of DEL wait that came when there was no agent."""
    return f"{agent_socket}.deleted"


if __name__ == "__main__":
    main()
