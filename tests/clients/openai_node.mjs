// What Node programs do with the `openai` package. Arguments: the folder of node_modules, the base URL. Prints one JSON object.
import { createRequire } from "node:module";
import path from "node:path";

const [modules, baseURL] = process.argv.slice(2);
const require = createRequire(path.join(modules, "anchor.js"));
const OpenAI = require("openai").default;
const { zodResponseFormat } = require("openai/helpers/zod");
const { z } = require("zod");

const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Convert 5 km to m." }];
const tools = [
  {
    type: "function",
    function: {
      name: "convert",
      parameters: {
        type: "object",
        properties: { value: { type: "integer", minimum: 0, maximum: 99 }, unit: { enum: ["m", "km"] } },
        required: ["value", "unit"],
        additionalProperties: false,
      },
    },
  },
];
const found = {};

const whole = await client.chat.completions.create({ model: "demo", messages, temperature: 0 });
found.chat = whole.choices[0].message.content;

let streamed = "";
const stream = await client.chat.completions.create({
  model: "demo", messages, temperature: 0, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  if (chunk.usage) found.streamUsage = chunk.usage.completion_tokens;
}
found.streamed = streamed;
found.usage = whole.usage.completion_tokens;

const completion = await client.completions.create({ model: "demo", prompt: "Convert 5", max_tokens: 4, temperature: 0 });
found.completion = completion.choices[0].finish_reason;

const called = await client.chat.completions.create({
  model: "demo", messages, tools, tool_choice: "required", parallel_tool_calls: false, max_tokens: 80,
});
found.call = JSON.parse(called.choices[0].message.tool_calls[0].function.arguments);
found.callName = called.choices[0].message.tool_calls[0].function.name;

const runner = client.chat.completions.stream({
  model: "demo", messages, tools, tool_choice: "required", parallel_tool_calls: false, max_tokens: 80,
});
const final = await runner.finalChatCompletion();
found.streamedCall = JSON.parse(final.choices[0].message.tool_calls[0].function.arguments);

const Answer = z.object({ value: z.number().int().min(0).max(99999), unit: z.enum(["m", "cm"]) });
const parsed = await client.chat.completions.parse({
  model: "demo", messages, max_tokens: 80, response_format: zodResponseFormat(Answer, "answer"),
});
found.parsed = parsed.choices[0].message.parsed;

const response = await client.responses.create({ model: "demo", input: "Convert 5 km to m.", temperature: 0 });
found.response = response.output_text;
found.events = [];
let fromEvents = "";
for await (const event of await client.responses.create({
  model: "demo", input: "Convert 5 km to m.", temperature: 0, stream: true,
})) {
  found.events.push(event.type);
  if (event.type === "response.output_text.delta") fromEvents += event.delta;
}
found.responseStreamed = fromEvents;

try {
  await client.chat.completions.create({ model: "nobody", messages });
} catch (error) {
  found.error = { status: error.status, code: error.code, name: error.constructor.name };
}
console.log(JSON.stringify(found));
