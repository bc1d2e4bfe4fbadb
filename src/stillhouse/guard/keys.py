"""The owner's secret and what is made of it. It lives in a file or in the environment, and nowhere
else: the registry has a commitment to it, and a public key.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from functools import cached_property
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from stillhouse.core.errors import UsageError
from stillhouse.core.private import is_open, write_new
from stillhouse.core.rundir import writes

SECRET = "STILLHOUSE_GUARD_KEY"
SIZE = 32  # bytes
COMMITMENT = b"stillhouse commitment"


class Keys:
    """One secret, a key of its own for every purpose. Nothing that is printed of it tells it."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != SIZE:
            raise UsageError(f"a guard's key has {SIZE} bytes, this one {len(secret)}")
        self._secret = secret

    def __repr__(self) -> str:
        return f"Keys({self.id})"

    def of(self, purpose: str) -> bytes:
        """The key for one purpose: HMAC-like, by keyed BLAKE2b of its name."""
        return hashlib.blake2b(purpose.encode(), key=self._secret, digest_size=SIZE).digest()

    @cached_property
    def marking(self) -> bytes:
        """What marks are drawn with; shown to whoever checks a verdict."""
        return self.of("marks")

    @cached_property
    def commitment(self) -> str:
        """What binds the owner to the marking key before anybody is suspected."""
        return commitment_to(self.marking)

    @property
    def id(self) -> str:
        return self.commitment[:12]

    def query(self, client: str, content: str) -> bytes:
        """What a log calls a query, 16 bytes: without the key nobody can tell which it was."""
        name = len(client.encode()).to_bytes(4, "big") + client.encode()
        return hashlib.blake2b(name + content.encode(), key=self.of("log"), digest_size=16).digest()

    @cached_property
    def _signing(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.of("signatures"))

    @property
    def public(self) -> str:
        """The key that signatures are checked with, in hex."""
        held = self._signing.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return held.hex()

    def sign(self, message: bytes) -> str:
        """Ed25519, in hex."""
        return self._signing.sign(message).hex()


def commitment_to(marking: bytes) -> str:
    """SHA-256 of a marking key, in hex."""
    return hashlib.sha256(COMMITMENT + marking).hexdigest()


def is_signed(message: bytes, signature: str, public: str) -> bool:
    """Whether the owner of `public` signed the message."""
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        key.verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def new_keys(path: str | Path) -> Keys:
    """Fresh keys in a file that only its owner can read. Raises UsageError if it exists."""
    path, secret = Path(path), secrets.token_bytes(SIZE)
    with writes(path, asked=True):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            write_new(path, secret.hex() + "\n")
        except FileExistsError:
            raise UsageError(
                f"{path} exists: marks made with it could not be proved without it"
            ) from None
    return Keys(secret)


def read_keys(path: str | Path | None) -> Keys:
    """The keys in a file, or in $STILLHOUSE_GUARD_KEY. Raises UsageError."""
    if path is None:
        held, where = os.environ.get(SECRET), f"${SECRET}"
        if not held:
            raise UsageError(
                f"give --key FILE, or its content in ${SECRET} (stillhouse guard keys)"
            )
    else:
        where = str(path)
        try:
            with Path(path).open(encoding="ascii") as file:
                if is_open(os.fstat(file.fileno()).st_mode):
                    raise UsageError(
                        f"{path} can be read by others, who could then prove marks as yours: "
                        f"chmod 600 {path}"
                    )
                held = file.read()
        except FileNotFoundError:
            raise UsageError(
                f"there is no key {path}: make one with stillhouse guard keys"
            ) from None
        except ValueError:
            raise UsageError(f"{path} is no guard's key") from None
    try:
        secret = bytes.fromhex(held.strip())
    except ValueError:
        raise UsageError(f"{where} is no guard's key: {2 * SIZE} hexadecimal digits") from None
    return Keys(secret)
