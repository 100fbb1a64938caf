"""The two bars of access control: a check in this process, and the route that answers many."""

import random
import time
from collections.abc import Callable, Sequence
from statistics import median

from bench.bars import CALLERS, Bench, against_bare_route
from bench.client import request
from bench.report import Line
from sinas_server.kernel.access import GrantSet
from tests.kernel.naive import naive

GRANTS, ASKED = 200, 100
QUESTIONS, NAIVE_QUESTIONS = 20_000, 200
"""More than what is remembered of keys taken apart, so that most questions are new; the naive one is given fewer."""
ALLOWED_SECONDS = 20e-6
RESOURCES = ("agents", "functions", "skills", "chats", "stores", "collections", "queries", "templates")
ACTIONS = ("create", "read", "update", "delete", "chat", "execute")


def _key(rng: random.Random, *, may_be_wild: bool) -> str:
    """A permission of a resource with a path; where it may be, with a wildcard in some part."""

    def part(name: str, chance: float) -> str:
        return "*" if may_be_wild and rng.random() < chance else name

    resource = part(rng.choice(RESOURCES), 0.02)
    path = "/".join((part(f"team{rng.randrange(20)}", 0.2), part(f"thing{rng.randrange(200)}", 0.4)))
    return f"sinas.{resource}/{path}.{part(rng.choice(ACTIONS), 0.1)}:{rng.choice(('own', 'all'))}"


def _seconds_each(ask: Callable[[str], bool], keys: Sequence[str]) -> float:
    """Of processor time: a check waits for nothing, and a busy machine is no part of it."""
    began = time.process_time()
    for key in keys:
        ask(key)
    return (time.process_time() - began) / len(keys)


def measure_check(bench: Bench) -> Line:
    """A permission check in process for someone with 200 grants, against a matcher that tries one after the other."""
    rng = random.Random(GRANTS)  # noqa: S311 - the same grants in every run
    held = [_key(rng, may_be_wild=True) for _ in range(GRANTS)]
    asked = [_key(rng, may_be_wild=False) for _ in range(QUESTIONS)]
    grants = GrantSet(frozenset(held))
    ours, theirs = list[float](), list[float]()
    for _ in range(bench.rounds):
        ours.append(_seconds_each(grants.allows, asked))
        theirs.append(_seconds_each(lambda key: any(naive(grant, key) for grant in held), asked[:NAIVE_QUESTIONS]))
    mine, reference = median(ours), median(theirs)
    note = f"{mine * 1e6:.1f} µs; allowed are {ALLOWED_SECONDS * 1e6:.0f} µs"
    name = f"permission check / naive matcher, {GRANTS} grants"
    return Line(name, mine * 1e6, reference * 1e6, "µs", 1, holds=mine <= ALLOWED_SECONDS, note=note)


def measure_check_route(bench: Bench) -> Line:
    """`POST /auth/check-permissions` of 100 permissions for a key with 200 grants, against a bare route."""
    stack, rng = bench.stack, random.Random(ASKED)  # noqa: S311 - the same in every run
    held = {_key(rng, may_be_wild=True): True for _ in range(GRANTS)}
    made = stack.call("POST", "/api/v1/api-keys", {"name": "bench", "permissions": held})
    body = {"permissions": [_key(rng, may_be_wild=False) for _ in range(ASKED)], "logic": "OR"}
    ours = request("POST", "/auth/check-permissions", {"Authorization": f"Bearer {made['key']}"}, body)
    name = f"{ASKED} permissions checked / bare route, {CALLERS} callers"
    return against_bare_route(bench, name, ours, '"checks":')
