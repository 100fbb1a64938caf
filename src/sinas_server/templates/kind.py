"""The template kind: what a user declares about a document."""

from pydantic import Field

from sinas_server.kernel.fields import JinjaSource, JsonSchema
from sinas_server.kernel.kind import Kind, Spec

MAX_SOURCE = 500_000
"""The most characters of a part."""


class TemplateSpec(Spec):
    """A document with places for variables, in Jinja2. A variable that is missing when it is rendered is an error."""

    description: str | None = Field(default=None, description="What it is for.")
    title: JinjaSource | None = Field(
        default=None, max_length=10_000, description="Its title, which is the subject when it is sent as mail."
    )
    html_content: JinjaSource = Field(
        min_length=1, max_length=MAX_SOURCE, description="The document in HTML; values of variables are escaped."
    )
    text_content: JinjaSource | None = Field(
        default=None, max_length=MAX_SOURCE, description="The document as plain text, for mail programs without HTML."
    )
    variable_schema: JsonSchema = Field(
        default={}, description="JSON Schema the variables must meet; `{}` accepts any."
    )


TEMPLATE = Kind(
    name="template",
    plural="templates",
    spec=TemplateSpec,
    name_pattern=r"^[a-z][a-z0-9_-]*$",
    namespace_pattern=r"^[a-z][a-z0-9_-]*$",
    actions=("create", "read", "update", "delete", "render", "send"),
    withheld=("send",),
    discover="render",
    description="Documents with variables, for mails and notifications.",
)
