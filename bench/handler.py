"""The function that both sides run."""

from pydantic import JsonValue

CODE = "def handler(input_data, context):\n    return {'sum': input_data['a'] + 1}\n"
INPUT: dict[str, JsonValue] = {"a": 1}
RESULT: dict[str, JsonValue] = {"sum": 2}
