"""Rendering user-written templates: Jinja2 in its immutable sandbox, undefined names are errors, output is capped.

Checking a template takes no longer than its length accounts for; rendering one may, unless it `is_simple`.
"""

from collections.abc import Mapping
from functools import lru_cache

from jinja2 import StrictUndefined, Template, TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_OUTPUT = 1 << 20
"""The most characters a template may produce."""
SIMPLE_NODES = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.If,
    nodes.CondExpr,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Test,
    nodes.Name,
    nodes.Const,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Slice,
)
SIMPLE_FILTERS = frozenset(
    {"e", "escape", "float", "int", "length", "lower", "string", "title", "tojson", "trim", "upper"}
)
"""Those that take no longer than what they are applied to is long, given no arguments."""
MOST_SIMPLE_NODES = 1000
ERRORS = (
    SyntaxError,
    TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
    MemoryError,
)
"""What a template can raise by what it does."""


class TemplateRenderError(ValueError):
    """The template is malformed, uses an undefined name, or does something that is not allowed."""


class TemplateStoppedError(TemplateRenderError):
    """Rendering it took too long, or too much memory, and was stopped: trying again would be as expensive."""


class _Generator(CodeGenerator):
    """Works out no constant expression while it compiles, as Jinja2 does with `{{ 10 ** 10 ** 10 }}`."""

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: CodeGenerator._FinalizeInfo) -> str:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)

    def visit_EvalContextModifier(self, node: nodes.EvalContextModifier, frame: Frame) -> None:  # noqa: N802  # Jinja2's
        if not all(isinstance(option.value, nodes.Const) for option in node.options):
            self.fail("autoescape takes true or false", node.lineno)
        super().visit_EvalContextModifier(node, frame)


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _Generator


@lru_cache(maxsize=2)
def _environment(autoescape: bool) -> _Environment:
    return _Environment(undefined=StrictUndefined, autoescape=autoescape, keep_trailing_newline=True, optimized=False)


@lru_cache(maxsize=512)
def _compiled(source: str, autoescape: bool) -> Template:
    return _environment(autoescape).from_string(source)


def check(source: str) -> None:
    """Accept a template's syntax or raise `TemplateRenderError`."""
    try:
        _compiled(source, autoescape=False)
    except ERRORS as error:
        raise TemplateRenderError(str(error) or type(error).__name__) from error


@lru_cache(maxsize=512)
def is_simple(source: str) -> bool:
    """Whether rendering takes no longer than the lengths of the template and its variables account for.

    That is: no loops, calls, assignments or arithmetic, and few filters. Also so for one that is malformed.
    """
    try:
        found: list[nodes.Node] = [_environment(autoescape=False).parse(source)]
    except ERRORS:
        return True
    for node in found:
        if not _is_simple_node(node) or len(found) > MOST_SIMPLE_NODES:
            return False
        found.extend(node.iter_child_nodes())
    return True


def _is_simple_node(node: nodes.Node) -> bool:
    if not isinstance(node, nodes.Filter):
        return isinstance(node, SIMPLE_NODES)
    if node.node is None:
        return False
    if node.name == "default":
        return True
    # Escaping what is escaped doubles it each time.
    inner = (node.node, *node.node.find_all(nodes.Filter))
    is_escaped = any(isinstance(one, nodes.Filter) and one.name == "tojson" for one in inner)
    return node.name in SIMPLE_FILTERS and not (is_escaped or node.args or node.kwargs or node.dyn_args)


def render(source: str, variables: Mapping[str, object], *, autoescape: bool = False) -> str:
    """The template filled with `variables`. Raises `TemplateRenderError`."""
    try:
        pieces: list[str] = []
        size = 0
        for piece in _compiled(source, autoescape).generate(dict(variables)):
            size += len(piece)
            if size > MAX_OUTPUT:
                raise TemplateRenderError(f"the output is longer than {MAX_OUTPUT} characters")
            pieces.append(piece)
        text = "".join(pieces)
        text.encode()  # a literal can hold half a character, which nobody could be sent
        return text
    except ERRORS as error:
        raise TemplateRenderError(str(error) or type(error).__name__) from error
