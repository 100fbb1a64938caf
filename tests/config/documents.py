"""Documents for the tests of configuration, and how they are sent."""

from typing import Any, cast

import httpx2

Json = dict[str, Any]
FULL = """
apiVersion: sinas.co/v1
kind: SinasConfig
metadata:
  name: shop
  description: everything there is
  labels: {team: support}
spec:
  llmProviders:
    - name: main
      type: openai
      apiKey: sk-first
      endpoint: https://llm.example/v1
      models: [large, small]
  functions:
    - name: lookup-order
      namespace: support
      description: Finds an order.
      timeout: 20
      code: |
        def handler(input_data, context):
            return {"price": "$${AMOUNT} ${lower}"}
      inputSchema:
        type: object
        properties:
          orderId: {type: string}
          aFirst: {type: integer}
  agents:
    - name: desk
      namespace: support
      llmProviderName: main
      maxTokens: 200
      systemPrompt: |
        You help {{ customer }}.
        Be kind.
      enabledFunctions: [support/lookup-order]
      enabledAgents: [desk]
      functionParameters:
        support/lookup-order: {shopId: {value: s1, locked: true}}
      hooks:
        onUserMessage:
          - {function: support/lookup-order, async: true, onTimeout: block}
      systemTools:
        - codeExecution
        - {name: databaseIntrospection, connections: [built-in]}
    - {name: desk, description: "the one that desk calls", isDefault: true}
"""


def document(spec: str, frame: str = "") -> str:
    """A document with this `spec`, indented by two."""
    return f"apiVersion: sinas.co/v1\nkind: SinasConfig\n{frame}spec:\n{spec}"


async def apply(http: httpx2.AsyncClient, config: str, **more: bool) -> Json:
    answer = await http.post("/api/v1/config/apply", json={"config": config, **more})
    assert answer.status_code == 200, answer.text
    return cast(Json, answer.json())


async def validate(http: httpx2.AsyncClient, config: str) -> Json:
    answer = await http.post("/api/v1/config/validate", json={"config": config})
    assert answer.status_code == 200, answer.text
    return cast(Json, answer.json())


async def export(http: httpx2.AsyncClient, **query: str) -> str:
    answer = await http.get("/api/v1/config/export", params=query)
    assert answer.status_code == 200, answer.text
    return answer.text
