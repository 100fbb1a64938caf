"""What the types say that `sinas types` writes."""

import ast


def typed_fields(stub: str, name: str) -> set[str]:
    """The fields of one of its classes."""
    [found] = [node for node in ast.parse(stub).body if isinstance(node, ast.ClassDef) and node.name == name]
    fields = [node.target for node in found.body if isinstance(node, ast.AnnAssign)]
    return {field.id for field in fields if isinstance(field, ast.Name)}
