"""Conversations that outgrow what the model is given: older messages become a summary, or are dropped."""

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable
from typing import cast

import pytest
from pydantic import JsonValue
from sqlalchemy import select

from sinas_server.chats.summary import exchanges_of, outgrown
from sinas_server.kernel.runtime import Runtime
from sinas_server.providers.tables import UsageRow
from tests.chats.conftest import CountingTools, Json, open_chat, stream, text_of, working
from tests.chats.test_history import said
from tests.fakes.llm_server import Call, FakeLLM, Reply, Request
from tests.people import Person

Made = Callable[..., Awaitable[str]]
SUMMARIZES = "You keep the summary"


@pytest.fixture
def few(runtime: Runtime) -> Runtime:
    """The model is given six messages."""
    settings = runtime.settings.model_copy(update={"max_history_messages": 6})
    return dataclasses.replace(runtime, settings=settings)


@pytest.fixture
async def fake(admin: Person) -> FakeLLM:
    return FakeLLM()


@pytest.fixture
def declare(admin: Person, fake: FakeLLM) -> Made:
    """Creates an agent over the fake: `await declare("name", {config of the provider}, **fields of the agent)`."""

    async def create(name: str, config: Json | None = None, **fields: JsonValue) -> str:
        provider: Json = {"name": f"for-{name}", "provider_type": "openai", "default_model": "large"}
        provider |= {"config": config or {}, "api_endpoint": fake.endpoint("openai")}
        made = await admin.http.post("/api/v1/llm-providers", json=provider)
        assert made.status_code == 201, made.text
        agent = {"name": name, "llm_provider_id": made.json()["id"], "enabled_functions": ["shop/look"], **fields}
        made = await admin.http.post("/api/v1/agents", json=agent)
        assert made.status_code == 201, made.text
        return f"default/{name}"

    return create


def summary_requests(fake: FakeLLM) -> list[str]:
    """What was to be summarized, each time."""
    bodies = [request.body["messages"] for request in fake.requests]
    return [messages[-1]["content"] for messages in bodies if SUMMARIZES in str(messages[0]["content"])]


def given(request: Request) -> list[str]:
    """What a model was told, in short: the role and the beginning of each message."""
    return [f"{message['role']}: {message['content']}"[:60].replace("\n", " ") for message in request.body["messages"]]


def summarizer(text: str, **more: object) -> Reply:
    """The answer to the next request for a summary."""
    return Reply.model_validate({"text": text, "when": "The messages:", **more})


async def summaries(person: Person, chat_id: str) -> list[Json]:
    """As the chat's owner reads them."""
    answer = await person.http.get(f"/chats/{chat_id}/summaries")
    assert answer.status_code == 200, answer.text
    return cast(list[Json], answer.json())


async def test_a_summary_grows_with_the_conversation(few: Runtime, user: Person, fake: FakeLLM, declare: Made) -> None:
    async with fake, working(few):
        agent = await declare("long", history_summary={"model": "small"})
        chat_id = await open_chat(user, agent)
        fake.default = Reply(text="Yes.", prompt_tokens=100, completion_tokens=1)
        for number in (1, 2, 3):
            await stream(user, chat_id, f"question {number}")
        assert summary_requests(fake) == []
        fake.replies.append(summarizer("SUMMARY ONE", prompt_tokens=50, completion_tokens=5))
        assert text_of(await stream(user, chat_id, "question 4")) == "Yes."
        # Six messages and the new one do not fit: three stay.
        (first,) = summary_requests(fake)
        assert first == "The messages:\n\n" + "\n\n".join(f"user: question {n}\n\nassistant: Yes." for n in (1, 2))
        assert [request.body["model"] for request in fake.requests[-2:]] == ["small", "large"]
        assert given(fake.requests[-1]) == [
            "user: Summary of this conversation so far:  SUMMARY ONE",
            "user: question 3",
            "assistant: Yes.",
            "user: question 4",
        ]
        await stream(user, chat_id, "question 5")
        assert given(fake.requests[-1])[0] == "user: Summary of this conversation so far:  SUMMARY ONE"
        assert len(summary_requests(fake)) == 1
        fake.replies.append(summarizer("SUMMARY TWO"))
        await stream(user, chat_id, "question 6")
        second = summary_requests(fake)[1]
        assert second.startswith("The summary so far:\n\nSUMMARY ONE\n\nThe messages:\n\nuser: question 3\n")
        assert "question 2" not in second
        assert [told["content"] for told in await summaries(user, chat_id)] == ["SUMMARY ONE", "SUMMARY TWO"]
    shown = (await summaries(user, chat_id))[0]
    messages = (await user.http.get(f"/chats/{chat_id}/messages")).json()
    assert (shown["message_id"], shown["messages"]) == (messages[3]["id"], 4)
    assert (shown["provider"], shown["model"]) == ("for-long", "small")
    spent = await few.database.rows(select(UsageRow.prompt_tokens, UsageRow.step).where(UsageRow.model == "small"))
    assert sorted(row.prompt_tokens for row in spent) == [11, 50]
    assert {row.step for row in spent} == {None}
    assert "SUMMARY" not in json.dumps(messages)


