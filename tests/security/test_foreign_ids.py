"""An id is no right: what belongs to somebody else is not there, also when it is named inside what is one's own."""

import re

import httpx2
import pytest

from tests.security.cast import ROWS, Cast, operations
from tests.security.objects import Places, body_of, make_places

NESTED = sorted(
    route
    for route in ROWS
    if re.search(r"{chat_id}.*{(channel_id|message_id|attachment_id)}|{user_id}.*{session_id}", route)
)
"""Routes to something inside of something else. Ids of tool calls are not among them: they mean one in each chat."""


def test_there_are_such_routes() -> None:
    assert len(NESTED) >= 8, NESTED


@pytest.mark.parametrize("route", NESTED)
async def test_what_is_anothers_is_not_there_inside_ones_own(route: str, everyone: Cast) -> None:
    make, others = everyone.objects(everyone.user), everyone.objects(everyone.admin)
    method, path = route.split(" ")
    outer = "chat_id" if "{chat_id}" in path else "user_id"
    headers = {"Authorization": f"Bearer {everyone.user.token}"}

    async def call(places: Places) -> httpx2.Response:
        body = body_of(operations()[route], make, places)
        return await everyone.user.http.request(method, path.format(**places), json=body, headers=headers, timeout=60)

    mine = await make_places(make, route)
    mixed = await call({**await make_places(others, route), outer: mine[outer]})
    assert mixed.status_code == 404, mixed.text
    own = await call(await make_places(make, route))
    assert own.is_success, own.text
