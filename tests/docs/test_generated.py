"""Generated pages are what the code says, and say something about everything."""

from scripts.docs import __main__ as docs
from scripts.docs.settings import page
from sinas_server.settings import Settings, variables


def test_generated_pages_are_current() -> None:
    assert docs.stale() == [], "run `make docs`"


def test_every_variable_of_every_setting_has_a_described_row() -> None:
    rows = page().splitlines()
    for name, field in Settings.model_fields.items():
        assert field.description
        assert field.description.endswith("."), f"{name}: a description is a sentence"
        for variable in variables(name):
            assert [row for row in rows if row.startswith("| `") and f"`{variable}`" in row.split(" | ")[0]]
