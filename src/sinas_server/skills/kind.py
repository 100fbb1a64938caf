"""The skill kind: a document of instructions, and when it helps."""

from pydantic import Field

from sinas_server.kernel.kind import Kind, Spec


class SkillSpec(Spec):
    """What a user declares about a skill."""

    description: str = Field(
        min_length=1, description="What it helps with; the model decides by this when to read the skill."
    )
    content: str = Field(min_length=1, description="The instructions, in Markdown.")


SKILL = Kind(
    name="skill",
    plural="skills",
    spec=SkillSpec,
    discover="read",
    description="Documents of instructions for agents: part of the system prompt, or read when they are needed.",
)
