"""The process that renders: it takes jobs from its standard input, one a line, and can open nothing.

python -m sinas_server.backends.render.child MEMORY_BYTES IDLE_SECONDS
"""

import resource
import select
import sys
from contextlib import suppress
from typing import BinaryIO

import css_inline
import orjson
from jinja2.filters import FILTERS

from sinas_server.kit import jinja

READY = b"ready\n"
INLINER = css_inline.CSSInliner(load_remote_stylesheets=False, keep_at_rules=True)


def answer(job: bytes) -> bytes:
    """What a job gives: `{"done": [...]}`, or `{"index", "reason"}` of the part that failed."""
    wanted = orjson.loads(job)
    done: list[str] = []
    for part in wanted["parts"]:
        try:
            text = jinja.render(part["source"], wanted["variables"], autoescape=part["html"])
            done.append(INLINER.inline(text) if part["for_mail"] else text)
        except (jinja.TemplateRenderError, css_inline.InlineError, OSError) as error:
            return orjson.dumps({"index": len(done), "reason": str(error).encode(errors="replace").decode()})
    return orjson.dumps({"done": done})


def confine(memory_bytes: int) -> None:
    """Give up memory beyond this, and files, sockets and processes altogether, should a template break out."""
    for source in ("{{ lipsum(n=1) }}", "{{ missing }}", *(f"{{{{ 'x' | {name} }}}}" for name in FILTERS)):
        with suppress(jinja.TemplateRenderError):  # what is loaded late, as for errors, is loaded now
            jinja.render(source, {}, autoescape=True)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))


def serve(jobs: BinaryIO, answers: BinaryIO, idle_seconds: float) -> None:
    """Say that it can begin, then answer until there are no more jobs, or none for a while."""
    answers.write(READY)
    answers.flush()
    while select.select([jobs], [], [], idle_seconds)[0]:
        job = jobs.readline()
        if not job:
            return
        answers.write(answer(job) + b"\n")
        answers.flush()


if __name__ == "__main__":
    confine(int(sys.argv[1]))
    serve(sys.stdin.buffer, sys.stdout.buffer, float(sys.argv[2]))
