"""What every renderer does: fills templates within limits, whatever they try."""

import asyncio
import sys
from collections.abc import AsyncIterator

import pytest
import uvloop

from sinas_server.backends.render import Part, Renderer, RenderFailedError
from sinas_server.backends.render.process import ProcessRenderer

SECONDS = 1.0
"""How long what takes too long is given."""
PATIENCE = 60.0
"""How long the rest is given, which the machine may let wait."""
LOGIC = "{% set by_a_process = 1 %}"
"""Makes a template one that needs a process."""
FINE = Part(LOGIC + "fine")


@pytest.fixture
async def renderer() -> AsyncIterator[Renderer]:
    made = ProcessRenderer(PATIENCE)
    yield made
    await made.close()


@pytest.mark.parametrize("logic", [LOGIC, ""])
async def test_parts_are_filled_in_order(renderer: Renderer, logic: str) -> None:
    parts = [Part(logic + "{{ name }}"), Part("<b>{{ name }}</b>", html=True), Part("plain\n")]
    assert await renderer.render(parts, {"name": "<Ö>\n"}) == ["<Ö>\n", "<b>&lt;Ö&gt;\n</b>", "plain\n"]


async def test_style_sheets_become_attributes_for_mail(renderer: Renderer) -> None:
    page = "<style>p { color: red }</style><p>{{ name }}</p>"
    plain, mail = await renderer.render([Part(page, html=True), Part(page, html=True, for_mail=True)], {"name": "<A>"})
    assert plain == "<style>p { color: red }</style><p>&lt;A&gt;</p>"
    assert '<p style="color: red;">&lt;A&gt;</p>' in mail
    with pytest.raises(RenderFailedError) as failed:
        await renderer.render([FINE, Part("<p style='{{ '{{{' }}'><style>p {color: red}", for_mail=True)], {})
    assert failed.value.index == 1


async def test_many_at_once(renderer: Renderer) -> None:
    done = await asyncio.gather(*(renderer.render([Part(LOGIC + "{{ n }}")], {"n": number}) for number in range(50)))
    assert done == [[str(number)] for number in range(50)]


@pytest.mark.parametrize("logic", [LOGIC, ""])
async def test_the_part_that_fails_is_named(renderer: Renderer, logic: str) -> None:
    with pytest.raises(RenderFailedError, match="'name' is undefined") as failed:
        await renderer.render([Part(logic + "fine"), Part("{{ name }}")], {})
    assert failed.value.index == 1
    assert await renderer.render([FINE], {}) == ["fine"], "it goes on"


async def test_filters_that_are_loaded_late_work(renderer: Renderer) -> None:
    """The process can load nothing once it renders."""
    filters = ("urlize", "wordwrap", "pprint", "tojson", "title", "indent", "striptags", "xmlattr", "filesizeformat")
    values = {"xmlattr": "{'a': 1}", "filesizeformat": "1000"}
    for name in filters:
        source = f"{LOGIC}{{{{ {values.get(name, 'text')} | {name} }}}}"
        assert await renderer.render([Part(source, html=True)], {"text": "see https://example.com now"})
    assert await renderer.render([Part("{{ lipsum(n=1) }}{{ [1, 2] | random }}{{ dict(a=1) }}")], {})


GREEDY = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops without calls": "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
    "a number": "{{ 10 ** (10 ** 10) }}",
    "a repeated text": "{{ 'x' * 10 ** 10 }}",
    "a wide text": "{{ 'x'.center(10 ** 10) }}",
    "a wide filter": "{{ 'x' | center(10 ** 10) }}",
    "a format": "{{ '{:>9999999999}'.format('x') }}",
    "doubling": "{% set n = namespace(s='x' * 99999) %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "long output": "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "recursion": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "nested HTML": "{{ '<div>' * 99999 }}",
    "a replacement": "{{ ('x' * 99999) | replace('x', 'y' * 99999) }}",
}


@pytest.mark.parametrize("source", GREEDY.values(), ids=GREEDY)
async def test_what_takes_too_much_is_stopped(source: str, renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(RenderFailedError):
        patch.setattr(renderer, "_seconds", SECONDS)
        await renderer.render([Part(source, for_mail=True)], {})
    assert await renderer.render([FINE], {}) == ["fine"]


async def test_a_process_that_died_is_replaced(renderer: Renderer) -> None:
    assert await renderer.render([FINE], {}) == ["fine"]
    assert isinstance(renderer, ProcessRenderer)
    (process,) = renderer._idle
    process.kill()
    await process.wait()
    assert await renderer.render([FINE], {}) == ["fine"]


def test_one_that_ended_while_idle_is_replaced_on_the_loop_of_our_processes() -> None:
    async def idle_and_again() -> list[str]:
        renderer = ProcessRenderer(PATIENCE)
        await renderer.render([FINE], {})
        (process,) = renderer._idle
        process.kill()
        await process.wait()
        while process.stdin is not None and not process.stdin.is_closing():
            await asyncio.sleep(0.01)
        try:
            return await renderer.render([FINE], {})
        finally:
            await renderer.close()

    assert uvloop.run(idle_and_again()) == ["fine"]


async def test_whoever_does_not_wait_leaves_nothing_running(renderer: Renderer) -> None:
    assert await renderer.render([FINE], {}) == ["fine"]
    assert isinstance(renderer, ProcessRenderer)
    (process,) = renderer._idle
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await renderer.render([Part(GREEDY["nested loops"])], {})
    await process.wait()
    assert await renderer.render([FINE], {}) == ["fine"]


async def test_a_variable_that_cannot_be_passed_on(renderer: Renderer) -> None:
    with pytest.raises(RenderFailedError, match="cannot be given its variables"):
        await renderer.render([FINE], {"n": 10**30})


async def test_simple_templates_need_no_process(renderer: Renderer) -> None:
    parts = [Part("Hi {{ user.name | default('you') | upper }}{% if n == 2 and user is defined %}!{% endif %}")] * 3
    assert await renderer.render(parts, {"user": {"name": "Ann"}, "n": 2}) == ["Hi ANN!"] * 3
    assert isinstance(renderer, ProcessRenderer)
    assert not renderer._idle


async def test_the_process_can_open_nothing() -> None:
    """Should a template ever break out of its language."""
    code = (
        "from sinas_server.backends.render.child import confine\n"
        "import socket\n"
        "confine(512 << 20)\n"
        "for attempt in (lambda: open('/etc/passwd'), socket.socket, lambda: open('/tmp/x', 'w')):\n"
        "    try:\n        attempt()\n    except OSError as error:\n        print(error.errno)\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert out.split() == [b"24", b"24", b"24"], "too many open files"
