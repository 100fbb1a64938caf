"""Encrypting values at rest and fingerprinting secrets, with key rotation."""

import hashlib
import hmac
from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet


class UndecryptableError(Exception):
    """A stored value was encrypted with a key that is not in `ENCRYPTION_KEY`."""


class Sealer:
    """Encrypts with the first of several Fernet keys and decrypts with any of them."""

    def __init__(self, keys: Sequence[str]) -> None:
        """`keys`: Fernet keys, newest first. Raises ValueError for none or a malformed one."""
        if not keys:
            raise ValueError("ENCRYPTION_KEY holds no key")
        self._fernet = MultiFernet([Fernet(key) for key in keys])
        self._first = Fernet(keys[0])
        # The digest key must survive rotation in front of the list, or every checksum would change: use the oldest.
        self._digest_key = hashlib.sha256(b"sinas digest " + keys[-1].encode()).digest()

    def seal(self, plain: str) -> str:
        """The encrypted form of a text (Fernet token)."""
        return self._fernet.encrypt(plain.encode()).decode()

    def open(self, sealed: str) -> str:
        """The text behind a Fernet token. Raises `UndecryptableError`."""
        try:
            return self._fernet.decrypt(sealed.encode()).decode()
        except InvalidToken as error:
            raise UndecryptableError("a stored secret cannot be decrypted: its ENCRYPTION_KEY is missing") from error

    def is_current(self, sealed: str) -> bool:
        """Whether a Fernet token was made with the first key, under which `seal` would put it."""
        try:
            self._first.decrypt(sealed.encode())
        except InvalidToken:
            return False
        return True

    def digest(self, plain: str) -> str:
        """A keyed fingerprint (HMAC-SHA256, hex): tells whether a secret changed without revealing it."""
        return hmac.new(self._digest_key, plain.encode(), hashlib.sha256).hexdigest()


def hash_token(secret_key: str, token: str) -> str:
    """How an API key, OTP or refresh token is stored: HMAC-SHA256 under `SECRET_KEY`, hex."""
    return hmac.new(secret_key.encode(), token.encode(), hashlib.sha256).hexdigest()


def sign(secret_key: str, purpose: str, *words: str) -> str:
    """A signature of words for one purpose: HMAC-SHA256 under `SECRET_KEY`, hex."""
    text = "\x00".join(("signature", purpose, *words))
    return hmac.new(secret_key.encode(), text.encode(), hashlib.sha256).hexdigest()


def is_signed(signature: str, secret_key: str, purpose: str, *words: str) -> bool:
    """Whether `sign` gave this signature."""
    return hmac.compare_digest(signature.encode(), sign(secret_key, purpose, *words).encode())
