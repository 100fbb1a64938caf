"""Chats whose agent is at work, for tests of what is sent meanwhile."""

import asyncio
from typing import cast

from pydantic import JsonValue

from tests.chats.conftest import CountingTools, Declare, Event, Json, get_chat, open_chat, stream
from tests.people import Person

ECHO: list[Json] = [
    {"when": {"contains": "look"}, "answer": "I look.", "call": [{"tool": "shop/look", "arguments": {"n": "1"}}]},
    {"when": {"contains": "danger"}, "call": [{"tool": "shop/danger"}]},
    {"when": {"after_tool": "shop/look"}, "answer": "Seen."},
    {"when": {"after_tool": "shop/danger"}, "answer": "Done."},
    {"when": {"contains": "first"}, "answer": "First answer."},
    {"when": {"contains": "second"}, "answer": "Second answer."},
    {"when": {"contains": "third"}, "answer": "Third answer."},
]


async def an_agent(declare: Declare, **fields: JsonValue) -> str:
    return await declare("echo", ECHO, enabled_functions=["shop/look", "shop/danger"], **fields)


async def calling(
    person: Person, agent: str, tools: CountingTools, says: str = "look", **more: JsonValue
) -> tuple[str, asyncio.Task[list[Event]]]:
    """A chat whose agent calls a tool until `tools.let_go()`, and the stream of the message it works on."""
    tools.hold = asyncio.Event()
    chat_id = await open_chat(person, agent)
    sent = asyncio.create_task(stream(person, chat_id, says, **more))
    await in_a_call(tools)
    return chat_id, sent


async def unworked(person: Person, agent: str, says: str = "first") -> tuple[str, asyncio.Task[list[Event]]]:
    """A chat with a turn that no worker has begun, and the stream of its message."""
    chat_id = await open_chat(person, agent)
    sent = asyncio.create_task(stream(person, chat_id, says))
    await begun(person, chat_id)
    return chat_id, sent


async def queued(person: Person, chat_id: str, count: int) -> list[Json]:
    """What has not been heard, as soon as it is so many messages."""
    async with asyncio.timeout(60):
        while len(found := cast(list[Json], (await get_chat(person, chat_id))["queued"])) != count:
            await asyncio.sleep(0.01)
    return found


async def waiting(
    person: Person, chat_id: str, content: str, count: int, **more: JsonValue
) -> asyncio.Task[list[Event]]:
    """The stream of a message that is sent while the agent is at work."""
    sent = asyncio.create_task(stream(person, chat_id, content, **more))
    await queued(person, chat_id, count)
    return sent


async def in_a_call(tools: CountingTools) -> None:
    async with asyncio.timeout(60):
        while not tools.ran:
            await asyncio.sleep(0.01)


def said(chat: Json) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in chat["messages"]]


async def begun(person: Person, chat_id: str) -> None:
    """Waits until the chat has a turn."""
    async with asyncio.timeout(60):
        while (await get_chat(person, chat_id))["active_channel_id"] is None:
            await asyncio.sleep(0.01)
