"""Hashing passwords with argon2id (RFC 9106), at the cost that OWASP's cheat sheet names for servers."""

import unicodedata

from argon2 import PasswordHasher
from argon2.exceptions import VerificationError

MAX_LENGTH = 1024
"""The most characters a password may have."""
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 << 10, parallelism=1)
_NOBODY = "$argon2id$v=19$m=19456,t=2,p=1$vJ84/ffxIhY4YCfhMqYe9g$Es0EALBqqrG+rTmu2dALPu8gN0z5JUhM9CKVckkgOQ4"
"""The hash of 256 random bits that nobody kept, to compare with where there is no password: that takes as long."""


def _bytes(password: str) -> bytes:
    # The same password typed on another machine may come composed differently.
    return unicodedata.normalize("NFKC", password).encode()


def hash_password(password: str) -> str:
    """How a password is stored: salt and parameters included. Takes about 20 ms and 19 MiB."""
    return _HASHER.hash(_bytes(password))


def matches(stored: str | None, password: str) -> bool:
    """Whether this is the password behind the hash; never for None, which takes the same time."""
    try:
        return _HASHER.verify(stored or _NOBODY, _bytes(password)) and stored is not None
    except VerificationError:
        return False


def is_outdated(stored: str) -> bool:
    """Whether the hash was made at another cost than new ones are."""
    return _HASHER.check_needs_rehash(stored)
