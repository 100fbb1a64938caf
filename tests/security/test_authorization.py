"""Every route of every document, every sort of caller, every way to carry a credential, against a reviewed table.

The table is `authorization.csv`: a line per route with the permissions it takes and the status that each sort of
caller gets. A new route needs a line there, and, if it takes parameters of a new sort, an entry in `objects.py`.
"""

import httpx2
import pytest

from tests.people import http_client
from tests.security.cast import COLUMNS, ROWS, TABLE, Attempt, Cast, operations


def test_every_route_has_a_line_and_every_line_a_route() -> None:
    assert sorted(ROWS) == sorted(operations()), "tests/security/authorization.csv: one line for each route"


def test_the_table_is_sorted() -> None:
    lines = TABLE.read_text().splitlines()
    assert lines[0] == ",".join(("method", "path", "needs", *COLUMNS))
    assert lines[1:] == sorted(lines[1:], key=lambda line: line.split(",")[1::-1])


def _refuses(route: str, answer: httpx2.Response) -> bool:
    """Whether a key without rights gets nothing from a route that takes a credential, but for who it is."""
    return ROWS[route]["none"] != "401" or route == "GET /auth/me" or answer.status_code == 403


async def _row(route: str, everyone: Cast) -> str:
    """The line of the table that tells what happens now."""
    row = ROWS[route]
    cells = {column: row[column] for column in ("method", "path", "needs")}
    async with http_client(everyone.app) as http:
        attempts = {owner: Attempt(route, http, everyone.objects(owner)) for owner in (everyone.admin, everyone.user)}
        turn = 0
        # The user's own come last: a second message that waits would end the wait of the administrator's.
        for column in sorted(COLUMNS, key="owner".__eq__):
            attempt, statuses = attempts[everyone.user if column == "owner" else everyone.admin], set[int]()
            for ways in await everyone.headers(column, row["needs"].split()):
                turn += 1
                for headers in ways[turn % 3 :] + ways[: turn % 3]:
                    answer = await attempt.call(headers)
                    statuses.add(answer.status_code)
                    assert answer.status_code < 500, f"{route}: {answer.text}"
                    assert column != "empty_key" or _refuses(route, answer), f"{route}: {answer.text}"
                    if attempt.places is None and column != "none":
                        break  # The next credential that is let in is carried in the next way, on objects of its own.
            cells[column] = "/".join(map(str, sorted(statuses)))
    return ",".join(cells[column] for column in row)


def _group(route: str) -> str:
    return "/".join(route.split(" ")[1].removeprefix("/api/v1").split("/")[:2])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("group", sorted({_group(route) for route in ROWS}))
async def test_who_may_call(group: str, everyone: Cast) -> None:
    routes = [route for route in operations() if _group(route) == group and route in ROWS]
    found = [await _row(route, everyone) for route in routes]
    expected = [",".join(ROWS[route].values()) for route in routes]
    changed = sorted(set(found) - set(expected))
    assert not changed, "now (several numbers: it depends on how the credential is carried):\n" + "\n".join(changed)
