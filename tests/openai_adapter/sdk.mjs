// The official SDK of OpenAI for JavaScript, unmodified, against the adapter:
//   node sdk.mjs <path of the SDK> <base URL> <token>
// Prints one JSON object with what it saw.
const [, , path, baseURL, apiKey] = process.argv
const { default: OpenAI } = await import(path)
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 })
const seen = {}

seen.models = []
for await (const model of client.models.list()) seen.models.push(model.id)
seen.model = (await client.models.retrieve("main/fake-large")).id

const messages = [{ role: "user", content: "Hello" }]
const answer = await client.chat.completions.create({ model: "main/fake-large", messages })
seen.text = answer.choices[0].message.content
seen.tokens = answer.usage.total_tokens

const stream = await client.chat.completions.create({
  model: "main/fake-large",
  messages,
  stream: true,
  stream_options: { include_usage: true },
})
seen.streamed = ""
for await (const chunk of stream) {
  seen.streamed += chunk.choices[0]?.delta?.content ?? ""
  if (chunk.usage) seen.streamedTokens = chunk.usage.total_tokens
}

const tools = [{ type: "function", function: { name: "weather", parameters: { type: "object", properties: {} } } }]
const called = await client.chat.completions
  .stream({ model: "main/fake-large", messages: [{ role: "user", content: "weather" }], tools })
  .finalChatCompletion()
seen.call = called.choices[0].message.tool_calls.map((call) => [call.id, call.function.name, call.function.arguments])

const { data, response } = await client.chat.completions.create({ model: "default/helper", messages }).withResponse()
seen.agent = data.choices[0].message.content
seen.chat = response.headers.get("x-chat-id")

const first = await client.responses.create({ model: "main/fake-large", input: "Hello" })
seen.response = first.output_text
const events = await client.responses.create({
  model: "main/fake-large",
  input: "More",
  previous_response_id: first.id,
  stream: true,
})
for await (const event of events) seen.lastEvent = event.type

const embedded = await client.embeddings.create({ model: "main/embedder", input: ["one", "two"], dimensions: 3 })
seen.vectors = embedded.data.map((item) => item.embedding.length)

try {
  await client.chat.completions.create({ model: "no-such-model/x", messages })
} catch (error) {
  seen.error = [error.constructor.name, error.status, error.code, error.param]
}
try {
  await new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 }).models.list()
} catch (error) {
  seen.denied = [error.constructor.name, error.status]
}
console.log(JSON.stringify(seen))
