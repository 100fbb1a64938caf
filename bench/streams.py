"""What streams cost that are open while nothing is said."""

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from bench.bars import Bench
from bench.model import CHUNKS, TEXT, declare_agent, model, turns
from bench.report import Line

STREAMS = 500
ALLOWED_MB = 100
SETTLE_SECONDS = 5.0
PATIENCE = 120.0
COMPLETED = b'"status":"completed"'


def measure_streams(bench: Bench, _: bytes) -> Line:
    """Memory (PSS) of the whole stack with 500 turns that clients follow, less that without. All must complete."""
    stack = bench.stack
    with model(stack, bench.client, "streams") as fake:
        declare_agent(stack, "streams", fake)
        first, asked = turns(stack, "streams", 10), turns(stack, "streams", STREAMS)
        with _opened(stack.port, first) as warm:
            for stream in warm:
                _await(stream, COMPLETED)
        fake.tell("PUT", "default", {"text": TEXT, "chunks": CHUNKS, "times": None, "hold_after": 2})
        time.sleep(SETTLE_SECONDS)
        before = sum(stack.memory().values())
        with _opened(stack.port, asked) as streams:
            time.sleep(SETTLE_SECONDS)
            during = sum(stack.memory().values())
            fake.tell("PUT", "default", {"text": TEXT, "chunks": CHUNKS, "times": None})
            fake.tell("POST", "release")
            completed = sum(_await(stream, COMPLETED) for stream in streams)
    added = (during - before) / (1 << 20)
    note = f"{completed} of {STREAMS} turns completed afterwards"
    name = f"memory (PSS) of {STREAMS} open streams / {ALLOWED_MB} MB"
    return Line(name, added, ALLOWED_MB, "MB", 1, holds=completed == STREAMS, note=note)


@contextmanager
def _opened(port: int, requests: Sequence[bytes]) -> Iterator[list[socket.socket]]:
    """A connection for each request; its answer has begun."""
    with ExitStack() as kept:
        streams = [kept.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE)) for _ in requests]
        for stream, request in zip(streams, requests, strict=True):
            stream.sendall(request)
        for stream in streams:
            if not _await(stream, b"\r\n\r\n"):
                raise RuntimeError("a stream ended before it began")
        yield streams


def _await(stream: socket.socket, mark: bytes) -> bool:
    """Whether the mark comes before the end."""
    found = b""
    while mark not in found:
        piece = stream.recv(1 << 16)
        if not piece:
            return False
        found += piece
    return True
