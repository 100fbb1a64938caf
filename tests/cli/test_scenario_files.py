"""Scenario files and recordings as files: mistakes with their lines, and the same bytes for the same recording."""

import json
from pathlib import Path

import pytest
from pydantic import JsonValue

from sinas_server.cli.agent_tests.read import read_all
from sinas_server.cli.agent_tests.recording import RecordingError, dumps, load

GOOD = "name: A\nagent: shop/bot\nturns:\n  - user: Hi\n"


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("", 1, "must be a mapping"),
        ("- a\n", 1, "must be a mapping"),
        ("name: [\n", 2, "not valid YAML"),
        ("agent: shop/bot\nturns: [{user: Hi}]\n", 1, "name: Field required"),
        (GOOD.replace("shop/bot", "bot"), 2, "agent: String should match pattern"),
        (GOOD + "    expect: {anser: Hi}\n", 5, "turns[0].expect.anser: is not known"),
        (GOOD + "    expect:\n      answer:\n        regex: '('\n", 7, "turns[0].expect.answer.regex: not a regular"),
        (GOOD + "    expect:\n      answer: {json_schema: {type: 7}}\n", 6, "turns[0].expect.answer.json_schema: "),
        (GOOD + "  - {}\n", 5, "turns[1].user: Field required"),
        (GOOD + "turns: []\n", 5, "turns: is given twice"),
        (GOOD + "    expect:\n      status: done\n", 6, "turns[0].expect.status: Input should be 'completed'"),
        (
            GOOD + "    expect:\n      tool_calls:\n        - tool: a/b\n          arguments: x\n",
            8,
            "arguments: Input should be a valid",
        ),
        (GOOD.replace("turns:\n  - user: Hi\n", "turns: []\n"), 3, "turns: List should have at least 1 item"),
    ],
)
def test_a_mistake_has_its_line_and_reason(tmp_path: Path, text: str, line: int, reason: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    read = read_all(file)
    assert read.scenarios == []
    assert any(str(mistake).startswith(f"{file}:{line}: ") and reason in mistake.reason for mistake in read.mistakes), (
        read.mistakes
    )


def test_folders_are_searched_and_names_are_unique(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.yaml", "a.yml", "deep/c.yaml"):
        (tmp_path / name).write_text(GOOD.replace("name: A", f"name: {Path(name).stem}"))
    read = read_all(tmp_path)
    assert [found.scenario.name for found in read.scenarios] == ["a", "b", "c"]
    assert (read.mistakes, read.skipped) == ([], [])
    (tmp_path / "b.yaml").write_text(GOOD.replace("name: A", "name: a"))
    (mistake,) = read_all(tmp_path).mistakes
    assert "is the name of" in str(mistake) and mistake.file == tmp_path / "b.yaml"


def test_other_files_of_a_folder_are_skipped(tmp_path: Path) -> None:
    others = {"sinas.yaml": "functions:\n  - code: !file f.py\n", "empty.yml": "", "list.yaml": "- a\n"}
    for name, text in {**others, "deep.yaml": "turns: []\n", "typo.yaml": "agent: a/b\nturn: []\n"}.items():
        (tmp_path / name).write_text(text)
    read = read_all(tmp_path)
    assert read.skipped == [tmp_path / name for name in sorted(others)]
    assert {mistake.file.name for mistake in read.mistakes} == {"deep.yaml", "typo.yaml"}
    assert read_all(tmp_path / "list.yaml").mistakes != []


def exchange(*texts: str) -> dict[str, JsonValue]:
    messages: list[JsonValue] = [{"role": "user", "text": text} for text in texts]
    tools: dict[str, JsonValue] = {"look": {"description": "Looks.", "parameters": {}}}
    asked: dict[str, JsonValue] = {"model": "m", "settings": {"temperature": 0.7}, "tools": tools, "messages": messages}
    return {"asked": asked, "said": {"text": f"after {texts[-1]}: Grüße"}}


def test_a_recording_comes_back_as_it_was_and_repeats_nothing(tmp_path: Path) -> None:
    exchanges = [exchange("a"), exchange("a", "b"), exchange("x"), exchange("a", "b", "c")]
    file = tmp_path / "a.recording.json"
    file.write_text(dumps("A", exchanges))
    assert load(file) == exchanges
    assert dumps("A", exchanges) == file.read_text()
    kept = json.loads(file.read_text())
    assert [each.get("after") for each in kept["exchanges"]] == [None, 0, None, 1]
    assert len(kept["tools"]) == 1
    assert file.read_text().count('"text": "a"') == 1
    assert "Grüße" in file.read_text()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Invalid JSON"),
        ('{"version": 2, "scenario": "A", "exchanges": []}', "version"),
        (
            '{"version": 1, "scenario": "A", "exchanges": [{"model": "m", "messages": [], "said": {}, "after": 0}]}',
            "refers",
        ),
    ],
)
def test_what_is_no_recording(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "a.recording.json"
    file.write_text(text)
    with pytest.raises(RecordingError, match=reason):
        load(file)
