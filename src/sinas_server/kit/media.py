"""What bytes are: base64 in pieces, and the type of a file by how it begins."""

import binascii
from collections.abc import Iterator

PIECE = 1 << 20
"""Characters of base64 decoded at a time; a multiple of four."""
HEAD = 1024
"""How many bytes of a file tell its type."""
ALIASES = {
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/x-png": "image/png",
    "audio/x-wav": "audio/wav",
    "audio/wave": "audio/wav",
    "audio/vnd.wave": "audio/wav",
    "audio/mp3": "audio/mpeg",
    "audio/m4a": "audio/mp4",
    "audio/x-m4a": "audio/mp4",
    "application/x-pdf": "application/pdf",
}
"""Other names of types that are told by their beginning."""
_BRANDS = {b"avif": "image/avif", b"heic": "image/heic", b"heix": "image/heic", b"mif1": "image/heif"}
_BEGINNINGS = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"BM": "image/bmp",
    b"II*\x00": "image/tiff",
    b"MM\x00*": "image/tiff",
    b"OggS": "audio/ogg",
    b"ID3": "audio/mpeg",
    b"fLaC": "audio/flac",
    b"\x1aE\xdf\xa3": "audio/webm",
}
_IN_RIFF = {b"WEBP": "image/webp", b"WAVE": "audio/wav"}
TOLD = frozenset({*_BEGINNINGS.values(), *_IN_RIFF.values(), *_BRANDS.values(), "audio/mp4", "application/pdf"})
"""Types that are told by their beginning; containers of sound and pictures count as audio."""
TEXTS = frozenset({"application/json", "application/xml", "application/yaml", "application/x-yaml"})
"""Types that are text without saying so."""


def plain(media_type: str) -> str:
    """A media type in lower case, without parameters, under its usual name."""
    name = media_type.partition(";")[0].strip().lower()
    return ALIASES.get(name, name)


def sniff(head: bytes) -> str | None:
    """The media type of a file by its first `HEAD` bytes; None where they do not tell."""
    if head[:4] == b"RIFF":
        return _IN_RIFF.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "audio/mp4")
    found = next((kind for beginning, kind in _BEGINNINGS.items() if head.startswith(beginning)), None)
    if found is not None:
        return found
    if b"%PDF-" in head:  # a header of its own may come first
        return "application/pdf"
    # An MPEG frame: eleven bits set, then a version, layer III and a bit rate that there are.
    if len(head) > 2 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2 and head[2] & 0xF0 not in (0x00, 0xF0):
        return "audio/mpeg"
    return None


def is_text(media_type: str) -> bool:
    """Whether files of this type are text."""
    return media_type.startswith("text/") or media_type in TEXTS


def check_type(media_type: str, head: bytes) -> None:
    """Raise `ValueError` where a file begins otherwise than those of its type do. `head`: its first bytes."""
    if media_type not in TOLD and not media_type.startswith(("image/", "audio/")):
        return
    found = sniff(head)
    if found is None and media_type not in TOLD:
        return
    if found is None:
        raise ValueError(f"is not {media_type}: it does not begin like that")
    if found != media_type:
        raise ValueError(f"is {found}, not {media_type}")


def decoded(text: str) -> Iterator[bytes]:
    """The bytes of a base64 text, in pieces. Raises `ValueError` that says what is wrong."""
    if not text:
        raise ValueError("must not be empty")
    if "=" in text[:-2]:
        raise ValueError("must be base64: excess data after padding")
    for start in range(0, len(text), PIECE):
        try:
            yield binascii.a2b_base64(text[start : start + PIECE].encode("ascii"), strict_mode=True)
        except UnicodeEncodeError as error:
            raise ValueError("must be base64: only ASCII characters are allowed") from error
        except binascii.Error as error:
            raise ValueError(f"must be base64: {error}") from error


def head_of(text: str) -> bytes:
    """The first `HEAD` bytes or so of a base64 text that is valid."""
    return binascii.a2b_base64(text[: HEAD * 4 // 3 // 4 * 4 + 4])


def decoded_size(text: str) -> int:
    """How many bytes a base64 text stands for."""
    return len(text) // 4 * 3 - text[-2:].count("=")
