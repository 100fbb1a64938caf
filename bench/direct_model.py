"""A model asked without the platform, in a process of its own: `python -m bench.direct_model ENDPOINT CALLERS`.

For each line `SECONDS` on standard input it asks with so many callers for so long, and prints how many answers were
`completed` in how many `seconds`. It asks as the platform does for agents: through the port and the library behind it.
"""

import asyncio
import json
import sys
import time

import uvloop

from bench.model import CONFIG, MODEL, TEXT
from sinas_server.backends.llm import Answer, LanguageModel, ModelRequest, ProviderConfig, TextPart, UserMessage
from sinas_server.backends.llm.remote import RemoteModel

REQUEST = ModelRequest(MODEL, (UserMessage((TextPart("Hello"),)),))


async def ask(model: LanguageModel) -> None:
    async for event in model.stream(REQUEST):
        if isinstance(event, Answer):
            assert event.text == TEXT


async def run(model: LanguageModel, callers: int, seconds: float) -> dict[str, float]:
    completed, began = 0, time.perf_counter()

    async def call() -> None:
        nonlocal completed
        while time.perf_counter() < began + seconds:
            await ask(model)
            completed += 1

    await asyncio.gather(*(call() for _ in range(callers)))
    return {"completed": completed, "seconds": time.perf_counter() - began}


async def main(endpoint: str, callers: int) -> None:
    model = RemoteModel(ProviderConfig(CONFIG["provider_type"], CONFIG["api_key"], endpoint))
    await ask(model)  # the provider's library loads
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await run(model, callers, float(line))), flush=True)
    await model.close()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
