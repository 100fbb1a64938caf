"""What the built-in roles may do, no more and no less: `platform.txt` in one sentence each.

Users create and manage own resources, chat with any agent and execute own functions; guests read and update their
own profile. The page docs/reference/permissions.md shows the same as a table.
"""

from typing import Any

import pytest

from sinas_server import catalog
from sinas_server.identity.reference import GUESTS, USERS, default_permissions
from sinas_server.kernel.access import GrantSet
from tests.kernel.every_kind.examples import EXAMPLES, Example
from tests.kernel.every_kind.test_permissions import doors
from tests.people import Person
from tests.security.cast import ROWS

DEFAULTS = {
    name: GrantSet(frozenset(keys)) for name, keys in default_permissions(catalog.KINDS, catalog.RESOURCES).items()
}
HELD = DEFAULTS[USERS]
EVERYBODYS = {"sinas.agents.chat:all"}
"""All that Users may do to what belongs to others."""


def test_users_reach_what_belongs_to_others_only_by_chatting() -> None:
    assert {key for key in HELD.keys if key.endswith(":all")} == EVERYBODYS


def test_users_hold_every_verb_of_every_kind_for_their_own() -> None:
    for kind in catalog.KINDS:
        held = {action for action in kind.actions if HELD.allows(f"sinas.{kind.plural}.{action}:own")}
        assert held == (set() if kind.admin_only else set(kind.actions) - set(kind.withheld)), kind.name


def test_users_hold_nothing_that_is_for_administrators() -> None:
    for resource in catalog.RESOURCES:
        if resource.admin_only:
            held = [action for action in resource.actions if HELD.allows(f"sinas.{resource.name}.{action}:own")]
            assert held == [], resource.name


def test_guests_hold_their_profile() -> None:
    assert DEFAULTS[GUESTS].keys == {"sinas.users.read:own", "sinas.users.update:own"}


def _ok(status: str) -> bool:
    return status.startswith("2")


CLEAR = [route for route, row in ROWS.items() if row["needs"] and _ok(row["own_key"])]
"""Routes that a key with exactly what they need opens for one's own, and so tell what the permission gives."""


@pytest.mark.parametrize("route", CLEAR)
def test_every_route_gives_users_what_they_hold(route: str) -> None:
    """Read off the table that test_authorization.py holds the server to."""
    row = ROWS[route]
    needs = row["needs"].split()
    own = all(HELD.allows(key) for key in needs)
    everybodys = all(HELD.allows(key.replace(":own", ":all")) for key in needs) and _ok(row["all_key"])
    is_list = row["method"] == "GET" and _ok(row["guest"])
    if is_list:  # whoever may see nothing gets an empty one
        assert _ok(row["owner"]) and _ok(row["user"])
        return
    assert _ok(row["owner"]) is own, "their own"
    if "{" in row["path"]:
        assert _ok(row["user"]) is everybodys, "those of others"
    assert not _ok(row["guest"]) or all(DEFAULTS[GUESTS].allows(key) for key in needs)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.kind.name)
async def test_a_user_and_his_own_of_every_kind(example: Example, user: Person, admin: Person) -> None:
    made = await user.http.post(example.collection, json=example.body("mine"))
    if example.kind.admin_only:
        assert made.status_code == 403
        return
    assert made.status_code == 201
    assert (await _names(user, example.collection)) == ["mine"]
    if example.runtime_collection:
        assert (await _names(user, example.runtime_collection)) == ["mine"]
    assert set((await doors(example, user.http, "mine")).values()) == {200, 204}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.kind.name)
async def test_a_user_and_others_of_every_kind(example: Example, user: Person, admin: Person) -> None:
    made = await example.make(admin.http, "theirs")
    assert (await _names(user, example.collection)) == []
    if example.runtime_collection:
        usable = f"sinas.{example.kind.plural}.{example.kind.discover}:all" in EVERYBODYS
        assert (await _names(user, example.runtime_collection)) == (["theirs"] if usable else [])
    assert set((await doors(example, user.http, "theirs")).values()) <= {403, 404}
    assert (await admin.http.get(example.item("theirs"))).json() == made


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.kind.name)
async def test_a_guest_and_every_kind(example: Example, guest: Person, admin: Person) -> None:
    assert (await guest.http.post(example.collection, json=example.body("mine"))).status_code == 403
    await example.make(admin.http, "theirs")
    assert (await _names(guest, example.collection)) == []
    if example.runtime_collection:
        assert (await _names(guest, example.runtime_collection)) == []
    assert set((await doors(example, guest.http, "theirs")).values()) <= {403, 404}


async def _names(person: Person, url: str) -> list[Any]:
    answer = await person.http.get(url)
    assert answer.status_code == 200, answer.text
    return [found["name"] for found in answer.json()]
