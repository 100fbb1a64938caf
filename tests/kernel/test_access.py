"""The permission matcher against a naive reference, against its SQL twin, and against the examples of the contract."""

from collections.abc import Iterator, Sequence
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, create_engine, insert, select

from sinas_server.kernel.access import Caller, GrantSet, OwnedColumns, check_key, grant_set, parse
from sinas_server.kernel.errors import ForbiddenError, InvalidError
from sinas_server.kernel.tables import ResourceRow
from tests.kernel.naive import naive

ME, OTHER, LENDER = uuid4(), uuid4(), uuid4()
Lent = Sequence[tuple[UUID, list[str]]]


@st.composite
def keys(draw: st.DrawFn) -> str:
    service = draw(st.sampled_from(["sinas", "sinas", "titan", "*"]))
    resource = draw(st.lists(st.sampled_from(["agents", "runs", "*"]), max_size=2))
    path = draw(st.none() | st.lists(st.sampled_from(["p", "q", "r s", "*"]), min_size=1, max_size=3))
    action = draw(st.sampled_from(["read", "chat", "*"]))
    scope = draw(st.sampled_from(["own", "all"]))
    head = ".".join([service, *resource])
    return f"{head}{'/' + '/'.join(path) if path else ''}.{action}:{scope}"


@given(st.lists(keys(), max_size=6), keys())
@settings(max_examples=400, deadline=None)
def test_the_matcher_agrees_with_a_naive_one(grants: list[str], wanted: str) -> None:
    assert GrantSet(frozenset(grants)).allows(wanted) is any(naive(grant, wanted) for grant in grants)


@given(keys(), keys(), keys())
@settings(max_examples=400, deadline=None)
def test_what_is_covered_covers_no_more(outer: str, middle: str, inner: str) -> None:
    """A key made from covered permissions can never reach what its maker cannot."""
    if parse(outer).covers(parse(middle)) and parse(middle).covers(parse(inner)):
        assert parse(outer).covers(parse(inner))


@given(keys())
@settings(deadline=None)
def test_everyone_covers_himself(key: str) -> None:
    assert parse(key).covers(parse(key))


EXAMPLES = [
    ("sinas.*:all", "sinas.agents.read:own", True),
    ("sinas.*:all", "sinas.agents/a/b.chat:all", True),
    ("sinas.*:all", "titan.agents.read:own", False),
    ("sinas.agents.read:all", "sinas.agents.read:own", True),
    ("sinas.agents.read:own", "sinas.agents.read:all", False),
    ("sinas.agents/*/*.chat:all", "sinas.agents/support/bot.chat:own", True),
    ("sinas.agents/*/*.chat:all", "sinas.agents.chat:all", True),
    ("sinas.functions/marketing/*.execute:own", "sinas.functions/marketing/send_email.execute:own", True),
    ("sinas.functions/marketing/*.execute:own", "sinas.functions/sales/send_email.execute:own", False),
    ("sinas.functions/marketing/*.execute:own", "sinas.functions.execute:own", False),
    ("sinas.functions/*/send_email.execute:own", "sinas.functions/sales/send_email.execute:own", True),
    ("sinas.functions/*/send_email.execute:own", "sinas.functions/sales/other.execute:own", False),
    ("sinas.functions.execute:all", "sinas.functions/marketing/send_email.execute:all", True),
    ("sinas.states/*.read:own", "sinas.states/api_keys.read:own", True),
    ("sinas.states/api_keys.read:all", "sinas.states/other.read:all", False),
    ("sinas.chats.*:own", "sinas.chats.delete:own", True),
    ("sinas.chats.*:own", "sinas.chats.delete:all", False),
    ("sinas.chats.*:own", "sinas.chatsy.read:own", False),
    ("titan.courses/math/*.enroll:own", "titan.courses/math/algebra.enroll:own", True),
    ("titan.courses/math/*.enroll:own", "titan.courses.enroll:own", False),
    ("myapp.*:all", "myapp.a.b.c.read:own", True),
    ("acme.billing.invoices.read:all", "acme.billing.invoices.read:own", True),
    ("acme.*.read:all", "acme.billing.invoices.read:own", False),
]


@pytest.mark.parametrize(("grant", "wanted", "expected"), EXAMPLES)
def test_the_examples_of_the_contract(grant: str, wanted: str, expected: bool) -> None:
    assert grant_set([grant]).allows(wanted) is expected
    assert naive(grant, wanted) is expected


