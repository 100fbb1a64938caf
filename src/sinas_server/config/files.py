"""YAML tags that bring other files into a document on this machine: `!file` and `!python`.

Only documents read from a file have them; one sent through the API cannot reach the server's files.
"""

from pathlib import Path

import yaml

from sinas_server.config.strict import StrictLoader

MAX_FILE_BYTES = 2_000_000


def loader(base: Path | None) -> type[StrictLoader]:
    """A YAML loader whose tags read below `base`; without one it refuses them."""

    class Loader(StrictLoader):
        """Safe YAML, and files."""

    def file(found: StrictLoader, node: yaml.Node) -> str:
        """`!file PATH`: the text of a file."""
        if not isinstance(node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "!file takes one path", node.start_mark)
        return _text(base, str(found.construct_scalar(node)), node)

    def python(found: StrictLoader, node: yaml.Node) -> str:
        """`!python {file: PATH, data: {NAME: PATH}}`: code whose first line holds each data file as a string NAME."""
        given = found.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else {}
        data = given.get("data") or {}
        if set(given) - {"file", "data"} or "file" not in given or not isinstance(data, dict):
            raise yaml.constructor.ConstructorError(None, None, "!python takes `file` and `data`", node.start_mark)
        constants = [f"{name} = {_text(base, str(path), node)!r}" for name, path in data.items()]
        return "; ".join(constants) + ("\n" if constants else "") + _text(base, str(given["file"]), node)

    Loader.add_constructor("!file", file)
    Loader.add_constructor("!python", python)
    return Loader


def _text(base: Path | None, path: str, node: yaml.Node) -> str:
    def refuse(reason: str) -> yaml.constructor.ConstructorError:
        return yaml.constructor.ConstructorError(None, None, f"file '{path}' {reason}", node.start_mark)

    if base is None:
        raise refuse("cannot be read: only documents applied from a file may name files")
    found = (base / path).resolve()
    if not found.is_relative_to(base.resolve()):
        raise refuse("must lie below the document's folder")
    try:
        if found.stat().st_size > MAX_FILE_BYTES:
            raise refuse(f"is larger than {MAX_FILE_BYTES} bytes")
        return found.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise refuse(f"cannot be read: {error}") from error
