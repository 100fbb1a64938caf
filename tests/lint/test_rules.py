"""Every rule of `scripts/lint` finds what it is for and lets through what looks like it."""

import ast
from collections.abc import Iterable

import pytest

from scripts.lint.__main__ import RULES, Rule
from scripts.lint.commits import commits
from scripts.lint.excepts import broad_excepts
from scripts.lint.exempt import Exempt, apart_from
from scripts.lint.imports import local_imports
from scripts.lint.instances import module_instances
from scripts.lint.machine import machine_paths, registry_hosts
from scripts.lint.names import module_names
from scripts.lint.reasons import reasons
from scripts.lint.settings import SETTINGS, unread_settings
from scripts.lint.size import file_length, function_length
from scripts.lint.source import Source, source
from scripts.lint.wire import names_any

SRC = "src/sinas_server/x.py"


def long_function(lines: int) -> str:
    return "@cache\ndef f():\n" + "    pass\n" * (lines - 1)


BREAKS: list[tuple[Rule, str, str]] = [
    (function_length, SRC, long_function(61)),
    (function_length, "tests/x/test_x.py", long_function(61).replace("def", "async def")),
    (file_length, SRC, "x = 1\n" * 401),
    (file_length, "console/src/chat.tsx", "//\n" * 251),
    (module_names, "src/sinas_server/utils.py", ""),
    (module_names, "src/sinas_server/helpers/chat.py", ""),
    (module_names, "tests/chat/chat_helper.py", ""),
    (module_names, "src/sinas_server/kernel/base.py", ""),
    (local_imports, SRC, "def f():\n    import numpy\n"),
    (local_imports, SRC, "class C:\n    async def f(self):\n        if x:\n            from a import b  # lazy:\n"),
    (names_any, SRC, "def f(x: Any) -> None: ...\n"),
    (names_any, SRC, "x: dict[str, typing.Any] = read()\n"),
    (module_instances, SRC, "client = httpx2.AsyncClient()\n"),
    (module_instances, SRC, "CLIENT: AsyncClient = httpx2.AsyncClient()\n"),
    (module_instances, SRC, "ENGINE = create_async_engine(URL)\n"),
    (module_instances, SRC, "settings = load_settings()\n"),
    (module_instances, SRC, "_CACHE: dict[str, int] = {}\n"),
    (module_instances, SRC, "SEEN = set()\n"),
    (module_instances, SRC, "handlers = {'a': 1}\n"),
    (module_instances, SRC, "limit = Limits(1)\n"),
    (module_instances, SRC, "BY_NAME = collections.defaultdict(list)\n"),
    (broad_excepts, SRC, "try:\n    f()\nexcept Exception:\n    pass\n"),
    (broad_excepts, SRC, "try:\n    f()\nexcept:\n    pass\n"),
    (broad_excepts, SRC, "try:\n    f()\nexcept (KeyError, BaseException) as e:\n    if e:\n        raise\n    pass\n"),
    (broad_excepts, SRC, "with contextlib.suppress(Exception):\n    f()\n"),
    (commits, SRC, "async def f(db):\n    await db.commit()\n"),
    (commits, SRC, "async def f(db):\n    async with db.begin():\n        pass\n"),
    (machine_paths, "README.md", "Open /wo" + "rk/main/README.md\n"),
    (machine_paths, SRC, 'HOME = "/ho' + 'me/ada/sinas"\n'),
    (machine_paths, "deploy/x.yaml", "- /ro" + "ot/.cache:/cache\n"),
    (registry_hosts, "uv.lock", "source = { registry" + ' = "https://mirror.example/simple" }\n'),
    (registry_hosts, "package-lock.json", '  "resolved": "https://mirror.example/react.tgz",\n'),
    (registry_hosts, "deploy/Dockerfile", "RUN pip install --index-" + "url=https://mirror.example/simple x\n"),
    (reasons, SRC, "x = f()  # no" + "qa\n"),
    (reasons, SRC, "x = f()  # no" + "qa: S104\n"),
    (reasons, SRC, "x = f()  # type: ig" + "nore  # the stub is wrong\n"),
    (reasons, SRC, "x = f()  # type: ig" + "nore[arg-type]\n"),
    (reasons, SRC, "if x:  # pragma: no cov" + "er\n    pass\n"),
]

