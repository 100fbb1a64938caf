"""Regenerating, editing and retrying: what was there before stays, as another branch."""

import dataclasses
import random
from collections.abc import AsyncIterator
from typing import cast
from uuid import uuid4

import pytest
from sqlalchemy import func, select

from sinas_server.backends.llm import (
    Answer,
    AssistantMessage,
    Event,
    ModelRequest,
    TextDelta,
    TextPart,
    ToolMessage,
    UserMessage,
)
from sinas_server.chats.tables import BranchRow, TurnRow
from sinas_server.kernel.runtime import Runtime
from tests.chats.conftest import (
    Declare,
    Json,
    get_chat,
    open_chat,
    working,
)
from tests.chats.test_failures import Model, with_model
from tests.people import Person


class Counting(Model):
    """Its n-th answer is `A<n>`."""

    async def stream(self, request: ModelRequest) -> AsyncIterator[Event]:
        self.requests.append(request)
        text = f"A{len(self.requests)}"
        yield TextDelta(text)
        yield Answer(text)

    def heard(self) -> list[str]:
        """What it was told last."""
        return [told(message) for message in self.requests[-1].messages]


def told(message: object) -> str:
    if isinstance(message, UserMessage):
        return "".join(part.text for part in message.parts if isinstance(part, TextPart))
    assert isinstance(message, AssistantMessage | ToolMessage)
    return message.text if isinstance(message, AssistantMessage) else message.content


async def post(person: Person, path: str, status: int = 200, **body: object) -> Json:
    answer = await person.http.post(path, json=body, timeout=60)
    assert answer.status_code == status, answer.text
    return cast(Json, answer.json())


async def say(person: Person, chat_id: str, content: str) -> Json:
    return await post(person, f"/chats/{chat_id}/messages", content=content)


async def choose(person: Person, chat_id: str, status: int = 200, **body: object) -> Json:
    answer = await person.http.put(f"/chats/{chat_id}/branch", json=body)
    assert answer.status_code == status, answer.text
    return cast(Json, answer.json())


async def on_branch(person: Person, chat_id: str, branch: int | None = None) -> list[Json]:
    params = {} if branch is None else {"branch": branch}
    answer = await person.http.get(f"/chats/{chat_id}/messages", params=params)
    assert answer.status_code == 200, answer.text
    return cast(list[Json], answer.json())


async def branches(person: Person, chat_id: str) -> list[Json]:
    return cast(list[Json], (await person.http.get(f"/chats/{chat_id}/branches")).json())


def contents(messages: list[Json]) -> list[str]:
    return [message["content"] for message in messages]


async def test_another_answer_is_a_branch_and_both_go_on(user: Person, declare: Declare, runtime: Runtime) -> None:
    model = Counting()
    chat_id = await open_chat(user, await declare("plain"))
    async with working(with_model(runtime, model)):
        for text in ("one", "two"):
            await say(user, chat_id, text)
        before = await on_branch(user, chat_id)
        assert (contents(before), [message["sibling_ids"] for message in before]) == (
            ["one", "A1", "two", "A2"],
            [[]] * 4,
        )
        again = await post(user, f"/chats/{chat_id}/messages/{before[1]['id']}/regenerate")
        assert (again["content"], again["branch"], model.heard()) == ("A3", 1, ["one"])
        chat = await get_chat(user, chat_id)
        assert (contents(chat["messages"]), chat["branch"]) == (["one", "A3"], 1)
        assert chat["messages"] == await on_branch(user, chat_id)
        assert [message["parent_message_id"] for message in chat["messages"]] == [None, before[0]["id"]]
        assert [m["sibling_ids"] for m in chat["messages"]] == [[], [before[1]["id"], again["id"]]]
        assert (chat["last_turn"]["status"], chat["last_turn"]["channel_id"]) == ("COMPLETED", again["channel_id"])
        assert contents(await on_branch(user, chat_id, 0)) == ["one", "A1", "two", "A2"]
        await say(user, chat_id, "three")
        assert model.heard() == ["one", "A3", "three"]

        assert (await choose(user, chat_id, message_id=before[1]["id"]))["branch"] == 0
        await say(user, chat_id, "four")
        assert model.heard() == ["one", "A1", "two", "A2", "four"]
        found = await branches(user, chat_id)
        assert [(branch["branch"], branch["active"], branch["parent_branch"]) for branch in found] == [
            (0, True, None),
            (1, False, 0),
        ]
        assert found[1]["after_message_id"] == before[0]["id"]
        assert found[1]["first_message_id"] == again["id"]
        for branch in found:
            last = (await on_branch(user, chat_id, branch["branch"]))[-1]
            assert branch["last_message_id"] == last["id"]
        assert (await choose(user, chat_id, branch=1))["branch"] == 1
        assert contents((await get_chat(user, chat_id))["messages"]) == ["one", "A3", "three", "A4"]


async def test_something_else_said_instead_is_a_branch(user: Person, declare: Declare, runtime: Runtime) -> None:
    model = Counting()
    chat_id = await open_chat(user, await declare("plain"))
    async with working(with_model(runtime, model)):
        for text in ("one", "two"):
            await say(user, chat_id, text)
        before = await on_branch(user, chat_id)
        for place, kept in ((2, ["one", "A1"]), (0, [])):
            path = f"/chats/{chat_id}/messages/{before[place]['id']}/edit"
            edited = await post(user, path, content="other")
            assert model.heard() == [*kept, "other"]
            now = await on_branch(user, chat_id)
            assert contents(now) == [*kept, "other", edited["content"]]
            assert now[place]["sibling_ids"] == [before[place]["id"], now[place]["id"]]
            assert now[place]["role"] == "user"
        third = await post(user, f"/chats/{chat_id}/messages/{before[0]['id']}/edit", content="third")
        now = await on_branch(user, chat_id)
        assert (len(now[0]["sibling_ids"]), now[0]["sibling_ids"][-1], third["branch"]) == (3, now[0]["id"], 3)
        refused = await post(user, f"/chats/{chat_id}/messages/{before[1]['id']}/edit", 422, content="x")
        assert refused["detail"][0]["loc"] == ["path", "message_id"]
        assert (await choose(user, chat_id, message_id=before[3]["id"]))["branch"] == 0
        assert await on_branch(user, chat_id) == [
            {**message, "sibling_ids": now_there}
            for message, now_there in zip(
                before, [m["sibling_ids"] for m in await on_branch(user, chat_id, 0)], strict=True
            )
        ]


