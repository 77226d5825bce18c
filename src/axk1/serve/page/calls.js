/** Tool calls in an answer: blocks between tags, as the chat template writes them. The page runs none of them. */

import { h } from "./dom.js";
import { t } from "./i18n.js";

const OPEN = "<tool_call>";
const CLOSE = "</tool_call>";

/** The text without its calls, and these: { name, arguments }. What is no call stays text; while the answer is being
 * written its end is held back where a call begins. */
export function splitCalls(content, writing) {
  const calls = [];
  let text = "";
  let rest = content;
  for (let at = rest.indexOf(OPEN); at >= 0; at = rest.indexOf(OPEN)) {
    const found = readCall(rest.slice(at + OPEN.length));
    if (!found && writing) return { text: text + rest.slice(0, at), calls };
    const end = found ? at : at + OPEN.length;
    text += rest.slice(0, end);
    if (found) calls.push(found.call);
    rest = found ? found.rest : rest.slice(end);
  }
  return { text: text + (writing ? rest.slice(0, rest.length - begun(rest)) : rest), calls };
}

/** Characters at the end of `text` that may become a tag. */
function begun(text) {
  for (let size = OPEN.length - 1; size > 0; size--) if (text.endsWith(OPEN.slice(0, size))) return size;
  return 0;
}

/** The call that `text` begins with; a closing tag may also stand within one of its strings. */
function readCall(text) {
  for (let at = text.indexOf(CLOSE); at >= 0; at = text.indexOf(CLOSE, at + 1)) {
    const call = parseCall(text.slice(0, at));
    if (call) return { call, rest: text.slice(at + CLOSE.length) };
  }
  return null;
}

function parseCall(json) {
  try {
    const value = JSON.parse(json);
    return typeof value?.name === "string" ? { name: value.name, arguments: value.arguments ?? {} } : null;
  } catch {
    return null;
  }
}

/** A call as the chat template writes it. */
export function writeCall(name, args) {
  return `${OPEN}\n${JSON.stringify({ name, arguments: args })}\n${CLOSE}`;
}

/** The calls of an answer, each folded under its name. */
export class Calls {
  element = h("div", { class: "calls" });
  #shown = 0;

  /** Shows `calls`; those that are there stay as they are, unless there are fewer now. */
  set(calls) {
    if (calls.length < this.#shown) this.element.replaceChildren();
    this.#shown = calls.length;
    this.element.append(...calls.slice(this.element.childElementCount).map(draw));
  }
}

function draw({ name, arguments: args }) {
  const summary = h("summary", {}, h("span", { class: "label" }, t("call", { name })));
  return h("details", { class: "fold" }, summary, h("pre", { class: "arguments" }, JSON.stringify(args, null, 2)));
}
