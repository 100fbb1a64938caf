"""The rules of permissions as regular expressions over strings: slow, and easy to compare with the contract."""

import re


def naive(grant: str, wanted: str) -> bool:
    """Whether holding `grant` means holding `wanted`."""
    (has, has_scope), (asks, asks_scope) = grant.rsplit(":", 1), wanted.rsplit(":", 1)
    if has_scope not in ("all", asks_scope):
        return False
    head, path, action = taken_apart(has)
    asked_head, asked_path, asked_action = taken_apart(asks)
    if path is None or set(path.split("/")) == {"*"}:
        return pattern(f"{head}.{action}", ".", trailing=True).fullmatch(f"{asked_head}.{asked_action}") is not None
    return (
        asked_path is not None
        and pattern(f"{head}.{action}", ".", trailing=False).fullmatch(f"{asked_head}.{asked_action}") is not None
        and pattern(path, "/", trailing=True).fullmatch(asked_path) is not None
    )


def taken_apart(body: str) -> tuple[str, str | None, str]:
    body, action = body.rsplit(".", 1)
    head, slash, path = body.partition("/")
    return head, path if slash else None, action


def pattern(text: str, separator: str, *, trailing: bool) -> re.Pattern[str]:
    parts = [f"[^{separator}]+" if part == "*" else re.escape(part) for part in text.split(separator)]
    if trailing and text.rsplit(separator, maxsplit=1)[-1] == "*":
        parts[-1] = ".+"
    return re.compile(re.escape(separator).join(parts))
