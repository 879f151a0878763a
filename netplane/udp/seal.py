"""Sealed packets: keys for each direction of each pair of processes, and headers. No sockets here.

Header, 20 bytes, all of it authenticated: version (1), epoch (3), key id (8), counter (8). Then the
inner packet encrypted with AES-256-GCM, and its tag (16). Reasons: docs/decisions/0011.
"""

from __future__ import annotations

import secrets
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from netplane.udp.window import Window

VERSION = 1
HEADER = struct.Struct("!I8sQ")
"""Version and epoch in one, key id, counter."""
OVERHEAD_BYTES = HEADER.size + 16
EPOCH_S = 120.0
EPOCH_PACKETS = 1 << 32
"""Far below what AES-GCM allows under one key with counted nonces."""
EPOCHS = 1 << 24
"""More than fit into sixty years."""
EPOCHS_AHEAD = 8
"""Of a sender, each two minutes or a successor later, whose keys are derived once and kept."""
FAR_EVERY_S = 0.5
"""How often an epoch beyond these is tried: after hours without a packet that came through."""
_LABEL = b"netplane-udp 1"
_nonce = struct.Struct("!IQ")


class SealError(Exception):
    """A packet that is not taken; the text is the reason that it is counted under."""


class Identity:
    """The key pair of one process, fresh at each start; only a successor is handed the same."""

    def __init__(self, secret: bytes | None = None) -> None:
        self._key = X25519PrivateKey.from_private_bytes(secret or secrets.token_bytes(32))
        self.public = self._key.public_key().public_bytes_raw()

    @property
    def secret(self) -> bytes:
        """For a successor, and nobody else."""
        return self._key.private_bytes_raw()

    def shared_with(self, public: bytes) -> bytes:
        """Return the secret that only the two have. Raises ValueError for what is no key."""
        return self._key.exchange(X25519PublicKey.from_public_bytes(public))


class _Direction:
    """Keys of packets from one process to the other."""

    def __init__(self, shared: bytes, sender: bytes, receiver: bytes) -> None:
        info = _LABEL + sender + receiver
        self._secret = HKDF(SHA256(), 32, salt=None, info=info).derive(shared)
        self.id = self._derive(b"id")[:8]

    def _derive(self, what: bytes) -> bytes:
        return HKDFExpand(SHA256(), 32, info=what).derive(self._secret)

    def cipher(self, epoch: int) -> AESGCM:
        """Return the cipher of an epoch."""
        return AESGCM(self._derive(b"key" + epoch.to_bytes(4)))


@dataclass(slots=True)
class _Epoch:
    """What was received of one epoch."""

    number: int
    cipher: AESGCM
    window: Window


class Session:
    """What passes between our process and one other.

    A nonce is never used twice: the counter only grows, an epoch that has begun never comes back,
    and both keys are of processes that end. So there may be but one session of a pair of keys: who
    forgets one must not make it again, other than with a first epoch after all that it has had. A
    successor begins with the next epoch.

    Args:
        identity: ours.
        public: the other's key.
        first_epoch: to send in.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        identity: Identity,
        public: bytes,
        *,
        first_epoch: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        shared = identity.shared_with(public)
        self.public = public
        self._out = _Direction(shared, identity.public, public)
        self._in = _Direction(shared, public, identity.public)
        self.incoming_id = self._in.id
        """Of packets to us."""
        self._clock = clock
        self._received: list[_Epoch] = []
        """The newest, and the one before it."""
        self._ahead: dict[int, AESGCM] = {}
        """Ciphers of the next epochs, as soon as a packet has named them."""
        self._far_after_s = 0.0
        self._begin(first_epoch)

    def _begin(self, epoch: int) -> None:
        assert epoch < EPOCHS
        self._epoch = epoch
        self._cipher = self._out.cipher(epoch)
        self._counter = 0
        self._ends_s = self._clock() + EPOCH_S
        self._head = struct.pack("!I8s", VERSION << 24 | epoch, self._out.id)

    def seal(self, packet: bytes | memoryview) -> bytes:
        """Return what is sent for a packet."""
        counter = self._counter
        # The time is asked for seldom, it costs as much as the header.
        if not counter & 63 and (counter >= EPOCH_PACKETS or self._clock() >= self._ends_s):
            self._begin(self._epoch + 1)
            counter = 0
        self._counter = counter + 1
        header = self._head + counter.to_bytes(8)
        return header + self._cipher.encrypt(_nonce.pack(self._epoch, counter), packet, header)

    def open(self, data: memoryview) -> tuple[bytes, bool]:
        """Return a packet that came, and whether it is the newest. Raises SealError."""
        word, _, counter = HEADER.unpack_from(data)
        number = word & (EPOCHS - 1)
        epoch = next((one for one in self._received if one.number == number), None)
        is_next = epoch is None
        if epoch is None:
            if self._received and number < self._received[0].number:
                raise SealError("old-epoch")
            epoch = _Epoch(number, self._cipher_ahead(number), Window())
        elif not epoch.window.is_new(counter):
            raise SealError("replay")
        try:
            packet = epoch.cipher.decrypt(
                _nonce.pack(number, counter), data[HEADER.size :], data[: HEADER.size]
            )
        except InvalidTag as error:
            raise SealError("not-authentic") from error
        if is_next:
            # Only now: anybody can send a header. The one before stays for what is late.
            self._received = [epoch, *self._received[:1]]
            self._ahead = {at: cipher for at, cipher in self._ahead.items() if at > number}
        is_newest = epoch.window.note(counter) and epoch is self._received[0]
        return packet, is_newest

    def _cipher_ahead(self, number: int) -> AESGCM:
        """Return the cipher of an epoch that nothing authentic came of yet.

        Raises SealError. Anybody can send headers, and each key costs ten times what it takes to
        find a packet forged.
        """
        newest = self._received[0].number if self._received else -1
        if number <= newest + EPOCHS_AHEAD:
            cipher = self._ahead.get(number)
            if cipher is None:
                cipher = self._ahead[number] = self._in.cipher(number)
            return cipher
        now_s = self._clock()
        if now_s < self._far_after_s:
            raise SealError("far-epoch")
        self._far_after_s = now_s + FAR_EVERY_S
        return self._in.cipher(number)

    # to a successor

    def told(self) -> dict[str, Any]:
        """Return what a successor has to know, so that no nonce and no packet comes twice."""
        return {
            "public": self.public.hex(),
            "epoch": self._epoch,
            "received": [
                [one.number, one.window.newest, f"{one.window.seen:x}"] for one in self._received
            ],
        }

    @classmethod
    def restored(cls, identity: Identity, told: dict[str, Any]) -> Session:
        """Go on from what the older process told."""
        made = cls(identity, bytes.fromhex(told["public"]), first_epoch=told["epoch"] + 1)
        made._received = [
            _Epoch(number, made._in.cipher(number), Window(newest, int(seen, 16)))
            for number, newest, seen in told["received"]
        ]
        return made
