"""Templates rendered by processes of their own, which are killed when one takes too long; simple ones at once."""

import asyncio
import sys
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import cast

import orjson
from pydantic import JsonValue

from sinas_server.backends.render import Part, RendererBusyError, RenderFailedError, RenderStoppedError, child
from sinas_server.kit import jinja

MEMORY_BYTES = 512 << 20
"""Address space of a process, of which the interpreter takes a fifth."""
IDLE_SECONDS = 60.0
MOST = 2
"""How many templates a process of the platform renders at the same time."""
START_SECONDS = 30.0
MAX_ANSWER = 64 << 20


class ProcessRenderer:
    """Starts a process at its first use; after some time without work the process ends by itself."""

    def __init__(self, seconds: float) -> None:
        """`seconds`: how long a render may take."""
        self._seconds = seconds
        self._turns = asyncio.Semaphore(MOST)
        self._idle: list[Process] = []

    async def render(self, parts: Sequence[Part], variables: Mapping[str, JsonValue]) -> list[str]:
        """The parts, filled. Raises `RenderFailedError` and `RendererBusyError`."""
        if all(jinja.is_simple(part.source) and not part.for_mail for part in parts):
            return [_render_now(index, part, variables) for index, part in enumerate(parts)]
        try:
            job = orjson.dumps({"parts": [asdict(part) for part in parts], "variables": variables}) + b"\n"
        except TypeError as error:  # as of an integer beyond 64 bits
            raise RenderFailedError(0, f"it cannot be given its variables: {error}") from error
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._turns.acquire()
        except TimeoutError as error:
            raise RendererBusyError("too many templates are being rendered; try again") from error
        try:
            found = orjson.loads(await self._ask(job))
        finally:
            self._turns.release()
        if "reason" in found:
            raise RenderFailedError(found["index"], found["reason"])
        done: list[str] = found["done"]
        return done

    async def _ask(self, job: bytes) -> bytes:
        while self._idle:
            answer = await self._ask_one(self._idle.pop(), job)
            if answer:
                return answer  # otherwise it had ended while it was idle
        answer = await self._ask_one(await self._start(), job)
        if not answer:
            raise RenderStoppedError(0, f"it was stopped; it may take no more than {MEMORY_BYTES >> 20} MB of memory")
        return answer

    async def _ask_one(self, process: Process, job: bytes) -> bytes:
        """The answer of a process; empty if it has died. One that takes too long is killed."""
        jobs, answers = _pipes(process)
        kept = False
        try:
            async with asyncio.timeout(self._seconds):
                with suppress(ConnectionError):
                    if not jobs.is_closing():  # uvloop would raise a RuntimeError
                        jobs.write(job)
                        await jobs.drain()
                answer = await answers.readline()
            kept = answer.endswith(b"\n")
        except TimeoutError as error:
            raise RenderStoppedError(0, f"it takes longer than {self._seconds:g} seconds") from error
        finally:
            if kept:
                self._idle.append(process)
            else:
                await _end(process)
        return answer if kept else b""

    async def _start(self) -> Process:
        command = [sys.executable, "-I", "-m", child.__name__, str(MEMORY_BYTES), str(IDLE_SECONDS)]
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env={}, limit=MAX_ANSWER
        )
        is_ready = False
        try:
            async with asyncio.timeout(START_SECONDS):
                is_ready = await _pipes(process)[1].readline() == child.READY
        except TimeoutError:
            pass
        finally:
            if not is_ready:
                await _end(process)
        if not is_ready:
            raise RendererBusyError("the process that renders templates does not start")
        return process

    async def close(self) -> None:
        """End the processes."""
        while self._idle:
            await _end(self._idle.pop())


def _render_now(index: int, part: Part, variables: Mapping[str, JsonValue]) -> str:
    try:
        return jinja.render(part.source, variables, autoescape=part.html)
    except jinja.TemplateRenderError as error:
        raise RenderFailedError(index, str(error).encode(errors="replace").decode()) from error


def _pipes(process: Process) -> tuple[StreamWriter, StreamReader]:
    return cast(StreamWriter, process.stdin), cast(StreamReader, process.stdout)


async def _end(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()
