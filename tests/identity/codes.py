"""Logging in with a mailed code."""

from collections.abc import Awaitable, Callable

import httpx2

Codes = Callable[[str], Awaitable[str]]


async def ask(client: httpx2.AsyncClient, address: str) -> str:
    answer = await client.post("/auth/login", json={"email": address})
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"message", "session_id"}
    return str(answer.json()["session_id"])


async def verify(client: httpx2.AsyncClient, session_id: str, code: object) -> httpx2.Response:
    return await client.post("/auth/verify-otp", json={"session_id": session_id, "otp_code": code})
