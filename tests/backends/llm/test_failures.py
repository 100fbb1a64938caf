"""What goes wrong at providers: told in their own words, never with the key, and rightly marked for another try."""

import socket
from ipaddress import IPv4Address

import pytest
from pydantic import JsonValue

from sinas_server.backends import transport
from sinas_server.backends.llm import LanguageModel, ProviderConfig, ProviderError
from sinas_server.backends.llm.failures import words
from sinas_server.backends.llm.remote import RemoteModel
from sinas_server.kit.hosts import Address
from tests.backends.llm.asking import KEY, Connect, ask, collect, failure, text
from tests.fakes.llm_server import FakeLLM, Provider, Reply
from tests.fakes.llm_wire import stream_events


@pytest.mark.parametrize("status", [429, 500, 502, 503, 529])
async def test_overload_may_be_tried_again(
    fake: FakeLLM, model: LanguageModel, provider: Provider, status: int
) -> None:
    fake.replies.append(Reply(status=status, error="Please slow down."))
    error = await failure(model, ask())
    assert (error.status, error.retryable) == (status, True)
    assert str(error) == f"{provider} answered {status}: Please slow down."
    # the libraries did not try again by themselves, and the model still works
    assert len(fake.requests) == 1
    _, answer = await collect(model, ask())
    assert answer.text


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
async def test_refusals_are_final(fake: FakeLLM, model: LanguageModel, provider: Provider, status: int) -> None:
    fake.replies.append(Reply(status=status, error="No, not like this."))
    error = await failure(model, ask())
    assert (error.status, error.retryable) == (status, False)
    assert "No, not like this." in str(error)


async def test_the_key_is_never_told(fake: FakeLLM, provider: Provider, connect: Connect) -> None:
    fake.replies.append(Reply(status=401, error="Bad key {key} for {key}"))
    options: dict[str, JsonValue] = {"headers": {"X-Gateway": "another-secret"}}
    model = connect(ProviderConfig(provider, KEY, fake.endpoint(provider), options))
    error = await failure(model, ask())
    assert "Bad key *** for ***" in str(error)
    fake.replies.append(Reply(status=400, error="header another-secret is odd"))
    assert "another-secret" not in str(await failure(model, ask()))
    await model.close()


async def test_an_empty_account_is_final(fake: FakeLLM) -> None:
    model = RemoteModel(ProviderConfig("openai", KEY, fake.endpoint("openai")))
    fake.replies.append(Reply(status=429, error="You exceeded your quota.", error_code="insufficient_quota"))
    error = await failure(model, ask())
    assert (error.status, error.retryable) == (429, False)
    assert "You exceeded your quota." in str(error)
    await model.close()


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("0.5", 0.5), (None, None), ("soon", None), ("-1", None)])
async def test_when_to_ask_again_is_told_as_the_provider_says_it(
    fake: FakeLLM, model: LanguageModel, header: str | None, seconds: float | None
) -> None:
    fake.replies.append(Reply(status=429, error="Please slow down.", retry_after=header))
    assert (await failure(model, ask())).retry_after_seconds == seconds


