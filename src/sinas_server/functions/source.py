"""What is known of source code without running it. Loads nothing of the platform: `sinas run` starts with it."""

import ast
import warnings

from sinas_server.kit.json import has_nul


def syntax_problem(code: str) -> str | None:
    """Why Python cannot parse code, None if it can; the code is never compiled or run here."""
    if has_nul(code):
        return "source code must not contain NUL characters"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
    except SyntaxError as error:
        return f"Syntax error in line {error.lineno or 1}: {error.msg}"
    except (RecursionError, MemoryError):
        return "the code is nested too deeply"
    except ValueError as error:  # lone surrogates
        return f"the code is not valid text: {error}"
    return None


def legacy_entry_point(name: str) -> str:
    """The name that older functions give to what is now called `handler`."""
    return name.replace("-", "_")