async def test_unknown_messages_and_branches(user: Person, admin: Person, declare: Declare, worker: None) -> None:
    agent = await declare("plain")
    chat_id, other = [await open_chat(user, agent) for _ in range(2)]
    await say(user, other, "elsewhere")
    elsewhere = (await on_branch(user, other))[0]["id"]
    for unknown in (str(uuid4()), elsewhere):
        assert (await post(user, f"/chats/{chat_id}/messages/{unknown}/regenerate", 404))[
            "detail"
        ] == "message not found"
        await post(user, f"/chats/{chat_id}/messages/{unknown}/edit", 404, content="x")
        await choose(user, chat_id, 404, message_id=unknown)
    await post(user, f"/chats/{chat_id}/retry", 409)
    await choose(user, chat_id, 404, branch=1)
    assert (await user.http.get(f"/chats/{chat_id}/messages", params={"branch": 7})).status_code == 404
    for wrong in ({}, {"branch": 0, "message_id": elsewhere}, {"branch": -1}, {"branch": 2**40}):
        await choose(user, chat_id, 422, **wrong)
    await post(admin, f"/chats/{other}/messages/{elsewhere}/regenerate", 404)  # others talk in their own chats


async def test_search_and_statistics_count_all_that_was_said(user: Person, declare: Declare, worker: None) -> None:
    chat_id = await open_chat(user, await declare("plain"))
    await say(user, chat_id, "one")
    said = (await on_branch(user, chat_id))[0]["id"]
    await post(user, f"/chats/{chat_id}/messages/{said}/regenerate")
    found = (await user.http.get("/api/v1/messages")).json()
    assert [(message["role"], message["branch"]) for message in found["messages"]] == [
        ("assistant", 1),
        ("assistant", 0),
        ("user", 0),
    ]
    assert (await user.http.get("/api/v1/messages/stats")).json()["total_messages"] == 3


async def test_a_deleted_chat_leaves_no_branch(user: Person, declare: Declare, worker: None, runtime: Runtime) -> None:
    chat_id = await open_chat(user, await declare("plain"))
    await say(user, chat_id, "one")
    said = (await on_branch(user, chat_id))[0]["id"]
    await post(user, f"/chats/{chat_id}/messages/{said}/edit", content="two")
    assert (await user.http.delete(f"/chats/{chat_id}")).status_code == 204
    for table in (BranchRow, TurnRow):
        assert (await runtime.database.rows(select(func.count()).select_from(table)))[0][0] == 0


@dataclasses.dataclass
class Node:
    """A message as a naive tree has it."""

    id: str
    text: str
    role: str
    parent: "Node | None"
    children: "list[Node]" = dataclasses.field(default_factory=list)

    def add(self, said: Json) -> "Node":
        child = Node(said["id"], said["content"], said["role"], self)
        self.children.append(child)
        return child

    def path(self) -> "list[Node]":
        return [] if self.parent is None else [*self.parent.path(), self]


@pytest.mark.parametrize("seed", range(3))
async def test_any_way_through_agrees_with_a_tree(user: Person, declare: Declare, runtime: Runtime, seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311 - no secret
    model = Counting()
    chat_id = await open_chat(user, await declare("plain"))
    root = leaf = Node("", "", "", None)
    everything: list[Node] = []
    most = 5
    settings = runtime.settings.model_copy(update={"max_history_messages": most})
    async with working(dataclasses.replace(with_model(runtime, model), settings=settings)):
        for n in range(30):
            what = dice.choice(["send", "send", "regenerate", "edit", "choose"]) if everything else "send"
            at = dice.choice(everything) if everything else root
            if what == "choose":
                await choose(user, chat_id, message_id=at.id)
            elif what == "send":
                await say(user, chat_id, f"U{n}")
            elif what == "regenerate":
                await post(user, f"/chats/{chat_id}/messages/{at.id}/regenerate")
            else:
                at = at if at.role == "user" else cast(Node, at.parent)
                await post(user, f"/chats/{chat_id}/messages/{at.id}/edit", content=f"U{n}")
            now = await on_branch(user, chat_id)
            if what == "choose":
                assert at.id in [message["id"] for message in now]
                leaf = next(node for node in everything if node.id == now[-1]["id"])
                assert not leaf.children
            else:
                after = {"send": leaf, "regenerate": at if at.role == "user" else at.parent, "edit": at.parent}[what]
                assert after is not None
                new = now[-1:] if what == "regenerate" else now[-2:]
                leaf = after
                for said in new:
                    leaf = leaf.add(said)
                    everything.append(leaf)
                heard = [node.text for node in leaf.path()[:-1]][-most:]
                assert model.heard() == (heard if heard[0].startswith("U") else heard[1:])
            assert [message["id"] for message in now] == [node.id for node in leaf.path()]
            for message, node in zip(now, leaf.path(), strict=True):
                assert node.parent is not None
                beside = [child.id for child in node.parent.children]
                assert message["sibling_ids"] == (beside if len(beside) > 1 else [])
                assert message["parent_message_id"] == (node.parent.id or None)