async def test_a_summary_holds_on_every_branch_that_has_its_message(
    few: Runtime, user: Person, fake: FakeLLM, declare: Made
) -> None:
    async with fake, working(few):
        chat_id = await open_chat(user, await declare("long", history_summary={}))
        fake.replies.append(summarizer("SUMMARY"))
        for number in (1, 2, 3, 4):
            await stream(user, chat_id, f"question {number}")
        asked = [message["id"] for message in (await user.http.get(f"/chats/{chat_id}/messages")).json()][::2]

        async def edit(number: int) -> list[str]:
            """What the model is given when a question is asked in other words."""
            path = f"/chats/{chat_id}/messages/{asked[number - 1]}/edit"
            answer = await user.http.post(path, json={"content": f"other {number}"}, timeout=60)
            assert answer.status_code == 200, answer.text
            return given(fake.requests[-1])

        after = await edit(3)
        assert after == ["user: Summary of this conversation so far:  SUMMARY", "user: other 3"]
        before = await edit(2)
        assert before[0] == "user: question 1"
        assert before[-1] == "user: other 2"
        assert len(summary_requests(fake)) == 1


@pytest.mark.parametrize("at", ["while it is made", "when it is kept"])
async def test_a_summary_outlives_the_worker(
    few: Runtime, user: Person, fake: FakeLLM, declare: Made, tools: CountingTools, at: str
) -> None:
    async with fake:
        agent = await declare("long", history_summary={})
        chat_id = await open_chat(user, agent)
        async with working(few, name="first"):
            for number in (1, 2, 3):
                await stream(user, chat_id, f"question {number}")
            during = at == "while it is made"
            fake.replies.append(summarizer("SUMMARY", hold_after=0 if during else None))
            if during:
                fake.replies.append(summarizer("SUMMARY"))
            else:
                fake.replies.append(Reply(text="Yes.", hold_after=0))
            asking = asyncio.create_task(stream(user, chat_id, "question 4"))
            while not any(request.held for request in fake.requests):
                await asyncio.sleep(0.01)
        async with working(few, name="second"):
            await asking
        assert len(summary_requests(fake)) == (2 if during else 1)
        assert given(fake.requests[-1])[0] == "user: Summary of this conversation so far:  SUMMARY"
        assert len(await summaries(user, chat_id)) == 1


@pytest.mark.parametrize("problem", [{"status": 400}, {"text": ""}])
async def test_without_a_summary_older_messages_are_dropped(
    few: Runtime, user: Person, fake: FakeLLM, declare: Made, tools: CountingTools, problem: Json
) -> None:
    async with fake, working(few):
        agent = await declare("long", history_summary={"model": "small"})
        chat_id = await open_chat(user, agent)
        for number in (1, 2, 3):
            await stream(user, chat_id, f"question {number}")
        fake.replies += [
            summarizer(**{"text": "unused", **problem}),
            Reply(text="", tool_calls=[Call(name="shop__look")]),
        ]
        assert (await stream(user, chat_id, "question 4"))[-1].data == {"type": "done", "status": "completed"}
        assert len(summary_requests(fake)) == 1  # not tried again in the next step of the turn
        assert given(fake.requests[-1])[0] == "user: question 3"
        assert await summaries(user, chat_id) == []
        # And made up for as soon as it works again.
        fake.replies.append(summarizer("SUMMARY"))
        await stream(user, chat_id, "question 5")
        assert "user: question 1\n" in summary_requests(fake)[1]
        assert given(fake.requests[-1])[0] == "user: Summary of this conversation so far:  SUMMARY"
    failed = await few.database.rows(select(UsageRow.failed).where(UsageRow.model == "small").order_by(UsageRow.id))
    assert [row.failed for row in failed] == ["status" in problem, False]


