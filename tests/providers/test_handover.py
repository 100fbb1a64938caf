"""A conversation that providers of every kind have a part in: each gets names and ids of calls as it wants them."""

from sinas_server.kernel.runtime import Runtime
from tests.chats.conftest import Event, get_chat, open_chat, stream, text_of, working
from tests.fakes.llm_server import Call, FakeLLM, Reply
from tests.people import Person
from tests.providers.conftest import Provide

FAILS = Reply(status=400, error="not today")
DOOR = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages", "mistral": "/mistral/v1/chat/completions"}


async def test_calls_survive_every_change_of_provider(
    provide: Provide, fake: FakeLLM, user: Person, admin: Person, runtime: Runtime
) -> None:
    first = await provide("first", "openai")
    for kind in ("anthropic", "mistral", "ollama"):
        await provide(kind, kind)
    agent = {
        "name": "many",
        "llm_provider_id": first,
        "fallback_providers": ["anthropic", "mistral", "ollama"],
    }
    assert (await admin.http.post("/api/v1/agents", json=agent)).status_code == 201
    chat_id = await open_chat(user, "default/many")

    async def turn(*replies: Reply) -> list[Event]:
        fake.replies = list(replies)
        async with working(runtime):
            return await stream(user, chat_id, "go")

    # The same id over and over, one that only some take, and a name that no tool has.
    calls = [Call(name="shop.look", id="call_0"), Call(name="none", id="call_0"), Call(name="none", id="f.look:0")]
    asking = Reply(text="", tool_calls=calls)
    for failing in range(4):  # answers: OpenAI, then Anthropic, Mistral, Ollama
        said = await turn(asking, *[FAILS] * failing, Reply(text=f"answer {failing}"))
        assert text_of(said) == f"answer {failing}"
    # The fake refuses what the providers do, so none of them got a name or id it does not take.
    doors = {request.path for request in fake.requests}
    assert doors == {*DOOR.values(), "/ollama/v1/chat/completions"}
    shown = [
        call["id"] for message in (await get_chat(user, chat_id))["messages"] for call in message["tool_calls"] or ()
    ]
    assert len(set(shown)) == len(shown) == 12
    assert shown[0] == "call_0"
