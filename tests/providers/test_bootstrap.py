"""What an embedded installation finds in its environment and makes its default provider."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from pydantic import SecretStr

from sinas_server.backends.llm.scripted import LABEL
from sinas_server.kernel import store
from sinas_server.kernel.access import SYSTEM
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Change
from sinas_server.providers.bootstrap import bootstrap
from sinas_server.providers.kind import PROVIDER
from sinas_server.settings import Settings
from tests.people import Person


@pytest.fixture
def nobody_there() -> Iterator[str]:
    """The address of an Ollama that does not run; no other process gets it meanwhile."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


@pytest.fixture
def settings(settings: Settings, nobody_there: str, request: pytest.FixtureRequest) -> Settings:
    """Settings with the given keys, and no Ollama unless there is one."""
    return settings.model_copy(update={"ollama_host": nobody_there, **getattr(request, "param", {})})


async def providers(runtime: Runtime) -> dict[str, tuple[str, bool]]:
    """Name → (type, is the default)."""
    async with runtime.database.unit() as db:
        found = await store.find(db, SYSTEM, PROVIDER)
    return {one.name: (one.spec.provider_type, one.spec.is_default) for one in found}


async def test_without_keys_the_offline_model_says_what_it_is(runtime: Runtime, admin: Person) -> None:
    await bootstrap(runtime, SYSTEM)
    assert await providers(runtime) == {"offline": ("scripted", True)}
    shown = (await admin.http.get("/api/v1/llm-providers/offline")).json()
    assert LABEL in shown["config"]["default"]


@pytest.mark.parametrize(
    "settings",
    [{"anthropic_api_key": SecretStr("sk-ant"), "openai_api_key": SecretStr("sk-oai")}],
    indirect=True,
)
async def test_keys_become_providers_and_the_first_is_the_default(runtime: Runtime, admin: Person) -> None:
    await bootstrap(runtime, SYSTEM)
    assert await providers(runtime) == {"openai": ("openai", True), "anthropic": ("anthropic", False)}
    assert "sk-" not in (await admin.http.get("/api/v1/llm-providers")).text


async def test_a_key_that_comes_later_replaces_the_offline_model_and_nothing_else(runtime: Runtime) -> None:
    await bootstrap(runtime, SYSTEM)
    later = runtime.settings.model_copy(update={"mistral_api_key": SecretStr("m-key")})
    with_key = runtime.__class__(**{**vars(runtime), "settings": later})
    await bootstrap(with_key, SYSTEM)
    assert await providers(runtime) == {"offline": ("scripted", False), "mistral": ("mistral", True)}
    async with runtime.database.unit() as db:
        await store.change(db, SYSTEM, PROVIDER, "", "mistral", Change({"default_model": "chosen"}))
    await bootstrap(with_key, SYSTEM)
    async with runtime.database.unit() as db:
        assert (await store.read(db, SYSTEM, PROVIDER, "", "mistral")).spec.default_model == "chosen"


async def test_a_default_that_someone_chose_stays(runtime: Runtime) -> None:
    async with runtime.database.unit() as db:
        spec = store.validated(PROVIDER, {"provider_type": "scripted", "config": {}, "is_default": True})
        await store.create(db, SYSTEM, PROVIDER, ("", "mine"), spec)
    later = runtime.settings.model_copy(update={"openai_api_key": SecretStr("sk")})
    await bootstrap(runtime.__class__(**{**vars(runtime), "settings": later}), SYSTEM)
    assert await providers(runtime) == {"mine": ("scripted", True), "openai": ("openai", False)}


class _Ollama(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        listing = b'{"models": [{"name": "tiny:1b", "model": "tiny:1b"}]}'
        models = b'{"object": "list", "data": [{"id": "tiny:1b", "object": "model"}]}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(models if self.path.startswith("/v1") else listing)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name http.server uses
        return


@pytest.fixture
def ollama() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Ollama)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


async def test_a_local_ollama_becomes_the_default(runtime: Runtime, ollama: str) -> None:
    settings = runtime.settings.model_copy(update={"ollama_host": ollama})
    await bootstrap(runtime.__class__(**{**vars(runtime), "settings": settings}), SYSTEM)
    assert await providers(runtime) == {"ollama": ("ollama", True)}
