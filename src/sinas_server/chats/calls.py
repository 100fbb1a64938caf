"""Tool calls: from what the model wrote to what is journaled, and carrying them out in parallel."""

import asyncio
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace
from typing import cast

import orjson
import structlog
from pydantic import JsonValue

from sinas_server.backends.llm import Answer, ToolCall
from sinas_server.chats.content import cleaned
from sinas_server.chats.ending import abandon
from sinas_server.chats.events import Call
from sinas_server.chats.journal import Journal
from sinas_server.chats.live import Channel
from sinas_server.chats.prepare import Prepared
from sinas_server.chats.tables import CallStatus
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import SinasError, UnavailableError
from sinas_server.kernel.fill import fill
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tool import CallIdentity, Tool, ToolResult, Toolset, Wait, Waiting
from sinas_server.kit.jinja import TemplateRenderError, TemplateStoppedError

log = structlog.get_logger()
NOT_APPROVED = "The user did not approve this call, so it was not carried out."
NOT_DECIDED = "The user did not decide on this call in time, so it was not carried out."
ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
"""Provider's ids that can stand in a URL; others are replaced."""


def storable(native: JsonValue) -> JsonValue:
    """A provider's own form of an answer if it can be stored, else nothing: it only improves the next request."""
    try:
        return None if b"\\u0000" in orjson.dumps(native) else native
    except TypeError:  # lone surrogates, integers beyond 64 bits
        return None


def tool_key(tool: Tool) -> str:
    """What an approval "for always" is about."""
    return f"{tool.toolset}:{tool.target}"


async def as_calls(runtime: Runtime, prepared: Prepared, journal: Journal, answer: Answer) -> tuple[Call, ...]:
    """The calls of an answer as they are journaled, before any is carried out."""
    tools, calls = prepared.prompt.tools, list[Call]()
    earlier = [call for known in journal.segment.answers.values() for call in known.calls]
    for index, wanted in enumerate(answer.tool_calls):
        tool = tools.get(wanted.name)
        if tool is not None and tool.status in _given_up(tools, [*earlier, *calls]):
            tool = replace(tool, status=None)
        calls.append(await _as_call(runtime, prepared, index, wanted, tool))
    return tuple(calls)


def _given_up(tools: Mapping[str, Tool], calls: Iterable[Call]) -> set[str | None]:
    """The status templates that were stopped in this turn: those of tools that were journaled without."""
    return {tools[call.name].status for call in calls if call.name in tools and not (call.tool or {}).get("status")}


async def _as_call(runtime: Runtime, prepared: Prepared, index: int, wanted: ToolCall, tool: Tool | None) -> Call:
    call = Call(
        index=index,
        id=wanted.id if ID.fullmatch(wanted.id) else "",
        name=cleaned(wanted.name),
        arguments=cleaned(wanted.arguments) or "{}",
        tool=None,
        description="",
        status=CallStatus.PENDING,
        requires_approval=False,
    )
    if tool is None:
        return call
    arguments = call.parsed()
    if arguments is None:
        return replace(call, tool=_stored(tool))
    tool, description = await _with_status(runtime, tool, arguments)
    call = replace(call, tool=_stored(tool), description=description)
    if tool.requires_approval and tool_key(tool) not in prepared.always_allowed:
        return replace(call, status=CallStatus.WAITING, requires_approval=True, waits_for=Wait.APPROVAL)
    return call


def _stored(tool: Tool) -> dict[str, JsonValue]:
    return cast(dict[str, JsonValue], asdict(tool))


async def _with_status(runtime: Runtime, tool: Tool, arguments: dict[str, JsonValue]) -> tuple[Tool, str]:
    """What is shown while it runs. A template that was stopped is taken from the tool: see `_given_up`."""
    if tool.status:
        try:
            return tool, (await fill(runtime, [tool.status], arguments))[0]
        except TemplateStoppedError as error:
            log.warning("status template given up for this turn", tool=tool.target, error=str(error))
            tool = replace(tool, status=None)
        except (TemplateRenderError, UnavailableError):
            pass
    return tool, f"Using {tool.target}"


async def carry_out(runtime: Runtime, prepared: Prepared, journal: Journal, channel: Channel) -> None:
    """Carry out the calls of the current step that may be, all at once; what becomes of each is journaled at once."""
    one_by_one = asyncio.Lock()  # results get their numbers, and events their places, in one order

    async def carry(call: Call) -> None:
        result = await _result(runtime, prepared, journal, call)
        await one_by_one.acquire()
        if isinstance(result, Waiting):
            await journal.waits(call, result)
        else:
            await journal.finished(call, result)
        await channel.catch_up(journal.segment)
        one_by_one.release()  # not if that failed: what is written then is not known here, so nothing more may be

    ready = [call for call in journal.segment.answers[journal.step].calls if call.status == CallStatus.PENDING]
    tasks = [asyncio.create_task(carry(call)) for call in ready]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _result(runtime: Runtime, prepared: Prepared, journal: Journal, call: Call) -> ToolResult | Waiting:
    if call.requires_approval and not call.approved:
        return ToolResult(NOT_DECIDED if call.approved is None else NOT_APPROVED, is_error=True)
    if not call.intact:
        return ToolResult("Error: this is not the call that was approved", is_error=True)
    arguments = call.parsed()
    if arguments is None:
        return ToolResult("Error: the arguments must be a JSON object", is_error=True)
    toolset = next((known for known in runtime.toolsets if known.name == (call.tool or {}).get("toolset")), None)
    if call.tool is None or toolset is None:
        return ToolResult(f"Error: there is no tool named '{call.name}'", is_error=True)
    waited = call.waits_for not in (None, Wait.APPROVAL)
    if not waited and not prepared.offers(call.tool):
        return ToolResult(f"Error: the agent may not use '{call.name}' any more", is_error=True)
    tool = as_tool(call.tool)
    if tool.fault:
        return ToolResult(f"Error: {tool.fault}", is_error=True)
    stubbed = None if prepared.test is None else prepared.test.stub(tool, arguments)
    if stubbed is not None:
        return stubbed
    turn = journal.turn
    identity = CallIdentity(turn.chat_id, turn.id, journal.step, call.index, call.id, waited, call.answer)
    return await _called(runtime, toolset, prepared.caller, tool, arguments, identity)


async def _called(
    runtime: Runtime,
    toolset: Toolset,
    caller: Caller,
    tool: Tool,
    arguments: dict[str, JsonValue],
    identity: CallIdentity,
) -> ToolResult | Waiting:
    try:
        async with asyncio.timeout(tool.timeout) as limit:
            result = await toolset.call_tool(runtime, caller, tool, arguments, identity)
    except TimeoutError:
        if not limit.expired():
            raise
        async with runtime.database.unit() as db:
            await abandon(db, runtime, identity.turn_id, (identity.step, identity.index))
        return ToolResult(f"Error: stopped, since it took longer than {tool.timeout:g} seconds", is_error=True)
    except UnavailableError:
        raise
    except SinasError as error:
        return ToolResult(f"Error: {error.detail}", is_error=True)
    return result if isinstance(result, Waiting) else replace(result, content=cleaned(result.content))


def as_tool(stored: object) -> Tool:
    """A tool as it was journaled with its call."""
    known = {field.name for field in fields(Tool)}
    values = {key: value for key, value in cast(dict[str, object], stored).items() if key in known}
    return Tool(**values)  # type: ignore[arg-type]  # written from a Tool by `as_calls`