async def test_a_summary_takes_no_more_than_a_part_of_the_turns_time(
    few: Runtime, user: Person, fake: FakeLLM, declare: Made
) -> None:
    async with fake, working(few):
        chat_id = await open_chat(user, await declare("long", history_summary={"model": "small"}), job_timeout=20)
        for number in (1, 2, 3):
            await stream(user, chat_id, f"question {number}")
        fake.replies.append(summarizer("never said", hold_after=0))
        assert (await stream(user, chat_id, "question 4"))[-1].data["status"] == "completed"
        assert given(fake.requests[-1])[0] == "user: question 2"
    (spent,) = await few.database.rows(select(*UsageRow.__table__.columns).where(UsageRow.model == "small"))
    assert (spent.failed, spent.estimated, spent.completion_tokens) == (False, True, 0)
    assert spent.prompt_tokens > 0


async def test_another_provider_can_write_it(
    few: Runtime, admin: Person, user: Person, fake: FakeLLM, declare: Made
) -> None:
    async with fake, working(few):
        await declare("other")
        wrong = await admin.http.post("/api/v1/agents", json={"name": "x", "history_summary": {"provider": "nobody"}})
        assert (wrong.status_code, "nobody" in wrong.text) == (422, True)
        agent = await declare("long", history_summary={"provider": "for-other"})
        chat_id = await open_chat(user, agent)
        for number in (1, 2, 3, 4):
            await stream(user, chat_id, f"question {number}")
        (made,) = await summaries(user, chat_id)
        assert (made["provider"], made["model"]) == ("for-other", "large")
        other = "/api/v1/llm-providers/for-other"
        assert (await admin.http.delete(other)).status_code == 409
        assert (await admin.http.put(other, json={"is_active": False})).status_code == 200
        for number in (5, 6):
            events = await stream(user, chat_id, f"question {number}")
            assert events[-1].data["status"] == "completed"
        assert len(await summaries(user, chat_id)) == 1


async def test_the_window_of_a_model_makes_one_too_as_the_model_counts(
    runtime: Runtime, user: Person, fake: FakeLLM, declare: Made
) -> None:
    async with fake, working(runtime):
        agent = await declare(
            "small", {"context_window": 1000}, history_summary={}, max_tokens=100, enabled_functions=[]
        )
        chat_id = await open_chat(user, agent)
        text = "word " * 80  # guessed at 100 tokens
        fake.default = Reply(text="Yes.", prompt_tokens=100)
        for _ in range(4):
            await stream(user, chat_id, text)
        assert summary_requests(fake) == []
        # The model counts three times as many: now half of them is too much.
        fake.default = Reply(text="Yes.", prompt_tokens=1515)
        await stream(user, chat_id, text)
        fake.replies += [summarizer("SUMMARY ONE"), summarizer("SUMMARY TWO")]
        await stream(user, chat_id, text)
        first, second = summary_requests(fake)  # in pieces that the model can read
        assert (first.count("user: "), second.count("user: "), "SUMMARY ONE" in second) == (4, 1, True)
        assert [line[:13] for line in given(fake.requests[-1])] == ["user: Summary", "user: word wo"]


@pytest.mark.parametrize(
    ("roles", "most", "gone"),
    [
        ("ua", 2, 0),
        ("uaua", 2, 1),
        ("uauaua", 4, 2),
        ("uauauau", 6, 2),
        ("uacttauactta", 8, 1),
        ("uactttttta", 4, 0),
        ("ctaua", 4, 1),
        ("", 1, 0),
    ],
)
def test_whole_exchanges_go_so_that_half_is_free(roles: str, most: int, gone: int) -> None:
    exchanges = exchanges_of(said(roles.replace("c", "a")))
    assert outgrown(exchanges, most, None) == gone
    assert outgrown(exchanges, 1000, 0) == max(0, len(exchanges) - 1)
