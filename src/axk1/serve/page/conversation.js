/**
 * A conversation is a tree: an edited question or another answer stands beside the first one, and nothing is lost.
 *
 * { id, title, named, created, updated, settings, leaf, nodes: [{ id, parent, role, content, reasoning, state, ... }] }
 * `leaf` is the last message of the branch that is shown. `state` of an answer: running, done, length (it was cut off),
 * stopped (by the user), lost (the connection ended), failed (`error` says why).
 */

const TITLE_LENGTH = 60;

/** A new random name; also where crypto.randomUUID is missing, as over plain HTTP. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** An empty conversation. */
export function create(settings) {
  const now = Date.now();
  return {
    id: newId(),
    title: "",
    named: false,
    created: now,
    updated: now,
    settings: { ...settings },
    leaf: null,
    nodes: [],
  };
}

/** The message with this id. */
export function find(conversation, id) {
  return conversation.nodes.find((node) => node.id === id);
}

/** The messages that are shown, from the first to the leaf. */
export function path(conversation, leaf = conversation.leaf) {
  const byId = new Map(conversation.nodes.map((node) => [node.id, node]));
  const nodes = [];
  for (let node = byId.get(leaf); node && !nodes.includes(node); node = byId.get(node.parent)) nodes.unshift(node);
  return nodes;
}

/** The versions of a message: all that follow the same one, in the order in which they came. */
export function versions(conversation, node) {
  return conversation.nodes.filter((other) => other.parent === node.parent);
}

/** Adds a message below `parent` (an id, or null for the first) and shows it. */
export function add(conversation, parent, role, fields) {
  const node = { id: newId(), parent, role, content: "", created: Date.now(), edited: false, ...fields };
  conversation.nodes.push(node);
  conversation.leaf = node.id;
  conversation.updated = Date.now();
  if (!conversation.title && role === "user") conversation.title = titleOf(node.content);
  return node;
}

/** Shows the branch that goes through `node`, down to the newest message below it. */
export function show(conversation, node) {
  let leaf = node;
  for (let next = node; next; next = conversation.nodes.findLast((other) => other.parent === leaf.id)) leaf = next;
  conversation.leaf = leaf.id;
}

/** The messages of a request whose answer will be `node`. */
export function requestMessages(conversation, node) {
  const { system } = conversation.settings;
  const turns = path(conversation, node.parent).map(({ role, content, reasoning }) =>
    role === "assistant" ? { role, content, reasoning_content: reasoning ?? "" } : { role, content },
  );
  return [...(system ? [{ role: "system", content: system }] : []), ...turns];
}

/** A title from the first line of a question. */
export function titleOf(text) {
  const line = text.trim().split("\n")[0];
  const characters = [...line];
  return characters.length > TITLE_LENGTH ? `${characters.slice(0, TITLE_LENGTH).join("").trimEnd()}…` : line;
}

/** Whether the conversation has all the words of `query` in its title or its messages. */
export function matches(conversation, query) {
  const text = [conversation.title, ...conversation.nodes.map((node) => node.content)].join("\n").toLowerCase();
  return query
    .toLowerCase()
    .split(/\s+/)
    .every((word) => text.includes(word));
}