KEEPS: list[tuple[Rule, str, str]] = [
    (function_length, SRC, long_function(60)),
    (file_length, SRC, "x = 1\n" * 400),
    (file_length, "console/src/chat.tsx", "//\n" * 250),
    (file_length, "docs/long.md", "x\n" * 900),
    (module_names, "src/sinas_server/kit/base64.py", ""),
    (module_names, "src/sinas_server/kernel/store.py", ""),
    (module_names, "docs/utils.md", ""),
    (local_imports, SRC, "import numpy\nif TYPE_CHECKING:\n    import pandas\n"),
    (local_imports, SRC, "def f():\n    import numpy  # lazy: 200 ms, and few need it\n"),
    (local_imports, SRC, "def f():\n    from a import (  # lazy: 200 ms\n        b,\n    )\n"),
    (local_imports, "tests/x/test_x.py", "def f():\n    import numpy\n"),
    (names_any, SRC, "def f(x: object) -> None:\n    Any_thing = x\n    print('Any')\n"),
    (
        module_instances,
        SRC,
        "router = APIRouter(prefix='/skills')\nruntime_router = _runtime_router()\nlog = structlog.get_logger()\n",
    ),
    (module_instances, SRC, "SKILL = Kind(name='skill')\nLIMIT: Final = 3\n__all__ = ['SKILL']\n"),
    (module_instances, SRC, "T = TypeVar('T')\nSession = Annotated[Db, Depends(session)]\n"),
    (module_instances, SRC, "COLORS = {'red': 1}\nPATTERN = re.compile('x')\nname = 'x'\n"),
    (module_instances, SRC, "def f():\n    client = AsyncClient()\n    return client\n"),
    (broad_excepts, SRC, "try:\n    f()\nexcept (OSError, ValueError):\n    pass\n"),
    (broad_excepts, SRC, "try:\n    f()\nexcept BaseException:\n    close()\n    raise\n"),
    (broad_excepts, SRC, "with suppress(OSError):\n    f()\n"),
    (commits, SRC, "async with unit() as db:\n    await db.flush()\n    async with db.begin_nested():\n        pass\n"),
    (commits, "tests/x/test_x.py", "db.commit()\n"),
    (machine_paths, "README.md", "src/work/x and https://example.com/work/x and $HOME/root/x\n"),
    (machine_paths, SRC, 'SECRET = "/ro' + 'ot/.ssh"  # path: what an attack tries to read\n'),
    (registry_hosts, "uv.lock", 'registry = "https://pypi.org/simple"\nurl = "https://files.pythonhosted.org/x.whl"\n'),
    (
        registry_hosts,
        "package-lock.json",
        '"resolved": "https://registry.npmjs.org/x"\n"url": "https://opencollective.com"\n',
    ),
    (reasons, SRC, "x = f()  # no" + "qa: S104 - the container's only door\n"),
    (reasons, SRC, "x = f()  # type: ig" + "nore[arg-type]  # the stub lacks None\n"),
    (reasons, SRC, "x = '# no" + "qa'\n"),
]


def identify(value: object) -> str | None:
    return getattr(value, "__name__", None)


def parses(given: Source) -> bool:
    return not given.is_python or isinstance(ast.parse(given.text), ast.Module)


@pytest.mark.parametrize(("rule", "path", "text"), BREAKS, ids=identify)
def test_finds(rule: Rule, path: str, text: str) -> None:
    given = source(path, text)
    assert parses(given)
    assert [problem.path for problem in rule(given)] != []


@pytest.mark.parametrize(("rule", "path", "text"), KEEPS, ids=identify)
def test_lets_through(rule: Rule, path: str, text: str) -> None:
    given = source(path, text)
    assert parses(given)
    assert list(rule(given)) == []


def test_every_rule_is_tried_both_ways() -> None:
    rules = {rule for rule, _ in RULES}
    assert {rule for rule, _, _ in BREAKS} == rules
    assert {rule for rule, _, _ in KEEPS} == rules


def test_an_exemption_covers_its_file_and_is_reported_when_nothing_needs_it() -> None:
    exempt = (Exempt("src/a.py", "an edge"), Exempt("src/b/", "wire"), Exempt("src/c.py", "was an edge"))
    sources = [source(path, "def f(x: Any): ...\n") for path in ("src/a.py", "src/b/x.py", "src/d.py")]
    found = [str(problem) for problem in apart_from(exempt, (p for s in sources for p in names_any(s)))]
    assert [line.split(":")[0] for line in found] == ["src/d.py", "scripts/lint/exempt.py"]
    assert "src/c.py" in found[1]


DECLARED = """
class Settings(BaseSettings):
    port: int = 8000
    domain: str | None = None
    depth: int = 8

    @property
    def url(self) -> str:
        return self.address

    @property
    def address(self) -> str:
        return f"{self.domain}"
"""


def unread(*reading: str) -> Iterable[str]:
    sources = [
        source(f"{SETTINGS}x.py", DECLARED),
        *(source(f"src/sinas_server/{n}.py", text) for n, text in enumerate(reading)),
    ]
    return [problem.message.split("`")[1] for problem in unread_settings(sources)]


def test_a_setting_that_no_code_reads_is_found() -> None:
    assert unread("print(other.port, url.domain)\n") == ["settings.port", "settings.domain", "settings.depth"]


def test_a_setting_is_read_directly_or_through_properties() -> None:
    assert unread("f(settings.port)\n", "g(self.settings.url, load_settings().depth)\n") == []