@pytest.mark.parametrize(
    "key",
    ["", ":own", "sinas", "sinas.agents.read", "sinas.agents.read:", "sinas.agents.read:mine", "read:own", "*:all",
     "sinas..read:own", ".read:own", "sinas.agents.:own", "sinas.agents/.read:own", "sinas.agents//x.read:own",
     "sinas.agents/x:own", "sinas.a\x00b.read:own", "sinas.a\nb.read:own", f"sinas.{'a' * 600}.read:own"],
)  # fmt: skip
def test_malformed_keys_are_refused_with_the_reason(key: str) -> None:
    with pytest.raises(InvalidError) as refused:
        check_key(key, ("body", "permissions", 0))
    assert refused.value.problems[0][0] == ("body", "permissions", 0)
    assert "must" in refused.value.problems[0][1]


def test_a_malformed_key_in_the_database_grants_nothing_and_breaks_nothing() -> None:
    grants = grant_set(["nonsense", "sinas.agents.read:own"])
    assert [grant.action for grant in grants.grants] == ["read"]
    assert grants.allows("sinas.agents.read:own")


def test_a_well_formed_key_is_given_back() -> None:
    assert check_key("sinas.agents/a b/c.d.read:own", ("body",)) == "sinas.agents/a b/c.d.read:own"
    assert parse("sinas.agents/a b/c.d.read:own").path == ("a b", "c.d")


def caller(*sets: list[str], barred: frozenset[str] = frozenset(), lent: Lent = ()) -> Caller:
    held = tuple((lender, grant_set(keys)) for lender, keys in lent)
    return Caller(ME, "me@example.com", tuple(grant_set(keys) for keys in sets), barred=barred, lent=held)


def test_every_set_of_grants_must_allow() -> None:
    limited = caller(["sinas.*:all"], ["sinas.agents.read:own"])
    assert limited.allows("agents", "read", ME)
    assert not limited.allows("agents", "read", OTHER)
    assert not limited.has("sinas.agents.update:own")
    assert not caller().has("sinas.agents.read:own"), "no grants at all are no rights at all"


def test_barred_resources_are_out_of_reach_of_any_wildcard() -> None:
    inside = caller(["*.*:all"], barred=frozenset({"users"}))
    assert not inside.has("sinas.users.read:own")
    assert not inside.has("sinas.users/x.read:own")
    assert not inside.has("sinas.users.*:own")
    assert not inside.has("sinas.*:own")
    assert not inside.has("sinas.*.read:own")
    assert not inside.has("*.users.read:own")
    assert not inside.allows("users", "read", ME)
    assert inside.has("sinas.agents.read:all")
    assert inside.has("titan.users.read:all"), "another service's resource of the same name is not ours"


def test_barred_actions_are_out_of_reach_and_others_of_the_resource_are_not() -> None:
    inside = caller(["*.*:all"], barred=frozenset({"functions.shared_pool"}))
    for key in ("sinas.functions.shared_pool:all", "sinas.functions/a/b.shared_pool:own", "sinas.functions.*:own"):
        assert not inside.has(key)
    assert not inside.allows("functions", "shared_pool", ME, "a", "b")
    assert inside.has("sinas.functions.update:all")
    assert inside.has("titan.functions.shared_pool:all")


CODE = ["sinas.things.read:own"]
LENT = [
    # whose thing, what the caller holds, what the owner of the code holds, whether his code reaches it for the caller
    (ME, ["sinas.*:all"], CODE, False),
    (ME, ["sinas.*:all"], ["sinas.things.read:all"], True),
    (ME, CODE, ["sinas.things.read:all"], True),
    (ME, [], ["sinas.*:all"], False),
    (LENDER, ["sinas.*:all"], CODE, True),
    (LENDER, CODE, ["sinas.*:all"], False),
    (LENDER, CODE, CODE, False),
    (OTHER, ["sinas.*:all"], CODE, False),
    (OTHER, ["sinas.*:all"], ["sinas.things.read:all"], True),
    (OTHER, CODE, ["sinas.*:all"], False),
    (None, ["sinas.*:all"], CODE, False),
    (None, ["sinas.*:all"], ["sinas.*:all"], True),
]


@pytest.mark.parametrize(("owner", "held", "lent", "expected"), LENT)
def test_code_of_somebody_else_reaches_what_both_may_reach(
    owner: UUID | None, held: list[str], lent: list[str], expected: bool
) -> None:
    inside = caller(held, lent=[(LENDER, lent)])
    assert inside.allows("things", "read", owner, "p", "q") is expected
    if owner == ME:
        assert inside.has("sinas.things/p/q.read:own") is expected, "the check says what the gate does"
    every = caller(held, lent=[(LENDER, lent), (OTHER, [])])
    assert not every.allows("things", "read", owner, "p", "q"), "each of several owners must hold it"


