"""How each provider writes a streamed answer: from `Reply` to the bytes of its events."""

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.fakes.llm_server import Provider, Reply

MODELS = ["fake-large", "fake-small"]
ANTHROPIC_REASONS = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens", "content_filter": "refusal"}


def pieces(text: str, reply: "Reply") -> list[str]:
    """The text in the pieces that the reply asks for."""
    size = reply.chunk_size if reply.chunks is None else max(1, math.ceil(len(text) / reply.chunks))
    return [text[start : start + size] for start in range(0, len(text), size)]


def sse(data: object, event: str | None = None) -> bytes:
    """One server-sent event."""
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def stream_events(provider: "Provider", body: dict[str, Any], reply: "Reply") -> list[bytes]:
    """The events of a whole answer."""
    model = body["model"]
    if provider == "anthropic":
        return [sse(data, data["type"]) for data in _anthropic(model, reply)]
    usage = provider == "mistral" or bool(body.get("stream_options", {}).get("include_usage"))
    return [*map(sse, _openai(provider, model, reply, usage)), b"data: [DONE]\n\n"]


def _reason(reply: "Reply") -> str:
    return reply.finish_reason or ("tool_calls" if reply.tool_calls else "stop")


def _openai(provider: "Provider", model: str, reply: "Reply", usage: bool) -> Iterator[dict[str, Any]]:
    common = {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 1700000000, "model": model}

    def chunk(delta: dict[str, Any], reason: str | None = None, **more: object) -> dict[str, Any]:
        return {**common, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more}

    yield chunk({"role": "assistant", "content": ""})
    for piece in pieces(reply.thinking, reply):
        if provider == "mistral":
            yield chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": piece}]}]})
        else:
            yield chunk({"reasoning" if provider == "ollama" else "reasoning_content": piece})
    for piece in pieces(reply.text, reply):
        yield chunk({"content": piece})
    for index, call in enumerate(reply.tool_calls):
        first, *rest = pieces(call.arguments, reply) or [""]
        function = {"name": call.name, "arguments": first}
        yield chunk({"tool_calls": [{"index": index, "id": call.id, "type": "function", "function": function}]})
        for piece in rest:
            more = {"name": "", "arguments": piece} if provider == "mistral" else {"arguments": piece}
            yield chunk({"tool_calls": [{"index": index, "function": more}]})
    counts = {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "total_tokens": reply.prompt_tokens + reply.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": reply.cached_tokens},
    }
    if provider == "mistral":
        yield chunk({"content": ""}, _reason(reply), usage=counts)
        return
    yield chunk({}, _reason(reply))
    if usage:
        yield {**common, "choices": [], "usage": counts}


def _anthropic(model: str, reply: "Reply") -> Iterator[dict[str, Any]]:
    usage = {
        "input_tokens": reply.prompt_tokens - reply.cached_tokens,
        "cache_read_input_tokens": reply.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": 1,
    }
    message = {"id": "msg_fake", "type": "message", "role": "assistant", "model": model, "content": []}
    yield {"type": "message_start", "message": {**message, "stop_reason": None, "stop_sequence": None, "usage": usage}}
    yield {"type": "ping"}
    blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    if reply.thinking:
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in pieces(reply.thinking, reply)]
        deltas.append({"type": "signature_delta", "signature": reply.signature})
        blocks.append(({"type": "thinking", "thinking": "", "signature": ""}, deltas))
    if reply.redacted:
        blocks.append(({"type": "redacted_thinking", "data": reply.redacted}, []))
    if reply.text:
        texts = [{"type": "text_delta", "text": piece} for piece in pieces(reply.text, reply)]
        blocks.append(({"type": "text", "text": ""}, texts))
    for call in reply.tool_calls:
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces(call.arguments, reply)]
        blocks.append(({"type": "tool_use", "id": call.id, "name": call.name, "input": {}}, deltas))
    for index, (block, deltas) in enumerate(blocks):
        yield {"type": "content_block_start", "index": index, "content_block": block}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    stop = {"stop_reason": ANTHROPIC_REASONS[_reason(reply)], "stop_sequence": None}
    yield {"type": "message_delta", "delta": stop, "usage": {"output_tokens": reply.completion_tokens}}
    yield {"type": "message_stop"}


def error_body(provider: "Provider", reply: "Reply", text: str) -> dict[str, Any]:
    """An error as the provider writes it."""
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(reply.status, "api_error")
    error = {"type": kind, "message": text}
    if provider == "anthropic":
        return {"type": "error", "error": error}
    if provider == "mistral":
        return {"object": "error", **error, "param": None, "code": reply.error_code or "1000"}
    return {"error": {**error, "code": reply.error_code}}


def stream_error(provider: "Provider", text: str) -> bytes:
    """An overload reported inside a stream that had begun well."""
    if provider == "anthropic":
        return sse({"type": "error", "error": {"type": "overloaded_error", "message": text}}, "error")
    return sse({"error": {"type": "server_error", "message": text, "code": None}})


def vector(text: str, dimensions: int) -> list[float]:
    """What the fake embeds a text as."""
    return [len(text) + step / 8 for step in range(dimensions)]


def embeddings(body: dict[str, Any]) -> dict[str, Any]:
    """The vectors as OpenAI, Mistral and Ollama write them; the last text first, since only `index` counts."""
    size = body.get("dimensions") or body.get("output_dimension") or 8
    data = [
        {"object": "embedding", "index": index, "embedding": vector(text, size)}
        for index, text in enumerate(body["input"])
    ]
    tokens = sum(map(len, body["input"]))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data[::-1], "model": body["model"], "usage": usage}


def model_list(provider: "Provider", *, tags: bool) -> dict[str, Any]:
    """The list of models as the provider writes it."""
    if tags:
        return {"models": [{"name": name, "model": name} for name in MODELS]}
    if provider == "anthropic":
        data = [
            {"type": "model", "id": name, "display_name": name, "created_at": "2026-01-01T00:00:00Z"} for name in MODELS
        ]
        return {"data": data, "has_more": False, "first_id": MODELS[0], "last_id": MODELS[-1]}
    entries: list[dict[str, object]] = [
        {"id": name, "object": "model", "created": 1700000000, "owned_by": "fake", "capabilities": {}}
        for name in MODELS
    ]
    return {"object": "list", "data": entries}
