"""An answer does not depend on where the network cuts its bytes."""

from sinas_server.backends.llm import Answer, LanguageModel, ToolCall
from tests.backends.llm.asking import WEATHER, ask, collect, text
from tests.fakes.llm_server import Call, FakeLLM, Reply

STRIDE = 61
"""Bytes per piece; with every first piece from 1 to this, each byte of the stream is cut at once."""
CALL = Call(name="shop__weather", arguments='{"city":"Köln"}')
REPLY = Reply(text="Grüß 你", tool_calls=[CALL], chunk_size=99)


def same(events: str, answer: Answer) -> bool:
    return (
        events == answer.text == "Grüß 你"
        and answer.tool_calls == (ToolCall("call_0", CALL.name, CALL.arguments),)
        and answer.usage.completion_tokens == 7
    )


async def test_cut_at_every_byte(fake: FakeLLM, model: LanguageModel) -> None:
    request = ask(tools=(WEATHER,))
    for first in range(1, STRIDE + 1):
        fake.replies.append(REPLY.model_copy(update={"split_at": first, "split_every": STRIDE}))
        events, answer = await collect(model, request)
        assert same(text(events), answer), first


async def test_every_byte_by_itself(fake: FakeLLM, model: LanguageModel) -> None:
    fake.replies.append(REPLY.model_copy(update={"chunk_size": 2, "split_every": 1}))
    events, answer = await collect(model, ask(tools=(WEATHER,)))
    assert same(text(events), answer)