def test_require_says_that_the_owner_of_the_code_needs_it_too() -> None:
    with pytest.raises(ForbiddenError, match="inside of a function"):
        caller(CODE, lent=[(LENDER, CODE)]).require("things", "read", ME)


def test_what_takes_no_permission_of_the_caller_takes_one_of_the_code() -> None:
    assert caller([]).is_trusted("chats", "update")
    assert not caller(["sinas.*:all"], lent=[(LENDER, ["sinas.chats.update:own"])]).is_trusted("chats", "update")
    assert caller([], lent=[(LENDER, ["sinas.chats.update:all"])]).is_trusted("chats", "update")


def test_require_names_what_is_needed() -> None:
    nobody = caller([])
    with pytest.raises(ForbiddenError, match=r"sinas\.agents/support/bot\.chat:all"):
        nobody.require("agents", "chat", OTHER, "support", "bot")
    with pytest.raises(ForbiddenError, match=r"sinas\.users\.update:own"):
        nobody.require("users", "update", ME)
    caller(["sinas.users.update:own"]).require("users", "update", ME)


NAMES = ["p", "q", "p/q", "a.b", "x+y", "*"]


@pytest.fixture(scope="module")
def stored(tables: str) -> Iterator[tuple[Connection, list[tuple[str, str, UUID | None]]]]:
    """Rows of every combination of names and owners, in a transaction that is rolled back."""
    engine = create_engine(tables.replace("postgresql:", "postgresql+psycopg:"))
    rows = [(ns, name, owner) for ns in NAMES for name in NAMES for owner in (ME, OTHER, None)]
    with engine.connect() as connection:
        connection.execute(
            insert(ResourceRow),
            [
                {
                    "kind": "twin",
                    "scope": str(index),
                    "namespace": ns,
                    "name": name,
                    "owner_id": owner,
                    "spec": {},
                    "checksum": "",
                }
                for index, (ns, name, owner) in enumerate(rows)
            ],
        )
        yield connection, rows
        connection.rollback()
    engine.dispose()


@st.composite
def grants_on_things(draw: st.DrawFn) -> str:
    head = draw(st.sampled_from(["sinas.things", "sinas.things", "sinas.*", "sinas", "*.things", "sinas.other"]))
    segment = st.sampled_from(["p", "q", "a.b", "r s", "x+y", "é", "*", "*"])
    path = draw(st.none() | st.lists(segment, min_size=1, max_size=4))
    action = draw(st.sampled_from(["read", "read", "*", "chat"]))
    return f"{head}{'/' + '/'.join(path) if path else ''}.{action}:{draw(st.sampled_from(['own', 'all']))}"


@pytest.mark.parametrize("depth", [0, 1, 2])
@given(
    sets=st.lists(st.lists(grants_on_things(), max_size=4), max_size=3),
    lent=st.lists(st.tuples(st.just(OTHER), st.lists(grants_on_things(), max_size=4)), max_size=1),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_lists_in_sql_are_filtered_as_checks_in_python(
    stored: tuple[Connection, list[tuple[str, str, UUID | None]]], depth: int, sets: list[list[str]], lent: Lent
) -> None:
    connection, rows = stored
    path = (ResourceRow.namespace, ResourceRow.name)[2 - depth :]
    me = caller(*sets, lent=lent)
    where = me.visible("things", "read", OwnedColumns(path, ResourceRow.owner_id))
    found = connection.execute(
        select(ResourceRow.namespace, ResourceRow.name, ResourceRow.owner_id).where(ResourceRow.kind == "twin", where)
    )
    expected = [row for row in rows if me.allows("things", "read", row[2], *row[:2][2 - depth :])]
    assert sorted(map(str, found)) == sorted(map(str, expected))


def test_what_is_barred_is_not_listed(stored: tuple[Connection, list[tuple[str, str, UUID | None]]]) -> None:
    columns = OwnedColumns((ResourceRow.namespace, ResourceRow.name), ResourceRow.owner_id)
    inside = caller(["*.*:all"], barred=frozenset({"things"}))
    where = inside.visible("things", "read", columns)
    assert stored[0].execute(select(ResourceRow.id).where(where)).all() == []
