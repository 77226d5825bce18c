/** An answer on its way: asks the server and puts what comes into the conversation's message. */

import { answerNow, Refused, streamChat } from "./api.js";
import { requestMessages } from "./conversation.js";

const TICK = 5000;
const SILENT_TICKS = 4; // the server sends a comment every second

/** The body of the request that an answer's message describes. */
export function makeBody(conversation, node, model) {
  const { temperature, top_p, max_tokens, seed, think, budget } = node.asked;
  const given = Object.entries({ temperature, top_p, max_tokens }).filter(([, value]) => value !== null);
  return {
    model,
    messages: requestMessages(conversation, node),
    ...Object.fromEntries(given),
    seed,
    chat_template_kwargs: { enable_thinking: think },
    ...(think && budget >= 0 && { thinking_budget: budget }),
  };
}

/** A seed that a number in JSON holds, so that the same request can be sent again. */
export function drawSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}

/**
 * Runs once. `changed` is called when the message has changed, `ended` when it will not change any more.
 * An answer that is asked for again with its seed is the same one: text that is there already stays until it is passed.
 */
export class Reply {
  phase = "waiting"; // then reasoning, answering
  #abort = new AbortController();
  #fresh = { reasoning: "", content: "" };
  #begun = performance.now();
  #first = 0;
  #silent = 0;
  #finish = null;

  constructor(conversation, node, changed, ended) {
    Object.assign(this, { conversation, node, changed, ended });
    this.#before = { reasoning: node.reasoning, content: node.content };
  }

  #before;

  /** Asks, and follows the stream to its end; never throws. */
  async run(model) {
    const watch = setInterval(() => ++this.#silent >= SILENT_TICKS && this.#abort.abort("lost"), TICK);
    Object.assign(this.node, { state: "running", error: "" });
    this.changed(this);
    try {
      const body = makeBody(this.conversation, this.node, model);
      for await (const event of streamChat(body, this.#abort.signal, () => (this.#silent = 0))) this.#take(event);
      this.#end(this.#finish ?? "lost");
    } catch (error) {
      this.#fail(error);
    } finally {
      clearInterval(watch);
    }
  }

  /** Ends the answer where it is. */
  stop() {
    this.#abort.abort("stopped");
  }

  /** Ends the reasoning: the model goes on with its answer. A reply that has just ended needs nothing. */
  async answerNow() {
    if (this.id) await answerNow(this.id).catch(() => {});
  }

  /** Seconds since the request was sent. */
  get seconds() {
    return (performance.now() - this.#begun) / 1000;
  }

  #take(event) {
    if (event.seed) {
      this.id = event.id;
      this.node.seed = event.seed;
    }
    if (event.usage) this.node.usage = readUsage(event.usage);
    const choice = event.choices?.[0];
    if (!choice) return;
    this.#grow("reasoning", choice.delta.reasoning);
    this.#grow("content", choice.delta.content);
    if (choice.finish_reason) this.#finish = choice.finish_reason === "length" ? "length" : "done";
    this.changed(this);
  }

  #grow(field, text) {
    if (!text) return;
    const { node } = this;
    if (!this.#first) node.seconds.first = this.#first = this.seconds;
    if (field === "content" && this.phase === "reasoning") node.seconds.thinking = this.seconds - this.#first;
    this.phase = field === "content" ? "answering" : "reasoning";
    this.#fresh[field] += text;
    if (!this.#before[field].startsWith(this.#fresh[field])) node[field] = this.#fresh[field];
  }

  #fail(error) {
    if (this.#abort.signal.aborted) return this.#end(this.#abort.signal.reason);
    if (!(error instanceof Refused)) return this.#end("lost");
    this.node.error = error.message;
    this.refused = error;
    this.#end("failed");
  }

  #end(state) {
    const { node } = this;
    if (this.phase === "reasoning") node.seconds.thinking = this.seconds - this.#first;
    if (state === "done" || state === "length") Object.assign(node, this.#fresh);
    node.seconds.total = this.seconds;
    node.state = state;
    this.ended(this);
  }
}

function readUsage({ prompt_tokens, completion_tokens, prompt_tokens_details, completion_tokens_details }) {
  return {
    prompt: prompt_tokens,
    completion: completion_tokens,
    cached: prompt_tokens_details.cached_tokens,
    reasoning: completion_tokens_details.reasoning_tokens,
  };
}