@pytest.mark.parametrize("clean", [False, True])
async def test_an_answer_cut_short_is_no_answer(
    fake: FakeLLM, model: LanguageModel, provider: Provider, clean: bool
) -> None:
    whole = b"".join(stream_events(provider, {"model": "fake-large"}, Reply(text="one two three")))
    ending = whole.index(b"three")
    for cut in (0, 1, ending // 2, ending, ending + 20):
        fake.replies.append(Reply(text="one two three", cut_after=cut, cut_clean=clean))
        error = await failure(model, ask())
        assert error.retryable, (cut, error)
        assert error.status is None


async def test_an_error_inside_a_stream(fake: FakeLLM, model: LanguageModel, provider: Provider) -> None:
    fake.replies.append(Reply(text="one two three", fail_after=4, error="Overloaded, sorry."))
    error = await failure(model, ask())
    assert error.retryable
    if provider != "mistral":  # its library hides the words of an event it does not know
        assert "Overloaded, sorry." in str(error)


@pytest.mark.parametrize("events", [0, 4])
async def test_silence_is_a_timeout(fake: FakeLLM, provider: Provider, connect: Connect, events: int) -> None:
    fake.replies.append(Reply(text="one two three four five", hold_after=events))
    model = connect(ProviderConfig(provider, KEY, fake.endpoint(provider), {"timeout": 0.2}))
    error = await failure(model, ask())
    assert error.retryable
    assert error.status is None
    await model.close()


async def test_nobody_listens(provider: Provider, connect: Connect) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        model = connect(ProviderConfig(provider, KEY, endpoint))
        error = await failure(model, ask())
        assert error.retryable
        assert f"{provider} cannot be reached" in str(error)
        with pytest.raises(ProviderError, match="cannot be reached"):
            await model.list_models()
        await model.close()


async def test_an_unknown_host(provider: Provider, connect: Connect) -> None:
    model = connect(ProviderConfig(provider, KEY, "http://sinas.invalid"))
    error = await failure(model, ask())
    assert error.retryable
    assert "sinas.invalid cannot be resolved" in str(error)
    await model.close()


async def test_listing_tells_failures_too(fake: FakeLLM, provider: Provider, connect: Connect) -> None:
    model = connect(ProviderConfig(provider, KEY, fake.url + "/control/nothing"))
    with pytest.raises(ProviderError, match=f"{provider} did not answer with a list of models"):
        await model.list_models()
    await model.close()
    model = connect(ProviderConfig(provider, KEY, fake.url + "/broken"))
    with pytest.raises(ProviderError, match=f"{provider} answered 503: no list today") as caught:
        await model.list_models()
    assert caught.value.retryable
    await model.close()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"detail": [{"loc": ["a"], "msg": "Field required"}, {"msg": "Too long"}]}', "Field required; Too long"),
        ('{"message": {"detail": "nested"}}', "nested"),
        ("<html>Bad Gateway</html>\n", "<html>Bad Gateway</html>"),
        ("123", "123"),
        ({"code": 7}, '{"code": 7}'),
        (None, ""),
    ],
)
def test_words_are_found_in_any_body(body: object, said: str) -> None:
    assert words(body) == said


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "[::ffff:169.254.169.254]", "2852039166", "0xa9fea9fe", "metadata.google.internal."]
)
async def test_metadata_addresses_are_refused(provider: Provider, connect: Connect, host: str) -> None:
    with pytest.raises(ProviderError, match="cloud metadata address") as caught:
        model = connect(ProviderConfig(provider, KEY, f"http://{host}/v1"))
        await collect(model, ask())
    assert not caught.value.retryable


async def test_metadata_is_refused_when_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def metadata(host: str, port: int) -> list[Address]:
        return [IPv4Address("169.254.169.254")]

    monkeypatch.setattr(transport, "resolve", metadata)
    model = RemoteModel(ProviderConfig("openai", KEY, "http://models.example.com/v1"))
    with pytest.raises(ProviderError, match="cloud metadata address"):
        await model.list_models()
    await model.close()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (ProviderConfig("ollama"), "needs an endpoint"),
        (ProviderConfig("openai"), "needs an api_key"),
        (ProviderConfig("anthropic"), "needs an api_key"),
        (ProviderConfig("mistral"), "needs an api_key"),
        (ProviderConfig("openai", KEY, "ftp://example.com"), "not an http or https URL"),
        (ProviderConfig("openai", KEY, "http://example.com:99999"), "Port"),
        (ProviderConfig("openai", KEY, options={"max_tokens": 0}), "max_tokens: Input should be greater"),
        (ProviderConfig("openai", KEY, options={"timeout": "soon"}), "timeout: Input should be a valid number"),
        (ProviderConfig("openai", KEY, options={"headers": {"X-A": 1}}), r"headers\.X-A: Input should be a valid str"),
    ],
)
def test_what_cannot_work_is_refused_at_once(config: ProviderConfig, reason: str) -> None:
    with pytest.raises(ProviderError, match=reason):
        RemoteModel(config)


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_endpoints_with_and_without_their_version(
    fake: FakeLLM, provider: Provider, connect: Connect, suffix: str
) -> None:
    base = fake.endpoint(provider).removesuffix("/v1")
    model = connect(ProviderConfig(provider, KEY, base + suffix))
    events, answer = await collect(model, ask())
    assert text(events) == answer.text
    assert await model.list_models() == ["fake-large", "fake-small"]
    await model.close()
