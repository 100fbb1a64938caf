"""One valid resource of every kind, and what the rules need to know of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import httpx2

from sinas_server.agents.kind import AGENT
from sinas_server.dependencies.kind import DEPENDENCY
from sinas_server.functions.kind import FUNCTION
from sinas_server.kernel.kind import AnyKind
from sinas_server.providers.budget import BUDGET
from sinas_server.providers.kind import PROVIDER
from sinas_server.secrets.kind import SECRET as SECRET_KIND
from sinas_server.skills.kind import SKILL
from sinas_server.templates.kind import TEMPLATE

Json = dict[str, Any]
SECRET = "sk-very-secret-4711"
SCHEMA: Json = {"type": "object", "properties": {"zulu": {"type": "string"}, "alpha": {}, "mike": {}}}


@dataclass(frozen=True)
class Example:
    """A valid resource. `change` is a valid partial update, `invalid` values that break a field's own rules."""

    kind: AnyKind
    spec: Json
    change: Json
    invalid: Mapping[str, object]
    schemas: tuple[str, ...] = ()
    """Fields that hold JSON Schemas."""
    free_form: str | None = None
    """A field that holds any JSON object."""
    hard: Mapping[str, AnyKind] = field(default_factory=dict)
    """Fields that hold the id of something that must exist."""
    soft: Mapping[str, str] = field(default_factory=dict)
    """Fields that list names of what may be missing."""

    @property
    def collection(self) -> str:
        return f"/api/v1/{self.kind.route}"

    @property
    def runtime_collection(self) -> str | None:
        return f"/{self.kind.route}" if self.kind.discover else None

    def item(self, name: str, namespace: str = "default") -> str:
        return f"{self.collection}/{namespace}/{name}" if self.kind.namespaced else f"{self.collection}/{name}"

    def body(self, name: str, **more: object) -> Json:
        return {"name": name, **self.spec, **more}

    def shown(self) -> Json:
        secret = self.kind.spec.secret_fields()
        return {key: value for key, value in self.spec.items() if key not in secret}

    async def make(self, http: httpx2.AsyncClient, name: str = "first", **more: object) -> Json:
        answer = await http.post(self.collection, json=self.body(name, **more))
        assert answer.status_code == 201, answer.text
        return cast(Json, answer.json())


EXAMPLES = (
    Example(
        kind=PROVIDER,
        spec={"provider_type": "openai", "api_key": SECRET, "default_model": "m", "config": {"timeout": 5}},
        change={"default_model": "other"},
        invalid={"provider_type": "abacus", "api_endpoint": "ftp://x", "default_model": "m" * 256, "models": "m"},
        free_form="config",
    ),
    Example(
        kind=BUDGET,
        spec={"applies_to": "role", "subject": "Users", "period": "day", "max_tokens": 1000, "max_usd": 2.5},
        change={"max_tokens": 2000},
        invalid={"applies_to": "planet", "period": "week", "max_tokens": "many", "max_usd": -0.5, "subject": ""},
    ),
    Example(
        kind=FUNCTION,
        spec={
            "code": "def handler(input_data, context):\n    return input_data\n",
            "description": "Echoes.",
            "input_schema": SCHEMA,
            "output_schema": {},
            "timeout": 30,
        },
        change={"description": "Echoes everything."},
        invalid={"code": "def (:", "timeout": 0, "input_schema": {"type": 7}, "requires_approval": "perhaps"},
        schemas=("input_schema", "output_schema"),
        free_form="input_schema",
    ),
    Example(
        kind=SKILL,
        spec={"description": "How to write.", "content": "# Tone\n\nBe brief."},
        change={"content": "Be clear."},
        invalid={"description": "", "content": ""},
    ),
    Example(
        kind=AGENT,
        spec={"description": "Helps.", "temperature": 0.2, "system_prompt": "Hello {{ name }}", "input_schema": SCHEMA},
        change={"temperature": 0.9},
        invalid={
            "temperature": 2.5,
            "max_tokens": 0,
            "system_prompt": "{{ broken",
            "output_schema": {"type": 7},
            "enabled_functions": ["not a/b/c reference"],
            "hooks": {"on_user_message": [{"function": "f", "on_timeout": "explode"}]},
            "llm_provider_id": "no-uuid",
        },
        schemas=("input_schema", "output_schema"),
        free_form="query_parameters",
        hard={"llm_provider_id": PROVIDER},
        soft={"enabled_functions": "function", "enabled_agents": "agent"},
    ),
    Example(
        kind=TEMPLATE,
        spec={
            "description": "Greets.",
            "title": "Hello {{ name }}",
            "html_content": "<p>Hello {{ name }}</p>",
            "text_content": "Hello {{ name }}",
            "variable_schema": SCHEMA,
        },
        change={"title": "Good morning {{ name }}"},
        invalid={"title": "{{ broken", "html_content": "", "text_content": "{% if %}", "variable_schema": {"type": 7}},
        schemas=("variable_schema",),
        free_form="variable_schema",
    ),
)

BY_KIND = {example.kind.name: example for example in EXAMPLES}

OWN_ROUTES = {SECRET_KIND.name: "tests/secrets", DEPENDENCY.name: "tests/dependencies"}
"""Kinds whose routes are not those of `crud_router`, and where these are tested."""
