"""Looks a host's name up so that nobody has to wait for the answer, a program that ends included.

A resolver may keep silent for half a minute. `loop.getaddrinfo` asks it in threads that are waited
for when the loop is closed, and when the interpreter ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from functools import partial
from ipaddress import ip_address


class Name:
    """A name, of which there is one look-up at a time, or an address, which needs none."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._asking: asyncio.Future[list[str]] | None = None
        try:
            ip_address(host)
        except ValueError:
            self._is_address = False
        else:
            self._is_address = True

    @property
    def is_asking(self) -> bool:
        """Whether a look-up goes on."""
        return self._asking is not None

    async def addresses(self) -> list[str]:
        """Return the host's addresses, the preferred one first. Raises OSError."""
        if self._is_address:
            return [self._host]
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_future()
            self._asking.add_done_callback(self._asked)
            threading.Thread(
                target=_look_up,
                args=(self._host, self._asking),
                name=f"look-up of {self._host}",
                daemon=True,
            ).start()
        # Shared, and not begun anew by the next attempt: one that gives up must not end it.
        return await asyncio.shield(self._asking)

    def _asked(self, asking: asyncio.Future[list[str]]) -> None:
        self._asking = None
        asking.exception()  # who asked may be gone


def _look_up(host: str, asking: asyncio.Future[list[str]]) -> None:
    try:
        known = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        settle = partial(asking.set_exception, error)
    except UnicodeError as error:  # no name at all, such as one with a part of 64 characters
        settle = partial(asking.set_exception, OSError(f"{host!r} is no name: {error}"))
    else:
        found = list(dict.fromkeys(str(address[0]) for *_, address in known))
        settle = partial(asking.set_result, found)
    # The loop may be closed by now.
    with contextlib.suppress(RuntimeError):
        asking.get_loop().call_soon_threadsafe(settle)
