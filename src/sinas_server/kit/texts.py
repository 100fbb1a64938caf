"""Reading values that come as text: lists and URLs."""


def split_commas(value: object) -> object:
    """`a, b` as a tuple of its parts; what is no text stays as it is."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def http_url(value: str) -> str:
    """A URL without a trailing slash; `http` where no scheme is given."""
    return (value if "://" in value else f"http://{value}").rstrip("/")
