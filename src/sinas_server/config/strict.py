"""How YAML is read here: keys are texts, dates stay as written, and no small text can grow enormous."""

from typing import Any, cast

import yaml

MAX_DEPTH = 60
MAX_MERGED = 100_000
MERGE, STRING, TIMESTAMP = (f"tag:yaml.org,2002:{name}" for name in ("merge", "str", "timestamp"))
SAFE: type[yaml.SafeLoader] = cast(type[yaml.SafeLoader], getattr(yaml, "CSafeLoader", yaml.SafeLoader))


class StrictLoader(SAFE):  # type: ignore[valid-type,misc]  # libyaml's safe loader, or PyYAML's own
    """A safe loader with the rules of this module."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != TIMESTAMP]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    merged = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Count what merge keys (`<<`) copy: chained, they make a small text enormous as aliases can."""
        for key, value in node.value:
            if key.tag == MERGE:
                sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
                self.merged += sum(len(source.value) for source in sources)
        if self.merged > MAX_MERGED:
            raise yaml.YAMLError("too many keys are merged with `<<`")
        super().flatten_mapping(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; a key that is no text (`404:`, `on:`) counts as the text it is written as."""
        if isinstance(node, yaml.MappingNode):
            self.flatten_mapping(node)
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise yaml.constructor.ConstructorError(None, None, "a key must be a text", key.start_mark)
                key.tag = STRING
        return cast(dict[Any, Any], super().construct_mapping(node, deep=deep))


def check_depth(text: str) -> None:
    """Raise YAMLError for what is nested too deeply: libyaml recurses when it builds the document."""
    depth = 0
    for event in yaml.parse(text, Loader=SAFE):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"values are nested more than {MAX_DEPTH} deep")
