/**
 * Conversations as JSON. What is read comes from anywhere: only fields that are known are taken, with the types that
 * they have, and ids are given anew.
 *
 * { "format": "axk1 conversations", "version": 1, "conversations": [...] } as the page writes it; or one conversation
 * of `axk1 chat` (/save): { "system", "think", "budget", "messages" }.
 */

import { writeCall } from "./calls.js";
import { create, newId, titleOf } from "./conversation.js";
import { SETTINGS } from "./preferences.js";

const FORMAT = "axk1 conversations";
const STATES = ["done", "length", "stopped", "lost", "failed"];
const MOST_NODES = 20_000;

/** The text of a file with these conversations. */
export function write(conversations) {
  return `${JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 2)}\n`;
}

/** The conversations of a file; throws where it is none. */
export function read(text) {
  const value = JSON.parse(text);
  if (value?.format === FORMAT && Array.isArray(value.conversations)) return value.conversations.map(readConversation);
  if (Array.isArray(value?.messages)) return [readSaved(value)];
  throw new Error("no conversations");
}

function readConversation(value) {
  if (!Array.isArray(value?.nodes) || value.nodes.length > MOST_NODES) throw new Error("no messages");
  const conversation = create(readSettings(value.settings));
  const ids = new Map(value.nodes.map((node) => [String(node?.id), newId()]));
  conversation.nodes = value.nodes.map((node) => readNode(node, ids));
  const first = conversation.nodes.find((node) => node.role === "user");
  conversation.title = string(value.title) || titleOf(first?.content ?? "");
  conversation.named = value.named === true;
  conversation.created = number(value.created) ?? conversation.created;
  conversation.updated = number(value.updated) ?? conversation.updated;
  conversation.leaf = ids.get(String(value.leaf)) ?? conversation.nodes.at(-1)?.id ?? null;
  return conversation;
}

function readNode(value, ids) {
  const node = {
    id: ids.get(String(value?.id)),
    parent: ids.get(String(value?.parent)) ?? null,
    role: value?.role === "assistant" ? "assistant" : "user",
    content: string(value?.content),
    created: number(value?.created) ?? Date.now(),
    edited: value?.edited === true,
  };
  return node.role === "assistant" ? { ...node, ...readAnswer(value) } : node;
}

function readAnswer(value) {
  return {
    reasoning: string(value.reasoning),
    model: string(value.model),
    state: STATES.includes(value.state) ? value.state : "lost",
    error: string(value.error),
    asked: {
      ...readNumbers(value.asked),
      think: value.asked?.think === true,
      budget: number(value.asked?.budget) ?? -1,
    },
    seed: string(value.seed),
    usage: numbers(value.usage, ["prompt", "cached", "completion", "reasoning"]),
    seconds: numbers(value.seconds, ["first", "thinking", "total"]),
  };
}

function readSaved(value) {
  const system = string(value.system);
  const conversation = create({ ...SETTINGS, system });
  for (const message of value.messages) {
    const content = [string(message?.content), ...readCalls(message?.tool_calls)].filter(Boolean).join("\n");
    const node = readNode({ ...message, content, state: "done", reasoning: message?.reasoning_content }, new Map());
    Object.assign(node, { id: newId(), parent: conversation.leaf });
    conversation.nodes.push(node);
    conversation.leaf = node.id;
  }
  conversation.title = titleOf(conversation.nodes[0]?.content ?? "");
  return conversation;
}

/** The calls of a message, as text: the page shows them, and runs none. */
function readCalls(calls) {
  const functions = Array.isArray(calls) ? calls.map((call) => call?.function) : [];
  return functions.filter((each) => string(each?.name)).map((each) => writeCall(each.name, each.arguments ?? {}));
}

function readSettings(value) {
  return { ...SETTINGS, ...readNumbers(value), system: string(value?.system) };
}

function readNumbers(value) {
  return Object.fromEntries(
    ["temperature", "top_p", "max_tokens", "seed"].map((name) => [name, number(value?.[name])]),
  );
}

function numbers(value, names) {
  return Object.fromEntries(names.map((name) => [name, number(value?.[name]) ?? 0]));
}

function number(value) {
  return Number.isFinite(value) ? value : null;
}

function string(value) {
  return typeof value === "string" ? value : "";
}
