/** The server's addresses that the page asks; all on the origin that the page came from. */

import { getKey } from "./preferences.js";

const CHAT = "/v1/chat/completions";
const SLICE = 8; // milliseconds after which events that have piled up let the page draw

/** What the server refused, in its own words. */
export class Refused extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

async function ask(path, options = {}) {
  const key = getKey();
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const body = await response.json().catch(() => null);
  const message = body?.error?.message ?? response.statusText;
  return new Refused(response.status, String(message), Number(response.headers.get("retry-after")) || null);
}

/** The model: `id`, `max_model_len`, `exact`, `think`. */
export async function getModel() {
  const models = await (await ask("/v1/models")).json();
  return models.data[0];
}

/** Ends the reasoning of the running reply `id`. */
export async function answerNow(id) {
  await ask(`${CHAT}/${encodeURIComponent(id)}/answer`, { method: "POST" });
}

/**
 * Asks for a reply and gives its events: first `{ id, seed }` from the headers, then the chunks.
 * `heard` is called with everything that arrives, comments included.
 */
export async function* streamChat(body, signal, heard) {
  const asked = { ...body, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };
  const response = await ask(CHAT, { method: "POST", body: JSON.stringify(asked), signal });
  yield { id: response.headers.get("x-request-id"), seed: response.headers.get("x-axk1-seed") };
  for await (const data of readEvents(response.body, heard)) {
    if (data === "[DONE]") continue; // the end of the stream follows
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refused(500, String(chunk.error.message));
    yield chunk;
  }
}

/** The data of a stream of events. The server's events have one line of data each. */
async function* readEvents(stream, heard) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let begun = performance.now(); ;) {
    const { value, done } = await reader.read();
    if (done) return;
    heard();
    if (performance.now() - begun > SLICE) {
      await nextTask();
      begun = performance.now();
    }
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  }
}

/** Until the browser has had its turn; unlike a timer it is not slowed down in a tab that nobody sees. */
function nextTask() {
  const { port1, port2 } = new MessageChannel();
  return new Promise((resolve) => {
    port1.onmessage = () => (port1.close(), resolve());
    port2.postMessage(null);
  });
}
