"""Executing functions over HTTP, in the real sandbox."""

from typing import Any

from sinas_server.kernel.job import Worker
from tests.functions.conftest import Declare
from tests.people import Person


async def test_a_function_runs_and_its_result_comes_back(worker: Worker[Any], user: Person, declare: Declare) -> None:
    await declare("double", "def handler(input_data, context):\n    return {'n': input_data['n'] * 2}\n")
    answer = await user.http.post("/functions/default/double/execute", json={"input": {"n": 21}})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body == {"status": "success", "execution_id": body["execution_id"], "result": {"n": 42}, "error": None}
