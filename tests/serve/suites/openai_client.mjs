// The official client of npm, unmodified: chats, streams, tools, structured outputs, responses, errors.
// node openai_client.mjs, with AXK1_URL set, from a folder whose node_modules has openai and zod.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const require = createRequire(join(process.cwd(), "here.js"));
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const { OpenAI, BadRequestError, NotFoundError } = await load("openai");

const client = new OpenAI({ baseURL: `${process.env.AXK1_URL}/v1`, apiKey: "none", maxRetries: 0 });
const model = "axk1";
const user = (content) => [{ role: "user", content }];
const schema = {
  type: "object",
  properties: { setup: { type: "string" }, punchline: { type: "string" } },
  required: ["setup", "punchline"],
  additionalProperties: false,
};
const parameters = { type: "object", properties: { city: { type: "string" } } };
const tools = ["weather", "clock"].map((name) => ({ type: "function", function: { name, parameters } }));
const flat = ["weather", "clock"].map((name) => ({ type: "function", name, parameters, strict: false }));

const whole = await client.chat.completions.create({ model, messages: user("hello"), reasoning_effort: "low" });
assert.match(whole.choices[0].message.content, /^Hello there!/);
assert.equal(whole.choices[0].message.reasoning_content, "Let me think.");

let text = "";
const stream = await client.chat.completions.create({
  model,
  messages: user("hello"),
  stream: true,
  stream_options: { include_usage: true },
});
let usage = null;
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, whole.choices[0].message.content);
assert.ok(usage.completion_tokens > 5);

const runner = client.chat.completions.stream({ model, messages: user("look twice"), tools });
const finished = await runner.finalChatCompletion();
const calls = finished.choices[0].message.tool_calls;
assert.deepEqual(calls.map((call) => call.function.name), ["weather", "clock"]);
assert.deepEqual(JSON.parse(calls[0].function.arguments), { city: "서울", days: [1, 2] });
assert.equal(finished.choices[0].finish_reason, "tool_calls");

const parsed = await client.chat.completions.parse({
  model,
  messages: user("joke"),
  response_format: { type: "json_schema", json_schema: { name: "joke", schema, strict: true } },
});
assert.ok(JSON.parse(parsed.choices[0].message.content).punchline);

const response = await client.responses.create({ model, input: "hello" });
assert.equal(response.output_text, text);
const events = client.responses.stream({ model, input: "look twice", tools: flat, reasoning: { effort: "low" } });
const kinds = new Set();
for await (const event of events) kinds.add(event.type);
const final = await events.finalResponse();
assert.deepEqual(final.output.map((item) => item.type), ["reasoning", "message", "function_call", "function_call"]);
assert.ok(kinds.has("response.function_call_arguments.delta") && kinds.has("response.output_text.delta"));

const completion = await client.completions.create({ model, prompt: "hello", max_tokens: 4, echo: true, logprobs: 1 });
assert.ok(completion.choices[0].text.startsWith("hello"));
assert.ok((await client.models.list()).data.some((each) => each.id === model));
await assert.rejects(client.chat.completions.create({ model, messages: user("hello"), n: 99 }), BadRequestError);
await assert.rejects(client.chat.completions.create({ model: "gpt", messages: user("hello") }), NotFoundError);
console.log("openai for Node: all right");
