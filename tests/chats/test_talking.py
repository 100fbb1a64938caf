"""A chat from its creation to its answers, as clients see it."""

from sinas_server.kernel.runtime import Runtime
from tests.chats.conftest import CountingTools, Declare, get_chat, open_chat, reread, stream, text_of
from tests.people import Person

LOOK = [
    {"when": {"contains": "look"}, "call": [{"tool": "shop/look", "arguments": {"n": "{{ 1 }}"}}]},
    {"when": {"after_tool": "shop/look"}, "answer": "Found {{ results['shop/look'].got.n }}."},
]


async def test_an_answer_is_streamed_and_kept(user: Person, declare: Declare, worker: None) -> None:
    chat_id = await open_chat(user, await declare("plain"))
    events = await stream(user, chat_id, "Hi")
    assert [event.name for event in events][-1] == "done"
    assert events[-1].data == {"type": "done", "status": "completed"}
    assert text_of(events) == "Hello, I am the agent."
    chat = await get_chat(user, chat_id)
    assert [(m["role"], m["content"]) for m in chat["messages"]] == [
        ("user", "Hi"),
        ("assistant", "Hello, I am the agent."),
    ]
    assert chat["active_channel_id"] is None
    assert chat["last_turn"]["status"] == "COMPLETED"


async def test_tools_are_called_and_their_results_kept(
    user: Person, declare: Declare, worker: None, tools: CountingTools, runtime: Runtime
) -> None:
    chat_id = await open_chat(user, await declare("looker", LOOK, enabled_functions=["shop/look"]))
    events = await stream(user, chat_id, "please look")
    names = [event.name for event in events]
    assert names[:2] == ["tool_start", "tool_end"]
    start, end = events[:2]
    assert start.data["arguments"] == '{"n": 1}'
    assert start.data["description"] == "Looking at 1"
    assert start.data["name"] == "shop__look"
    assert end.data["result"] == '{"tool": "shop/look", "got": {"n": 1}}'
    assert text_of(events) == "Found 1."
    chat = await get_chat(user, chat_id)
    assert [m["role"] for m in chat["messages"]] == ["user", "assistant", "tool", "assistant"]
    call = chat["messages"][1]["tool_calls"][0]
    assert call["id"] == start.data["tool_call_id"] == chat["messages"][2]["tool_call_id"]
    assert call["function"] == {"name": "shop__look", "arguments": '{"n": 1}'}
    assert len(tools.ran) == 1
    again = await reread(user, chat_id, chat["last_turn"]["channel_id"])
    assert text_of(again) == "Found 1."
    assert [event.name for event in again if event.name != "message"] == ["tool_start", "tool_end", "done"]
