"""The JSON Schema of scenario files, for editors, generated from the model that reads them."""

import json
from pathlib import Path

from sinas_server.cli.agent_tests.scenario import Scenario

PAGE = Path("docs/reference/scenario.schema.json")


def page() -> str:
    """The schema as a file."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Scenario.model_json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
