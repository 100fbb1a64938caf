"""Where something stands that pydantic refuses, in the words of who sent it."""

import pytest
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from sinas_server.kit.places import place_in


class Item(BaseModel):
    name: str
    size: int | list[int] = 0
    tags: dict[str, int] = {}
    odd: int = Field(default=0, alias="o/d")


GIVEN = TypeAdapter(dict[str, str | list[Item]])


@pytest.mark.parametrize(
    ("given", "places"),
    [
        ({"a": [{}]}, {("a",), ("a", 0, "name")}),
        ({"a": [{"name": "x"}, {"name": 7}]}, {("a",), ("a", 1, "name")}),
        ({"a": [{"name": "x", "size": "big"}]}, {("a",), ("a", 0, "size")}),
        ({"a": [{"name": "x", "size": [1, "big"]}]}, {("a",), ("a", 0, "size"), ("a", 0, "size", 1)}),
        ({"a": [{"name": "x", "tags": {"list[int]": "x"}}]}, {("a",), ("a", 0, "tags", "list[int]")}),
        ({"a": [{"name": "x", "o/d": "x"}]}, {("a",), ("a", 0, "o/d")}),
        ({"a": 7}, {("a",)}),
        ({1: "x"}, {(1, "[key]")}),
    ],
)
def test_it_names_fields_and_no_types(given: object, places: set[tuple[str | int, ...]]) -> None:
    with pytest.raises(ValidationError) as refused:
        GIVEN.validate_python(given, strict=True)
    found = {place_in(given, item["loc"], missing=item["type"] == "missing") for item in refused.value.errors()}
    assert found == places
