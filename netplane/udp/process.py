"""`netplane-udp`: the process between device and network, which outlives the agent that starts it.

One loop that waits for whatever comes: packets, the agent's questions, news of the device.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import select
import socket
import struct
import sys
import time
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Any, NoReturn

from kvstore import __version__
from netplane.udp import tun
from netplane.udp.control import (
    DESCRIPTORS,
    MESSAGE_BYTES_MAX,
    PROTOCOL,
    Config,
    ControlError,
    Hello,
    answer,
    bound_name,
    decode,
    encode,
    make_socket,
)
from netplane.udp.path import DataPath, DeviceGoneError, open_socket
from netplane.udp.peers import Peer, Peers, PeersError
from netplane.udp.sockets import port_text

if TYPE_CHECKING:
    from netplane.udp.sealed import SealedPath

CONNECTIONS_MAX = 16
"""Of agents; there is one, and at most a command beside it. Beyond these the one goes that has
asked nothing for longest, so that connections which nobody uses keep no agent out."""
CONNECT_S = 5.0
LOOK_S = 1.0
"""How often it looks whether agents still find its socket."""
HAND_OVER_S = 5.0
SOL_RAW, ICMP_FILTER = 255, 1
LINK_NEWS = 1
"""RTMGRP_LINK."""
NEWS_BYTES = 1 << 16
NEWS_MAX = 64
"""Before packets have their turn."""


class Process:
    """All that one process has; `run` returns when it was told to end.

    Args:
        config: what it does.
        device: an attached device.
        udp: a bound socket.
        listener: of the agents.
        path: where they find it, absolute.
        version: what it says of itself.
        secret: the key of the older process that this one follows, where packets are sealed.

    Raises:
        ControlError: Packets are to be sealed, and the library for that is not there.
    """

    def __init__(
        self,
        config: Config,
        device: int,
        udp: socket.socket,
        listener: socket.socket,
        path: str,
        *,
        version: str,
        secret: str = "",
    ) -> None:
        subnet = IPv4Network(config.subnet)
        own = int(subnet.netmask), int(subnet.network_address)
        icmp = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        icmp.setblocking(False)
        # It only sends; what comes for it would wait in the kernel, for nobody.
        icmp.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("=I", 0xFFFFFFFF))
        self.sealed: SealedPath | None = None
        """The same as `path`, where packets are sealed."""
        if config.sealed:
            self.sealed = _sealed_path(device, udp, icmp, own, secret)
        self.path = self.sealed or DataPath(device, udp, icmp, own)
        self.restored = 0
        """How often the device was gone, down, or had another name or MTU."""
        self.is_handed_over = False
        """Another process goes on with all."""
        self._config = config
        self._version = version
        self._udp = udp
        self._listener = listener
        self._socket_path = path
        self._look_at_s = 0.0
        self._news = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self._news.bind((0, LINK_NEWS))
        self._agents: dict[int, socket.socket] = {}
        self._is_over = False
        self._poll = select.epoll()
        for number in udp.fileno(), listener.fileno(), self._news.fileno(), device:
            self._poll.register(number, select.EPOLLIN)
        # What happened to it before we listened.
        tun.keep(device, config.device, config.mtu)

    def own_listener(self) -> None:
        """Be who others find behind the socket: the kernel tells them who called listen() last."""
        self._listener.listen(CONNECTIONS_MAX)

    @property
    def is_over(self) -> bool:
        """Whether it was told to end, or another one goes on."""
        return self._is_over

    def run(self) -> None:
        """Move packets and answer until told to end. Raises OSError for a device that is lost."""
        udp, news = self._udp.fileno(), self._news.fileno()
        path = self.path
        while True:
            for number, _ in self._poll.poll(LOOK_S):
                try:
                    if number == path.device:
                        path.from_device()
                    elif number == udp:
                        path.from_network()
                    elif number == self._listener.fileno():
                        self._accept()
                    elif number == news:
                        self._hear()
                    elif number in self._agents:
                        self._serve(number)
                except DeviceGoneError:
                    self._attach_anew()
                if self.is_over:
                    return
            if time.monotonic() >= self._look_at_s:
                self._look_at_s = time.monotonic() + LOOK_S
                self._keep_shown()

    def _keep_shown(self) -> None:
        """Listen anew where our file is gone: who cleans /run may not know that we go on."""
        if os.path.lexists(self._socket_path):
            return
        with contextlib.suppress(OSError):  # its folder is gone as well, until an agent starts
            listener = _listen(self._socket_path)
            _show(self._socket_path)
            self._poll.unregister(self._listener.fileno())
            self._listener.close()
            self._poll.register(listener.fileno(), select.EPOLLIN)
            self._listener = listener

    def _attach_anew(self) -> None:
        """Make the device again; the agent gives it address and routes."""
        os.close(self.path.device)
        self.path.device = tun.attach(self._config.device)
        with contextlib.suppress(OSError):  # gone again: who reads it will see
            tun.keep(self.path.device, self._config.device, self._config.mtu)
        self._poll.register(self.path.device, select.EPOLLIN)
        self.restored += 1

    def _hear(self) -> None:
        # What it says does not matter, nor whether some was lost (ENOBUFS): we look ourselves.
        with contextlib.suppress(OSError):
            for _ in range(NEWS_MAX):
                self._news.recv(NEWS_BYTES)
        # A device that is gone is seen by the one who reads it.
        with contextlib.suppress(OSError):
            self.restored += tun.keep(self.path.device, self._config.device, self._config.mtu)

    def _accept(self) -> None:
        try:
            agent, _ = self._listener.accept()
        except OSError:
            # No more descriptors, of ours (EMFILE) or of the machine's: one is free then.
            if self._agents:
                self._forget(next(iter(self._agents)))
            return
        if len(self._agents) >= CONNECTIONS_MAX:
            self._forget(next(iter(self._agents)))
        agent.setblocking(False)  # an agent that stands still must not hold up packets
        self._agents[agent.fileno()] = agent
        self._poll.register(agent.fileno(), select.EPOLLIN)

    def _serve(self, number: int) -> None:
        agent = self._agents[number] = self._agents.pop(number)  # the last to be forgotten
        try:
            data = agent.recv(MESSAGE_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._forget(number)
            return
        try:
            message = decode(data)
            if message.get("ask") == "hand-over":
                self._is_over = self.is_handed_over = self._hand_over(agent)
                if not self.is_over:
                    self._forget(number)
                return
            told = self._answer(message)
        except (ControlError, PeersError, RecursionError) as error:  # a text of what is deep
            told = {"error": str(error)}
        try:
            agent.send(encode(told))
        except OSError:
            # Gone, or does not read: what it should know it can ask again.
            self._forget(number)

    def _forget(self, number: int) -> None:
        self._poll.unregister(number)
        self._agents.pop(number).close()

    def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
        ask = message.get("ask")
        match ask:
            case "hello":
                return self._hello()
            case "peers":
                return self._set_peers(message)
            case "counters":
                return self._counters()
            case "stop":
                return self._stop(message)
        raise ControlError(f"unknown question {ask!r}")

    def _hello(self) -> dict[str, Any]:
        return {
            "protocol": PROTOCOL,
            "version": self._version,
            "pid": os.getpid(),
            "config": self._config.told(),
            "key": "" if self.sealed is None else self.sealed.identity.public.hex(),
        }

    def _set_peers(self, message: dict[str, Any]) -> dict[str, Any]:
        told = message.get("peers")
        if not isinstance(told, list):
            raise ControlError("no list of peers")
        known = self.path.peers.all if message.get("add") else ()
        # Of one subnet the last counts.
        self.path.set_peers(Peers([*known, *map(Peer.parse, told)]))
        return {"peers": len(self.path.peers.all)}

    def _counters(self) -> dict[str, Any]:
        told = self.path.counters()
        return {**told, "peers": len(self.path.peers.all), "restored": self.restored}

    def _hand_over(self, successor: socket.socket) -> bool:
        """Let another process go on; False: it has not taken over, and we do.

        Nothing is moved here until it has said which, and nothing there before. Packets wait.
        """
        try:
            with open(os.memfd_create("netplane-udp"), "w+b", buffering=0) as file:
                file.write(encode(self._all()))
                file.seek(0)
                successor.settimeout(HAND_OVER_S)
                given = [self.path.device, self._udp.fileno(), file.fileno()]
                socket.send_fds(successor, [encode({})], given)
                if decode(successor.recv(MESSAGE_BYTES_MAX)).get("ask") != "taken":
                    return False
                successor.send(encode({}))
        except (OSError, ControlError):
            return False
        return True

    def _all(self) -> dict[str, Any]:
        sealed = self.sealed
        return {
            "secret": "" if sealed is None else sealed.identity.secret.hex(),
            "sessions": [] if sealed is None else sealed.sessions(),
            "first_epoch": 0 if sealed is None else sealed.first_epoch,
            "peers": [peer.told() for peer in self.path.peers.all],
            "counters": self.path.counters(),
            "restored": self.restored,
        }

    def _stop(self, message: dict[str, Any]) -> dict[str, Any]:
        self._is_over = True
        # Before others hear of it: they may start another process at once.
        if message.get("remove"):
            tun.remove(self.path.device)
        else:
            os.close(self.path.device)
        return {}


def begin(config: Config, path: str, *, version: str) -> Process:
    """Return a process with a device and a socket of its own. Raises OSError, ControlError."""
    with make_socket() as other:
        other.settimeout(CONNECT_S)
        try:
            other.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            pass
        else:
            raise ControlError(f"there is one already, which listens at {path}")
    try:
        udp = open_socket(config.address, config.port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise ControlError(
            f"UDP port {config.port} of {config.address}: {error.strerror};"
            f" {port_text(config.address, config.port)}"
        ) from error
    listener = _listen(path)
    made = Process(config, tun.attach(config.device), udp, listener, path, version=version)
    _show(path)
    return made


def take_over(config: Config, path: str, *, version: str) -> Process:
    """Return a process that goes on with what an older one has, which ends.

    Nothing is lost: until one of the two reads them, packets wait in the device and the socket. Of
    another address this one has a socket of its own.

    Raises:
        OSError, ControlError: The older one is not there, or cannot; it goes on then.
    """
    with make_socket() as older:
        older.settimeout(HAND_OVER_S)
        older.connect(path)
        older.send(encode({"ask": "hello"}))
        theirs = Hello.parse(answer(older.recv(MESSAGE_BYTES_MAX))).config
        if not config.follows(theirs):
            raise ControlError("it has another configuration")
        if config.sealed:
            _load_sealing()  # it takes longer than all that packets wait for from here on
        older.send(encode({"ask": "hand-over"}))
        data, numbers, _, _ = socket.recv_fds(older, MESSAGE_BYTES_MAX, DESCRIPTORS)
        answer(data)
        device, number, file = numbers
        with open(file, "rb") as state:
            told = decode(state.read())
        udp = socket.socket(fileno=number)
        udp.setblocking(False)
        if config.address != theirs.address:
            udp.close()
            udp = open_socket(config.address, config.port)
        listener = _listen(path)
        made = Process(config, device, udp, listener, path, version=version, secret=told["secret"])
        if made.sealed is not None:
            made.sealed.restore(told["sessions"], told.get("first_epoch", 0))
        made.path.set_peers(Peers(map(Peer.parse, told["peers"])))
        made.path.count_from(told["counters"])
        made.restored += told["restored"]
        # Up to here it goes on if we end, whatever that is by. Its answer is awaited for as long as
        # it lives: else both could believe that the other one goes on.
        older.settimeout(None)
        older.send(encode({"ask": "taken"}))
        answer(older.recv(MESSAGE_BYTES_MAX))
        _show(path)
        # It ends by itself; its end of the socket closes last.
        older.recv(1)
    return made


def _sealed_path(
    device: int, udp: socket.socket, icmp: socket.socket, own: tuple[int, int], secret: str
) -> SealedPath:
    _load_sealing()
    from netplane.udp.seal import Identity  # noqa: PLC0415  (as below)
    from netplane.udp.sealed import SealedPath  # noqa: PLC0415  (as below)

    return SealedPath(device, udp, icmp, own, Identity(bytes.fromhex(secret)))


def _load_sealing() -> None:
    """Import what seals packets, with a library that few need. Raises ControlError."""
    try:
        import netplane.udp.sealed  # noqa: F401, PLC0415
    except ImportError as error:
        raise ControlError(f"sealed packets need the package cryptography ({error})") from error


def _listen(path: str) -> socket.socket:
    """Listen where nobody looks yet; see `_show`."""
    listener = make_socket()
    new = bound_name(path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    listener.bind(new)
    os.chmod(new, 0o600)
    listener.listen(CONNECTIONS_MAX)
    return listener


def _show(path: str) -> None:
    os.rename(bound_name(path), path)


def main() -> None:
    """Start from the command line: return when packets move, and leave a process behind."""
    if not __debug__:
        sys.exit("python -O removes checks; run netplane-udp without -O")
    parser = argparse.ArgumentParser(prog="netplane-udp", description=__doc__)
    parser.add_argument("--socket", required=True, help="where the agent finds it")
    parser.add_argument("--device", required=True, help="name of the TUN device")
    parser.add_argument("--mtu", type=int, required=True, help="of the device")
    parser.add_argument("--address", required=True, help="of this host, to send from")
    parser.add_argument("--port", type=int, required=True, help="of UDP")
    parser.add_argument("--subnet", required=True, help="of this host's containers")
    parser.add_argument("--sealed", action="store_true", help="encrypt between hosts")
    parser.add_argument("--take-over", action="store_true", help="from one that runs")
    parser.add_argument("--foreground", action="store_true", help="do not leave, run")
    given = parser.parse_args()
    config = Config(
        given.device, given.mtu, str(IPv4Address(given.address)), given.port,
        str(IPv4Network(given.subnet)), given.sealed,
    )  # fmt: skip
    path = os.path.abspath(given.socket)
    try:
        made = (take_over if given.take_over else begin)(config, path, version=__version__)
    except (OSError, ControlError) as error:
        sys.exit(f"netplane-udp: {error}")
    if not given.foreground:
        _leave_parent(f"{path}.log", made)
    made.run()
    if not made.is_handed_over:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _leave_parent(log: str, made: Process) -> None:
    """Go on in a child with a session of its own; the parent ends well, which says: it works."""
    if os.fork():
        _end_now()
    os.setsid()
    made.own_listener()
    os.chdir("/")
    # The parent's caller reads all three to their ends, and may end before us.
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number, target in enumerate((nowhere, nowhere, said)):
        os.dup2(target, number)
    os.close(said)
    os.close(nowhere)


def _end_now() -> NoReturn:
    # Without what else Python does at an end: the child has it all, too.
    os._exit(0)


if __name__ == "__main__":
    main()
